"""The jobs as the dialects see them: submit, look, wait, cancel.

Accepted means on disk: `submit` returns after the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from server.clock import STEADY, Clock
from server.errors import NotFound, Unavailable

from .database import JobDatabase
from .model import Expiry, Idempotency, Job, Lane, NewJob, State
from .store import check_same

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` done in the current attempt; `step_s` seconds for the last one."""

    step: int
    steps: int
    step_s: float


@dataclass(slots=True)
class Watch:
    """What this process knows of an unfinished job beyond its row.

    submitted: the clock's reading then. final: the job as it ended, once `done` is set because of that.
    """

    submitted: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    final: Job | None = None
    progress: Progress | None = None
    cancel_requested: bool = False
    overran: bool = False


class JobService:
    """Owns accepted jobs. The dispatcher takes them from here and reports back."""

    def __init__(
        self,
        database: JobDatabase,
        *,
        queue_limit: int,
        result_ttl_s: float,
        owner_limit: int | None = None,
        clock: Clock = STEADY,
    ) -> None:
        self._database, self._clock = database, clock
        self._queue_limit, self._owner_limit, self._result_ttl_s = queue_limit, owner_limit, result_ttl_s
        self._watches: dict[str, Watch] = {}
        self._accepting = True
        self.arrived = asyncio.Event()
        """Set when there may be something to claim."""
        self.on_cancel: Callable[[str], None] = lambda _: None
        """Called with the id of a job that was no longer waiting when somebody asked to cancel it."""
        self.on_settled: Callable[[Job], None] = lambda _: None
        """Called with every job that has become final."""

    async def submit(self, new: NewJob) -> Job:
        """Accepts a job, or finds the one that was accepted under the same idempotency key.

        Raises QueueFull, TooManyQueued, CannotPay, KeyReused, and Unavailable while the server is shutting down.
        """
        if not self._accepting:
            raise Unavailable("The server is shutting down; try again in a moment.", retry_after_s=10)
        self._watches[new.id] = Watch(self._clock.now())
        try:
            job = await self._database.write(
                self._database.writer.submit,
                new,
                now=self._clock.now(),
                queue_limit=self._queue_limit,
                owner_limit=self._owner_limit,
                expiry=self._expiry(),
            )
        except Exception:
            del self._watches[new.id]
            raise
        if job.id != new.id:
            del self._watches[new.id]
        self.arrived.set()
        return job

    def get(self, job_id: str, owner: str) -> Job | None:
        """The caller's job. Another caller's job is None, like one that does not exist or whose time is over."""
        job = self._database.read.get(job_id)
        return job if job is not None and job.owner == owner and not self._expiry().covers(job) else None

    def find_same(self, owner: str, idempotency: Idempotency) -> Job | None:
        """The job that this caller submitted under this key, while it is kept. Raises KeyReused."""
        job = self._database.read.get_by_key(owner, idempotency.key)
        if job is None or self._expiry().covers(job):
            return None
        check_same(job, idempotency)
        return job

    def find_any(self, job_id: str) -> Job | None:
        """The job of whichever caller, for the operator."""
        return self._database.read.get(job_id)

    def spent_micro_usd(self, owner: str) -> int:
        return self._database.read.spent_micro_usd(owner)

    def count_queued(self) -> int:
        return self._database.read.count_queued()

    def counts(self) -> dict[tuple[State, Lane], int]:
        return self._database.read.counts()

    def progress(self, job_id: str) -> Progress | None:
        watch = self._watches.get(job_id)
        return watch.progress if watch else None

    async def wait(self, job: Job, timeout_s: float) -> Job:
        """The job once it is final.

        Raises TimeoutError, and leaves the job alone, when that takes too long; Unavailable when the server stops
        first; NotFound when the job was over and forgotten before anybody could look.
        """
        watch = self._watches.get(job.id) or self._watch_unfinished(job.id)
        if isinstance(watch, Job):
            return watch
        async with asyncio.timeout(timeout_s):
            await watch.done.wait()
        if watch.final is None:
            raise Unavailable(
                "The server is shutting down. The job is kept: ask again with the same Idempotency-Key.",
                retry_after_s=10,
            )
        return watch.final

    async def cancel(self, job: Job) -> None:
        """Cancels a job: at once while it waits, before its next step while it runs. A final job stays as it is."""
        cancelled = await self._database.write(self._database.writer.cancel_queued, job.id, now=self._clock.now())
        if cancelled:
            self.settled(cancelled)
            return
        current = self._database.read.get(job.id)
        if current is not None and not current.state.final:
            self.watch_of(current).cancel_requested = True
            self.on_cancel(job.id)

    @property
    def accepting(self) -> bool:
        return self._accepting

    def stop_accepting(self) -> None:
        self._accepting = False

    # What the dispatcher reports.

    def watch_of(self, job: Job) -> Watch:
        """The watch of an unfinished job. One from before a restart gets a watch that starts by its row's time."""
        return self._watches.setdefault(job.id, Watch(min(job.submitted_at, self._clock.now())))

    def settled(self, job: Job) -> None:
        """The job is final, whoever ended it: says so in the log, and wakes everyone who waits for it."""
        log.info(
            "job ended",
            job=job.id,
            state=job.state.value,
            error=job.error_code,
            compute_s=round(job.compute_s or 0.0, 3),
            total_s=round(job.total_s or 0.0, 3),
        )
        watch = self._watches.pop(job.id, None)
        if watch:
            watch.final = job
            watch.done.set()
        self.on_settled(job)

    def release_waiters(self) -> None:
        """The server stops: nobody can wait any longer for a job that is not final yet."""
        for watch in self._watches.values():
            watch.done.set()

    def _watch_unfinished(self, job_id: str) -> Watch | Job:
        """Of a job that this run of the server has not watched so far: its watch, or itself when it is final."""
        current = self._database.read.get(job_id)
        if current is None:
            raise NotFound(f"Request {job_id} is over and forgotten; FLUX_RESULT_TTL_S is short here.")
        return current if current.state.final else self.watch_of(current)

    def _expiry(self) -> Expiry:
        """The sweeper's rule, so that a request is gone on the second and not when the sweeper comes by."""
        return Expiry.at(self._clock.now(), self._result_ttl_s)
