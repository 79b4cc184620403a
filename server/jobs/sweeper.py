"""Forgets what is old: requests after an hour, files after a week, control images once no job needs them."""

from __future__ import annotations

import asyncio

import structlog

from server.clock import STEADY, Clock
from server.media.ballast import Ballast
from server.media.results import ResultFiles

from .database import JobDatabase
from .model import Expiry

log = structlog.get_logger(__name__)

PERIOD_S = 30.0
RETRY_S = 3.0
"""After a sweep that failed, as on a full disk."""

BATCH = 500
"""Rows deleted at once: small enough that a poll never waits long behind it."""

INPUT_GRACE_S = 600.0


class Sweeper:
    def __init__(
        self,
        database: JobDatabase,
        results: ResultFiles,
        *,
        result_ttl_s: float,
        file_ttl_s: float,
        ballast: Ballast | None = None,
        clock: Clock = STEADY,
    ) -> None:
        self._database, self._results, self._clock, self._ballast = database, results, clock, ballast
        self._result_ttl_s, self._file_ttl_s = result_ttl_s, file_ttl_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_sweeping(), name="sweeper")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> None:
        """The ballast and files go before rows: on a full disk SQLite cannot even delete."""
        await self._settle_ballast()
        await asyncio.to_thread(self._results.remove_files, older_than_s=self._file_ttl_s)
        await asyncio.to_thread(
            self._results.remove_inputs, self._database.read.inputs_in_use(), older_than_s=INPUT_GRACE_S
        )
        deleted = BATCH
        while deleted == BATCH:
            deleted = await self._delete_expired()
        await self._settle_ballast()

    async def _settle_ballast(self) -> None:
        if self._ballast:
            await asyncio.to_thread(self._ballast.settle, self._results.free_bytes())

    async def _delete_expired(self) -> int:
        over = Expiry.at(self._clock.now(), self._result_ttl_s)
        return await self._database.write(
            self._database.writer.delete_expired,
            submitted_before=over.submitted_before,
            finished_before=over.finished_before,
            limit=BATCH,
        )

    async def _keep_sweeping(self) -> None:
        while True:
            pause_s = PERIOD_S
            try:
                await self.sweep()
            except Exception:
                log.exception("sweep failed; it is tried again")
                pause_s = min(RETRY_S, PERIOD_S)
            await asyncio.sleep(pause_s)
