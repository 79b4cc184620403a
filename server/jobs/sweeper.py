"""Forgets what is old: requests after an hour, files after a week, control images once no job needs them."""

from __future__ import annotations

import asyncio

import structlog

from server.clock import STEADY, Clock
from server.media.results import ResultFiles

from .database import JobDatabase
from .model import Expiry

log = structlog.get_logger(__name__)

PERIOD_S = 30.0
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
        clock: Clock = STEADY,
    ) -> None:
        self._database, self._results, self._clock = database, results, clock
        self._result_ttl_s, self._file_ttl_s = result_ttl_s, file_ttl_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_sweeping(), name="sweeper")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> None:
        """Files go before rows: on a full disk SQLite cannot even delete."""
        await asyncio.to_thread(self._results.remove_files, older_than_s=self._file_ttl_s)
        await asyncio.to_thread(
            self._results.remove_inputs, self._database.read.inputs_in_use(), older_than_s=INPUT_GRACE_S
        )
        deleted = BATCH
        while deleted == BATCH:
            deleted = await self._delete_expired()

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
            try:
                await self.sweep()
            except Exception:
                log.exception("sweep failed; it is tried again")
            await asyncio.sleep(PERIOD_S)
