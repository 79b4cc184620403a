"""A long queue: quick to fill, poll and take from, small in memory, back soon after a kill, in exact order."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from proofs.clients import Caller, depth, send_and_stay
from proofs.figures import MIB, p99, spread
from proofs.waiting import until

from server.jobs.model import Lane
from server.jobs.sqlite_store import SqliteStore

DUMMY = (str(Path(__file__).with_name("dummy_server.py")),)
CLIENTS, BLOCKING, PROBES = 16, 50, 300
FILL_LIMIT_S, RESTART_LIMIT_S, RSS_LIMIT_MIB = 90.0, 5.0, 300.0
SUBMIT_S, POLL_S, HEALTH_S, CLAIM_S = 0.4, 0.12, 0.08, 0.005


def fill(server: Any, count: int) -> tuple[list[list[str]], list[float]]:
    """What each client submitted, in its order, and the seconds that each submission took."""
    took: list[float] = []

    def submit(client: int) -> list[str]:
        ids = []
        with Caller(server) as caller:
            for number in range(client, count, CLIENTS):
                status, _, said, took_s = caller.call("POST", "/v2/flux-depth-dev", depth(f"number {number}"))
                assert status == 200, said
                ids.append(json.loads(said)["request_id"])
                took.append(took_s)
        return ids

    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(submit, range(CLIENTS))), took


def probe(server: Any, paths: Callable[[int], str]) -> list[float]:
    """Seconds that requests take on one connection, one after the other."""
    took = []
    with Caller(server) as caller:
        for number in range(PROBES):
            status, _, said, took_s = caller.call("GET", paths(number))
            assert status == 200, said
            took.append(took_s)
    return took


def claimed(data_dir: Path, copy: Path) -> tuple[list[tuple[str, Lane]], list[float]]:
    """Every waiting job of a copy of the database in the order of claims, and the seconds that each claim took."""
    copy.mkdir()
    for part in data_dir.glob("jobs.sqlite3*"):
        shutil.copy(part, copy)
    order, took = [], []
    with closing(SqliteStore(copy / "jobs.sqlite3")) as store:
        while True:
            start = time.monotonic()
            job = store.claim()
            took.append(time.monotonic() - start)
            if job is None:
                return order, took
            order.append((job.id, job.lane))


def prove(run_server: Any, folder: Path, *, count: int) -> None:
    with run_server(program=DUMMY, queue_limit=str(count), drain_limit_s="0") as server, ExitStack() as stack:
        runs = server.submit("flux-depth-dev", depth("[step_s=600]"))
        until(lambda: server.status(runs)["status"] == "PROCESSING", 20, "the worker has work for long")
        for _ in range(BLOCKING):
            stack.enter_context(send_and_stay(server, "/v1/flux-depth-dev", depth("waits on its connection")))
        until(lambda: server.get("/health/ready").json()["queued"] == BLOCKING, 30, "the blocking ones wait")
        start = time.monotonic()
        ids, submits = fill(server, count - BLOCKING)
        fill_s = time.monotonic() - start
        with Caller(server) as caller:
            late, headers, *_ = caller.call("POST", "/v2/flux-depth-dev", depth())
        flat = [job for own in ids for job in own]
        polls = probe(server, lambda number: f"/v2/requests/{flat[number * 7 % len(flat)]}/status")
        health = probe(server, lambda _: "/health/ready")
        rss_mib = psutil.Process(server.process.pid).memory_info().rss / MIB
        server.kill()
        order, claims = claimed(server.data_dir, folder / "copy")
        start = time.monotonic()
        server.start(wait_ready=False)
        until(lambda: server.get("/health/ready").status_code == 200, 60, "ready")
        restart_s = time.monotonic() - start
        server.kill()
    places = {job: place for place, (job, _) in enumerate(order)}
    in_order = all([places[job] for job in own] == sorted(places[job] for job in own) for own in ids)
    print(
        f"R15: {count} queued by {CLIENTS} clients in {fill_s:.1f} s; submit {spread(submits)}; poll {spread(polls)};"
        f" health {spread(health)}; claim {spread(claims)}; {rss_mib:.0f} MiB; ready {restart_s:.2f} s after a kill;"
        f" in order: {in_order}; one more: {late}, Retry-After {headers.get('retry-after')}"
    )
    assert late == 429
    assert int(headers["retry-after"]) > 0
    assert len(order) == count
    assert [lane for _, lane in order] == [Lane.INTERACTIVE] * BLOCKING + [Lane.BATCH] * (count - BLOCKING)
    assert in_order
    assert {job for job, lane in order if lane is Lane.BATCH} == set(flat)
    assert fill_s <= FILL_LIMIT_S
    assert p99(submits) <= SUBMIT_S
    assert p99(polls) <= POLL_S
    assert p99(health) <= HEALTH_S
    assert p99(claims) <= CLAIM_S
    assert rss_mib <= RSS_LIMIT_MIB
    assert restart_s <= RESTART_LIMIT_S


def test_two_thousand_waiting_jobs(run_server: Any, tmp_path: Path) -> None:
    prove(run_server, tmp_path, count=2000)


@pytest.mark.soak
def test_ten_thousand_waiting_jobs(run_server: Any, tmp_path: Path) -> None:
    prove(run_server, tmp_path, count=10_000)
