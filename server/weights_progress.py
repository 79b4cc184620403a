"""How far a download or a check is, on standard error: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from weights.progress import Progress as Watcher

LINE_EVERY_S = 10.0


@contextmanager
def shown_progress() -> Iterator[Watcher]:
    """A Progress for as long as the block runs: size, rate and time left, in decimal units."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)


class Bars:
    """One bar for each thing that is done, the last one moving."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._task = bars, TaskID(0)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self._task = self._bars.add_task(title, total=total, completed=done)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


class Lines:
    """A line at the beginning, one every ten seconds, none at the end: for logs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._console = Console(stderr=True, soft_wrap=True)
        self.begin("", 0)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done = title, total, done
        self._last, self._last_done = time.monotonic(), done
        if total:
            self.say(f"{title}: {total / 1e9:.2f} GB" + (f", {done / 1e9:.2f} GB of it here" if done else ""))

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            passed = time.monotonic() - self._last
            if passed < LINE_EVERY_S:
                return
            rate = max(self._done - self._last_done, 1) / passed
            self._last, self._last_done = time.monotonic(), self._done
        left_s = max(self._total - self._done, 0) / rate
        self.say(
            f"{self._title}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s, "
            f"{left_s / 60:.0f} min left"
        )

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)
