"""A server that goes on answering while it drains: uvicorn itself would close the door first."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI


class DrainingServer(uvicorn.Server):
    """Answers polls after the first signal until the running job is done. A second signal puts that job back instead,
    and a third is uvicorn's own way to stop."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app
        self._draining: list[asyncio.Task[None]] = []
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals <= 2 and self.started and not self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._drain)
        else:
            super().handle_exit(sig, frame)

    def _drain(self) -> None:
        """Begins to drain or, the second time, hurries."""
        draining = asyncio.create_task(self._app.state.drain())
        draining.add_done_callback(self._leave)
        self._draining.append(draining)

    def _leave(self, _: asyncio.Task[None]) -> None:
        self.should_exit = True
