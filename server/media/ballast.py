"""A small file that is given up when the disk is full: SQLite needs space even to delete."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SIZE_BYTES = 4 * 1024 * 1024
"""What deleting a batch of rows and folding the write-ahead log in may take."""


class Ballast:
    """There while there is space for it. Blocking; used by one thread at a time."""

    def __init__(self, data_dir: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        self._path, self._size_bytes = data_dir / "ballast", size_bytes

    @property
    def held(self) -> bool:
        return self._path.exists()

    def settle(self, free_bytes: int) -> None:
        """Gives the file up when less than its size is free, and takes it back when three times its size is.

        free_bytes: of the data folder's file system. Never raises for a lack of space.
        """
        if self.held and free_bytes < self._size_bytes:
            self._path.unlink(missing_ok=True)
            log.warning("the disk is full: the ballast is given up so that old requests can be deleted")
        elif not self.held and free_bytes >= 3 * self._size_bytes:
            self._take()

    def _take(self) -> None:
        half = self._path.with_suffix(".part")
        try:
            # Written rather than allocated: some file systems would keep no space for it.
            half.write_bytes(os.urandom(self._size_bytes))
            half.rename(self._path)
        except OSError as error:
            half.unlink(missing_ok=True)
            log.warning("no space for the ballast", reason=error.strerror)
