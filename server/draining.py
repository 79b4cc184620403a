"""A server that goes on answering while it drains: uvicorn itself would close the door first."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI


class DrainingServer(uvicorn.Server):
    """Answers polls after the first signal until the running job is done; a second signal cuts that short."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and self.started and not self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._drain)
        else:
            super().handle_exit(sig, frame)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._app.state.drain())
            self._draining.add_done_callback(self._leave)

    def _leave(self, _: asyncio.Task[None]) -> None:
        self.should_exit = True
