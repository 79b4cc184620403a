"""Hands queued jobs to the worker, one at a time or a company of small ones together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from server.clock import STEADY, Clock
from server.errors import ServerError, StepTimeout
from server.logs import describe_prompt
from server.media.results import ResultFiles
from server.worker.errors import WorkerLost, WorkerLostAfterDrawing, WorkerNotReady, WorkerStuck
from server.worker.job import HandedOver
from server.worker.protocol import Done, Failed, Step, run_message
from server.worker.supervisor import WorkerState, WorkerSupervisor

from .company import seats
from .database import JobDatabase
from .endings import RETRY_S, Endings
from .following import FollowingJob
from .model import Job
from .recovery import take_up
from .service import JobService, Progress, Watch
from .turns import Turns

log = structlog.get_logger(__name__)

STOP_LIMIT_S = 10.0


class Dispatcher:
    def __init__(
        self,
        database: JobDatabase,
        service: JobService,
        worker: WorkerSupervisor,
        results: ResultFiles,
        *,
        log_prompts: bool = False,
        run_limit_s: float | None = None,
        min_free_bytes: int = 0,
        file_ttl_s: float = float("inf"),
        clock: Clock = STEADY,
        on_done: Callable[[Done], None] = lambda _: None,
    ) -> None:
        """on_done: hears what the worker said of each finished job."""
        self._clock, self._run_limit_s, self._file_ttl_s = clock, run_limit_s, file_ttl_s
        self._database, self._service, self._worker, self._results = database, service, worker, results
        self._endings = Endings(
            database,
            service,
            results,
            run_limit_s=run_limit_s,
            min_free_bytes=min_free_bytes,
            clock=clock,
            on_done=on_done,
        )
        self._running: dict[str, Job] = {}
        """By id: those that are drawn, and those before them whose pictures are still encoded or published."""
        self._claiming = False
        self._turns = Turns()
        self._following = FollowingJob(database, worker)
        self._attempts: dict[asyncio.Task[None], object] = {}
        """One for each running job, with what stands for the batch that it is in."""
        self._task: asyncio.Task[None] | None = None
        self._stopped, self._hurry = asyncio.Event(), asyncio.Event()
        self._log_prompts = log_prompts
        service.on_cancel = self._cancel_running

    async def start(self) -> None:
        """Takes up what an earlier run of the server left, then begins to dispatch."""
        await take_up(self._database, self._results, self._clock, file_ttl_s=self._file_ttl_s)
        self._service.arrived.set()
        self._task = asyncio.create_task(self._dispatch(), name="dispatcher")

    async def stop(self, drain_limit_s: float) -> None:
        """Lets the running jobs finish within the limit, else stops them at a step and puts them back in the queue.

        Calls that block on a job are then answered: nobody would wait for it after the restart. Asked once more, it
        waits no longer for the running jobs, and both calls return when all is done.
        """
        if self._endings.stopping:
            self._hurry.set()
            await self._stopped.wait()
            return
        self._endings.stopping = True
        self._service.arrived.set()
        try:
            await self._stop(drain_limit_s)
        finally:
            self._stopped.set()

    async def _stop(self, drain_limit_s: float) -> None:
        assert self._task is not None
        if self._claiming:
            await asyncio.wait([self._task], timeout=STOP_LIMIT_S)
        if self._attempts:
            await self._ended_or_hurried(drain_limit_s)
        if self._attempts:
            for job in self._running.values():
                self._worker.cancel(job.id, job.attempt)
            await asyncio.wait(self._attempts, timeout=STOP_LIMIT_S)
        for task in (self._task, *self._attempts):
            task.cancel()
        await asyncio.gather(self._task, *self._attempts, return_exceptions=True)
        with suppress(ServerError):  # else the next start does it
            for job in await self._database.write(self._database.writer.recover, now=self._clock.now()):
                self._service.settled(job)
        self._service.release_waiters()

    async def _ended_or_hurried(self, limit_s: float) -> None:
        """Returns when nothing runs any more, when a second signal says not to wait, or when the time is over."""
        ended: asyncio.Future[Any] = asyncio.gather(*self._attempts, return_exceptions=True)
        hurried: asyncio.Future[Any] = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([asyncio.shield(ended), hurried], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def _dispatch(self) -> None:
        while not self._endings.stopping:
            await self._worker.wait_ready()
            await self._wait_for_room()
            await self._wait_for_publishing()
            self._service.arrived.clear()
            jobs = await self._claim()
            if not jobs:
                await self._service.arrived.wait()
                continue
            self._turns.took(jobs[0].request.model)
            await self._begin(jobs)

    async def _begin(self, jobs: Sequence[Job]) -> None:
        """Runs these jobs together, each in a task of its own. Returns when the worker can take others."""
        going = [job for job in jobs if not self._service.watch_of(job).cancel_requested]
        drawn = [asyncio.Event() for _ in going]
        try:
            handed = [self._handed_over(job, event) for job, event in zip(going, drawn, strict=True)]
            outcomes = self._worker.run_together(handed) if handed else []
        except WorkerNotReady:
            for job in jobs:
                await self._endings.unclaim(job)
            return
        batch = object()
        for job, event, outcome in zip(going, drawn, outcomes, strict=True):
            self._attend(job, batch, self._follow(job, outcome, event, len(going)))
        for job in jobs:
            if job not in going:
                self._attend(job, batch, self._drop(job))
        for event in drawn:
            await event.wait()

    def _handed_over(self, job: Job, drawn: asyncio.Event) -> HandedOver:
        watch = self._service.watch_of(job)

        def on_step(step: Step) -> None:
            watch.progress = Progress(step.step, step.steps, step.step_s)
            self._following.announce(job, self._preferred_model())

        return HandedOver(run_message(job.id, job.attempt, job.request), on_step, drawn.set)

    def _attend(self, job: Job, batch: object, attempt: Coroutine[Any, Any, None]) -> None:
        """Lets the attempt go on in a task, until the job has ended or is back in the queue."""
        self._running[job.id] = job
        with structlog.contextvars.bound_contextvars(job=job.id):
            task = asyncio.create_task(attempt, name=f"attempt {job.id}")
        self._attempts[task] = batch
        task.add_done_callback(partial(self._attended, job))

    def _attended(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._attempts[task]
        if self._running.get(job.id) is job:
            del self._running[job.id]

    async def _wait_for_room(self) -> None:
        told = False
        while self._endings.full() and not self._endings.stopping:
            if not told:
                log.error("the disk is full: no job is begun until there is space", room_bytes=self._endings.room_bytes)
            told = True
            await asyncio.sleep(RETRY_S)

    async def _wait_for_publishing(self) -> None:
        """One batch may be published while the next is drawn, not more: a kill costs what is not published yet."""
        while len(set(self._attempts.values())) > 1:
            await asyncio.wait(self._attempts, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self) -> list[Job]:
        """The next job for the ready worker, and its mates. Claims that come too late leave no trace."""
        if self._endings.stopping:
            return []
        self._claiming = True
        try:
            jobs = await self._claim_company()
            if not jobs or (self._worker.state is WorkerState.READY and not self._endings.stopping):
                return jobs
            for job in jobs:
                await self._endings.unclaim(job)
        finally:
            self._claiming = False
        return []

    async def _claim_company(self) -> list[Job]:
        writer, write = self._database.writer, self._endings.write
        head = await write(writer.claim, self._preferred_model())
        if head is None:
            return []
        free = seats(head, self._worker.greeting)
        return [head, *(await write(writer.claim_mates, head, limit=free) if free else ())]

    def _preferred_model(self) -> str | None:
        greeting = self._worker.greeting
        return self._turns.preferred if greeting and greeting.takes_turns else None

    async def _drop(self, job: Job) -> None:
        """Its caller did not want it any more before it could begin."""
        watch = self._service.watch_of(job)
        await self._endings.cancelled(job, watch, self._clock.now() - watch.submitted)

    async def _follow(
        self, job: Job, outcome: asyncio.Future[Done | Failed], drawn: asyncio.Event, together: int
    ) -> None:
        """Waits for what becomes of a job that the worker has, and commits it."""
        watch = self._service.watch_of(job)
        queue_s = self._clock.now() - watch.submitted
        log.info(
            "job started",
            job=job.id,
            attempt=job.attempt,
            model=job.request.model,
            prompt=job.request.prompt if self._log_prompts else describe_prompt(job.request.prompt),
            queue_s=round(queue_s, 3),
            together=together,
        )
        limit = self._start_run_limit(job, watch)
        try:
            ended = await outcome
        except WorkerLostAfterDrawing:
            await self._endings.requeue(job, worker_died=False)
        except WorkerStuck as error:
            if together > 1:  # nobody knows which of them it was; alone it will show
                await self._endings.lost(job, watch, queue_s, error)
            else:
                await self._endings.fail(job, watch, queue_s, 0.0, StepTimeout(str(error)))
        except WorkerLost as error:
            await self._endings.lost(job, watch, queue_s, error)
        else:
            drawn.set()  # publishing takes some file syncs; the next job does not wait for them
            await self._endings.end(job, watch, queue_s, ended)
        finally:
            drawn.set()
            if limit:
                limit.cancel()

    def _start_run_limit(self, job: Job, watch: Watch) -> asyncio.TimerHandle | None:
        """From the limit on the job is asked to stop at its next step."""
        watch.overran = False
        if self._run_limit_s is None:
            return None

        def overrun() -> None:
            watch.overran = True
            self._worker.cancel(job.id, job.attempt)

        return asyncio.get_running_loop().call_later(self._run_limit_s, overrun)

    def _cancel_running(self, job_id: str) -> None:
        if job := self._running.get(job_id):
            self._worker.cancel(job_id, job.attempt)
