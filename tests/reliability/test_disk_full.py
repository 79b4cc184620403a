"""A data folder on a file system of 16 MiB, and what happens when it fills up."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.errors import InsufficientStorage
from server.jobs.database import JobDatabase
from server.jobs.model import Ending, Lane, NewJob, State
from server.jobs.sweeper import Sweeper
from server.media.ballast import SIZE_BYTES, Ballast
from server.media.results import ResultFiles

DISK_BYTES = 16 * 1024 * 1024
QUICK = {"prompt": "x", "steps": 1}
SLOW = {"prompt": "x", "steps": 30}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of 16 MiB."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs wants rights that this user does not have")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave_bytes: int = 0) -> Path:
    """Takes all of the file system's space but so much."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(folder).free - leave_bytes) > 0:
            try:
                file.write(bytes(min(free, 1 << 20)))
            except OSError:
                break
    return filler


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s} s")


def test_a_full_disk_is_said_and_survived(run_server: Any, small_disk: Path, photo: bytes) -> None:
    """R13."""
    said: list[int] = []

    def say(reply: Any) -> Any:
        said.append(reply.status_code)
        return reply

    with run_server(data_dir=small_disk, min_free_bytes=str(2 * 1024 * 1024), drain_limit_s="0") as server:
        done = server.finish(server.submit("flux-dev", QUICK))["request_id"]
        with ThreadPoolExecutor(1) as caller:
            blocking = caller.submit(server.post, "/v1/flux-dev", json=SLOW)
            until(lambda: server.get("/health/ready").json()["worker"] == "busy", 60, "a job runs")
            waits = [server.submit("flux-dev", QUICK) for _ in range(3)]
            fill(small_disk)
            for _ in range(5):
                assert say(server.post("/v2/flux-dev", json=QUICK)).status_code == 507
                assert say(server.post("/v1/flux-dev", json=QUICK)).status_code == 507
                assert say(server.post("/upload-asset", files={"file": photo})).status_code == 507
                assert say(server.get(f"/v2/requests/{done}")).status_code == 200
                assert say(server.get(f"/v2/requests/{waits[0]}/status")).status_code == 200
                assert say(server.get("/metrics")).status_code == 200
            until(lambda: "the disk is full" in server.log(), 60, "the dispatcher stops handing out")
            assert {server.status(request_id)["status"] for request_id in waits} == {"QUEUED"}
            (small_disk / "filler").unlink()
            freed = time.monotonic()
            until(lambda: say(server.post("/v2/flux-dev", json=QUICK)).status_code == 200, 5, "work is taken again")
            taken_s = time.monotonic() - freed
            until(lambda: server.status(waits[0])["status"] != "QUEUED", 5, "work goes on")
            going_s = time.monotonic() - freed
            assert say(blocking.result(60)).status_code in (200, 507)
        assert {server.finish(request_id)["status"] for request_id in waits} == {"COMPLETED"}
        assert server.process.poll() is None
        assert server.stop() == 0
    connection = sqlite3.connect(small_disk / "jobs.sqlite3")
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    states = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
    connection.close()
    print(f"{len(said)} answers on a full disk: {sorted(set(said))}; taken again {taken_s:.2f} s after space returned,")
    print(f"drawing again after {going_s:.2f} s; jobs in the end: {states}")
    assert 500 not in said


def test_a_disk_that_fills_below_the_floor_at_once_is_507_and_spoils_nothing(
    run_server: Any, small_disk: Path, photo: bytes
) -> None:
    """Without a floor the database and the files themselves meet the end of the disk."""
    with run_server(dummy=True, data_dir=small_disk, min_free_bytes="0", drain_limit_s="0") as server:
        server.finish(server.submit("flux-dev", QUICK))
        fill(small_disk)
        replies = [
            server.post("/v2/flux-dev", json={**QUICK, "prompt": "x" * 1000}),
            server.post("/v2/flux-depth-dev", data={"prompt": "x"}, files={"control_image": photo}),
            server.post("/upload-asset", files={"file": photo}),
        ]
        assert [reply.status_code for reply in replies] == [507] * 3, [reply.text for reply in replies]
        (small_disk / "filler").unlink()
        assert server.finish(server.submit("flux-dev", QUICK))["status"] == "COMPLETED"


def finished_rows(database: JobDatabase, count: int) -> None:
    request = GenerationRequest(model="m", prompt="x" * 200, width=16, height=16, steps=1, guidance=1.0, seed=0)
    how = Ending(state=State.SUCCEEDED, queue_s=0.0, compute_s=0.0, total_s=0.0)
    for index in range(count):
        new = NewJob(id=f"job{index}", owner="ann", lane=Lane.BATCH, attached=False, request=request)
        database.writer.submit(new, now=1.0, queue_limit=count)
        database.writer.claim()
        database.writer.finish(new.id, 1, how, now=2.0)


@pytest.mark.parametrize("with_ballast", [False, True])
def test_old_requests_can_be_deleted_on_a_full_disk_thanks_to_the_ballast(small_disk: Path, with_ballast: bool) -> None:
    async def run() -> int:
        results = ResultFiles(small_disk)
        results.prepare()
        earlier = JobDatabase(small_disk / "jobs.sqlite3")
        finished_rows(earlier, 1500)
        earlier.close()  # folds the write-ahead log in, so that the next write needs space of its own
        database = JobDatabase(small_disk / "jobs.sqlite3")
        ballast = Ballast(small_disk)
        sweeper = Sweeper(
            database, results, result_ttl_s=60.0, file_ttl_s=60.0, ballast=ballast if with_ballast else None
        )
        try:
            if with_ballast:
                ballast.settle(results.free_bytes())
                assert ballast.held
            fill(small_disk)
            if not with_ballast:
                with pytest.raises(InsufficientStorage):
                    await sweeper.sweep()
            else:
                await sweeper.sweep()
                assert not ballast.held
            return sum(database.read.get(f"job{index}") is not None for index in range(1500))
        finally:
            database.close()

    left = asyncio.run(run())
    print(f"{left} of 1500 old requests left after a sweep on a full disk, ballast: {with_ballast}")
    assert (left == 0) == with_ballast


def test_the_ballast_comes_back_when_there_is_space(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path, size_bytes=1000)
    ballast.settle(2999)
    assert not ballast.held
    ballast.settle(3000)
    assert (tmp_path / "ballast").stat().st_size == 1000
    ballast.settle(1000)
    assert ballast.held
    ballast.settle(999)
    assert os.listdir(tmp_path) == []
    assert SIZE_BYTES * 4 <= DISK_BYTES
