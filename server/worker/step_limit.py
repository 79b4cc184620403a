"""How long a job may go without a step: the larger of 30 s and twenty times what a step usually takes."""

from __future__ import annotations

from collections import deque
from statistics import median

LEAST_S = 30.0
FACTOR = 20.0
REMEMBERED = 101
"""Steps that the median is taken of."""


class StepLimit:
    """fixed_s: the operator's own limit, for any job; None for the rule.

    A step's time is taken per pixel, so that a large picture after many small ones is not taken for a hang. Before the
    first step the whole warm-up stands for one, which is generous: it also estimates, encodes and decodes.
    """

    def __init__(self, fixed_s: float | None) -> None:
        self._fixed_s = fixed_s
        self._warmup_s = 0.0
        self._seen_s_per_pixel: deque[float] = deque(maxlen=REMEMBERED)

    def warmed_up(self, warmup_s: float) -> None:
        """A worker has become ready, and its warm-up took so long."""
        self._warmup_s = warmup_s

    def observe(self, step_s: float, *, pixels: int) -> None:
        if step_s >= 0 and pixels > 0:
            self._seen_s_per_pixel.append(step_s / pixels)

    def limit_s(self, *, pixels: int) -> float:
        """The limit for a job whose pictures have so many pixels each."""
        if self._fixed_s is not None:
            return self._fixed_s
        usual_s = median(self._seen_s_per_pixel) * pixels if self._seen_s_per_pixel else self._warmup_s
        return max(LEAST_S, FACTOR * usual_s)
