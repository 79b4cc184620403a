"""A second worker process that has imported its libraries and waits for its Load.

Importing them takes seconds, and most of a small model's start. The spare holds no model and no device memory.
"""

from __future__ import annotations

import asyncio

import structlog

from .child import Child, Spawn
from .protocol import Hello

log = structlog.get_logger(__name__)

RETRY_S = 30.0
"""Between a spare's unexpected end and the next one."""


class Spare:
    def __init__(self, spawn: Spawn, *, wanted: bool) -> None:
        self._spawn, self._wanted = spawn, wanted
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.warm = False
        """It has imported what it needs."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.alive else None

    def prepare(self) -> None:
        """Begins to keep a spare, where one is wanted and none is kept."""
        if self._wanted and self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="spare-keeper")

    async def take(self) -> Child | None:
        """The spare, warm or still importing, which is the caller's from now on. None where there is no live one."""
        await self._stop_keeping()
        child, self._child, self.warm = self._child, None, False
        if child is not None and not child.alive:
            await child.end()
            return None
        return child

    async def stop(self) -> None:
        """Ends the spare."""
        if child := await self.take():
            await child.end()

    async def _stop_keeping(self) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None

    async def _keep(self) -> None:
        while True:
            try:
                self._child = await self._spawn()
            except OSError as error:
                log.warning("spare worker cannot be started", reason=str(error))
            else:
                await self._watch(self._child)
            await asyncio.sleep(RETRY_S)

    async def _watch(self, child: Child) -> None:
        """Returns when the spare has ended."""
        async for message in child.messages():
            if isinstance(message, Hello):
                self.warm = True
                log.info("spare worker waits", pid=child.pid)
        self.warm = False
        await child.end()
        self._child = None
        log.warning("spare worker ended", pid=child.pid, reason=child.verdict.message)
