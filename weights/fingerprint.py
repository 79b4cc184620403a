"""What identifies a file's content, and whether a file on disk has it.

The hub names large files by their sha256 and small ones by git's blob id, the sha1 of `blob <size>`, a zero byte and
the content (git-scm.com, "Git Objects").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .progress import Progress, Silent

BLOCK_BYTES = 1 << 20

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class Hash(Protocol):
    """The part of hashlib's objects that is used here."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """size: bytes, None where unknown. sha256 and git_sha1: hex, None where unknown; sha256 counts where both are."""

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def hex(self) -> str | None:
        """The hash that decides, None where there is none."""
        return self.sha256 or self.git_sha1

    def hasher(self, size: int) -> Hash:
        """An empty hash of the kind that decides, for content of `size` bytes; sha256 where none is known."""
        if self.sha256 or not self.git_sha1:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def matches(self, path: Path, progress: Progress | None = None) -> bool:
        """Whether the file at `path` has this size and content. Raises OSError where it cannot be read.

        A file whose size is wrong is not read; without a known hash the size alone decides.
        """
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return False
        if not self.hex:
            return True
        return hash_file(path, self.hasher(size), progress or Silent()) == self.hex


def named_by_hub(etag: str, size: int | None = None) -> Fingerprint | None:
    """The fingerprint that the hub's name for a content (ETag, cache blob) stands for, None for other names."""
    if _SHA256.fullmatch(etag):
        return Fingerprint(size, sha256=etag)
    return Fingerprint(size, git_sha1=etag) if _SHA1.fullmatch(etag) else None


def hash_file(
    path: Path,
    hasher: Hash,
    progress: Progress,
    *,
    limit: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Feeds the file, or its first `limit` bytes, to `hasher` and returns the hex digest. Stops early when asked to."""
    left = path.stat().st_size if limit is None else limit
    with path.open("rb") as file:
        while left > 0 and not stopped() and (block := file.read(min(BLOCK_BYTES, left))):
            hasher.update(block)
            progress.advance(len(block))
            left -= len(block)
    return hasher.hexdigest()
