"""The job that the worker has in hand: its steps, its time limit, and whoever waits for its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from .protocol import Done, Drawn, Failed, Run, Step
from .step_limit import StepLimit


class HandedOver(NamedTuple):
    """A job for the worker.

    on_step is called with each step; on_drawn when the worker is done with the device for this job, before its pictures
    are encoded.
    """

    run: Run
    on_step: Callable[[Step], None]
    on_drawn: Callable[[], None] = lambda: None


class JobInHand:
    """pixels: of all that the worker draws together with it, itself included.

    on_stuck is called, with words, when nothing comes within the limit.
    """

    def __init__(self, handed: HandedOver, limit: StepLimit, *, pixels: int, on_stuck: Callable[[str], None]) -> None:
        self.run = handed.run
        self.outcome: asyncio.Future[Done | Failed] = asyncio.get_running_loop().create_future()
        self._limit, self._on_step, self._on_drawn, self._on_stuck = limit, handed.on_step, handed.on_drawn, on_stuck
        self._pixels = pixels
        self._watchdog: asyncio.TimerHandle | None = None
        self._watch()

    def concerns(self, message: Step | Drawn | Done | Failed) -> bool:
        return (message.job, message.attempt) == (self.run.job, self.run.attempt)

    def postpone(self) -> None:
        """The worker has shown that it is at work."""
        self._watch()

    def progress(self, step: Step) -> None:
        """What on_step raises is raised to whoever waits for the outcome."""
        self._limit.observe(step.step_s, pixels=self._pixels)
        self._watch()
        if not self.outcome.done():
            try:
                self._on_step(step)
            except Exception as error:
                self.outcome.set_exception(error)

    def drawn(self) -> None:
        """Encoding has the time of a step."""
        self._watch()
        self._on_drawn()

    def conclude(self, message: Done | Failed) -> None:
        self._stop_watching()
        if not self.outcome.done():
            self.outcome.set_result(message)

    def lose(self, error: Exception) -> None:
        """The worker is gone, and the job with it."""
        self._stop_watching()
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def _watch(self) -> None:
        self._stop_watching()
        limit_s = self._limit.limit_s(pixels=self._pixels)
        words = f"no step within {limit_s:g} s; the worker was replaced"
        self._watchdog = asyncio.get_running_loop().call_later(limit_s, self._on_stuck, words)

    def _stop_watching(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()


def pixels_of(run: Run) -> int:
    return int(run.request.get("width", 0)) * int(run.request.get("height", 0))
