"""Reports: what is in them, how they are named, that the kept ones and the checked-in schema are true to the code."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import report, suite
from benchmarks.environment import Card, environment
from benchmarks.logs import work_spans
from benchmarks.random_folder import write
from benchmarks.rows import ColdStartRow

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))

ROW = ColdStartRow(
    start=1,
    model="flux-dev",
    listening_s=1,
    live_s=1,
    worker_started_s=1,
    imports_s=1,
    load_s=1,
    warmup_s=1,
    ready_s=1,
    first_request_s=1,
    first_picture_s=1,
)


def options(*, quick: bool = False, save: bool = False, output: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(quick=quick, save=save, output=output)


def a_report(path: Path) -> dict[str, object]:
    report.Run(options(output=path)).finish(report.ColdStartReport, [ROW], weights="demo", device="cpu")
    written: dict[str, object] = json.loads(path.read_text())
    return written


def test_a_report_says_on_what_and_with_what_it_was_measured(tmp_path: Path) -> None:
    written = a_report(tmp_path / "deep" / "report.json")
    assert report.REPORT.validate_python(written).benchmark == "cold_start"
    here = environment()
    assert here.hardware.cores >= 1
    assert here.hardware.processor
    assert {"python", "torch", "diffusers", "transformers", "fastapi"} <= set(here.versions)
    assert here.code.commit is None or len(here.code.commit) == 40


@pytest.mark.parametrize("lost", ["environment", "date", "rows", "load_average_before", "device", "weights"])
def test_a_report_without_one_of_its_parts_is_none(lost: str, tmp_path: Path) -> None:
    written = a_report(tmp_path / "report.json")
    del written[lost]
    with pytest.raises(ValidationError, match=lost):
        report.REPORT.validate_python(written)


def test_a_misspelt_figure_is_refused(tmp_path: Path) -> None:
    written = a_report(tmp_path / "report.json")
    written["rows"][0]["redy_s"] = 1  # type: ignore[index]
    with pytest.raises(ValidationError, match="redy_s"):
        report.REPORT.validate_python(written)


def test_files_are_named_by_benchmark_date_and_machine(tmp_path: Path) -> None:
    one = report.REPORT.validate_python(a_report(tmp_path / "report.json"))
    assert report.file_name(one) == f"cold_start-{one.date:%Y-%m-%d}-cpu.json"
    card = Card(name="NVIDIA H200", memory_bytes=1, power_limit_w=None)
    hardware = one.environment.hardware.model_copy(update={"cards": (card,)})
    on_card = one.model_copy(
        update={"device": "cuda", "environment": one.environment.model_copy(update={"hardware": hardware})}
    )
    assert report.file_name(on_card).endswith("-nvidia-h200.json")


def test_figures_of_quick_runs_are_not_kept() -> None:
    with pytest.raises(SystemExit, match="quick"):
        report.Run(options(quick=True, save=True))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_kept_results_are_reports_of_full_runs(path: Path) -> None:
    kept = report.REPORT.validate_json(path.read_bytes())
    assert not kept.quick
    assert path.name == report.file_name(kept)
    assert kept.environment.code.commit


def test_the_checked_in_schema_is_current() -> None:
    checked_in = json.loads((ROOT / "benchmarks" / "schema.json").read_text("utf-8"))
    assert checked_in == json.loads(json.dumps(report.REPORT.json_schema()))


def test_quality_refuses_random_weights() -> None:
    command = [sys.executable, "-m", "benchmarks.quality", "--weights", "random"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "noise" in refused.stderr
    assert refused.stdout == ""


def test_a_jobs_span_in_the_worker_begins_where_the_log_says(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        '{"event": "job started", "job": "b", "timestamp": "2026-01-01T00:00:02.500000Z"}\n'
        "a line of another program\n"
        '{"event": "job started", "job": "a", "timestamp": "2026-01-01T00:00:01.000000Z"}\n'
        '{"event": "job ended", "job": "a", "timestamp": "2026-01-01T00:00:09.000000Z"}\n'
    )
    first, second = work_spans(log, {"b": 1.0, "a": 1.25})
    assert (first.job, second.job) == ("a", "b")
    assert second.started_s - first.ended_s == pytest.approx(0.25)
    with pytest.raises(LookupError):
        work_spans(log, {"c": 1.0})


def test_a_random_folder_is_one_that_the_server_finds(demo_weights: Path, tmp_path: Path) -> None:
    from weights.completeness import flux_problem
    from weights.demo.transformer import transformer
    from weights.demo.vae import vae
    from weights.full_size import COMPONENTS

    made = []

    def make(component: str) -> object:
        made.append(component)
        if component.startswith("transformer"):
            return transformer(in_channels=64)
        return vae() if component == "vae" else Saved()

    class Saved:
        def save_pretrained(self, folder: Path) -> None:
            assert (folder / "config.json").is_file(), "the demo family's folder was copied"
            (folder / "model.safetensors").touch()

    write(tmp_path, demo_weights, make)
    assert set(made) <= set(COMPONENTS)
    assert flux_problem(tmp_path / "FLUX.1-dev", in_channels=64) is None
    assert [path.name for path in tmp_path.iterdir()] == ["FLUX.1-dev"]


def test_a_suite_runs_on_after_a_failure_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert not suite.ran(("latency", "--weights", "demo", "--tiers", "imagined"))
    assert "invalid names value" in capfd.readouterr().err


def test_suites_name_benchmarks_that_exist() -> None:
    for benchmark in (one for machine in suite.SUITES.values() for one in machine):
        assert (ROOT / "benchmarks" / f"{benchmark[0]}.py").is_file()


def test_the_readmes_table_is_what_the_kept_reports_say() -> None:
    from benchmarks.table import markdown

    assert markdown() in (ROOT / "README.md").read_text("utf-8")


def test_every_benchmark_has_words_for_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import table

    a_report(tmp_path / "one.json")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    said = table.markdown()
    assert "| start 1: ready, first picture | 1.0 s, 1.0 s |" in said
    assert said.count(table.MISSING) == len(table.CARD_ROWS)
    kinds = {kind.model_fields["benchmark"].default for kind in report.Report.__subclasses__()}
    assert set(table.SAYINGS) == kinds
