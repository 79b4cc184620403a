"""A server under a small memory plan: models take turns, what does not fit is refused, doctor says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEY

LIMIT_BYTES = 2_500_000_000


@pytest.fixture(scope="module")
def small_server(run_server: Any) -> Iterator[Any]:
    with run_server(memory_plan="lean", memory_limit_bytes=str(LIMIT_BYTES)) as running:
        yield running


def test_models_take_turns_and_finish(small_server: Any, photo: bytes) -> None:
    files = {"control_image": ("photo.jpg", photo, "image/jpeg")}
    for _ in range(2):
        small = {"prompt": "a fox", "megapixels": "0.25", "steps": "1"}
        drawn = small_server.post("/v1/flux-depth-dev", data=small, files=files)
        assert drawn.status_code == 200, drawn.text
        assert drawn.headers["content-type"] == "image/jpeg"
    assert small_server.get("/health/ready").json()["memory_plan"] == "lean"


def test_a_picture_that_the_plan_cannot_hold_is_a_400_at_submission(small_server: Any) -> None:
    for path in ("/v1/flux-dev", "/v2/flux-dev"):
        refused = small_server.post(path, json={"prompt": "a fox"})
        assert refused.status_code == 400
        assert "1024x1024 needs more memory" in refused.text
        assert "megapixels" in refused.text


def test_the_log_says_the_plan_in_one_line(small_server: Any) -> None:
    (line,) = [line for line in small_server.log().splitlines() if "memory plan" in line]
    assert "lean: one transformer at a time on the card" in line
    assert KEY not in line


def doctor(tmp_path: Path, weights: Path, *more: str, **settings: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-P", "-m", "server", "doctor", "--json", "--weights", str(weights)]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path), *more],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", **{f"FLUX_{name.upper()}": value for name, value in settings.items()}},
    )
    return done.returncode, json.loads(done.stdout)


def test_doctor_names_card_attention_and_plan(demo_weights: Path, tmp_path: Path) -> None:
    status, findings = doctor(tmp_path, demo_weights)
    by_name = {finding["name"]: finding for finding in findings}
    assert status == 0
    assert {"python", "packages", "torch", "card", "attention", "memory plan", "sqlite", "disk", "port"} <= set(by_name)
    assert "resident: everything stays" in by_name["memory plan"]["text"]


def test_doctor_is_red_where_no_plan_fits(demo_weights: Path, tmp_path: Path) -> None:
    status, findings = doctor(tmp_path, demo_weights, memory_limit_bytes="1000000")
    (plan,) = [finding for finding in findings if finding["name"] == "memory plan"]
    assert status == 1
    assert plan["state"] == "bad"
    assert plan["advice"]
