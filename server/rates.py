"""How often a caller may submit: a token bucket per key."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .clock import STEADY, Clock
from .errors import TooManyRequests


class RateLimited(TooManyRequests):
    """Too many requests with this key. Try again when Retry-After says."""

    code = "rate_limited"


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimits:
    """One bucket for each caller that has come so far: full at first, and filled again at the set rate."""

    def __init__(self, *, per_minute: float | None, burst: int, clock: Clock = STEADY) -> None:
        """per_minute: None for no limit. burst: what a full bucket holds."""
        self._per_s = None if per_minute is None else per_minute / 60
        self._burst, self._clock = float(burst), clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, owner: str) -> None:
        """Counts one request. Raises RateLimited, and counts nothing, when the caller's bucket is empty."""
        if self._per_s is None:
            return
        bucket = self._filled(owner, self._per_s)
        if bucket.tokens < 1:
            wait_s = math.ceil((1 - bucket.tokens) / self._per_s)
            raise RateLimited(
                f"Too many requests: this key may send {self._per_s * 60:g} a minute. Try again in {wait_s} s.",
                retry_after_s=wait_s,
            )
        bucket.tokens -= 1

    def full_in_s(self, owner: str) -> float:
        """Seconds until the caller's bucket is full again; 0 without a limit."""
        if self._per_s is None:
            return 0.0
        return (self._burst - self._filled(owner, self._per_s).tokens) / self._per_s

    def _filled(self, owner: str, per_s: float) -> _Bucket:
        now = self._clock.now()
        bucket = self._buckets.setdefault(owner, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * per_s)
        bucket.at = now
        return bucket
