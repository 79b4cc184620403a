"""Who is claimed with whom, and what becomes of a batch's jobs, with a played worker."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationRequest
from server.jobs.company import seats
from server.jobs.database import JobDatabase
from server.jobs.dispatcher import Dispatcher
from server.jobs.model import Job, Lane, NewJob, State
from server.jobs.service import JobService
from server.media.results import ResultFiles
from server.worker.job import HandedOver
from server.worker.protocol import PROTOCOL_VERSION, Done, Failed, Ready
from server.worker.supervisor import WorkerLost, WorkerNotReady, WorkerState, WorkerStuck

LIMIT_S = 10.0
MODELS = ("flux-dev", "flux-depth-dev")
RESULT = {"images": [], "depth_map": None, "timings_s": {}, "notes": {}}


def ready(**given: Any) -> Ready:
    """A worker that draws up to four together in `fast`."""
    samples = {"str": "x", "int": 1, "float": 0.5, "bool": False, "dict": {}, "list": []}
    known = {
        "version": PROTOCOL_VERSION,
        "tiers": ["exact", "fast", "turbo"],
        "together": 4,
        "together_tiers": ["fast"],
    }
    required = {field.name: samples[re.split(r"\W", str(field.type))[0]] for field in dataclasses.fields(Ready)}
    return Ready(**required | known | given)


def request_of(**changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {"model": "flux-dev", "prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1}
    return GenerationRequest(**{**values, "guidance": 3.5, "tier": "fast", **changes})


def job_of(deaths: int = 0, **changes: Any) -> Job:
    return Job(
        id="a",
        seq=1,
        owner="ann",
        lane=Lane.BATCH,
        attached=False,
        state=State.RUNNING,
        attempt=1,
        deaths=deaths,
        request=request_of(**changes),
        dialect={},
        price_micro_usd=0,
        submitted_at=0.0,
    )


@pytest.mark.parametrize(
    ("job", "greeting", "free"),
    [
        (job_of(), ready(), 3),
        (job_of(), ready(together=2), 1),
        (job_of(tier="", prefer_fast=True), ready(), 3),
        (job_of(tier=""), ready(), 0),
        (job_of(tier=""), ready(together_tiers=["exact", "fast"]), 3),
        (job_of(tier="turbo"), ready(together_tiers=["exact", "fast", "turbo"]), 0),
        (job_of(tier="fp8"), ready(), 0),
        (job_of(deaths=1), ready(), 0),
        (job_of(width=1024, height=1024), ready(), 0),
        (job_of(num_outputs=2), ready(), 0),
        (job_of(), ready(together=1, together_tiers=[]), 0),
        (job_of(), None, 0),
    ],
)
def test_how_many_may_come_along(job: Job, greeting: Ready | None, free: int) -> None:
    assert seats(job, greeting) == free


class Worker:
    """Ready whenever it has nothing. Notes what comes together; each job ends when the test says so."""

    def __init__(self) -> None:
        self.greeting: Ready | None = ready()
        self.state = WorkerState.READY
        self.batches: list[list[str]] = []
        self.cancelled: list[str] = []
        self.refuses = False
        self.in_hand: dict[str, tuple[HandedOver, asyncio.Future[Done | Failed]]] = {}

    async def wait_ready(self) -> None:
        while self.state is not WorkerState.READY:
            await asyncio.sleep(0.001)

    def run_together(self, jobs: list[HandedOver]) -> list[asyncio.Future[Done | Failed]]:
        if self.refuses:
            self.refuses = False
            raise WorkerNotReady
        self.state = WorkerState.BUSY
        self.batches.append([job.run.job for job in jobs])
        for job in jobs:
            self.in_hand[job.run.job] = job, asyncio.get_running_loop().create_future()
        return [self.in_hand[job.run.job][1] for job in jobs]

    def cancel(self, job: str, attempt: int) -> None:
        if job in self.in_hand:
            self.cancelled.append(job)
            self.end(job, "cancelled")

    def draw(self, job: str) -> None:
        self.in_hand[job][0].on_drawn()

    def end(self, job: str, kind: str = "") -> None:
        handed, outcome = self.in_hand.pop(job)
        run = handed.run
        if kind:
            outcome.set_result(Failed(job=job, attempt=run.attempt, kind=kind, message=""))
        else:
            outcome.set_result(Done(job=job, attempt=run.attempt, result=RESULT, compute_s=1.0))
        self._free()

    def die(self, error: Exception) -> None:
        for _, outcome in self.in_hand.values():
            outcome.set_exception(error)
        self.in_hand.clear()
        self._free()

    def _free(self) -> None:
        if not self.in_hand:
            self.state = WorkerState.READY


class World:
    """Jobs can be submitted before the dispatcher starts, so that they wait together."""

    def __init__(self, folder: Path) -> None:
        self.results = ResultFiles(folder)
        self.results.prepare()
        self.database = JobDatabase(folder / "jobs.sqlite3")
        self.service = JobService(self.database, queue_limit=99, result_ttl_s=3600.0)
        self.worker = Worker()
        self.dispatcher = Dispatcher(self.database, self.service, self.worker, self.results)  # type: ignore[arg-type]

    async def submit(self, job_id: str, lane: Lane = Lane.BATCH, attached: bool = False, **changes: Any) -> Job:
        request = request_of(**changes)
        return await self.service.submit(
            NewJob(id=job_id, owner="ann", lane=lane, attached=attached, request=request, price_micro_usd=5)
        )

    async def batches(self, count: int) -> list[list[str]]:
        """Once so many batches have been begun."""
        await until(lambda: len(self.worker.batches) >= count)
        return self.worker.batches

    async def state(self, job_id: str, state: State) -> Job:
        await until(lambda: (job := self.service.get(job_id, "ann")) and job.state is state)
        job = self.service.get(job_id, "ann")
        assert job is not None
        return job


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def in_world(test: Callable[[World], Awaitable[None]], folder: Path) -> None:
    async def run() -> None:
        world = World(folder)
        try:
            await test(world)
        finally:
            if world.dispatcher._task:
                await world.dispatcher.stop(0.0)
            world.database.close()

    asyncio.run(run())


def test_mates_come_in_order_whichever_lane_and_strangers_wait(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.submit("v2 first", steps=9)
        for name in ("v2 a", "v2 b", "v2 c", "v2 d"):
            await world.submit(name)
        await world.submit("v1 head", Lane.INTERACTIVE)
        await world.submit("v1 stranger", Lane.INTERACTIVE, width=80)
        await world.submit("v1 mate", Lane.INTERACTIVE)
        await world.dispatcher.start()
        expected = [["v1 head", "v1 mate", "v2 a", "v2 b"], ["v1 stranger"], ["v2 first"], ["v2 c", "v2 d"]]
        for count, batch in enumerate(expected, 1):
            assert (await world.batches(count))[-1] == batch
            for job in batch:
                assert (await world.state(job, State.RUNNING)).attempt == 1
                world.worker.end(job)
        for batch in expected:
            for job in batch:
                await world.state(job, State.SUCCEEDED)

    in_world(test, tmp_path)


def test_only_the_next_few_are_looked_at(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.submit("head")
        for number in range(32):
            await world.submit(f"stranger {number}", steps=5 + number)
        await world.submit("too far behind")
        await world.dispatcher.start()
        assert (await world.batches(1))[0] == ["head"]

    in_world(test, tmp_path)


def test_a_batch_is_one_turn_of_its_model(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.worker.greeting = ready(takes_turns=True)
        for number in range(28):
            await world.submit("depth" if number == 4 else f"dev {number}", model=MODELS[number == 4])
        await world.dispatcher.start()
        for count in range(1, 8):
            batch = (await world.batches(count))[-1]
            if batch == ["depth"]:
                break
            for job in batch:
                world.worker.end(job)
        assert [len(batch) for batch in world.worker.batches] == [4] * 5 + [1], "its own, and the four that may pass it"

    in_world(test, tmp_path)


def test_the_next_is_taken_when_the_last_of_a_batch_is_drawn(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for name in "abc":
            await world.submit(name)
        await world.submit("next", steps=9)
        await world.dispatcher.start()
        await world.batches(1)
        world.worker.draw("a")
        world.worker.end("b", "input")
        await world.state("b", State.FAILED)
        assert len(world.worker.batches) == 1
        world.worker.draw("c")
        world.worker.state = WorkerState.READY
        assert await world.batches(2) == [["a", "b", "c"], ["next"]]
        for name in ("a", "c", "next"):
            world.worker.end(name)
            await world.state(name, State.SUCCEEDED)

    in_world(test, tmp_path)


def test_one_cancelled_mate_ends_and_the_others_succeed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        jobs = [await world.submit(name) for name in "abc"]
        await world.dispatcher.start()
        await world.batches(1)
        await world.service.cancel(jobs[1])
        assert world.worker.cancelled == ["b"]
        await world.state("b", State.CANCELLED)
        for name in "ac":
            world.worker.end(name)
            await world.state(name, State.SUCCEEDED)

    in_world(test, tmp_path)


@pytest.mark.parametrize("error", [WorkerLost("killed"), WorkerStuck("no step")])
def test_after_a_death_each_of_a_batch_runs_alone_and_only_the_bad_one_fails(tmp_path: Path, error: Exception) -> None:
    async def test(world: World) -> None:
        for name in "abc":
            await world.submit(name)
        await world.dispatcher.start()
        await world.batches(1)
        await world.submit("later")
        world.worker.die(error)
        alone = {"a": None, "b": error, "c": None}
        for count, (name, trouble) in enumerate(alone.items(), 2):
            assert (await world.batches(count))[-1] == [name]
            assert (await world.state(name, State.RUNNING)).deaths == 1
            if trouble:
                world.worker.die(trouble)
            else:
                world.worker.end(name)
        failed = await world.state("b", State.FAILED)
        assert failed.error_code == ("step_timeout" if isinstance(error, WorkerStuck) else "worker_crashed")
        for name in "ac":
            assert (await world.state(name, State.SUCCEEDED)).attempt == 2
        assert (await world.batches(5))[-1] == ["later"]

    in_world(test, tmp_path)


def test_a_job_that_was_on_a_dead_worker_is_nobodys_mate(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.submit("unlucky")
        await world.dispatcher.start()
        await world.batches(1)
        for name in "ab":
            await world.submit(name, Lane.INTERACTIVE)
        world.worker.die(WorkerLost("killed"))
        assert (await world.batches(2))[-1] == ["a", "b"]

    in_world(test, tmp_path)


def test_a_worker_that_is_gone_again_gives_every_claim_back(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.worker.refuses = True
        for name in "abc":
            await world.submit(name)
        await world.dispatcher.start()
        assert (await world.batches(1))[0] == ["a", "b", "c"]
        assert [(await world.state(name, State.RUNNING)).attempt for name in "abc"] == [1, 1, 1]

    in_world(test, tmp_path)


def test_a_claim_that_comes_too_late_is_taken_back_from_all(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        jobs = [await world.submit(name) for name in "abc"]
        claim_mates = world.database.writer.claim_mates

        def claim_too_late(head: Job, **limits: Any) -> list[Job]:
            world.worker.state = WorkerState.DOWN
            return claim_mates(head, **limits)

        world.database.writer.claim_mates = claim_too_late  # type: ignore[method-assign]
        await world.dispatcher.start()
        await until(lambda: world.worker.state is WorkerState.DOWN and not world.dispatcher._claiming)
        assert [world.database.read.get(name) for name in "abc"] == jobs
        assert not world.worker.batches

    in_world(test, tmp_path)


def test_a_stop_lets_a_batch_finish_within_its_limit(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for name in "abc":
            await world.submit(name)
        await world.dispatcher.start()
        await world.batches(1)
        stopping = asyncio.create_task(world.dispatcher.stop(LIMIT_S))
        for name in "abc":
            world.worker.end(name)
        await stopping
        assert [(await world.state(name, State.SUCCEEDED)).attempt for name in "abc"] == [1, 1, 1]

    in_world(test, tmp_path)


def test_a_stop_in_a_hurry_puts_a_batch_back_but_for_what_somebody_waits_on(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.submit("first", steps=9)
        await world.dispatcher.start()
        await world.batches(1)
        await world.submit("held", Lane.INTERACTIVE, attached=True)
        for name in "ab":
            await world.submit(name)
        world.worker.end("first")
        assert (await world.batches(2))[-1] == ["held", "a", "b"]
        await world.dispatcher.stop(0.0)
        assert sorted(world.worker.cancelled) == ["a", "b", "held"]
        await world.state("held", State.CANCELLED)
        for name in "ab":
            assert (await world.state(name, State.QUEUED)).deaths == 0

    in_world(test, tmp_path)
