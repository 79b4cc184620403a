"""Fails jobs that have waited in the queue for longer than the operator allows."""

from __future__ import annotations

import asyncio

import structlog

from server.clock import STEADY, Clock
from server.errors import QueueTimeout

from .database import JobDatabase
from .service import JobService

log = structlog.get_logger(__name__)

PERIOD_S = 1.0


class QueueDeadline:
    """Looks after the queue every second. A job that has run before, and went back, waits without this limit."""

    def __init__(
        self, database: JobDatabase, service: JobService, *, queue_ttl_s: float | None, clock: Clock = STEADY
    ) -> None:
        self._database, self._service, self._clock = database, service, clock
        self._queue_ttl_s = queue_ttl_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._queue_ttl_s is not None:
            self._task = asyncio.create_task(self._keep_looking(self._queue_ttl_s), name="queue-deadline")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, queue_ttl_s: float) -> None:
        """Fails every job that was accepted this long ago and has never run."""
        now = self._clock.now()
        failed = await self._database.write(
            self._database.writer.fail_queued,
            submitted_before=now - queue_ttl_s,
            now=now,
            error_code=QueueTimeout.code,
            error_text=f"The job waited longer than the {queue_ttl_s:g} s that this server allows in its queue.",
        )
        for job in failed:
            log.warning("job waited too long", job=job.id, queue_s=round(job.queue_s or 0.0, 3))
            self._service.settled(job)

    async def _keep_looking(self, queue_ttl_s: float) -> None:
        while True:
            try:
                await self.look(queue_ttl_s)
            except Exception:
                log.exception("the queue's deadlines could not be looked after; it is tried again")
            await asyncio.sleep(PERIOD_S)
