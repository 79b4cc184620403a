"""One file from the hub to its place: resumed where it was cut, checked, and only then given its name."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .catalogue import Model
from .errors import HubUnreachable, NoSpace, WrongContent
from .fingerprint import Fingerprint, hash_file
from .hub import Hub, RemoteFile
from .progress import Progress, Silent

PARTIAL_FOLDER = ".partial"
"""In a model's folder: files that are on their way."""

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """tries: how often in a row the hub may fail without a single new byte. The pause doubles from try to try."""

    tries: int = 6
    pause_s: float = 1.0


class Stopped(Exception):
    """Another file failed, or the user stopped it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloader:
    """How files are fetched. stop: ends downloads between two blocks, with Stopped."""

    hub: Hub
    progress: Progress
    stop: threading.Event
    patience: Patience = Patience()

    def fetch(self, model: Model, commit: str, file: RemoteFile, folder: Path) -> int:
        """Brings `file` to its place under `folder` and returns how many bytes of it were there from an earlier try.

        What is at its place before is replaced. Raises HubUnreachable, NoSpace, WrongContent and what Hub raises. After
        any of them but WrongContent the part that arrived stays, and the next call goes on from it.
        """
        path = part_path(folder, file)
        with _full_disk_named(path, file), _Part(path, file.fingerprint, self) as part:
            resumed = part.size
            while not part.complete:
                self._go_on(model, commit, file, part)
            part.check(f"{file.path} of {model.repository}")
            _put_in_place(part, folder / file.path)
        return resumed

    def _go_on(self, model: Model, commit: str, file: RemoteFile, part: _Part) -> None:
        """Streams until the file ends; waits and asks again when the connection breaks."""
        failures = 0
        while True:
            before = part.size
            try:
                with self.hub.stream(model, commit, file.path, part.size, BLOCK_BYTES) as stream:
                    part.take(stream.start, stream.blocks)
                return
            except HubUnreachable as error:
                failures = 1 if part.size > before else failures + 1
                if failures >= self.patience.tries:
                    raise
                self.progress.say(f"{file.path}: {error}; trying again")
                self._wait(self.patience.pause_s * 2 ** (failures - 1))

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


class _Part:
    """The file under its temporary name, and the hash of what is in it."""

    def __init__(self, path: Path, wanted: Fingerprint, owner: Downloader) -> None:
        self.path, self.wanted = path, wanted
        self._progress, self._stop = owner.progress, owner.stop
        self.hash = hashlib.sha256()
        self.size, self.complete = 0, False

    def __enter__(self) -> _Part:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = self.path.open("ab")
        self.size = self.path.stat().st_size
        if self.wanted.size is None or self.size > self.wanted.size:
            self._restart()
        # These bytes count as done already, so reading them tells no progress.
        hash_file(self.path, self.hash, Silent(), limit=self.size, stopped=self._stop.is_set)
        self.complete = self.size == self.wanted.size
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def take(self, start: int, blocks: Iterator[bytes]) -> None:
        """Appends all blocks, the first of which belongs at `start`: at the end, or at 0 when all comes again."""
        if start != self.size:
            self._progress.advance(-self.size)
            self._restart()
        for block in blocks:
            if self._stop.is_set():
                raise Stopped
            self.file.write(block)
            self.hash.update(block)
            self.size += len(block)
            self._progress.advance(len(block))
        if self.wanted.size is not None and self.size < self.wanted.size:
            raise HubUnreachable(f"the hub ended after {self.size} of {self.wanted.size} bytes")
        self.complete = True

    def check(self, name: str) -> None:
        """Raises WrongContent, and deletes the file, unless it is what was wanted."""
        self.file.flush()
        if self.wanted.sha256:
            same = self.hash.hexdigest() == self.wanted.sha256 and self.wanted.size in (None, self.size)
        else:
            same = self.wanted.matches(self.path)
        if not same:
            self.path.unlink()
            raise WrongContent(
                f"{name} arrived as {self.size} bytes with sha256 {self.hash.hexdigest()}; published were "
                f"{self.wanted.size} bytes, {self.wanted.hex}. It was deleted. Run this again; if that does not help, "
                "a proxy or mirror on the way changes files"
            )

    def _restart(self) -> None:
        self.file.truncate(0)
        self.hash, self.size = hashlib.sha256(), 0


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Where the part of `file` lies: named by its content too, so that another content is never appended to it."""
    content = file.fingerprint.hex or "unknown"
    return folder / PARTIAL_FOLDER / f"{file.path.replace('/', '--')}.{content[:16]}.part"


def _put_in_place(part: _Part, target: Path) -> None:
    os.fsync(part.file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part.path, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut; where folders cannot be opened, the file system does it itself."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _full_disk_named(path: Path, file: RemoteFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(
            f"the disk of {path.parent} is full while {file.path} arrives. What arrived is kept; free some space and "
            "run this again"
        ) from error
