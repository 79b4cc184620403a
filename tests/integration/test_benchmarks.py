"""Every benchmark runs on the demo weights and writes a report of its form."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[2]
LIMIT_S = 60
TWO_CORES = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="pins two processes to a core each"
)


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("latency", ["--tiers", "exact"]),
        pytest.param("quality", ["--tiers", "exact,turbo"], marks=pytest.mark.soak),
        pytest.param("load", [], marks=pytest.mark.soak),
        pytest.param("throughput", [], marks=pytest.mark.soak),
        pytest.param("levers", [], marks=pytest.mark.soak),
        pytest.param("cold_start", [], marks=pytest.mark.soak),
        pytest.param("overhead", ["--sides", "server"], marks=pytest.mark.soak),
        pytest.param("polls", [], marks=[TWO_CORES, pytest.mark.soak]),
    ],
)
def test_it_runs_and_reports(benchmark: str, options: list[str], demo_weights: Path, tmp_path: Path) -> None:
    made = run(benchmark, options, demo_weights, tmp_path / "report.json")
    assert made.benchmark == benchmark
    assert made.quick
    assert made.weights == "demo"
    assert made.device == "cpu"


@pytest.mark.soak
@pytest.mark.skipif(find_spec("litserve") is None, reason="needs the bench extra")
def test_the_peers_answer_the_same_bytes(demo_weights: Path, tmp_path: Path) -> None:
    made = run("overhead", [], demo_weights, tmp_path / "report.json", limit_s=300)
    assert {row.side for row in made.rows} == {"bare engine", "server", "litserve", "fastapi"}
    assert {row.clients for row in made.rows} == {1, 4}


def run(benchmark: str, options: list[str], weights: Path, output: Path, limit_s: float = LIMIT_S) -> report.AnyReport:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--weights", str(weights), "--quick", *options]
    subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, check=True, timeout=limit_s, stdout=subprocess.DEVNULL
    )
    return report.REPORT.validate_json(output.read_bytes())
