"""Whether the files of a model are whole: by size and form in a moment, by content as fast as the disk reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .catalogue import KnownFile, Model
from .download import PARTIAL_FOLDER
from .fingerprint import Fingerprint, hash_file
from .headers import READERS, Broken
from .progress import Progress, Silent
from .receipt import Entry, Receipt, expected, read_receipt, write_receipt
from .selection import belongs

State = Literal["good", "unproven", "missing", "truncated", "altered", "unreadable"]
"""unproven: nothing is wrong with it, but no published hash is known to compare it with, or it was not compared."""

GOOD: tuple[State, ...] = ("good", "unproven")

UNPROVEN = "no published hash is known; its sha256 is "


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file. path: in the model's folder. size: bytes, None where it is not there. detail: why, unless good."""

    path: str
    state: State
    size: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """All files of one model under `folder`. full: whether contents were compared, not only sizes and forms."""

    name: str
    folder: Path
    full: bool
    files: tuple[FileCheck, ...]

    @property
    def good(self) -> bool:
        """Whether no file is missing or broken."""
        return all(file.state in GOOD for file in self.files)


def verify(model: Model, folder: Path, *, full: bool = False, progress: Progress | None = None) -> ModelCheck:
    """Checks every file of `model` in `folder`. Raises OSError where the folder cannot be listed."""
    progress, receipt = progress or Silent(), read_receipt(folder)
    names = _names(model, folder, receipt)
    if full:
        total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
        progress.begin(f"verifying {model.name}", total)
    checks = tuple(_check(folder, name, _wanted(model, folder, name, receipt), full, progress) for name in names)
    if not any(check.state == "missing" for check in checks) and (problem := model.problem(folder)):
        checks += (FileCheck(problem.partition(" ")[0], "missing", detail=problem),)
    return ModelCheck(model.name, folder, full, checks)


def note_damage(check: ModelCheck) -> None:
    """Writes down which files are not good, so that the next pull of the model fetches them again. Raises OSError."""
    receipt = read_receipt(check.folder)
    for file in check.files:
        if file.state not in GOOD:
            known = receipt.files.get(file.path, Entry(Fingerprint())).fingerprint
            receipt = receipt.with_file(file.path, Entry(known))
    write_receipt(check.folder, replace(receipt, complete=False))


def is_whole(model: Model, folder: Path) -> bool:
    """Whether every file there has the form of its kind, and the size that is written down beside it, if one is.

    Another edition of the model than the published one is whole too. Raises OSError where the folder cannot be listed.
    """
    receipt = read_receipt(folder)
    wanted = {name: expected(folder, name, receipt) or Fingerprint() for name in _names(model, folder, receipt)}
    return all(_check(folder, name, size, False, Silent()).state == "good" for name, size in wanted.items())


def verify_single_files(
    folder: Path, published: Sequence[KnownFile], *, full: bool = False, progress: Progress | None = None
) -> ModelCheck:
    """Checks the weights files anywhere under `folder`; their contents against those of `published`, whatever names."""
    progress = progress or Silent()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in READERS)
    if full:
        total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
        progress.begin(f"verifying {folder.name}", total)
    hashes = {file.sha256 for file in published}
    checks = [_check(folder, name, Fingerprint(), full, progress) for name in names]
    proven = [replace(check, state="good", detail="") if _sha256_in(check) in hashes else check for check in checks]
    return ModelCheck(folder.name, folder, full, tuple(proven))


def check_form(path: Path) -> None:
    """Raises Broken where the file at `path` cannot be what its suffix says: a truncated file is found without a hash.

    Reads headers and small files only. Raises OSError where it cannot be read.
    """
    if path.suffix in READERS:
        READERS[path.suffix](path)
    elif path.suffix == ".json":
        _check_json(path)


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        raise Broken("is no JSON: it is truncated or damaged") from error


def _names(model: Model, folder: Path, receipt: Receipt) -> list[str]:
    """What ought to be there by the receipt, and what is there and belongs to the model."""
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if PARTIAL_FOLDER not in path.parts}
    return sorted({path for path in {*there, *receipt.files} if belongs(model, path)})


def _wanted(model: Model, folder: Path, path: str, receipt: Receipt) -> Fingerprint:
    written, known = expected(folder, path, receipt) or Fingerprint(), model.known_file(path)
    if known is None:
        return written
    size = written.size if written.size is not None else (known.size if known.exact else None)
    return replace(written, size=size, sha256=known.sha256 or written.sha256)


def _check(folder: Path, name: str, wanted: Fingerprint, full: bool, progress: Progress) -> FileCheck:
    path = folder / name
    if not path.is_file():
        return FileCheck(name, "missing", detail="its link leads nowhere" if path.is_symlink() else "is not there")
    try:
        size = path.stat().st_size
        if wanted.size not in (None, size):
            state: State = "truncated" if size < (wanted.size or 0) else "altered"
            return FileCheck(name, state, size, f"has {size} bytes and ought to have {wanted.size}")
        check_form(path)
        return _compare(name, path, wanted, size, progress) if full else FileCheck(name, "good", size)
    except Broken as error:
        return FileCheck(name, "truncated" if "truncated" in str(error) else "altered", size, str(error))
    except OSError as error:
        return FileCheck(name, "unreadable", detail=error.strerror or str(error))


def _sha256_in(check: FileCheck) -> str:
    return check.detail.removeprefix(UNPROVEN) if check.state == "unproven" else ""


def _compare(name: str, path: Path, wanted: Fingerprint, size: int, progress: Progress) -> FileCheck:
    found = hash_file(path, wanted.hasher(size), progress)
    if not wanted.hex:
        return FileCheck(name, "unproven", size, f"{UNPROVEN}{found}")
    if found != wanted.hex:
        return FileCheck(name, "altered", size, f"its content is {found} and ought to be {wanted.hex}")
    return FileCheck(name, "good", size)
