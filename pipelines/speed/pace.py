"""How far the processor may run ahead of the card."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

AHEAD = 1
"""Steps that may wait on the card behind the one that it computes: enough that it never waits for the processor, few
enough that a cancelled request stops soon and progress is what was computed, not what was ordered."""


class Pace:
    """Counts steps that are really done. On other devices than cards a step is done when its call returns."""

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        self._ordered: deque[Any] = deque()
        self.done = 0

    @property
    def under_way(self) -> bool:
        return bool(self._ordered)

    def ordered(self) -> None:
        """A step has been given to the device. Waits until at most AHEAD others stand before it."""
        if not self._on_card:
            self.done += 1
            return
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._ordered.append(event)
        while len(self._ordered) > AHEAD + 1:
            self._wait()

    def finish(self) -> None:
        """Waits until every step is done."""
        while self._ordered:
            self._wait()

    def _wait(self) -> None:
        self._ordered.popleft().synchronize()
        self.done += 1
