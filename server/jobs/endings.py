"""Commits how attempts end: published, failed, cancelled, or back in the queue."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

import structlog

from server.clock import Clock
from server.errors import (
    InsufficientStorage,
    InvalidInput,
    ModelFailed,
    OutOfMemory,
    RunTimeout,
    SafetyBlocked,
    ServerError,
    Unavailable,
    WorkerCrashed,
)
from server.media.results import ResultFiles
from server.worker.errors import WorkerLost, WorkerStuck
from server.worker.protocol import Done, Failed, result_of

from .database import JobDatabase
from .model import MAX_WORKER_DEATHS, Ending, Job, State
from .service import JobService, Watch

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

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


class Endings:
    """What becomes of jobs that ran. `stopping` is set when the server leaves: it then tries no write twice."""

    def __init__(
        self,
        database: JobDatabase,
        service: JobService,
        results: ResultFiles,
        *,
        run_limit_s: float | None,
        min_free_bytes: int,
        clock: Clock,
        on_done: Callable[[Done], None],
    ) -> None:
        self._database, self._service, self._results = database, service, results
        self._run_limit_s, self._clock, self._on_done = run_limit_s, clock, on_done
        self.room_bytes = min(min_free_bytes, RESULT_ROOM_BYTES)
        self.stopping = False

    def full(self) -> bool:
        return self._results.free_bytes() < self.room_bytes

    async def cancelled(self, job: Job, watch: Watch, queue_s: float, compute_s: float = 0.0) -> None:
        await self._finish(job, self._ending(State.CANCELLED, watch, queue_s, compute_s))

    async def unclaim(self, job: Job) -> None:
        """The worker never heard of this attempt."""
        await self.write(self._database.writer.unclaim, job.id, job.attempt)
        self._service.arrived.set()

    async def end(self, job: Job, watch: Watch, queue_s: float, outcome: Done | Failed) -> None:
        if isinstance(outcome, Done):
            self._on_done(outcome)
            await self._succeed(job, watch, queue_s, outcome)
        elif outcome.kind == "cancelled" and watch.overran:
            text = f"The job was stopped: it ran for longer than the {self._run_limit_s:g} s that this server allows."
            await self.fail(job, watch, queue_s, outcome.compute_s, RunTimeout(text))
        elif outcome.kind == "cancelled" and self.stopping and not job.attached:
            await self.requeue(job, worker_died=False)
        elif outcome.kind == "cancelled":
            await self.cancelled(job, watch, queue_s, outcome.compute_s)
        else:
            kind = ERRORS.get(outcome.kind, ModelFailed)
            if kind is ModelFailed and self.full():  # the worker could not write what it drew
                kind = InsufficientStorage
            # Only what was said for the client's eyes goes out; the rest can hold paths and is in the log.
            error = kind(outcome.message) if outcome.kind in SAID_TO_CLIENTS else kind()
            log.warning("job failed in the worker", job=job.id, kind=outcome.kind, reason=outcome.message)
            await self.fail(job, watch, queue_s, outcome.compute_s, error)

    async def _succeed(self, job: Job, watch: Watch, queue_s: float, done: Done) -> None:
        try:
            result = await self._results.publish(result_of(done))
        except Exception as error:
            # Its text may name folders of this machine; the log has it.
            log.exception("result could not be published", job=job.id)
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            failure = InsufficientStorage() if full else ModelFailed("The result could not be saved.")
            await self.fail(job, watch, queue_s, done.compute_s, failure)
            return
        if result.notes.get("unseen_tokens"):
            log.warning("prompt longer than the model reads", job=job.id, unseen_tokens=result.notes["unseen_tokens"])
        ending = self._ending(State.SUCCEEDED, watch, queue_s, done.compute_s)
        if await self._finish(job, replace(ending, result=result)):
            await self._results.settle(result)
        else:
            await self._results.withdraw(result)

    async def lost(self, job: Job, watch: Watch, queue_s: float, error: WorkerLost | WorkerStuck) -> None:
        deaths = job.deaths + 1
        log.warning("worker lost during a job", job=job.id, attempt=job.attempt, deaths=deaths, reason=str(error))
        if deaths >= MAX_WORKER_DEATHS:
            await self.fail(job, watch, queue_s, 0.0, WorkerCrashed())
        elif self.stopping and job.attached:
            await self.cancelled(job, watch, queue_s)
        else:
            watch.progress = None
            await self.requeue(job, worker_died=not self.stopping)

    async def requeue(self, job: Job, *, worker_died: bool) -> None:
        await self.write(self._database.writer.requeue, job.id, job.attempt, worker_died=worker_died)
        self._service.arrived.set()

    async def fail(self, job: Job, watch: Watch, queue_s: float, compute_s: float, error: ServerError) -> None:
        ending = self._ending(State.FAILED, watch, queue_s, compute_s)
        await self._finish(job, replace(ending, error_code=error.code, error_text=error.message))

    def _ending(self, state: State, watch: Watch, queue_s: float, compute_s: float) -> Ending:
        total_s = self._clock.now() - watch.submitted
        return Ending(state=state, queue_s=queue_s, compute_s=compute_s, total_s=total_s)

    async def _finish(self, job: Job, ending: Ending) -> bool:
        """False when the job does not run under this attempt any more."""
        finished = await self.write(self._database.writer.finish, job.id, job.attempt, ending, now=self._clock.now())
        if finished is None:
            log.warning("ending of an old attempt dropped", job=job.id, attempt=job.attempt)
            return False
        self._service.settled(finished)
        return True

    async def write(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Writes, again until it works: what has happened stays true while the disk is full.

        A stopping server gives up; its next start takes up what was running.
        """
        while True:
            try:
                return await self._database.write(method, *args, **kwargs)
            except (sqlite3.Error, InsufficientStorage, Unavailable):
                if self.stopping:
                    raise
                log.exception("the job store cannot be written; it is tried again")
                await asyncio.sleep(RETRY_S)
