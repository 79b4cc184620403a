"""Callers that hang up: a blocking call takes its job with it, drawing or waiting; a submission does not."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from proofs.clients import KEY, depth, hang_up, jobs_in_log, send_and_stay
from proofs.figures import spread
from proofs.waiting import until

DUMMY = (str(Path(__file__).with_name("dummy_server.py")),)
STEP_S = 0.1
GRACE_S = 0.2


def health(server: Any) -> dict[str, Any]:
    ready: dict[str, Any] = server.get("/health/ready").json()
    return ready


def rows(server: Any) -> dict[str, tuple[str, int]]:
    """State of each job, and whether its caller was attached."""
    with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
        return {
            job: (state, attached) for job, state, attached in database.execute("SELECT id, state, attached FROM jobs")
        }


def blocking(server: Any, prompt: str, steps: int = 50) -> socket.socket:
    return send_and_stay(server, "/v1/flux-depth-dev", depth(prompt, steps))


def leave_while_drawing(server: Any) -> float:
    """Seconds between a hang-up during a job's steps and that job's end."""
    known = rows(server).keys()
    connection = blocking(server, f"[step_s={STEP_S}]")
    job = until(lambda: next(iter(jobs_in_log(server.log(), "job started").keys() - known), None), 20, "the job runs")
    left = hang_up(connection)
    return (
        float(until(lambda: jobs_in_log(server.log(), "job ended", state="cancelled").get(job), 20, "its end")) - left
    )


def leave_while_waiting(server: Any, count: int) -> float:
    """Seconds between the last of many hang-ups in the queue and the last of those jobs' ends."""
    runs = server.submit("flux-depth-dev", depth(f"[step_s={STEP_S}]", 50))
    until(lambda: server.status(runs)["status"] == "PROCESSING", 20, "the worker has work")
    before = len(jobs_in_log(server.log(), "job accepted"))
    connections = [blocking(server, "waits") for _ in range(count)]
    until(lambda: len(jobs_in_log(server.log(), "job accepted")) == before + count, 30, "all are accepted")
    left = max(map(hang_up, connections))
    until(lambda: health(server)["queued"] == 0, 10, "nothing of theirs waits")
    gone_s = time.time() - left
    cancel(server, runs)
    return gone_s


def submit_and_leave(server: Any, count: int) -> list[str]:
    """v2 submissions whose callers leave as soon as they have their answer."""
    ids = []
    for number in range(count):
        connection = send_and_stay(server, "/v2/flux-depth-dev", depth(f"number {number}"))
        said = b""
        while not said.endswith(b"}"):
            said += connection.recv(65536)
        hang_up(connection)
        ids.append(json.loads(said.rpartition(b"\r\n\r\n")[2])["request_id"])
    return ids


def prove(server: Any, *, count: int) -> None:
    drawing_s = [leave_while_drawing(server) for _ in range(count)]
    waiting_s = leave_while_waiting(server, count)
    polled = Counter(server.finish(job)["status"] for job in submit_and_leave(server, count))
    ended = Counter((state, bool(attached)) for state, attached in rows(server).values())
    print(
        f"R10: {count} hung up while drawing: cancelled after {spread(drawing_s)}; {count} while waiting: the last gone"
        f" after {1000 * waiting_s:.0f} ms; {count} left after submitting: {dict(polled)}; a step takes {STEP_S} s;"
        f" jobs by (state, waited for): {dict(ended)}"
    )
    assert max(drawing_s) <= STEP_S + GRACE_S
    assert waiting_s <= STEP_S + GRACE_S + count * 0.01  # each cancellation is a commit of its own
    assert polled == {"COMPLETED": count}
    assert ended == {("cancelled", True): 2 * count, ("cancelled", False): 1, ("succeeded", False): count}


def test_callers_that_hang_up_cancel_what_nobody_else_can_ask_for(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        prove(server, count=10)


@pytest.mark.soak
def test_a_hundred_callers_that_hang_up_cancel_what_nobody_else_can_ask_for(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        prove(server, count=100)


# R17: the operator's cancel, in every state and against every other ending.


def cancel(server: Any, job: str) -> tuple[int, str | None]:
    token = json.loads((server.data_dir / "admin.json").read_text())["token"]
    reply = server.post(f"/admin/jobs/{job}/cancel", key=None, headers={"x-admin-token": token})
    return reply.status_code, reply.json().get("state")


def test_cancelling_does_what_the_table_says_in_each_state(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        finished = server.submit("flux-depth-dev", depth())
        server.finish(finished)
        runs = server.submit("flux-depth-dev", depth(f"[step_s={STEP_S}]", 50))
        until(lambda: server.status(runs)["status"] == "PROCESSING", 20, "the worker has work")
        waits = server.submit("flux-depth-dev", depth())
        waiting = blocking(server, "waits, and its caller with it")
        until(lambda: health(server)["queued"] == 2, 10, "two wait")
        began = time.time()
        said = {name: [cancel(server, job) for _ in range(2)] for name, job in
                {"queued": waits, "running": runs, "finished": finished}.items()}  # fmt: skip
        stopped_s = jobs_in_log(server.log(), "job ended", state="cancelled")[runs] - began
        assert said == {
            "queued": [(200, "cancelled")] * 2,
            "running": [(200, "cancelled")] * 2,
            "finished": [(200, "succeeded")] * 2,
        }
        assert cancel(server, "00000000-0000-4000-8000-000000000000")[0] == 404
        assert server.get(f"/v2/requests/{finished}").json()["status"] == "COMPLETED"
        assert server.get(f"/v2/requests/{runs}").status_code == 422
        hang_up(waiting)
        print(
            f"R17: {said}; the running one stopped {1000 * stopped_s:.0f} ms after the first call, a step is {STEP_S} s"
        )
        assert stopped_s <= STEP_S + GRACE_S
        assert KEY not in server.log()


def test_a_cancel_that_meets_another_ending_leaves_one_of_them(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        jobs = [server.submit("flux-depth-dev", depth(steps=2)) for _ in range(40)]
        told = {job: cancel(server, job)[1] for job in reversed(jobs)}
        again = {job: cancel(server, job)[1] for job in jobs}
        kept = {job: state for job, (state, _) in rows(server).items()}
        print(f"R17: 40 jobs cancelled while they were drawn: {dict(Counter(told.values()))}, none changed later")
        assert told == again == kept
        assert set(told.values()) == {"succeeded", "cancelled"}
        endings = [line for line in server.log().splitlines() if "job ended" in line]
        assert len(endings) == len(set(endings)) <= 40
