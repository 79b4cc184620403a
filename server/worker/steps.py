"""How often the worker tells of a job's steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .protocol import Run, Step

if TYPE_CHECKING:
    from pipelines.watch import StepReport

PERIOD_S = 0.1
"""Nobody looks more often, and each message takes time from cores that may be drawing."""


class Steps:
    """Tells the first step, the last one, and of those between at most one each PERIOD_S."""

    def __init__(self, run: Run, send: Callable[[Step], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._send, self._clock = run, send, clock
        self._told: float | None = None

    def report(self, step: StepReport) -> None:
        now = self._clock()
        if self._told is not None and step.step < step.steps and now - self._told < PERIOD_S:
            return
        self._told = now
        run = self._run
        self._send(Step(job=run.job, attempt=run.attempt, step=step.step, steps=step.steps, step_s=step.step_s))
