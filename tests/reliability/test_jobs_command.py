"""`flux-server jobs` on a real server's data folder, and what cancelling does in every state."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

KEY = "SG_0123456789abcdef"
SLOW = {"prompt": "a secret prompt", "steps": 50, "samples": 4}
QUICK = {"prompt": "a quick prompt \u001b[2J", "steps": 1}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")


@pytest.fixture(scope="module")
def own(run_server: Any) -> Iterator[Any]:
    with run_server(drain_limit_s="0") as running:
        yield running


def command(server: Any, *words: str, status: int = 0) -> str:
    call = [sys.executable, "-P", "-m", "server", "jobs", *words, "--data-dir", str(server.data_dir)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 or done.stdout else done.stderr


def drawing(server: Any, body: dict[str, Any]) -> str:
    request_id = str(server.submit("flux-dev", body))
    until(lambda: server.status(request_id)["status"] == "PROCESSING", 60, "the job runs")
    return request_id


def test_cancelling_is_the_same_however_often_in_every_state(own: Any) -> None:
    finished = own.finish(own.submit("flux-dev", QUICK))["request_id"]
    runs = drawing(own, SLOW)
    waits = own.submit("flux-dev", SLOW)
    step_s = until(lambda: own.status(runs).get("progress"), 60, "a step")["seconds_per_step"]
    expected = {waits: ("cancelled", 0), runs: ("cancelled", 0), finished: ("succeeded", 1)}
    for job_id, (state, status) in expected.items():
        for _ in range(2):
            start = time.monotonic()
            assert json.loads(command(own, "cancel", job_id, "--json", status=status)) == {"id": job_id, "state": state}
            took_s = time.monotonic() - start
        print(f"{state} job: second answer after {took_s:.2f} s, one step is {step_s:.2f} s")
    assert "not found" in command(own, "cancel", UNKNOWN, status=1)
    assert own.status(runs)["error"] == own.status(waits)["error"] == "The request was cancelled."
    assert own.get(f"/v2/requests/{finished}").json()["status"] == "COMPLETED"
    assert own.finish(own.submit("flux-dev", QUICK))["status"] == "COMPLETED"


def test_a_running_job_stops_within_a_step_of_being_cancelled(own: Any) -> None:
    job_id = drawing(own, SLOW)
    step_s = until(lambda: own.status(job_id).get("progress"), 60, "a step")["seconds_per_step"]
    pass_ = json.loads((own.data_dir / "admin.json").read_text())
    start = time.monotonic()
    reply = own.post(f"/admin/jobs/{job_id}/cancel", key=None, headers={"x-admin-token": pass_["token"]})
    took_s = time.monotonic() - start
    print(f"stopped {took_s * 1000:.0f} ms after it was asked; a step takes {step_s * 1000:.0f} ms")
    assert reply.json()["state"] == "cancelled"
    assert took_s <= 4 * step_s + 1.0


def test_a_blocking_call_whose_job_is_cancelled_is_told(own: Any) -> None:
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(own.post, "/v1/flux-dev", json=SLOW)
        until(lambda: own.get("/health/ready").json()["worker"] == "busy", 60, "the job runs")
        job_id = json.loads(command(own, "ls", "--state", "running", "--json"))[0]["id"]
        command(own, "cancel", job_id)
        told = waiting.result(60)
    assert (told.status_code, told.json()["code"]) == (409, "conflict")


def test_a_cancelled_job_sent_again_is_a_new_one_with_the_same_seed(own: Any) -> None:
    drawing(own, SLOW)
    first = own.submit("flux-dev", {**QUICK, "seed": -1})
    assert "only failed and cancelled" in command(own, "retry", first, status=1)
    command(own, "cancel", first)
    for row in json.loads(command(own, "ls", "--state", "running", "--json")):
        command(own, "cancel", row["id"])
    again = json.loads(command(own, "retry", first, "--json"))
    assert again["retry_of"] == first != again["id"]
    shown = [json.loads(command(own, "show", job_id, "--json")) for job_id in (first, again["id"])]
    assert shown[0]["request"] == shown[1]["request"]
    done = own.finish(again["id"])
    assert (done["status"], done["seed"]) == ("COMPLETED", str(shown[0]["request"]["seed"]))


def test_a_job_with_a_picture_can_be_sent_again_while_the_picture_is_there(own: Any, photo: bytes) -> None:
    drawing(own, SLOW)
    fields = {"prompt": "x", "megapixels": "match_input", "num_inference_steps": "1"}
    sent = own.post("/v2/flux-depth-dev", data=fields, files={"control_image": photo}).json()["request_id"]
    command(own, "cancel", sent)
    for row in json.loads(command(own, "ls", "--state", "running", "--json")):
        command(own, "cancel", row["id"])
    again = command(own, "retry", sent).strip()
    assert own.finish(again)["status"] == "COMPLETED"
    for picture in (own.data_dir / "spool" / "inputs").iterdir():
        picture.unlink()
    assert "no longer on disk" in command(own, "retry", sent, status=1)


def test_prompts_are_in_show_only_and_cannot_write_on_the_terminal(own: Any) -> None:
    job_id = own.submit("flux-dev", QUICK)
    own.finish(job_id)
    for listing in (command(own, "ls"), command(own, "ls", "--json")):
        assert job_id in listing
        assert "prompt" not in listing
    shown = command(own, "show", job_id)
    assert "a quick prompt" in shown
    assert "\x1b" not in shown + command(own, "show", job_id, "--json")
    assert json.loads(command(own, "show", job_id, "--json"))["state"] == "succeeded"
    assert command(own, "ls", "--limit", "1").count("\n") == 1


def test_wrong_calls_say_what_is_wrong(own: Any, tmp_path: Any) -> None:
    assert "no job" in command(own, "show", UNKNOWN, status=1)
    assert "--state should be one of" in command(own, "ls", "--state", "done", status=2)
    call = [sys.executable, "-P", "-m", "server", "jobs", "ls", "--data-dir", str(tmp_path)]
    assert subprocess.run(call, capture_output=True, timeout=60, check=False).returncode == 2


@pytest.mark.parametrize("token", [None, "", "wrong", "é", "x" * 60_000])
def test_the_operators_door_opens_to_its_token_alone(own: Any, token: str | None) -> None:
    headers = {} if token is None else {"x-admin-token": token.encode()}
    path = f"/admin/jobs/{UNKNOWN}/cancel"
    assert own.post(path, key=None, headers=headers).status_code == 401
    strange = own.post(path, headers=headers)
    assert (strange.status_code, UNKNOWN in strange.json()["error"]) == (404, False)


def test_its_token_opens_nothing_else_and_is_for_the_operators_eyes(own: Any) -> None:
    file = own.data_dir / "admin.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = json.loads(file.read_text())["token"]
    assert own.get("/v1/get-user-credits", key=None, headers={"x-admin-token": token}).status_code == 401
    assert token not in own.log()


def test_looking_works_without_a_server_and_changing_does_not(own: Any) -> None:
    token = json.loads((own.data_dir / "admin.json").read_text())["token"]
    job_id = own.submit("flux-dev", QUICK)
    own.kill()  # leaves its pass behind, and its write-ahead log
    try:
        assert job_id in command(own, "ls")
        assert json.loads(command(own, "show", job_id, "--json"))["id"] == job_id
        assert "does not answer" in command(own, "cancel", job_id, status=3)
    finally:
        own.start()
    assert json.loads((own.data_dir / "admin.json").read_text())["token"] != token
    assert own.finish(job_id)["status"] == "COMPLETED"
    own.stop()
    assert not (own.data_dir / "admin.json").exists()
    assert "no server" in command(own, "cancel", job_id, status=3)
    assert job_id in command(own, "ls")
    assert not [name for name in os.listdir(own.data_dir) if name.endswith(".part")]
