"""Faults in the engine: what they cost, and what they must not."""

from __future__ import annotations

import base64
import io
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from PIL import Image


def grey_png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


GREY_PNG = grey_png()
READY_LIMIT_S = 3.0
MIB = 2**20


_ENDED = re.compile(r"job ended .*?error=(\S+) job=(\S+) state=(\S+)")


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")


def submit(server: Any, prompt: str = "a fox", *, steps: int = 1) -> str:
    """A picture of 64×64, by default in one step, some 20 ms of work."""
    body = {"prompt": prompt, "control_image": GREY_PNG, "megapixels": "match_input", "num_inference_steps": steps}
    return str(server.submit("flux-depth-dev", body))


def outcomes(server: Any, ids: list[str]) -> Counter[str]:
    """How jobs ended, by their rows' state and error code as the log has it, a moment after the row."""
    for request_id in ids:
        server.finish(request_id)

    def ended() -> dict[str, tuple[str, str]]:
        return {job: (error, state) for error, job, state in re.findall(_ENDED, server.log())}

    until(lambda: ended().keys() >= set(ids), 5, "the log's lines about the ends")
    return Counter(state if error == "None" else error for error, state in map(ended().get, ids))


def ready_after(server: Any, old_pid: int) -> float:
    """Seconds between the end of a worker and the readiness of the next, by the server's own clock."""
    until(lambda: re.search(rf"worker ended .*?pid={old_pid}\b", server.log()), 30, "the worker's end")
    server.wait_ready()
    lines = server.log().splitlines()
    end = next(i for i, line in enumerate(lines) if re.search(rf"worker ended .*?pid={old_pid}\b", line))
    begin = next(i for i, line in enumerate(lines) if i > end and "worker ready" in line)
    return moment(lines[begin]) - moment(lines[end])


def moment(line: str) -> float:
    return datetime.fromisoformat(line.split()[0]).timestamp()


def test_a_job_that_always_kills_the_worker_fails_after_two_attempts_and_harms_no_other(dummy_server: Any) -> None:
    server = dummy_server
    ids = [submit(server) for _ in range(10)]
    poisonous = submit(server, "[exit]")
    ids += [submit(server) for _ in range(10)]
    good = outcomes(server, ids)
    bad = outcomes(server, [poisonous])
    attempts = len(re.findall(rf"job started .*?job={poisonous}", server.log()))
    print(f"R4: {dict(good)} of 20 good jobs; the poisonous one {dict(bad)} after {attempts} attempts")
    assert good == {"succeeded": 20}
    assert (bad, attempts) == ({"worker_crashed": 1}, 2)
    assert all("retry_count" not in server.finish(request_id)["metrics"] for request_id in ids)


def test_a_job_that_kills_the_worker_when_it_is_prepared_costs_the_running_one_a_life_at_most(run_server: Any) -> None:
    """After the death the innocent job runs with nothing beside it."""
    program = (str(Path(__file__).with_name("dummy_server.py")),)
    with run_server(program=program, spare_worker="true", prepare_ahead="on") as server:
        jobs = [submit(server, "[step_s=0.1]", steps=3), submit(server, "[exit when prepared]")]
        assert outcomes(server, jobs) == {"succeeded": 2}
        assert [len(re.findall(rf"job started .*?job={job}", server.log())) for job in jobs] == [2, 1]
        assert 'flux_worker_restarts_total{reason="crashed"} 1.0' in server.get("/metrics").text


def test_out_of_memory_costs_its_job_and_nothing_else(faulty_server: Any) -> None:
    server = faulty_server
    outcomes(server, [submit(server) for _ in range(5)] + [submit(server, "[fault:out_of_memory]") for _ in range(2)])
    outcomes(server, [submit(server)])
    pid = server.worker_pid()
    before = psutil.Process(pid).memory_info().rss
    ids = [submit(server, "a fox [fault:out_of_memory]" if number % 2 else "a fox") for number in range(100)]
    ended = outcomes(server, ids)
    grown = (psutil.Process(pid).memory_info().rss - before) / MIB
    print(f"R6: {dict(ended)}, worker's memory grew by {grown:.1f} MiB")
    assert ended == {"succeeded": 50, "out_of_memory": 50}
    assert server.worker_pid() == pid
    assert grown <= 20


def test_out_of_memory_is_tried_once_more_after_the_caches_are_given_back(faulty_server: Any) -> None:
    server = faulty_server
    outcomes(server, [submit(server)])
    pid = server.worker_pid()
    assert outcomes(server, [submit(server, "a fox [fault:out_of_memory_once]")]) == {"succeeded": 1}
    assert server.worker_pid() == pid


def test_three_jobs_in_a_row_without_memory_restart_the_worker(faulty_server: Any) -> None:
    server = faulty_server
    outcomes(server, [submit(server)])
    server.wait_spare()
    pid = server.worker_pid()
    ended = outcomes(server, [submit(server, "[fault:out_of_memory]") for _ in range(3)])
    assert ended == {"out_of_memory": 3}
    took_s = ready_after(server, pid)
    print(f"restart after three jobs without memory: ready after {took_s:.2f} s")
    assert took_s <= READY_LIMIT_S
    assert outcomes(server, [submit(server)]) == {"succeeded": 1}
    assert server.worker_pid() != pid
    assert 'flux_worker_restarts_total{reason="out_of_memory"} 1.0' in server.get("/metrics").text


def test_a_poisoned_device_gets_no_further_job(faulty_server: Any) -> None:
    server = faulty_server
    outcomes(server, [submit(server)])
    server.wait_spare()
    pid = server.worker_pid()
    poisonous = submit(server, "a fox [fault:device]")
    good = [submit(server) for _ in range(5)]
    until(lambda: server.get("/health/ready").status_code == 503, 10, "not ready after the device's fault")
    took_s = ready_after(server, pid)
    assert outcomes(server, [poisonous]) == {"worker_crashed": 1}
    assert outcomes(server, good) == {"succeeded": 5}
    starts = len(re.findall(rf"job started .*?job={poisonous}", server.log()))
    print(f"R7: new worker ready {took_s:.2f} s after the device's fault; {starts} attempts, 5 of 5 later jobs drawn")
    assert took_s <= READY_LIMIT_S
    assert starts == 2
    # Nothing but the poisonous job itself was ever given to a process that it had poisoned.
    assert all("retry_count" not in server.finish(request_id)["metrics"] for request_id in good)
    assert 'flux_worker_restarts_total{reason="device"} 2.0' in server.get("/metrics").text


def test_an_unknown_fault_fails_its_job_and_is_logged_without_the_prompt(faulty_server: Any) -> None:
    server = faulty_server
    outcomes(server, [submit(server)])
    pid = server.worker_pid()
    assert outcomes(server, [submit(server, "a secret fox [fault:unknown]")]) == {"model_failed": 1}
    assert server.worker_pid() == pid
    assert "something that nobody knows" in server.log()
    assert "secret fox" not in server.log()


def test_a_stuck_step_is_ended_and_the_next_job_drawn(run_server: Any) -> None:
    program = (str(Path(__file__).with_name("dummy_server.py")),)
    with run_server(program=program, step_limit_s="1", spare_worker="true") as server:
        pid = server.worker_pid()
        stuck = submit(server, "[hang]")
        until(lambda: server.get("/health/ready").json()["worker"] == "busy", 10, "the job runs")
        began = time.monotonic()
        until(lambda: not psutil.pid_exists(pid), 6.5, "the stuck worker's end")
        took_s = time.monotonic() - began
        next_job = submit(server)
        print(f"R8: the stuck worker was gone {took_s:.2f} s after its last step")
        assert took_s <= 1.5
        assert outcomes(server, [stuck, next_job]) == {"step_timeout": 1, "succeeded": 1}


def test_fault_switches_are_refused_with_other_weights(run_server: Any, demo_weights: Any, tmp_path: Any) -> None:
    import os
    import shutil
    import subprocess
    import sys

    weights = shutil.copytree(demo_weights, tmp_path / "weights", copy_function=os.link)
    (weights / "demo.json").unlink()
    environment = {"FLUX_FAULT_SWITCHES": "true", "PATH": os.environ["PATH"]}
    environment |= {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", "0", "--weights", str(weights)]
    refused = subprocess.run(
        [*command, "--data-dir", str(tmp_path / "data")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "fault_switches: only for tests" in refused.stderr
