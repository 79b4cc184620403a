"""Room for a second thread that prepares the next request's inputs while one is drawn.

What is drawn never waits for it but where both want the same value, or where a picture is too large to have anything
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch


class RoomBeside:
    """Says who may compute beside whom, by one lock.

    pixels: of the largest picture that leaves memory for the preparations; 0 where there shall be none.
    """

    def __init__(self, device: torch.device, pixels: int) -> None:
        self._pixels = pixels
        self._lock = Lock()
        # Work on a stream of its own waits for no step of the picture that is drawn, and no step waits for it.
        self._stream: Any = None
        if pixels and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def any(self) -> bool:
        return self._pixels > 0

    def drawing(self, pixels: int) -> AbstractContextManager[object]:
        """Entered while a picture of so many pixels is drawn: a large one has nothing beside it."""
        return self._lock if pixels > self._pixels else nullcontext()

    def moving(self) -> AbstractContextManager[object]:
        """Entered while modules move or caches are given up. Waits for what is being prepared."""
        return self._lock

    @contextmanager
    def preparing(self) -> Iterator[bool]:
        """Entered by the thread that prepares. Gives False, without waiting, where nothing may be prepared now."""
        if not self.any or not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield True
        finally:
            self._lock.release()
