"""The worker killed again and again while jobs run, and the server killed again and again with its workers."""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psutil
import pytest

NOTICE_LIMIT_S = 0.25
DUMMY_READY_LIMIT_S = 2.0
DEMO_READY_LIMIT_S = 3.0
GONE_LIMIT_S = 2.0


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")


def is_gone(pid: int) -> bool:
    """True when no such process runs; one that only waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Probes:
    """Asks whether the server lives, without a pause, from a thread of its own."""

    def __init__(self, server: Any) -> None:
        self._server, self._stop = server, threading.Event()
        self.outcomes: Counter[Any] = Counter()
        self._thread = threading.Thread(target=self._probe)

    def __enter__(self) -> Probes:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _probe(self) -> None:
        while not self._stop.wait(0.005):
            try:
                self.outcomes[self._server.get("/health/live").status_code] += 1
            except Exception as error:
                self.outcomes[repr(error)] += 1


def kill_worker(server: Any) -> tuple[int, float]:
    pid = server.worker_pid()
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    return pid, killed


def logged(server: Any, pattern: str, after: float) -> float:
    """The time, in seconds since 1970, of the first line with that pattern that is later than `after`."""

    def found() -> float | None:
        for line in server.log().splitlines():
            if re.search(pattern, line) and (at := datetime.fromisoformat(line.split()[0]).timestamp()) >= after:
                return at
        return None

    return float(until(found, 60, pattern))


def deaths(server: Any, *, kills: int, jobs: int, warm_spare: bool, ready_limit_s: float) -> None:
    """Kills the worker at random moments while jobs run, and checks what was promised of it."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    ids = [server.submit("flux-dev", {"prompt": "x", "steps": 10, "seed": number}) for number in range(jobs)]
    noticed, ready = [], []
    with Probes(server) as probes:
        for _ in range(kills):
            server.wait_ready()
            if warm_spare:
                server.wait_spare()
            time.sleep(chance.uniform(0.0, 0.6))
            pid, killed = kill_worker(server)
            noticed.append(logged(server, rf"worker ended .*?pid={pid}\b", killed) - killed)
            ready.append(logged(server, "worker ready", killed) - killed)
        ended = Counter(server.finish(request_id)["status"] for request_id in ids)

    def states_in_log() -> Counter[str]:
        return Counter(re.findall(r"job ended .*?state=(\w+)", server.log()))

    until(lambda: states_in_log().total() >= jobs, 5, "the log's lines about the ends")
    states = states_in_log()
    print(
        f"R3: {kills} kills over {jobs} jobs: noticed after {1000 * statistics.median(noticed):.0f} ms (median),"
        f" {1000 * max(noticed):.0f} ms (most); ready again after {statistics.median(ready):.2f} s (median),"
        f" {max(ready):.2f} s (most); jobs {dict(states)}; probes {dict(probes.outcomes)}"
    )
    assert max(noticed) <= NOTICE_LIMIT_S
    assert max(ready) <= ready_limit_s
    assert ended.total() == states.total() == jobs
    assert set(probes.outcomes) == {200}


def test_deaths_of_the_worker_are_survived(dummy_server: Any) -> None:
    deaths(dummy_server, kills=5, jobs=20, warm_spare=False, ready_limit_s=DUMMY_READY_LIMIT_S)


@pytest.mark.soak
def test_fifty_deaths_of_the_worker_are_survived(dummy_server: Any) -> None:
    deaths(dummy_server, kills=50, jobs=200, warm_spare=False, ready_limit_s=DUMMY_READY_LIMIT_S)


@pytest.mark.soak
def test_fifty_deaths_of_a_worker_with_the_demo_weights_are_survived(run_server: Any) -> None:
    with run_server(spare_worker="true") as server:
        deaths(server, kills=50, jobs=200, warm_spare=True, ready_limit_s=DEMO_READY_LIMIT_S)


def orphans(server: Any, *, rounds: int) -> None:
    """Kills the server at random moments, with a worker and a spare that load, wait or draw."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    lived = []
    for round_ in range(rounds):
        if round_:
            server.start(wait_ready=False)
        server.submit("flux-dev", {"prompt": "x", "steps": 10})
        until(server.children, 10, "a worker")
        time.sleep(chance.uniform(0.0, 0.5))
        children = server.children()
        server.kill()
        killed = time.monotonic()
        until(lambda: all(is_gone(pid) for pid in children), GONE_LIMIT_S, "the children's end")  # noqa: B023
        lived.append(time.monotonic() - killed)
    print(f"R5: {rounds} kills of the server: 0 of its children alive after {max(lived):.2f} s at most")


def test_a_killed_server_leaves_no_orphan(dummy_server: Any) -> None:
    orphans(dummy_server, rounds=3)


@pytest.mark.soak
def test_a_hundred_killed_servers_leave_no_orphan(dummy_server: Any) -> None:
    orphans(dummy_server, rounds=100)
