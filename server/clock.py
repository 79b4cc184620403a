"""The one clock of everything that ages: durations, deadlines and expiry.

Its readings are seconds since 1970, so that ages can be told across restarts, but within one run they only ever move on
at the pace of the monotonic clock: somebody who sets the machine's clock changes nothing. Nothing else in the server
reads the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970 as this run counts them; never less than at an earlier call."""


class SteadyClock:
    """The wall clock's reading at the start of the run, carried on by the monotonic clock."""

    def __init__(
        self, *, wall_s: Callable[[], float] = time.time, mono_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._mono_s = mono_s
        self._ahead_s = wall_s() - mono_s()

    def now(self) -> float:
        return self._ahead_s + self._mono_s()


STEADY = SteadyClock()
"""This process's clock."""
