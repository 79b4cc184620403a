"""The API is what its checked-in description says: schemathesis sends what fits it, what does not, and follows links.

Two of its checks do not fit this dialect and are left out. It asks that whatever fits a schema is accepted, but not
every text is a picture or a URL that may be fetched; and that whatever does not fit is refused, but Segmind's clients
send numbers as text and fields that nobody knows, and that is promised to work.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DUMMY = (str(ROOT / "tests" / "reliability" / "dummy_server.py"),)
KEY = "SG_0123456789abcdef"
DESCRIPTION = ROOT / "openapi.json"
LEFT_OUT = "positive_data_acceptance,negative_data_rejection"


def schemathesis(server: Any, folder: Path, *, examples: int, limit_s: float) -> dict[str, Any]:
    """Schemathesis's report on a server."""
    seed = random.randrange(2**31)
    report = folder / "report.json"
    command = [
        *(sys.executable, "-P", "-m", "schemathesis.cli", "run", str(DESCRIPTION), "--url", server.base),
        *("-H", f"x-api-key: {KEY}", "--max-examples", str(examples), "--seed", str(seed), "--workers", "1"),
        *("--generation-database", "none", "--no-shrink", "--continue-on-failure", "--no-color"),
        *("--max-time", str(limit_s), "--exclude-checks", LEFT_OUT, "--report-json-path", str(report)),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    said: dict[str, Any] = json.loads(report.read_text())
    return {**said, "seed": seed, "text": run.stdout}


def answers(server: Any) -> Counter[tuple[str, str]]:
    """How many answers the server has given, by route and status, by its own count."""
    counted: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "flux_http_requests_total":
                counted[sample.labels["route"], sample.labels["status"]] += int(sample.value)
    return counted


def variable(path: str) -> bool:
    """Whether an operation takes anything, so that its cases can differ."""
    operations = json.loads(DESCRIPTION.read_text())["paths"][path].values()
    return any(operation.get("parameters") or operation.get("requestBody") for operation in operations)


def prove(run_server: Any, folder: Path, *, examples: int, limit_s: float, at_least: int) -> None:
    with run_server(program=DUMMY) as server:
        report = schemathesis(server, folder, examples=examples, limit_s=limit_s)
        counted = answers(server)
        faults = {line for line in server.log().splitlines() if "Traceback" in line or "request failed" in line}
    paths = {path: sum(n for (route, _), n in counted.items() if route == path) for path in map(str, paths_of())}
    broken = {key: n for key, n in counted.items() if key[1].startswith("5") and key[0] != "/health/ready"}
    fewest = min((n, path) for path, n in paths.items() if variable(path))
    statuses: Counter[str] = Counter()
    for (_, status), n in counted.items():
        statuses[status] += n
    links = next((line.strip() for line in report["text"].splitlines() if "API Links" in line), "no links")
    print(
        f"R20: {report['test_cases']['generated']} cases over {report['operations']['tested']} operations in"
        f" {report['running_time']:.0f} s (seed {report['seed']}), fewest {fewest[0]} for {fewest[1]};"
        f" {len(report['failures'])} violations, {len(report['errors'])} errors, server errors {broken};"
        f" answers by status {dict(sorted(statuses.items()))}; {links}"
    )
    assert report["failures"] == report["errors"] == []
    assert report["operations"]["tested"] == report["operations"]["total"] == len(paths)
    assert {name: phase["status"] for name, phase in report["phases"].items() if phase["status"] != "skip"} == {
        "coverage": "success",
        "fuzzing": "success",
        "stateful": "success",
    }
    assert broken == {}
    assert faults == set()
    assert fewest[0] >= at_least or report["running_time"] >= limit_s


def paths_of() -> list[str]:
    return list(json.loads(DESCRIPTION.read_text())["paths"])


def test_the_api_matches_its_description(run_server: Any, tmp_path: Path) -> None:
    prove(run_server, tmp_path, examples=4, limit_s=8, at_least=4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_api_matches_its_description_in_a_thousand_cases_each(run_server: Any, tmp_path: Path) -> None:
    prove(run_server, tmp_path, examples=1000, limit_s=600, at_least=1000)
