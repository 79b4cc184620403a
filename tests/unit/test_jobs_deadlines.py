"""Deadlines of jobs: in the queue, and while they run; claims that come too late; clocks that jump."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.clock import Clock, SteadyClock
from server.jobs import deadlines as deadlines_module
from server.jobs.database import JobDatabase
from server.jobs.deadlines import QueueDeadline
from server.jobs.dispatcher import Dispatcher
from server.jobs.model import Job, Lane, NewJob, State
from server.jobs.service import JobService
from server.jobs.sweeper import Sweeper
from server.media.results import ResultFiles
from server.worker.job import HandedOver
from server.worker.protocol import Done, Failed, Run
from server.worker.supervisor import WorkerState

LIMIT_S = 20.0
HOURS_S = 3600.0


class Machine:
    """A machine's clocks, and the server's clock on it."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_700_000_000.0, 5_000.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds

    def clock(self) -> SteadyClock:
        """That of a server that starts now."""
        return SteadyClock(wall_s=lambda: self.wall, mono_s=lambda: self.mono)


class Worker:
    """Runs each job until it is told to end it, and stops a cancelled one."""

    greeting = None

    def __init__(self) -> None:
        self.state = WorkerState.READY
        self.runs: list[Run] = []
        self._outcomes: dict[str, asyncio.Future[Done | Failed]] = {}

    async def wait_ready(self) -> None:
        while self.state is not WorkerState.READY:
            await asyncio.sleep(0.001)

    def run_together(self, jobs: list[HandedOver]) -> list[asyncio.Future[Done | Failed]]:
        [handed] = jobs
        self.runs.append(handed.run)
        self._outcomes[handed.run.job] = outcome = asyncio.get_running_loop().create_future()
        return [outcome]

    def cancel(self, job: str, attempt: int) -> None:
        self._outcomes[job].set_result(Failed(job=job, attempt=attempt, kind="cancelled", message=""))

    def succeed(self) -> None:
        done = {"images": [], "depth_map": None, "timings_s": {}, "notes": {}}
        run = self.runs[-1]
        self._outcomes[run.job].set_result(Done(job=run.job, attempt=run.attempt, result=done, compute_s=1.0))


class World:
    def __init__(self, folder: Path, clock: Clock, run_limit_s: float | None) -> None:
        self.results = ResultFiles(folder, clock=clock)
        self.results.prepare()
        self.database = JobDatabase(folder / "jobs.sqlite3")
        self.service = JobService(self.database, queue_limit=99, result_ttl_s=HOURS_S, clock=clock)
        self.worker = Worker()
        self.dispatcher = Dispatcher(
            self.database,
            self.service,
            self.worker,
            self.results,
            run_limit_s=run_limit_s,
            clock=clock,  # type: ignore[arg-type]
        )
        self.deadline = QueueDeadline(self.database, self.service, queue_ttl_s=60.0, clock=clock)
        self.sweeper = Sweeper(self.database, self.results, result_ttl_s=HOURS_S, file_ttl_s=HOURS_S, clock=clock)

    async def submit(self, job_id: str) -> Job:
        request = GenerationRequest(model="m", prompt="p", width=16, height=16, steps=1, guidance=1.0, seed=0)
        return await self.service.submit(
            NewJob(id=job_id, owner="ann", lane=Lane.BATCH, attached=False, request=request, price_micro_usd=5)
        )

    def state(self, job_id: str) -> State | None:
        job = self.service.get(job_id, "ann")
        return job.state if job else None


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def in_world(
    test: Callable[[World], Awaitable[None]], folder: Path, clock: Clock, run_limit_s: float | None = None
) -> None:
    async def run() -> None:
        world = World(folder, clock, run_limit_s)
        await world.dispatcher.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await test(world)
        finally:
            await world.deadline.stop()
            await world.dispatcher.stop(0.0)
            world.database.close()

    asyncio.run(run())


def test_a_job_that_waits_too_long_fails_by_name_and_the_running_one_does_not(tmp_path: Path) -> None:
    machine = Machine()

    async def test(world: World) -> None:
        await world.submit("runs")
        await until(lambda: world.worker.runs)
        waits = await world.submit("waits")
        waiting = asyncio.create_task(world.service.wait(waits, LIMIT_S))
        machine.pass_time(59.9)
        await world.deadline.look(60.0)
        assert world.state("waits") is State.QUEUED
        machine.pass_time(0.2)
        await world.deadline.look(60.0)
        failed = await waiting
        assert (failed.state, failed.error_code) == (State.FAILED, "queue_timeout")
        assert "60 s" in (failed.error_text or "")
        assert failed.queue_s == pytest.approx(60.1)
        assert world.state("runs") is State.RUNNING
        assert world.service.spent_micro_usd("ann") == 5

    in_world(test, tmp_path, machine.clock())


def test_the_queue_is_looked_after_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines_module, "PERIOD_S", 0.01)
    machine = Machine()

    async def test(world: World) -> None:
        world.worker.state = WorkerState.DOWN
        await world.deadline.start()
        for job_id in ("a", "b"):
            await world.submit(job_id)
            machine.pass_time(61)
            await until(lambda one=job_id: world.state(one) is State.FAILED)

    in_world(test, tmp_path, machine.clock())


def test_a_job_that_runs_too_long_is_stopped_and_fails_by_name(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.submit("a")
        ended = await world.service.wait(job, LIMIT_S)
        assert (ended.state, ended.error_code) == (State.FAILED, "run_timeout")
        assert "0.05 s" in (ended.error_text or "")
        assert world.service.spent_micro_usd("ann") == 0

    in_world(test, tmp_path, Machine().clock(), run_limit_s=0.05)


def test_a_job_cancelled_by_its_caller_is_cancelled_and_not_late(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        job = await world.submit("a")
        await until(lambda: world.worker.runs)
        await world.service.cancel(job)
        assert (await world.service.wait(job, LIMIT_S)).state is State.CANCELLED

    in_world(test, tmp_path, Machine().clock(), run_limit_s=60.0)


@pytest.mark.parametrize("spoil", ["stop", "worker"])
def test_a_claim_that_comes_too_late_uses_no_attempt(tmp_path: Path, spoil: str) -> None:
    async def test(world: World) -> None:
        claim = world.database.writer.claim

        def claim_too_late(*arguments: Any) -> Job | None:
            job = claim(*arguments)
            if job is not None:
                if spoil == "stop":
                    world.dispatcher._endings.stopping = True
                else:
                    world.worker.state = WorkerState.DOWN
                world.database.writer.claim = claim  # type: ignore[method-assign]
            return job

        world.database.writer.claim = claim_too_late  # type: ignore[method-assign]
        submitted = await world.submit("a")
        await until(lambda: world.database.writer.claim is claim and not world.dispatcher._claiming)
        assert world.database.read.get("a") == submitted
        assert not world.worker.runs
        world.dispatcher._endings.stopping = False

    in_world(test, tmp_path, Machine().clock())


@pytest.mark.parametrize("jump_s", [2 * HOURS_S, -2 * HOURS_S], ids=["ahead", "back"])
def test_no_clock_that_is_set_ends_forgets_or_ages_anything(tmp_path: Path, jump_s: float) -> None:
    """R14: the jump comes while one job runs, one waits and one is finished."""
    machine = Machine()

    async def test(world: World) -> None:
        done = await world.submit("done")
        await until(lambda: world.worker.runs)
        world.worker.succeed()
        await world.service.wait(done, LIMIT_S)
        await world.submit("runs")
        await until(lambda: len(world.worker.runs) == 2)
        await world.submit("waits")
        picture = await world.results.keep_upload(b"x", "png")
        machine.pass_time(10)
        machine.wall += jump_s
        await world.deadline.look(60.0)
        await world.sweeper.sweep()
        states = [world.state(job_id) for job_id in ("done", "runs", "waits")]
        assert states == [State.SUCCEEDED, State.RUNNING, State.QUEUED]
        machine.pass_time(40)
        world.worker.succeed()
        running = world.service.find_any("runs")
        assert running is not None
        ended = await world.service.wait(running, LIMIT_S)
        figures = (ended.queue_s, ended.total_s)
        print(f"jump of {jump_s:+g} s: queue_s, total_s of the job it hit: {figures}")
        assert all(figure is not None and 0 <= figure < 61 for figure in figures)
        machine.pass_time(HOURS_S - 51)  # 59:59 after the first submission
        await world.sweeper.sweep()
        assert world.state("done") is State.SUCCEEDED
        machine.pass_time(2)
        assert world.state("done") is None
        await world.sweeper.sweep()
        assert world.database.read.get("done") is None
        machine.pass_time(60)
        await world.sweeper.sweep()
        assert world.results.find(picture) is None

    in_world(test, tmp_path, machine.clock())


@pytest.mark.parametrize("jump_s", [2 * HOURS_S, -2 * HOURS_S, -0.5 * HOURS_S], ids=["ahead", "back", "half back"])
def test_nothing_is_kept_twice_its_time_when_the_clock_is_set_between_two_runs(tmp_path: Path, jump_s: float) -> None:
    machine = Machine()

    async def first(world: World) -> None:
        done = await world.submit("done")
        await until(lambda: world.worker.runs)
        world.worker.succeed()
        await world.service.wait(done, LIMIT_S)
        await world.results.keep_upload(b"x", "png")
        machine.pass_time(0.9 * HOURS_S)

    in_world(first, tmp_path, machine.clock())
    machine.wall += jump_s

    async def second(world: World) -> None:
        kept = world.database.read.get("done")
        assert kept is not None
        assert kept.submitted_at <= world.service._clock.now()
        for path in (tmp_path / "files").iterdir():
            assert world.results._age_s(path) >= 0
        machine.pass_time(1.1 * HOURS_S)
        assert world.state("done") is None
        await world.sweeper.sweep()
        assert world.database.read.get("done") is None
        assert not list((tmp_path / "files").iterdir())

    in_world(second, tmp_path, machine.clock())
