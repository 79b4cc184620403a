"""Hands queued jobs to the worker, one at a time, and commits how they end."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import structlog

from server.clock import STEADY, Clock
from server.errors import (
    InsufficientStorage,
    InvalidInput,
    ModelFailed,
    OutOfMemory,
    RunTimeout,
    SafetyBlocked,
    ServerError,
    StepTimeout,
    Unavailable,
    WorkerCrashed,
)
from server.logs import describe_prompt
from server.media.results import ResultFiles
from server.worker.protocol import Done, Failed, Step, result_of, run_message
from server.worker.supervisor import (
    WorkerLost,
    WorkerLostAfterDrawing,
    WorkerNotReady,
    WorkerState,
    WorkerStuck,
    WorkerSupervisor,
)

from .database import JobDatabase
from .following import FollowingJob
from .model import MAX_WORKER_DEATHS, Ending, Job, State
from .recovery import take_up
from .service import JobService, Progress, Watch
from .turns import Turns

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

STOP_LIMIT_S = 10.0
RETRY_S = 1.0
"""Between two attempts to write what a full disk, or another trouble of the store, kept from being written."""

RESULT_ROOM_BYTES = 64 * 1024 * 1024
"""With less free no job is begun: its result could not be kept. Accepted jobs wait until there is space again."""

ERRORS: dict[str, type[ServerError]] = {
    "input": InvalidInput,
    "safety": SafetyBlocked,
    "out_of_memory": OutOfMemory,
    "not_finite": ModelFailed,
    "unknown": ModelFailed,
}
"""What a worker's failure kind means to the client."""

SAID_TO_CLIENTS = frozenset({"input", "safety", "not_finite"})
"""Failure kinds whose text the engine wrote for the client."""


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
        self._on_done = on_done
        self._clock, self._run_limit_s, self._file_ttl_s = clock, run_limit_s, file_ttl_s
        self._room_bytes = min(min_free_bytes, RESULT_ROOM_BYTES)
        self._database, self._service, self._worker, self._results = database, service, worker, results
        self._running: dict[str, Job] = {}
        """By id: the one that is drawn, and those before it whose pictures are still encoded or published."""
        self._claiming = False
        self._turns = Turns()
        self._following = FollowingJob(database, worker)
        self._attempts: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._stopped, self._hurry = asyncio.Event(), asyncio.Event()
        self._log_prompts = log_prompts
        service.on_cancel = self._cancel_running

    async def start(self) -> None:
        """Takes up what an earlier run of the server left, then begins to dispatch."""
        await take_up(self._database, self._results, self._clock, file_ttl_s=self._file_ttl_s)
        self._service.arrived.set()
        self._task = asyncio.create_task(self._dispatch(), name="dispatcher")

    async def stop(self, drain_limit_s: float) -> None:
        """Lets the running job finish within the limit, else stops it at a step and puts it back in the queue.

        Calls that block on a job are then answered: nobody would wait for it after the restart. Asked once more, it
        waits no longer for the running job, and both calls return when all is done.
        """
        if self._stopping:
            self._hurry.set()
            await self._stopped.wait()
            return
        self._stopping = True
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
        while not self._stopping:
            await self._worker.wait_ready()
            await self._wait_for_room()
            await self._wait_for_publishing()
            self._service.arrived.clear()
            job = await self._claim()
            if job is None:
                await self._service.arrived.wait()
                continue
            self._turns.took(job.request.model)
            await self._begin(job)

    async def _begin(self, job: Job) -> None:
        """Runs the job in a task of its own. Returns when the worker can take another."""
        drawn = asyncio.Event()
        task = asyncio.create_task(self._attempt(job, drawn), name=f"attempt {job.id}")
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)
        await drawn.wait()

    async def _attempt(self, job: Job, drawn: asyncio.Event) -> None:
        self._running[job.id] = job
        try:
            with structlog.contextvars.bound_contextvars(job=job.id):
                await self._run(job, self._service.watch_of(job), drawn)
        finally:
            del self._running[job.id]
            drawn.set()

    async def _wait_for_room(self) -> None:
        told = False
        while self._full() and not self._stopping:
            if not told:
                log.error("the disk is full: no job is begun until there is space", room_bytes=self._room_bytes)
            told = True
            await asyncio.sleep(RETRY_S)

    async def _wait_for_publishing(self) -> None:
        """One picture may be published while the next is drawn, not more: a kill costs what is not published yet."""
        while len(self._attempts) > 1:
            await asyncio.wait(self._attempts, return_when=asyncio.FIRST_COMPLETED)

    def _full(self) -> bool:
        return self._results.free_bytes() < self._room_bytes

    async def _claim(self) -> Job | None:
        """The next job for the ready worker. A claim that comes too late to be used is taken back without a trace."""
        if self._stopping:
            return None
        self._claiming = True
        try:
            job = await self._write(self._database.writer.claim, self._preferred_model())
            if job is None or (self._worker.state is WorkerState.READY and not self._stopping):
                return job
            await self._write(self._database.writer.unclaim, job.id, job.attempt)
        finally:
            self._claiming = False
        self._service.arrived.set()
        return None

    def _preferred_model(self) -> str | None:
        greeting = self._worker.greeting
        return self._turns.preferred if greeting and greeting.takes_turns else None

    async def _run(self, job: Job, watch: Watch, drawn: asyncio.Event) -> None:
        queue_s = self._clock.now() - watch.submitted
        if watch.cancel_requested:
            await self._finish(job, self._ending(State.CANCELLED, watch, queue_s, 0.0))
            return
        log.info(
            "job started",
            job=job.id,
            attempt=job.attempt,
            model=job.request.model,
            prompt=job.request.prompt if self._log_prompts else describe_prompt(job.request.prompt),
            queue_s=round(queue_s, 3),
        )

        def on_step(step: Step) -> None:
            watch.progress = Progress(step.step, step.steps, step.step_s)
            self._following.announce(job, self._preferred_model())

        limit = self._start_run_limit(job, watch)
        try:
            outcome = await self._worker.run(run_message(job.id, job.attempt, job.request), on_step, drawn.set)
        except WorkerLostAfterDrawing:
            await self._requeue(job, worker_died=False)
        except WorkerNotReady:
            await self._write(self._database.writer.unclaim, job.id, job.attempt)
            self._service.arrived.set()
        except WorkerStuck as error:
            await self._fail(job, watch, queue_s, 0.0, StepTimeout(str(error)))
        except WorkerLost as error:
            await self._lost(job, watch, queue_s, error)
        else:
            drawn.set()  # publishing takes some file syncs; the next job does not wait for them
            await self._end(job, watch, queue_s, outcome)
        finally:
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

    async def _end(self, job: Job, watch: Watch, queue_s: float, outcome: Done | Failed) -> None:
        if isinstance(outcome, Done):
            self._on_done(outcome)
            await self._succeed(job, watch, queue_s, outcome)
        elif outcome.kind == "cancelled" and watch.overran:
            text = f"The job was stopped: it ran for longer than the {self._run_limit_s:g} s that this server allows."
            await self._fail(job, watch, queue_s, outcome.compute_s, RunTimeout(text))
        elif outcome.kind == "cancelled" and self._stopping and not job.attached:
            await self._requeue(job, worker_died=False)
        elif outcome.kind == "cancelled":
            ending = self._ending(State.CANCELLED, watch, queue_s, outcome.compute_s)
            await self._finish(job, ending)
        else:
            kind = ERRORS.get(outcome.kind, ModelFailed)
            if kind is ModelFailed and self._full():  # the worker could not write what it drew
                kind = InsufficientStorage
            # Only what was said for the client's eyes goes out; the rest can hold paths and is in the log.
            error = kind(outcome.message) if outcome.kind in SAID_TO_CLIENTS else kind()
            log.warning("job failed in the worker", job=job.id, kind=outcome.kind, reason=outcome.message)
            await self._fail(job, watch, queue_s, outcome.compute_s, error)

    async def _succeed(self, job: Job, watch: Watch, queue_s: float, done: Done) -> None:
        try:
            result = await self._results.publish(result_of(done))
        except Exception as error:
            # Its text may name folders of this machine; the log has it.
            log.exception("result could not be published", job=job.id)
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            failure = InsufficientStorage() if full else ModelFailed("The result could not be saved.")
            await self._fail(job, watch, queue_s, done.compute_s, failure)
            return
        if result.notes.get("unseen_tokens"):
            log.warning("prompt longer than the model reads", job=job.id, unseen_tokens=result.notes["unseen_tokens"])
        ending = self._ending(State.SUCCEEDED, watch, queue_s, done.compute_s)
        if await self._finish(job, replace(ending, result=result)):
            await self._results.settle(result)
        else:
            await self._results.withdraw(result)

    async def _lost(self, job: Job, watch: Watch, queue_s: float, error: WorkerLost) -> None:
        deaths = job.deaths + 1
        log.warning("worker lost during a job", job=job.id, attempt=job.attempt, deaths=deaths, reason=str(error))
        if deaths >= MAX_WORKER_DEATHS:
            await self._fail(job, watch, queue_s, 0.0, WorkerCrashed())
        elif self._stopping and job.attached:
            await self._finish(job, self._ending(State.CANCELLED, watch, queue_s, 0.0))
        else:
            watch.progress = None
            await self._requeue(job, worker_died=not self._stopping)

    async def _requeue(self, job: Job, *, worker_died: bool) -> None:
        await self._write(self._database.writer.requeue, job.id, job.attempt, worker_died=worker_died)
        self._service.arrived.set()

    async def _fail(self, job: Job, watch: Watch, queue_s: float, compute_s: float, error: ServerError) -> None:
        ending = self._ending(State.FAILED, watch, queue_s, compute_s)
        await self._finish(job, replace(ending, error_code=error.code, error_text=error.message))

    def _ending(self, state: State, watch: Watch, queue_s: float, compute_s: float) -> Ending:
        total_s = self._clock.now() - watch.submitted
        return Ending(state=state, queue_s=queue_s, compute_s=compute_s, total_s=total_s)

    async def _finish(self, job: Job, ending: Ending) -> bool:
        """False when the job does not run under this attempt any more."""
        finished = await self._write(self._database.writer.finish, job.id, job.attempt, ending, now=self._clock.now())
        if finished is None:
            log.warning("ending of an old attempt dropped", job=job.id, attempt=job.attempt)
            return False
        self._service.settled(finished)
        return True

    async def _write(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Writes, again until it works: what has happened stays true while the disk is full.

        A stopping server gives up; its next start takes up what was running.
        """
        while True:
            try:
                return await self._database.write(method, *args, **kwargs)
            except (sqlite3.Error, InsufficientStorage, Unavailable):
                if self._stopping:
                    raise
                log.exception("the job store cannot be written; it is tried again")
                await asyncio.sleep(RETRY_S)

    def _cancel_running(self, job_id: str) -> None:
        if job := self._running.get(job_id):
            self._worker.cancel(job_id, job.attempt)
