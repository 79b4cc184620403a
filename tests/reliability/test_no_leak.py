"""Hours of work in small: with every tenth request a fault, nothing grows and every accepted job is accounted for."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import statistics
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from proofs.clients import Caller, depth, hang_up, jobs_in_log, send_and_stay
from proofs.figures import MIB
from proofs.waiting import until

DUMMY = (str(Path(__file__).with_name("dummy_server.py")),)
RUN_S = float(os.environ.get("SOAK_S", "1800"))
"""SOAK_S takes another length; under 20 minutes the slope of memory is printed and not held to its bound."""
LEAST_FOR_SLOPE_S = 1200.0
RATE_PER_S, CLIENTS = 20.0, 4
TTL_S = 60.0
"""Of requests and files, so that as much is forgotten as comes."""
SLOPE_MIB_PER_H, SPREAD, WAL_MIB = 2.0, 2, 64.0

FAULTS = {"refused": 0.04, "left": 0.02, "cancelled": 0.02, "failed": 0.018, "deadly": 0.002}
"""Shares of all requests, a tenth together: a bad body, a caller who hangs up, the operator's cancel, a failure in the
worker, and one that kills two workers."""


@dataclass
class Sample:
    """What the server holds at one moment."""

    at_s: float
    rss_bytes: int
    wal_bytes: int


@dataclass
class Load:
    """Clients that send at a rate, as long as fewer than a second's worth of jobs wait."""

    server: Any
    chance: random.Random
    stop: threading.Event = field(default_factory=threading.Event)
    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)

    def run(self, run_s: float) -> list[Sample]:
        """The samples taken while it ran."""
        self.stop.clear()
        threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            return self._watch(run_s)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def _watch(self, run_s: float) -> list[Sample]:
        process, begin, samples = psutil.Process(self.server.process.pid), time.monotonic(), []
        wal = self.server.data_dir / "jobs.sqlite3-wal"
        while (at_s := time.monotonic() - begin) < run_s:
            samples.append(Sample(at_s, process.memory_info().rss, wal.stat().st_size))
            self.stop.wait(min(5.0, run_s / 20))
        return samples

    def _send(self) -> None:
        with Caller(self.server) as caller:
            due = time.monotonic()
            while not self.stop.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1.0) + CLIENTS / RATE_PER_S
                if json.loads(caller.call("GET", "/health/ready")[2])["queued"] < RATE_PER_S:
                    self._send_one(caller)

    def _send_one(self, caller: Caller) -> None:
        kinds, shares = [*FAULTS, "good"], [*FAULTS.values(), 1 - sum(FAULTS.values())]
        kind = self.chance.choices(kinds, shares)[0]
        self.sent[kind] += 1
        if kind == "refused":
            assert caller.call("POST", "/v2/flux-depth-dev", depth(steps=99))[0] == 400
        elif kind == "left":
            hang_up(send_and_stay(self.server, "/v1/flux-depth-dev", depth("left", 5)))
        else:
            prompt = {"failed": "[fail]", "deadly": "[exit]"}.get(kind, "a fox")
            status, _, said, _ = caller.call("POST", "/v2/flux-depth-dev", depth(prompt, 5))
            assert status == 200, said
            job = json.loads(said)["request_id"]
            self.acknowledged.add(job)
            if kind == "cancelled":
                self._cancel(job)

    def _cancel(self, job: str) -> None:
        token = json.loads((self.server.data_dir / "admin.json").read_text())["token"]
        reply = self.server.post(f"/admin/jobs/{job}/cancel", key=None, headers={"x-admin-token": token})
        assert reply.status_code == 200, reply.text


def held(server: Any) -> tuple[int, int]:
    """Descriptors and threads of the server once nothing is going on."""
    until(
        lambda: (health := server.get("/health/ready").json())["queued"] == 0 and health["worker"] == "ready",
        60,
        "rest",
    )
    process = psutil.Process(server.process.pid)
    return process.num_fds(), process.num_threads()


def unfinished(server: Any) -> int:
    with closing(sqlite3.connect(server.data_dir / "jobs.sqlite3")) as database:
        return int(database.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()[0])


def slope_mib_per_h(samples: list[Sample]) -> float:
    line = statistics.linear_regression([sample.at_s for sample in samples], [sample.rss_bytes for sample in samples])
    return line.slope / MIB * 3600


def quarters_mib(samples: list[Sample]) -> str:
    """Median memory of each quarter of the time, which shows whether growth comes to an end."""
    size = max(1, len(samples) // 4)
    parts = [samples[begin : begin + size] for begin in range(0, 4 * size, size)]
    return ", ".join(f"{statistics.median(sample.rss_bytes for sample in part) / MIB:.1f}" for part in parts)


@pytest.mark.soak
@pytest.mark.timeout(RUN_S + 900)
def test_nothing_grows_while_every_tenth_request_is_a_fault(run_server: Any) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with run_server(program=DUMMY, spare_worker="true", result_ttl_s=str(TTL_S), file_ttl_s=str(TTL_S)) as server:
        load = Load(server, random.Random(seed))
        load.run(max(RUN_S / 6, 20.0))  # warm-up
        before, warm = held(server), sum(load.sent.values())
        samples = load.run(RUN_S)
        after, done = held(server), sum(load.sent.values()) - warm
        until(lambda: unfinished(server) == 0, 60, "every job's end")
        accepted, ended = jobs_in_log(server.log(), "job accepted"), jobs_in_log(server.log(), "job ended")
        endings = Counter(
            line.partition("state=")[2].split()[0] for line in server.log().splitlines() if "job ended" in line
        )
        slope, wal_mib = slope_mib_per_h(samples), max(sample.wal_bytes for sample in samples) / MIB
        missing = (accepted.keys() | load.acknowledged) - ended.keys()
        print(
            f"R18: {done} requests in {RUN_S:.0f} s ({done / RUN_S:.1f}/s; with the {warm} of the warm-up"
            f" {dict(load.sent)}); memory by quarter {quarters_mib(samples)} MiB, slope {slope:.2f} MiB/h;"
            f" (descriptors, threads) {before} to {after}; log of the database {wal_mib:.1f} MiB at most;"
            f" {len(accepted)} accepted, ended as {dict(endings)}, {len(missing)} unaccounted"
        )
        assert missing == set()
        assert endings.total() == len(ended)
        assert load.acknowledged <= accepted.keys()
        assert all(abs(now - then) <= SPREAD for now, then in zip(after, before, strict=True))
        assert wal_mib <= WAL_MIB
        assert RUN_S < LEAST_FOR_SLOPE_S or slope <= SLOPE_MIB_PER_H
