"""The worker's second thread: it prepares what will probably be drawn next, while the first one draws."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .hiding import hide
from .protocol import Prepare


class Preparer:
    """Hands the request of the last Prepare to `prepare`, in a thread of its own.

    One waits at most: a newer Prepare takes the place of one that has not begun. What `prepare` raises is nobody's
    fault yet, since the job itself will meet it; the first such text goes to stderr, which the server logs.
    """

    def __init__(self, prepare: Callable[[dict[str, Any]], object]) -> None:
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._last: Future[None] | None = None
        self._told = False

    def take(self, message: Prepare) -> None:
        self.drop()
        self._last = self._thread.submit(self._work, message)

    def drop(self) -> None:
        """Forgets what has not begun."""
        if self._last is not None:
            self._last.cancel()

    def _work(self, message: Prepare) -> None:
        try:
            self._prepare(message.request)
        except Exception as error:
            self._tell_once(hide(f"{type(error).__name__}: {error}", str(message.request.get("prompt", ""))))

    def _tell_once(self, text: str) -> None:
        if not self._told:
            sys.stderr.write(f"a job could not be prepared ahead; it is tried again in its turn: {text}\n")
        self._told = True
