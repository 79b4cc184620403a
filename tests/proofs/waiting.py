"""Waiting for a condition rather than for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    """The condition's first truthy value. Fails the test when there is none within the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit_s} s")
