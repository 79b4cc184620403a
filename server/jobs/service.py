"""The jobs as the dialects see them: submit, look, wait, cancel.

Accepted means on disk: `submit` returns after the commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server.errors import Unavailable

from .database import JobDatabase
from .model import LEAST_AFTER_END_S, Job, NewJob


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` done in the current attempt; `step_s` seconds for the last one."""

    step: int
    steps: int
    step_s: float


@dataclass(slots=True)
class Watch:
    """What this process knows of an unfinished job beyond its row."""

    submitted_mono_s: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    progress: Progress | None = None
    cancel_requested: bool = False


class JobService:
    """Owns accepted jobs. The dispatcher takes them from here and reports back."""

    def __init__(self, database: JobDatabase, *, queue_limit: int, result_ttl_s: float) -> None:
        self._database = database
        self._queue_limit, self._result_ttl_s = queue_limit, result_ttl_s
        self._watches: dict[str, Watch] = {}
        self._accepting = True
        self.arrived = asyncio.Event()
        """Set when there may be something to claim."""
        self.on_cancel: Callable[[str], None] = lambda _: None
        """Called with the id of a job that was no longer waiting when somebody asked to cancel it."""

    async def submit(self, new: NewJob) -> Job:
        """Accepts a job. Raises QueueFull, CannotPay, Unavailable while the server is shutting down."""
        if not self._accepting:
            raise Unavailable("The server is shutting down; try again in a moment.", retry_after_s=10)
        self._watches[new.id] = Watch(time.monotonic())
        try:
            job = await self._database.write(
                self._database.writer.submit, new, now=time.time(), queue_limit=self._queue_limit
            )
        except Exception:
            del self._watches[new.id]
            raise
        self.arrived.set()
        return job

    def get(self, job_id: str, owner: str) -> Job | None:
        """The caller's job. Another caller's job is None, like one that does not exist or whose time is over."""
        job = self._database.read.get(job_id)
        if job is None or job.owner != owner or self._expired(job):
            return None
        return job

    def spent_micro_usd(self, owner: str) -> int:
        return self._database.read.spent_micro_usd(owner)

    def count_queued(self) -> int:
        return self._database.read.count_queued()

    def progress(self, job_id: str) -> Progress | None:
        watch = self._watches.get(job_id)
        return watch.progress if watch else None

    async def wait(self, job: Job, timeout_s: float) -> Job:
        """The job once it is final. Raises TimeoutError, and leaves the job alone, when that takes too long."""
        watch = self._watches.get(job.id)
        if watch is not None:
            async with asyncio.timeout(timeout_s):
                await watch.done.wait()
        return self._database.read.get(job.id) or job

    async def cancel(self, job: Job) -> None:
        """Cancels a job: at once while it waits, before its next step while it runs. A final job stays as it is."""
        cancelled = await self._database.write(self._database.writer.cancel_queued, job.id, now=time.time())
        if cancelled:
            self.settled(cancelled)
            return
        watch = self._watches.get(job.id)
        if watch is not None:
            watch.cancel_requested = True
            self.on_cancel(job.id)

    @property
    def accepting(self) -> bool:
        return self._accepting

    def stop_accepting(self) -> None:
        self._accepting = False

    # What the dispatcher reports.

    def watch_of(self, job: Job) -> Watch:
        """The job's watch. A job from before a restart gets one whose clock starts by the row's wall time."""
        age_s = max(time.time() - job.submitted_at, 0.0)
        return self._watches.setdefault(job.id, Watch(time.monotonic() - age_s))

    def settled(self, job: Job) -> None:
        """The job is final: wakes everyone who waits for it."""
        watch = self._watches.pop(job.id, None)
        if watch:
            watch.done.set()

    def _expired(self, job: Job) -> bool:
        """The sweeper's rule, so that a request is gone on the second and not when the sweeper comes by."""
        now = time.time()
        return (
            job.finished_at is not None
            and job.submitted_at <= now - self._result_ttl_s
            and job.finished_at <= now - min(self._result_ttl_s, LEAST_AFTER_END_S)
        )
