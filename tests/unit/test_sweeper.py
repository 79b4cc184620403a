"""The sweeper over a real database and real files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.jobs import sweeper as sweeper_module
from server.jobs.database import JobDatabase
from server.jobs.model import Ending, Lane, NewJob, State
from server.jobs.sweeper import Sweeper
from server.media.results import ResultFiles

LIMIT_S = 20.0
NOW = 1_000_000.0


class AtNow:
    """The clock of the requests, at NOW. That of the files is the true one."""

    def now(self) -> float:
        return NOW


class World:
    def __init__(self, folder: Path, *, result_ttl_s: float, file_ttl_s: float) -> None:
        self.results = ResultFiles(folder)
        self.results.prepare()
        self.database = JobDatabase(folder / "jobs.sqlite3")
        self.sweeper = Sweeper(
            self.database, self.results, result_ttl_s=result_ttl_s, file_ttl_s=file_ttl_s, clock=AtNow()
        )

    def submit(self, job_id: str, *, submitted: float = NOW, control_image: str | None = None) -> None:
        request = GenerationRequest(
            model="m", prompt="p", width=64, height=64, steps=1, guidance=1.0, seed=0, control_image=control_image
        )
        new = NewJob(id=job_id, owner="ann", lane=Lane.BATCH, attached=False, request=request)
        self.database.writer.submit(new, now=submitted, queue_limit=10_000)

    def finished(self, job_id: str, *, submitted: float, finished: float) -> None:
        self.submit(job_id, submitted=submitted)
        job = self.database.writer.claim()
        assert job is not None
        how = Ending(state=State.SUCCEEDED, queue_s=0.0, compute_s=0.0, total_s=0.0)
        self.database.writer.finish(job.id, job.attempt, how, now=finished)

    def has(self, job_id: str) -> bool:
        return self.database.read.get(job_id) is not None


def with_world(
    test: Callable[[World], Awaitable[None]], folder: Path, *, result_ttl_s: float = 3600.0, file_ttl_s: float = 86400.0
) -> None:
    async def run() -> None:
        world = World(folder, result_ttl_s=result_ttl_s, file_ttl_s=file_ttl_s)
        try:
            async with asyncio.timeout(LIMIT_S):
                await test(world)
        finally:
            await world.sweeper.stop()
            world.database.close()

    asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def age(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.mark.parametrize(
    ("submitted_ago", "finished_ago", "stays"),
    [
        (3600.0, 3590.0, False),
        (3599.0, 3590.0, True),
        (9000.0, 599.0, True),  # it waited long: its caller gets ten minutes from its end
        (9000.0, 600.0, False),
        (10.0, 5.0, True),
    ],
)
def test_requests_are_forgotten_by_the_same_rule_as_they_are_answered(
    tmp_path: Path, submitted_ago: float, finished_ago: float, stays: bool
) -> None:
    async def test(world: World) -> None:
        world.finished("a", submitted=NOW - submitted_ago, finished=NOW - finished_ago)
        await world.sweeper.sweep()
        assert world.has("a") is stays

    with_world(test, tmp_path)


def test_a_short_life_is_not_made_longer_by_the_ten_minutes(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.finished("gone", submitted=NOW - 70.0, finished=NOW - 60.0)
        world.finished("stays", submitted=NOW - 70.0, finished=NOW - 59.0)
        await world.sweeper.sweep()
        assert not world.has("gone")
        assert world.has("stays")

    with_world(test, tmp_path, result_ttl_s=60.0)


def test_unfinished_requests_stay_however_old(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.submit("runs", submitted=0.0)
        world.database.writer.claim()
        world.submit("waits", submitted=0.0)
        await world.sweeper.sweep()
        assert world.has("runs")
        assert world.has("waits")

    with_world(test, tmp_path)


def test_one_sweep_forgets_everything_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper_module, "BATCH", 3)

    async def test(world: World) -> None:
        sizes: list[int] = []
        delete = world.database.writer.delete_expired

        def counted(**values: Any) -> int:
            sizes.append(delete(**values))
            return sizes[-1]

        monkeypatch.setattr(world.database.writer, "delete_expired", counted)
        for index in range(7):
            world.finished(f"job{index}", submitted=0.0, finished=1.0)
        await world.sweeper.sweep()
        assert sizes == [3, 3, 1]
        assert not any(world.has(f"job{index}") for index in range(7))

    with_world(test, tmp_path)


def test_files_are_removed_after_their_own_time_whether_or_not_a_request_names_them(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        old, young = [await world.results.keep_upload(b"x", "png") for _ in range(2)]
        for name, age_s in ((old, 86_401), (young, 86_300)):
            path = world.results.find(name)
            assert path is not None
            age(path, age_s)
        await world.sweeper.sweep()
        assert world.results.find(old) is None
        assert world.results.find(young) is not None

    with_world(test, tmp_path)


def test_control_images_stay_while_a_request_needs_them_and_some_minutes_longer(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        kept = {data: await world.results.keep_input(data, "png") for data in (b"waits", b"runs", b"done", b"fresh")}
        world.submit("runs", control_image=kept[b"runs"])
        world.submit("waits", control_image=kept[b"waits"])
        world.database.writer.claim()
        folder = world.results.spool / "inputs"
        for data in (b"waits", b"runs", b"done"):
            age(folder / kept[data], 601)
        age(folder / kept[b"fresh"], 590)
        await world.sweeper.sweep()
        assert {path.name for path in folder.iterdir()} == {kept[b"waits"], kept[b"runs"], kept[b"fresh"]}

    with_world(test, tmp_path)


def test_files_go_before_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        order: list[str] = []
        for owner, name in (
            (world.results, "remove_files"),
            (world.results, "remove_inputs"),
            (world.database.writer, "delete_expired"),
        ):
            monkeypatch.setattr(owner, name, lambda *_, called=name, **__: order.append(called) or 0)
        await world.sweeper.sweep()
        assert order == ["remove_files", "remove_inputs", "delete_expired"]

    with_world(test, tmp_path)


def test_a_started_sweeper_sweeps_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper_module, "PERIOD_S", 0.01)

    async def test(world: World) -> None:
        await world.sweeper.start()
        for round_ in range(3):
            world_finished = f"job{round_}"
            await world.database.write(world.finished, world_finished, submitted=0.0, finished=1.0)
            await until(lambda gone=world_finished: not world.has(gone))

    with_world(test, tmp_path)


def test_a_sweep_that_fails_is_logged_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper_module, "PERIOD_S", 0.01)

    async def test(world: World) -> None:
        failures = iter([OSError("disk"), ValueError("odd")])
        remove = world.results.remove_files

        def remove_at_the_third_attempt(**values: Any) -> int:
            if error := next(failures, None):
                raise error
            return remove(**values)

        monkeypatch.setattr(world.results, "remove_files", remove_at_the_third_attempt)
        world.finished("a", submitted=0.0, finished=1.0)
        await world.sweeper.start()
        await until(lambda: not world.has("a"))

    with_world(test, tmp_path)


def test_a_stopped_sweeper_sweeps_no_more_and_can_be_stopped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper_module, "PERIOD_S", 0.001)

    async def test(world: World) -> None:
        swept: list[None] = []

        async def sweep() -> None:
            swept.append(None)

        monkeypatch.setattr(world.sweeper, "sweep", sweep)
        await world.sweeper.start()
        await until(lambda: len(swept) >= 3)
        await world.sweeper.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await world.sweeper.stop()

    with_world(test, tmp_path)


def test_a_sweeper_that_never_started_can_be_stopped(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.sweeper.stop()

    with_world(test, tmp_path)
