"""Figures that the proofs print and hold to a bound."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MIB = 2**20


def p99(values: Sequence[float]) -> float:
    """The 99th percentile; of fewer than a hundred values, the largest."""
    return statistics.quantiles(values, n=100)[98] if len(values) >= 100 else max(values)


def spread(values_s: Sequence[float]) -> str:
    """Median, 99th percentile and largest of some seconds, in milliseconds."""
    middle, late, worst = (1000 * value for value in (statistics.median(values_s), p99(values_s), max(values_s)))
    return f"median {middle:.1f}, p99 {late:.1f}, most {worst:.1f} ms"


class PeakMemory:
    """The highest resident memory of a process since this was made, above what it had then, in bytes.

    The kernel counts the peak itself (VmHWM) where it lets us reset it, so that no short peak is missed.
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = psutil.Process(pid).memory_info().rss

    def grown_bytes(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 - self._before
