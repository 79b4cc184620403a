"""Pictures on disk: control images that jobs need, and files that have a public URL.

    data/spool/inputs/<sha256>.<ext>    control images, by content
    data/spool/outputs/…                what the worker wrote, not yet published
    data/spool/publishing/…             notes of what is being published
    data/files/<token>.<ext>            published results and uploads; the token is 128 random bits

A published file's name is its permission: whoever knows it may read it, as at the service whose API this speaks.
Publishing is crash-safe: names noted, contents synced, renamed into place, folder synced, and only then is the job's
row committed and the note removed. What a crash leaves between is taken back at the next start.
A file's time of change is the server's clock's reading when it was kept, which its age is told by.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipelines.request import GenerationResult, OutputFile
from server.clock import STEADY, Clock

from .publishing import PublishingNotes

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

_FILE_NAME = re.compile(r"[0-9a-f]{32}\.(?:jpg|png|webp)")


class TornResult(ValueError):
    """A file is not what the worker said that it wrote."""


class ResultFiles:
    """The data folder's pictures. Blocking work runs in threads.

    reached: called at each of `publishing.POINTS`, for tests that end the process there.
    """

    def __init__(
        self, data_dir: Path, *, clock: Clock = STEADY, reached: Callable[[str], None] = lambda _: None
    ) -> None:
        self._clock, self._reached = clock, reached
        self.spool = data_dir / "spool"
        self._inputs, self._outputs = self.spool / "inputs", self.spool / "outputs"
        self._files = data_dir / "files"
        self._notes = PublishingNotes(self.spool / "publishing")
        # Held while an input is looked up and kept, or looked up and removed: the two must not interleave.
        self._inputs_lock = threading.Lock()

    def prepare(self) -> None:
        """Makes the folders and clears what an earlier run drew but did not publish."""
        shutil.rmtree(self._outputs, ignore_errors=True)
        for folder in (self._inputs, self._outputs, self._files):
            folder.mkdir(parents=True, exist_ok=True)
            for half in folder.glob(".*.part"):
                half.unlink(missing_ok=True)
        self._notes.prepare()
        for folder in (self._inputs, self._files):
            self._clamp_times(folder)

    def keeps_input(self, data: bytes, extension: str) -> bool:
        """Whether this very control image is kept already: then it was found whole when it was kept."""
        return self._input(data, extension).exists()

    async def keep_input(self, data: bytes, extension: str) -> str:
        """Keeps a control image for a job, on disk when this returns. Returns its name, which is its content's hash."""
        return await asyncio.to_thread(self._keep_input, data, extension)

    async def keep_longer(self, name: str) -> bool:
        """Begins a control image's time anew for another job. False when it is gone."""
        return await asyncio.to_thread(self._keep_longer, name)

    async def keep_upload(self, data: bytes, extension: str) -> str:
        """Publishes an uploaded picture. Returns its file name."""
        return await asyncio.to_thread(self._keep_upload, data, extension)

    async def publish(self, result: GenerationResult) -> GenerationResult:
        """Moves a result's files from the spool to their public names.

        Returns the result with those names. Raises TornResult when a file is not what was announced, and OSError.
        `settle` or `withdraw` has to follow.
        """
        return await asyncio.to_thread(self._publish, result)

    async def settle(self, result: GenerationResult) -> None:
        """The row that names these published files is committed."""
        self._reached("committed")
        await asyncio.to_thread(self._notes.remove, result.files())

    async def withdraw(self, result: GenerationResult) -> None:
        """Removes published files that no row names."""
        await asyncio.to_thread(self._withdraw, result.files())

    def withdraw_unnamed(self, named: set[str]) -> int:
        """After a start: removes what was being published and is in no row. Returns how many files."""
        unnamed = [name for name in self._notes.take_all() if name not in named and self.find(name)]
        for name in unnamed:
            (self._files / name).unlink(missing_ok=True)
        return len(unnamed)

    def find(self, name: str) -> Path | None:
        """The published file of that name, or None."""
        if not _FILE_NAME.fullmatch(name):
            return None
        path = self._files / name
        return path if path.is_file() else None

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._files).free

    def disk_bytes(self) -> dict[str, int]:
        """What published files and the spool take."""
        return {"files": _size_bytes(self._files), "spool": _size_bytes(self._inputs) + _size_bytes(self._outputs)}

    def remove_inputs(self, in_use: set[str], *, older_than_s: float) -> int:
        """Removes control images that no unfinished job needs. Returns how many."""
        removed = 0
        for path in list(self._inputs.iterdir()):
            with self._inputs_lock:
                if path.name not in in_use and self._age_s(path) > older_than_s:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def remove_files(self, *, older_than_s: float) -> int:
        """Removes published files that are older than that. Returns how many."""
        old = [path for path in self._files.iterdir() if self._age_s(path) > older_than_s]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _keep_input(self, data: bytes, extension: str) -> str:
        path = self._input(data, extension)
        with self._inputs_lock:
            if not path.exists():
                _write_durably(path, data)
            self._stamp(path)
        return path.name

    def _input(self, data: bytes, extension: str) -> Path:
        return self._inputs / f"{hashlib.sha256(data).hexdigest()}.{extension}"

    def _keep_longer(self, name: str) -> bool:
        with self._inputs_lock, suppress(FileNotFoundError):
            self._stamp(self._inputs / name)
            return True
        return False

    def _keep_upload(self, data: bytes, extension: str) -> str:
        path = self._files / _new_name(extension)
        _write_durably(path, data)
        self._stamp(path)
        return path.name

    def _publish(self, result: GenerationResult) -> GenerationResult:
        """All files are checked before the first gets its public name, and none keeps one when a later one fails."""
        self._reached("drawn")
        published = result.renamed([_new_name(output.format) for output in result.outputs()])
        self._notes.write(published.files())
        self._reached("noted")
        try:
            self._place_all(result, published)
        except (OSError, TornResult):
            self._withdraw(published.files())
            raise
        return published

    def _place_all(self, drawn: GenerationResult, published: GenerationResult) -> None:
        for output in drawn.outputs():
            self._check(output)
        self._reached("checked")
        for old, new in zip(drawn.files(), published.files(), strict=True):
            (self._outputs / old).rename(self._files / new)
            self._stamp(self._files / new)
            self._reached("placed")
        _sync_folder(self._files)
        self._reached("synced")

    def _withdraw(self, names: list[str]) -> None:
        for name in names:
            (self._files / name).unlink(missing_ok=True)
        self._notes.remove(names)

    def _check(self, output: OutputFile) -> None:
        source = self._outputs / output.file
        if hashlib.sha256(source.read_bytes()).hexdigest() != output.sha256:
            raise TornResult(f"{output.file} is not what the worker announced")
        _sync_file(source)

    def _stamp(self, path: Path) -> None:
        os.utime(path, (self._clock.now(),) * 2)

    def _age_s(self, path: Path) -> float:
        """Seconds since the file was kept or asked for again; 0 for one that is gone meanwhile."""
        try:
            return self._clock.now() - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _clamp_times(self, folder: Path) -> None:
        """No age is negative: what lies ahead, because the machine's clock was set back, begins its time now."""
        for path in folder.iterdir():
            if self._age_s(path) < 0:
                self._stamp(path)


def _new_name(extension: str) -> str:
    return f"{secrets.token_hex(16)}.{extension}"


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _size_bytes(folder: Path) -> int:
    """Of the files in a folder, as far as they stay while one looks."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
