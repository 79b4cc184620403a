"""The server, or its whole process group, killed again and again under load: what was accepted is drawn, once."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from proofs.clients import Caller, depth
from proofs.waiting import until

READY_LIMIT_S = 3.0
UNPUBLISHED = 2
"""Batches, of one job or more, that a kill can cost: the one being drawn, and the one before it, being published."""
CLIENTS = 4


class Load:
    """Clients that submit without a pause, and remember what was acknowledged."""

    def __init__(self, server: Any) -> None:
        self._server, self._stop = server, threading.Event()
        self.acknowledged: list[str] = []
        self._threads = [threading.Thread(target=self._submit, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, client: int) -> None:
        try:
            with Caller(self._server) as caller:
                while not self._stop.wait(0.06):
                    body = depth(f"client {client}", seed=len(self.acknowledged))
                    status, _, said, _ = caller.call("POST", "/v2/flux-depth-dev", body)
                    assert status == 200, said
                    self.acknowledged.append(json.loads(said)["request_id"])
        except (OSError, http.client.HTTPException):
            pass  # the server was killed; what was not answered was not promised


def kill_group(server: Any) -> None:
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def kill_again_and_again(
    server: Any, *, cycles: int, most_s: float, chance: random.Random
) -> tuple[list[str], list[float]]:
    """Kills within most_s of load each. Returns what was acknowledged, and the seconds until it was ready each time."""
    acknowledged, ready_s = [], []
    for cycle in range(cycles):
        with Load(server) as load:
            until(lambda: load.acknowledged, 30, "something is accepted")
            time.sleep(chance.uniform(0.0, most_s))  # the moment of the kill, which is what varies
            kill_group(server) if cycle % 2 else server.kill()
        acknowledged += load.acknowledged
        began = time.monotonic()
        server.start()
        ready_s.append(time.monotonic() - began)
    return acknowledged, ready_s


def published(server: Any) -> Counter[str]:
    """How many rows name each published file, and which files no row names (0)."""
    with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        results = [row[0] for row in database.execute("SELECT result FROM jobs WHERE state = 'succeeded'")]
    names = Counter(image["file"] for result in results for image in json.loads(result)["images"])
    there = {path.name for path in (server.data_dir / "files").iterdir()}
    assert set(names) <= there
    return names + Counter() | Counter(dict.fromkeys(there - set(names), 0))


def prove(server: Any, *, cycles: int, most_s: float, at_least: int, together: int = 1) -> None:
    """together: how many jobs may be in a batch."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    acknowledged, ready_s = kill_again_and_again(server, cycles=cycles, most_s=most_s, chance=random.Random(seed))
    until(lambda: server.get("/health/ready").json()["queued"] == 0, 600, "the queue is drained")
    ended = Counter(server.finish(request_id)["status"] for request_id in acknowledged)
    until(lambda: server.get("/health/ready").json()["worker"] == "ready", 60, "the worker is idle")
    with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
        states = Counter(dict(database.execute("SELECT state, count(*) FROM jobs GROUP BY state")))
        (again, most) = database.execute("SELECT sum(attempt - 1), max(attempt) FROM jobs").fetchone()
        known = {row[0] for row in database.execute("SELECT id FROM jobs")}
    named = published(server)
    endings = Counter(re.findall(r"job ended .*?job=(\S+) state=succeeded", server.log()))
    lost = set(acknowledged) - known
    twice = [job for job, times in endings.items() if times > 1] + [file for file, rows in named.items() if rows != 1]
    print(
        f"R1: {cycles} kills (server alone and whole group in turn), {len(acknowledged)} acknowledged by {CLIENTS}"
        f" clients: {len(lost)} lost, {states['running'] + states['queued']} left over, {len(twice)} with two results;"
        f" rows {dict(states)}; {again} run again, at most {most} attempts; integrity ok;"
        f" ready again after {max(ready_s):.2f} s at most"
    )
    assert len(acknowledged) == len(set(acknowledged)) >= at_least
    assert lost == set()
    assert ended == {"COMPLETED": len(acknowledged)}
    assert set(states) == {"succeeded"}
    assert twice == []
    assert again <= UNPUBLISHED * together * cycles
    assert max(ready_s) <= READY_LIMIT_S


def test_no_accepted_job_is_lost_to_kills(dummy_server: Any) -> None:
    prove(dummy_server, cycles=8, most_s=0.6, at_least=40)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_accepted_job_is_lost_to_a_hundred_kills(dummy_server: Any) -> None:
    prove(dummy_server, cycles=100, most_s=1.2, at_least=2000)


@pytest.mark.soak
def test_no_accepted_job_is_lost_to_kills_in_the_middle_of_batches(run_server: Any) -> None:
    program = (str(Path(__file__).with_name("dummy_server.py")),)
    with run_server(program=program, spare_worker="true", batching="on") as server:
        prove(server, cycles=20, most_s=0.6, at_least=100, together=4)
        assert max(int(count) for count in re.findall(r"job started .*?together=(\d+)", server.log())) > 1
