"""How the worker's lives ended: counts for operators, the wait before the next start, and the alarm."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

BACKOFF_S = (0.0, 1.0, 5.0, 30.0)
"""Waits before a start, by how many lives in a row failed before it."""

ALARM_FAILURES = 5
ALARM_WINDOW_S = 600.0


class LifeRecord:
    """A life has failed when it ended before it drew a picture for a job. Times are the monotonic clock's.

    restarts: how many lives ended, by reason: load (the models cannot be loaded), load_timeout, device (a CUDA fault),
    out_of_memory (three jobs in a row), stuck (no step in time), crashed (it ended without a word), spawn (it cannot
    even be started), protocol (it says what this server does not understand).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed_at: deque[float] = deque(maxlen=ALARM_FAILURES)
        self._in_a_row = 0
        self._drew = False
        self.restarts: Counter[str] = Counter()

    def note_picture(self) -> None:
        """A job was drawn, so the worker, the device and the weights are sound."""
        self._drew, self._in_a_row = True, 0
        self._failed_at.clear()

    def note_end(self, reason: str) -> None:
        self.restarts[reason] += 1
        if not self._drew:
            self._in_a_row += 1
            self._failed_at.append(self._clock())
        self._drew = False

    @property
    def wait_s(self) -> float:
        """Seconds to wait before the next start."""
        if not self._in_a_row:
            return 0.0
        return BACKOFF_S[min(self._in_a_row, len(BACKOFF_S)) - 1]

    @property
    def alarm(self) -> bool:
        """So many lives failed in such a time that somebody has to look."""
        return len(self._failed_at) == ALARM_FAILURES and self._clock() - self._failed_at[0] <= ALARM_WINDOW_S
