"""Small jobs in one batch through a whole server: who goes with whom, and what one of them can do to the others."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from proofs.clients import depth
from proofs.waiting import until

DUMMY = str(Path(__file__).with_name("dummy_server.py"))
TOLERANCE = 2
"""Of 255, between a picture in company and alone on the demo weights in float32; see integration/test_together.py."""


def submit(server: Any, prompt: str, *, steps: int = 2, seed: int = 7) -> str:
    """A picture of 64×64."""
    return str(server.submit("flux-depth-dev", depth(prompt, steps, seed=seed, output_format="png")))


def held(server: Any) -> str:
    """A job of another company that keeps the worker busy while others come."""
    running = submit(server, "[step_s=0.15] [fault:slow=0.15]", steps=4)
    until_drawn(server, running)
    return running


def until_drawn(server: Any, job: str) -> None:
    until(lambda: server.status(job)["status"] == "PROCESSING", 20, "the job is drawn")


def cancel(server: Any, job: str) -> None:
    call = [sys.executable, "-P", "-m", "server", "jobs", "cancel", job, "--data-dir", str(server.data_dir)]
    subprocess.run(call, capture_output=True, timeout=60, check=True)


def starts(server: Any, job: str) -> list[int]:
    """How many were drawn together at each of its attempts."""
    return [int(found) for found in re.findall(rf"job started .*?job={job} .*?together=(\d+)", server.log())]


@pytest.fixture(scope="module")
def dummy(run_server: Any) -> Iterator[Any]:
    with run_server(program=(DUMMY,), batching="on") as server:
        yield server


def test_waiting_jobs_are_drawn_four_at_a_time_and_say_so(dummy: Any) -> None:
    first = held(dummy)
    jobs = [submit(dummy, "a fox", seed=seed) for seed in range(6)]
    results = [dummy.finish(job) for job in (first, *jobs)]
    assert [result["status"] for result in results] == ["COMPLETED"] * 7
    assert [result.get("together") for result in results] == [None, 4, 4, 4, 4, 2, 2]
    assert [starts(dummy, job) for job in jobs] == [[4]] * 4 + [[2]] * 2
    assert "flux_jobs_drawn_together_total 6.0" in dummy.get("/metrics").text


@pytest.mark.soak
def test_a_cancelled_mate_costs_the_others_nothing(dummy: Any) -> None:
    held(dummy)
    jobs = [submit(dummy, "[step_s=0.1]", steps=12) for _ in range(3)]
    until_drawn(dummy, jobs[1])
    cancel(dummy, jobs[1])
    assert [dummy.finish(job)["status"] for job in jobs] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [starts(dummy, job) for job in jobs] == [[3]] * 3
    assert re.search(rf"job ended .*?job={jobs[1]} state=cancelled", dummy.log())


def test_a_mate_that_kills_the_worker_costs_the_others_one_attempt_and_fails_alone(dummy: Any) -> None:
    held(dummy)
    jobs = [submit(dummy, prompt) for prompt in ("a fox", "[exit]", "a boat")]
    assert [dummy.finish(job)["status"] for job in jobs] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [starts(dummy, job) for job in jobs] == [[3, 1]] * 3


@pytest.mark.soak
def test_the_demo_weights_draw_in_company_what_they_draw_alone(run_server: Any) -> None:
    with run_server(fault_switches="true", spare_worker="true", batching="on") as server:
        alone = {seed: pixels(server, server.finish(submit(server, f"fox {seed}", seed=seed))) for seed in range(8)}
        held(server)
        jobs = {seed: submit(server, f"fox {seed}", seed=seed) for seed in range(8)}
        results = {seed: server.finish(job) for seed, job in jobs.items()}
        far = max(int(np.abs(pixels(server, result) - alone[seed]).max()) for seed, result in results.items())
        together = [result.get("together") for result in results.values()]
        print(f"drawn together: {together}; at most {far} of 255 from alone")
        assert together == [4] * 8
        assert far <= TOLERANCE
        held(server)
        bad = [submit(server, prompt) for prompt in ("a fox", "[fault:exit]", "a boat", "[fault:unknown]")]
        assert [server.finish(job)["status"] for job in bad] == ["COMPLETED", "FAILED", "COMPLETED", "FAILED"]
        assert [starts(server, job) for job in bad] == [[4, 1]] * 4
        held(server)
        cancelled = [submit(server, "[fault:slow=0.1]", steps=20) for _ in range(2)]
        until_drawn(server, cancelled[1])
        cancel(server, cancelled[1])
        assert [server.finish(job)["status"] for job in cancelled] == ["COMPLETED", "FAILED"]
        assert [starts(server, job) for job in cancelled] == [[2]] * 2
        held(server)
        short = [submit(server, prompt) for prompt in ("a fox", "[fault:out_of_memory]", "a boat")]
        assert [server.finish(job)["status"] for job in short] == ["COMPLETED", "FAILED", "COMPLETED"]
        assert [starts(server, job) for job in short] == [[3]] * 3


def pixels(server: Any, result: dict[str, Any]) -> Any:
    picture = Image.open(io.BytesIO(server.get(result["images"][0]["url"], key=None).content))
    return np.asarray(picture.convert("RGB")).astype(int)
