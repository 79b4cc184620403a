"""One request's clock, progress and cancel switch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .faults import Cancelled
from .speed.pace import Pace


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress: `step` of `steps` done, counted over all images of the request; `step_s` is the last step's time."""

    step: int
    steps: int
    step_s: float


class Watch:
    """Times the stages of one request, counts its steps, and ends it by Cancelled when `cancelled` says so.

    That is asked in `obey` and at the begin of a `stage`; whoever takes steps asks before each.
    """

    def __init__(
        self,
        steps: int,
        on_step: Callable[[StepReport], None],
        cancelled: Callable[[], bool],
        device: torch.device,
    ) -> None:
        self._steps, self._reported = steps, 0
        self._on_step, self._cancelled = on_step, cancelled
        self._pace, self._device = Pace(device), device
        self._last_s = time.perf_counter()
        self.timings_s: dict[str, float] = {}

    @classmethod
    def over_nothing(cls, device: torch.device) -> Watch:
        """For stages without steps that nobody cancels."""
        return cls(0, lambda _: None, lambda: False, device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """`timed`, unless the request was cancelled."""
        self.obey()
        with self.timed(name):
            yield

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time of what runs inside to `name`. Stages end with a wait for the device, so the time is real.

        It waits for what this thread ordered, not for what another one prepares.
        """
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self.timings_s[name] = self.timings_s.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step is ordered in the block. Reports the steps that the device has done by then."""
        if not self._pace.under_way:
            self._last_s = time.perf_counter()
        yield
        self._pace.ordered()
        self._report()

    def finish_steps(self) -> None:
        """Waits for the steps that are still under way and reports them."""
        self._pace.finish()
        self._report()

    def obey(self) -> None:
        """Raises Cancelled when the request was cancelled."""
        if self._cancelled():
            raise Cancelled

    def _report(self) -> None:
        """On a card several steps may be found done at once; they share the time since the last report."""
        new = self._pace.done - self._reported
        now = time.perf_counter()
        for _ in range(new):
            self._reported += 1
            self._on_step(StepReport(self._reported, self._steps, (now - self._last_s) / new))
        if new:
            self._last_s = now
