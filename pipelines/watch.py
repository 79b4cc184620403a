"""One request's clock, progress and cancel switch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .faults import Cancelled


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress: `step` of `steps` done, counted over all images of the request; `step_s` is the last step's time."""

    step: int
    steps: int
    step_s: float


class Watch:
    """Times the stages of one request, counts its steps, and ends it by Cancelled when `cancelled` says so."""

    def __init__(self, steps: int, on_step: Callable[[StepReport], None], cancelled: Callable[[], bool]) -> None:
        self._steps, self._done = steps, 0
        self._on_step, self._cancelled = on_step, cancelled
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of what runs inside to `name`. Stages end with a wait for the device, so the time is real."""
        self._obey()
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.timings_s[name] = self.timings_s.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        self._obey()
        start = time.perf_counter()
        yield
        self._done += 1
        self._on_step(StepReport(self._done, self._steps, time.perf_counter() - start))

    def _obey(self) -> None:
        if self._cancelled():
            raise Cancelled
