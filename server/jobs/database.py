"""The store as the event loop uses it: writes go through one thread in order, reads are made at once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from server.errors import Unavailable

from .sqlite_store import SqliteStore
from .store import JobStore

P = ParamSpec("P")
T = TypeVar("T")


class JobDatabase:
    """One writing store behind a thread of its own, one reading store for the loop.

    A read by primary key takes some 50 µs, less than handing it to a thread would.
    """

    def __init__(self, path: Path) -> None:
        self._writer = SqliteStore(path)
        self._reader = SqliteStore(path, read_only=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs-db")

    @property
    def read(self) -> JobStore:
        return self._reader

    async def write(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs one of `writer`'s methods in the writing thread.

        Shielded: a caller that goes away does not take back what is being committed. Raises InsufficientStorage on a
        full disk and Unavailable where the database cannot be written for another reason that may pass.
        """
        work = partial(method, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        except sqlite3.OperationalError as error:
            text = "The server's job database cannot be written at the moment. Try again."
            raise Unavailable(text, retry_after_s=10) from error

    @property
    def writer(self) -> JobStore:
        return self._writer

    def close(self) -> None:
        """Waits for writes under way. The reader goes first, so that the writer's close can fold the log in."""
        self._thread.shutdown(wait=True)
        self._reader.close()
        self._writer.close()
