"""What a pull will do, file by file, before it does anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .catalogue import Model
from .download import part_path
from .errors import NoSpace
from .headers import Broken
from .hub import Listing, RemoteFile
from .progress import Progress
from .receipt import read_receipt
from .selection import select
from .sharing import Shelf
from .verify import check_form

SPARE_BYTES = 1 << 30
"""What a pull leaves free on the disk."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one file. source: what is linked to; it may be another step's target.

    keep: a whole file of somebody else's has the name and must not be lost.
    """

    file: RemoteFile
    how: Literal["here", "link", "download"]
    source: Path | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Every file of one model. folder: where they go. commit: of the repository."""

    model: Model
    folder: Path
    commit: str
    steps: tuple[Step, ...]

    def files(self, how: str) -> list[RemoteFile]:
        """The files that are treated like that."""
        return [step.file for step in self.steps if step.how == how]

    def download_bytes(self) -> int:
        """Bytes of all files that are downloaded, those that arrived earlier included. Unknown sizes count as 0."""
        return sum(file.fingerprint.size or 0 for file in self.files("download"))

    def arrived_bytes(self) -> int:
        """Bytes of those files that an earlier pull left."""
        parts = [part_path(self.folder, file) for file in self.files("download")]
        return sum(part.stat().st_size for part in parts if part.is_file())


class Planner:
    """Plans models one after the other: what an earlier one downloads is linked to by the later ones."""

    def __init__(self, root: Path, shelf: Shelf, progress: Progress) -> None:
        self._root, self._shelf, self._progress = root, shelf, progress
        self._planned: dict[str, Path] = {}

    def plan(self, model: Model, listing: Listing) -> ModelPlan:
        """Compares the listing with the disk. Raises what `select` raises, and OSError where files cannot be read."""
        folder = self._root / model.folder_name
        steps = tuple(self._step(folder, file) for file in select(model, listing))
        return ModelPlan(model, folder, listing.commit, steps)

    def _step(self, folder: Path, file: RemoteFile) -> Step:
        target = folder / file.path
        if self._is_here(folder, target, file):
            return Step(file, "here")
        sha256, keep = file.fingerprint.sha256, _is_precious(folder, file.path)
        source = (sha256 and self._planned.get(sha256)) or self._shelf.find(file.fingerprint)
        if source:
            return Step(file, "link", source, keep)
        if sha256:
            self._planned[sha256] = target
        return Step(file, "download", None, keep)

    def _is_here(self, folder: Path, target: Path, file: RemoteFile) -> bool:
        if not target.is_file():
            return False
        wanted, size = file.fingerprint, target.stat().st_size
        if wanted.size not in (None, size):
            return False
        entry = read_receipt(folder).files.get(file.path)
        if entry and entry.verified and entry.fingerprint.hex == wanted.hex and entry.fingerprint.size == size:
            return True
        if not wanted.hex:
            return wanted.size == size
        self._progress.begin(f"comparing {target.name}", size)
        return wanted.matches(target, self._progress)


def _is_precious(folder: Path, path: str) -> bool:
    """Whether the file is neither a link, nor one that a pull brought, nor damaged."""
    target, receipt = folder / path, read_receipt(folder)
    brought = bool(receipt.repository) and path in receipt.files
    if target.is_symlink() or not target.is_file() or brought:
        return False
    try:
        check_form(target)
    except Broken:
        return False
    return True


def check_space(root: Path, plans: Iterable[ModelPlan]) -> int:
    """How many bytes the plans still download. Raises NoSpace where the disk of `root` does not have that to spare."""
    needed = sum(plan.download_bytes() - plan.arrived_bytes() for plan in plans)
    place = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + SPARE_BYTES > free:
        raise NoSpace(
            f"{needed / 1e9:.1f} GB are to be downloaded and {SPARE_BYTES / 1e9:.1f} GB stay free, but the disk of "
            f"{place} has {free / 1e9:.1f} GB. Free some space, or choose another folder with --weights"
        )
    return needed
