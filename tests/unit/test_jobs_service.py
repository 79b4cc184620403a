"""The job service over a real database: accept, look, wait, cancel, forget."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.clock import STEADY, Clock
from server.errors import KeyReused, NotFound, ServerError, Unavailable
from server.jobs.database import JobDatabase
from server.jobs.model import Ending, Idempotency, Job, Lane, NewJob, State
from server.jobs.service import JobService, Progress
from server.jobs.sqlite_store import SqliteStore
from server.jobs.store import QueueFull

LONG_S = 20.0
"""For what should happen at once: only a failing test waits this long."""


def new_job(job_id: str = "a", **changes: Any) -> NewJob:
    request = GenerationRequest(model="m", prompt="p", width=64, height=64, steps=1, guidance=1.0, seed=0)
    values: dict[str, Any] = {"owner": "ann", "lane": Lane.BATCH, "attached": False, "request": request}
    return NewJob(id=job_id, **{**values, **changes})


def ending(state: State = State.SUCCEEDED) -> Ending:
    return Ending(state=state, queue_s=0.0, compute_s=0.0, total_s=0.0)


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float) -> None:
        self.at = now

    def now(self) -> float:
        return self.at


class World:
    """A database with its service, and what the dispatcher would do."""

    def __init__(
        self, folder: Path, *, queue_limit: int = 100, result_ttl_s: float = 3600.0, clock: Clock = STEADY
    ) -> None:
        self.path = folder / "jobs.sqlite3"
        self.database = JobDatabase(self.path)
        self.service = JobService(self.database, queue_limit=queue_limit, result_ttl_s=result_ttl_s, clock=clock)

    async def claim(self) -> Job:
        job = await self.database.write(self.database.writer.claim)
        assert job is not None
        return job

    async def finish(self, job: Job, state: State = State.SUCCEEDED, *, now: float | None = None) -> Job:
        """Claims and ends a job, and reports it, as the dispatcher does."""
        claimed = await self.claim()
        assert claimed.id == job.id
        return await self.end(claimed, state, now=now)

    async def end(self, running: Job, state: State = State.SUCCEEDED, *, now: float | None = None) -> Job:
        at = time.time() if now is None else now
        writer = self.database.writer
        final = await self.database.write(writer.finish, running.id, running.attempt, ending(state), now=at)
        assert final is not None
        self.service.settled(final)
        return final


def with_world(test: Callable[[World], Awaitable[None]], folder: Path, **options: Any) -> None:
    async def run() -> None:
        world = World(folder, **options)
        try:
            async with asyncio.timeout(LONG_S):
                await test(world)
        finally:
            world.database.close()

    asyncio.run(run())


async def turns(count: int = 5) -> None:
    """Lets every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


# Accepting.


def test_an_accepted_job_is_on_disk_and_the_dispatcher_is_woken(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert not world.service.arrived.is_set()
        job = await world.service.submit(new_job(price_micro_usd=5))
        assert world.service.arrived.is_set()
        elsewhere = SqliteStore(world.path, read_only=True)
        assert elsewhere.get("a") == job
        elsewhere.close()
        assert job.state is State.QUEUED
        assert world.service.count_queued() == 1
        assert world.service.spent_micro_usd("ann") == 5

    with_world(test, tmp_path)


def test_many_callers_at_once_get_exactly_as_many_places_as_there_are(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        submissions = [world.service.submit(new_job(f"job{index}")) for index in range(50)]
        outcomes = await asyncio.gather(*submissions, return_exceptions=True)
        assert sum(isinstance(outcome, Job) for outcome in outcomes) == 20
        assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 30
        assert world.service.count_queued() == 20

    with_world(test, tmp_path, queue_limit=20)


def test_a_server_that_shuts_down_accepts_nothing_but_still_answers(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job("early"))
        world.service.stop_accepting()
        with pytest.raises(Unavailable) as refused:
            await world.service.submit(new_job("late", price_micro_usd=5))
        assert refused.value.http_status == 503
        assert refused.value.retry_after_s
        assert world.service.get("late", "ann") is None
        assert world.service.spent_micro_usd("ann") == 0
        assert world.service.get("early", "ann") == job

    with_world(test, tmp_path)


def test_a_caller_that_goes_away_does_not_take_back_what_is_being_committed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        disk = threading.Event()
        busy = asyncio.create_task(world.database.write(disk.wait, LONG_S))
        submitting = asyncio.create_task(world.service.submit(new_job()))
        await turns()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        disk.set()
        await busy
        job = await world.claim()
        assert job.id == "a"
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        assert not waiting.done()
        await world.end(job)
        assert (await waiting).state is State.SUCCEEDED

    with_world(test, tmp_path)


@pytest.mark.parametrize("error", [QueueFull(), sqlite3.OperationalError("database or disk is full")])
def test_nothing_is_remembered_of_a_job_that_was_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def test(world: World) -> None:
        def refuse(*_: Any, **__: Any) -> Job:
            raise error

        monkeypatch.setattr(world.database.writer, "submit", refuse)
        with pytest.raises((ServerError, sqlite3.Error)):
            await world.service.submit(new_job())
        assert not world.service._watches

    with_world(test, tmp_path)


# Looking.


def test_a_job_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        assert world.service.get("a", "ann") == job
        for stranger in ("ben", "", "ANN", "ann "):
            assert world.service.get("a", stranger) is None
        assert world.service.get("unknown", "ann") is None

    with_world(test, tmp_path)


@pytest.mark.parametrize(
    ("ttl_s", "submitted", "finished", "gone"),
    [
        (3600.0, 1000.0, 1010.0, 4600.0),  # the usual case: by the time of submission
        (3600.0, 1000.0, 6000.0, 6600.0),  # waited long: ten minutes more to fetch it
        (3600.0, 1000.0, 4000.0, 4600.0),  # both at the same time
        (60.0, 1000.0, 1010.0, 1070.0),  # a short life counts from the end as well
    ],
)
def test_a_finished_job_is_forgotten_on_the_second(
    tmp_path: Path, ttl_s: float, submitted: float, finished: float, gone: float
) -> None:
    clock = HandClock(submitted)

    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        assert job.submitted_at == submitted
        await world.finish(job, now=finished)
        clock.at = gone - 0.5
        assert world.service.get("a", "ann") is not None
        clock.at = gone
        assert world.service.get("a", "ann") is None

    with_world(test, tmp_path, result_ttl_s=ttl_s, clock=clock)


def test_a_job_that_has_not_ended_is_never_forgotten(tmp_path: Path) -> None:
    clock = HandClock(1000.0)

    async def test(world: World) -> None:
        await world.service.submit(new_job())
        clock.at = 1e9
        assert world.service.get("a", "ann") is not None
        await world.claim()
        assert world.service.get("a", "ann") is not None

    with_world(test, tmp_path, clock=clock)


def test_progress_is_known_while_the_job_is_unfinished(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        assert world.service.progress("a") is None
        world.service.watch_of(job).progress = Progress(2, 4, 0.5)
        assert world.service.progress("a") == Progress(2, 4, 0.5)
        await world.finish(job)
        assert world.service.progress("a") is None
        assert world.service.progress("unknown") is None

    with_world(test, tmp_path)


# Waiting.


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_all_who_wait_wake_when_the_job_is_final_and_not_before(tmp_path: Path, state: State) -> None:
    async def test(world: World) -> None:
        job, other = await world.service.submit(new_job()), await world.service.submit(new_job("b"))
        waiting = [asyncio.create_task(world.service.wait(job, LONG_S)) for _ in range(3)]
        waits_for_other = asyncio.create_task(world.service.wait(other, LONG_S))
        running = await world.claim()
        await turns()
        assert not any(task.done() for task in waiting)
        final = await world.end(running, state)
        assert await asyncio.gather(*waiting) == [final] * 3
        assert final.state is state
        assert not waits_for_other.done()
        await world.finish(other)
        await waits_for_other

    with_world(test, tmp_path)


def test_waiting_for_a_final_job_returns_at_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        final = await world.finish(job)
        assert await world.service.wait(job, 0.0) == final

    with_world(test, tmp_path)


def test_a_wait_that_is_too_long_leaves_the_job_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        cancelled: list[str] = []
        world.service.on_cancel = cancelled.append
        job = await world.service.submit(new_job())
        with pytest.raises(TimeoutError):
            await world.service.wait(job, 0.01)
        assert world.service.get("a", "ann") == job
        assert not cancelled
        assert not world.service.watch_of(job).cancel_requested
        again = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        await world.finish(job)
        assert (await again).state is State.SUCCEEDED

    with_world(test, tmp_path)


def test_a_waiter_that_gives_up_does_not_wake_the_others(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        leaver, stayer = (asyncio.create_task(world.service.wait(job, LONG_S)) for _ in range(2))
        await turns()
        leaver.cancel()
        await turns()
        assert leaver.cancelled()
        assert not stayer.done()
        await world.finish(job)
        assert (await stayer).state is State.SUCCEEDED

    with_world(test, tmp_path)


def test_a_job_that_was_swept_before_anybody_looked_is_not_found_rather_than_waiting(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        await world.finish(job)
        world.database.writer.delete_expired(submitted_before=1e12, finished_before=1e12, limit=9)
        with pytest.raises(NotFound, match="forgotten"):
            await world.service.wait(job, LONG_S)

    with_world(test, tmp_path)


def test_who_waits_gets_the_end_even_of_a_job_that_is_swept_at_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        final = await world.finish(job)
        world.database.writer.delete_expired(submitted_before=1e12, finished_before=1e12, limit=9)
        assert await waiting == final

    with_world(test, tmp_path)


def test_a_job_from_before_a_restart_is_waited_for(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = world.database.writer.submit(new_job(), now=1.0, queue_limit=9)
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        assert not waiting.done()
        final = await world.finish(job)
        assert await waiting == final

    with_world(test, tmp_path)


def test_a_server_that_stops_lets_go_of_who_waits(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(new_job())
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        world.service.release_waiters()
        with pytest.raises(Unavailable, match="same Idempotency-Key"):
            await waiting

    with_world(test, tmp_path)


# One request sent several times.


def keyed(job_id: str, fingerprint: str = "f") -> NewJob:
    return new_job(job_id, idempotency=Idempotency("k", fingerprint))


def test_many_at_once_under_one_key_are_one_job_and_leave_one_watch(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        jobs = await asyncio.gather(*(world.service.submit(keyed(f"job{index}")) for index in range(50)))
        assert {job.id for job in jobs} == {"job0"}
        assert world.service.count_queued() == 1
        assert set(world.service._watches) == {"job0"}

    with_world(test, tmp_path)


def test_a_job_is_found_by_its_key_for_as_long_as_it_is_kept(tmp_path: Path) -> None:
    clock = HandClock(1000.0)

    async def test(world: World) -> None:
        same = Idempotency("k", "f")
        assert world.service.find_same("ann", same) is None
        job = await world.service.submit(keyed("a"))
        assert world.service.find_same("ann", same) == job
        assert world.service.find_same("ben", same) is None
        with pytest.raises(KeyReused):
            world.service.find_same("ann", Idempotency("k", "g"))
        final = await world.finish(job, now=1001.0)
        clock.at = 4599.0
        assert world.service.find_same("ann", same) == final
        clock.at = 4600.0
        assert world.service.find_same("ann", same) is None
        assert (await world.service.submit(keyed("b"))).id == "b"

    with_world(test, tmp_path, clock=clock)


def test_a_server_that_shuts_down_still_knows_keys(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.service.submit(keyed("a"))
        world.service.stop_accepting()
        assert world.service.find_same("ann", Idempotency("k", "f")) == job

    with_world(test, tmp_path)


# Cancelling.


def test_a_running_job_from_before_a_restart_can_be_cancelled(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        asked: list[str] = []
        world.service.on_cancel = asked.append
        job = world.database.writer.submit(new_job(), now=1.0, queue_limit=9)
        await world.claim()
        await world.service.cancel(job)
        assert asked == ["a"]
        assert world.service.watch_of(job).cancel_requested

    with_world(test, tmp_path)


def test_cancelling_a_waiting_job_ends_it_and_wakes_who_waits(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        asked: list[str] = []
        world.service.on_cancel = asked.append
        job = await world.service.submit(new_job(price_micro_usd=5))
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await turns()
        await world.service.cancel(job)
        assert (await waiting).state is State.CANCELLED
        assert world.service.spent_micro_usd("ann") == 0
        assert world.service.count_queued() == 0
        await world.service.cancel(job)
        assert not asked

    with_world(test, tmp_path)


def test_cancelling_a_running_job_asks_for_its_end(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        asked: list[str] = []
        world.service.on_cancel = asked.append
        job = await world.service.submit(new_job(price_micro_usd=5))
        running = await world.claim()
        waiting = asyncio.create_task(world.service.wait(job, LONG_S))
        await world.service.cancel(job)
        await turns()
        assert asked == ["a"]
        assert world.service.watch_of(job).cancel_requested
        assert world.service.get("a", "ann") == running
        assert not waiting.done()
        await world.end(running, State.CANCELLED)
        assert (await waiting).state is State.CANCELLED

    with_world(test, tmp_path)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_cancelling_a_final_job_leaves_it_as_it_is(tmp_path: Path, state: State) -> None:
    async def test(world: World) -> None:
        asked: list[str] = []
        world.service.on_cancel = asked.append
        job = await world.service.submit(new_job(price_micro_usd=5))
        final = await world.finish(job, state)
        spent = world.service.spent_micro_usd("ann")
        await world.service.cancel(job)
        assert world.service.get("a", "ann") == final
        assert world.service.spent_micro_usd("ann") == spent
        assert not asked

    with_world(test, tmp_path)


def test_cancelling_one_job_leaves_the_others(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await world.service.submit(new_job("a")), await world.service.submit(new_job("b"))
        await world.service.cancel(first)
        assert world.service.get("b", "ann") == second
        assert (await world.claim()).id == "b"

    with_world(test, tmp_path)


# After a restart.


def test_a_job_from_before_a_restart_keeps_its_age(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        store = world.database.writer
        old = store.submit(new_job("old"), now=500.0, queue_limit=9)
        ahead = store.submit(new_job("ahead"), now=1500.0, queue_limit=9)
        assert world.service.watch_of(old).submitted == 500.0
        assert world.service.watch_of(old) is world.service.watch_of(old)
        assert world.service.watch_of(ahead).submitted == 1000.0

    with_world(test, tmp_path, clock=HandClock(1000.0))


def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    async def test() -> None:
        world = World(tmp_path)
        writes = [asyncio.ensure_future(world.service.submit(new_job(f"job{index}"))) for index in range(20)]
        await turns(1)
        world.database.close()
        assert len(await asyncio.gather(*writes)) == 20

    asyncio.run(test())
    store = SqliteStore(tmp_path / "jobs.sqlite3", read_only=True)
    assert store.count_queued() == 20
    store.close()
