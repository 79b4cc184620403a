"""TERM: new work is refused at once, what runs gets its time, what waits is kept, and the exit is clean."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from proofs.clients import Caller, depth
from proofs.waiting import until

DUMMY = (str(Path(__file__).with_name("dummy_server.py")),)
REFUSAL_LIMIT_S = 0.1
QUEUED = 100


def submit_running(server: Any, prompt: str, steps: int) -> str:
    """A job that draws now: it has made a step, so it is not one that was only claimed."""
    request_id = str(server.submit("flux-depth-dev", depth(prompt, steps)))
    until(lambda: server.status(request_id).get("progress"), 30, "the job runs")
    return request_id


def states(server: Any) -> Counter[str]:
    with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
        return Counter(dict(database.execute("SELECT state, count(*) FROM jobs GROUP BY state")))


def refused_after_s(server: Any, term: float, caller: Caller) -> float:
    """Seconds from the signal to the first refusal, once there is one; checks what it says."""
    while (answer := caller.call("POST", "/v2/flux-depth-dev", depth()))[0] == 200:
        assert time.monotonic() - term < 5
    assert answer[0] == 503, answer
    assert int(answer[1]["retry-after"]) > 0
    return time.monotonic() - term


def test_a_hundred_waiting_jobs_outlive_a_polite_stop_in_order(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        runs = submit_running(server, "[step_s=0.1]", 15)
        with Caller(server) as caller:
            for number in range(QUEUED):
                assert caller.call("POST", "/v2/flux-depth-dev", depth(f"fox {number}"))[0] == 200
            caller.call("GET", "/health/live")
            term = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            refused_s = refused_after_s(server, term, caller)
            answered = 0
            while server.process.poll() is None:
                try:
                    assert server.get(f"/v2/requests/{runs}/status").status_code == 200
                    answered += 1
                except Exception:  # the door closes when the running job is done
                    until(lambda: server.process.poll() is not None, 10, "the server leaves")
        status, kept = server.process.wait(30), states(server)
        server.start()
        until(lambda: server.get("/health/ready").json()["queued"] == 0, 120, "the queue is drained")
        until(lambda: states(server).keys() == {"succeeded"}, 30, "the last one ends")
        started = re.findall(r"job started .*?job=(\S+)", server.log())
        with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
            in_order = [row[0] for row in database.execute("SELECT id FROM jobs ORDER BY rowid")]
        ended = states(server)
        print(
            f"R9: refused {1000 * refused_s:.0f} ms after TERM, {answered} polls answered while it drained, exit status"
            f" {status}, then {dict(kept)}; after the restart {dict(ended)},"
            f" {len(started) - len(set(started))} ran twice, in order: {started == in_order}"
        )
        assert refused_s <= REFUSAL_LIMIT_S
        assert answered >= 10
        assert status == 0
        assert kept["succeeded"] == 1
        assert kept["running"] == 0
        assert kept["queued"] >= QUEUED
        assert ended == {"succeeded": kept.total()}
        assert started == in_order


def test_a_job_longer_than_the_limit_goes_back_to_the_queue(run_server: Any) -> None:
    limit_s = 1.0
    with run_server(program=DUMMY, drain_limit_s=str(limit_s)) as server:
        runs = submit_running(server, "[step_s=0.1]", 18)
        term = time.monotonic()
        assert server.stop() == 0
        took_s = time.monotonic() - term
        kept = states(server)
        print(f"R9: left {took_s:.2f} s after TERM, limit {limit_s} s; job then {dict(kept)}")
        assert kept == {"queued": 1}
        assert limit_s <= took_s <= limit_s + 2
        server.start()
        assert server.finish(runs)["status"] == "COMPLETED"


def test_a_second_signal_puts_the_running_job_back_at_its_next_step(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        submit_running(server, "[step_s=0.1]", 50)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health/ready").status_code == 503, 5, "the stop is seen")
        second = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(30)
        took_s = time.monotonic() - second
        print(f"R9: left {took_s:.2f} s after the second TERM, a step takes 0.1 s; {dict(states(server))}")
        assert (status, states(server)) == (0, {"queued": 1})
        assert took_s <= 2


def test_five_signals_in_a_row_are_as_clean_as_one(run_server: Any) -> None:
    with run_server(program=DUMMY) as server:
        submit_running(server, "[step_s=0.1]", 10)
        server.submit("flux-depth-dev", depth())
        term = time.monotonic()
        for _ in range(5):
            server.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # signals sent at once are one; these are seen apart
                server.process.wait(0.03)
        status = server.process.wait(30)
        print(f"R9: five TERMs in a row: exit status {status} after {time.monotonic() - term:.2f} s, {states(server)}")
        assert status == 0
        assert states(server) == {"queued": 2}
        assert "Traceback" not in server.log()
        server.start()
        until(lambda: states(server) == {"succeeded": 2}, 60, "both are drawn after the restart")
