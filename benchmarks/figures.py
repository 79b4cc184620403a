"""Arithmetic that the benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank).

    values: at least one. percent: above 0, at most 100.
    """
    ranked = sorted(values)
    return ranked[max(math.ceil(len(ranked) * percent / 100), 1) - 1]


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)
