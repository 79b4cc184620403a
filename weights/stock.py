"""What lies in the weights folder, what is missing and what that would cost; and how to be rid of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .catalogue import Catalogue, KnownFile, Model
from .locate import candidates, find_folder
from .receipt import read_receipt, write_receipt
from .verify import is_whole


@dataclass(frozen=True, slots=True)
class Holding:
    """One model on this disk.

    state: here (complete), incomplete (some of it is there) or missing. folder: where it is, or where `pull` puts it.
    here_bytes: on disk. pull_bytes: what a pull would download, None where sizes are not known without asking the hub.
    part_bytes: of those, what belongs to parts that other models have too, and is downloaded once for all.
    shared_bytes: what it would link to from models that are here. problem: why it is not complete, empty where it is.
    """

    model: Model
    state: Literal["here", "incomplete", "missing"]
    folder: Path
    here_bytes: int
    pull_bytes: int | None
    part_bytes: int
    shared_bytes: int
    problem: str


def locate_model(root: Path, model: Model) -> tuple[Path | None, list[str]]:
    """The model's complete folder under `root` and no problems, or None and what is wrong with each that is begun."""
    return find_folder(root, model.repository, model.folders, model.problem)


def find_complete(root: Path, model: Model) -> Path | None:
    """The model's folder where nothing is left to pull: complete, every file whole, and no pull of it was stopped."""
    folder, _ = locate_model(root, model)
    if folder is None or not read_receipt(folder).complete:
        return None
    return folder if is_whole(model, folder) else None


def begun_folder(root: Path, model: Model) -> Path | None:
    """The folder that holds the model or, unless it is complete anywhere, the first that holds some of it; or None."""
    folder, _ = locate_model(root, model)
    begun = (place for place in candidates(root, model.repository, model.folders) if _bytes_of(model, place))
    return folder or next(begun, None)


def take_stock(root: Path, catalogue: Catalogue, models: Iterable[Model]) -> list[Holding]:
    """The holdings of `models`. Asks no network. Raises OSError where `root` cannot be read."""
    return [_holding(root, catalogue, model) for model in models]


def disk_bytes(folders: Iterable[Path]) -> int:
    """Bytes of all files under `folders`; one with several names counts once, a symbolic link as what it leads to."""
    files = (path.stat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in files}.values())


def remove(root: Path, model: Model) -> int:
    """Deletes the model's files under `root`, its parts on the way included, and returns the bytes that this frees.

    Links are removed, never what they lead to; files that another model shares stay there. Raises OSError.
    """
    folders = list(candidates(root, model.repository, model.folders))
    before = _owned_bytes(root)
    for folder in folders:
        if model.layout == "files":
            _remove_files(folder, model)
        else:
            _remove_folder(folder)
    return before - _owned_bytes(root)


def _owned_bytes(root: Path) -> int:
    files = (path.stat() for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in files}.values())


def _holding(root: Path, catalogue: Catalogue, model: Model) -> Holding:
    folder, problems = locate_model(root, model)
    begun = begun_folder(root, model)
    place = begun or root / model.folder_name
    if folder and find_complete(root, model):
        return Holding(model, "here", folder, _bytes_of(model, folder), 0, 0, 0, "")
    missing = [file for file in model.known_files() if not (place / file.path).is_file()]
    shared = [file for file in missing if _lies_elsewhere(root, catalogue, model, file)]
    own = [file for file in missing if file not in shared]
    known = bool(model.files) and all(file.size is not None for file in own)
    here = _bytes_of(model, place)
    problem = problems[0] if problems else ("" if not begun else "a pull was stopped, or a file is not whole")
    return Holding(
        model,
        "incomplete" if here else "missing",
        place,
        here,
        _sum(own) if known else None,
        _sum(file for file in own if model.part_of(file.path)) if known else 0,
        _sum(shared),
        problem,
    )


def _sum(files: Iterable[KnownFile]) -> int:
    return sum(file.size or 0 for file in files)


def _lies_elsewhere(root: Path, catalogue: Catalogue, model: Model, file: KnownFile) -> bool:
    """Whether a model that shares the part has the file. A pull compares contents; this goes by name."""
    part = model.part_of(file.path)
    others = (other for other in catalogue.models.values() if other is not model and part in other.parts)
    folders = (folder for other in others for folder in candidates(root, other.repository, other.folders))
    return part is not None and any((folder / file.path).is_file() for folder in folders)


def _bytes_of(model: Model, folder: Path) -> int:
    if model.layout != "files":
        return disk_bytes([folder])
    return sum(path.stat().st_size for path in _own_files(folder, model) if path.is_file())


def _own_files(folder: Path, model: Model) -> Iterator[Path]:
    return (folder / file.path for file in model.files)


def _remove_files(folder: Path, model: Model) -> None:
    """Other models may keep theirs in the same folder; it goes with the last one."""
    for path in _own_files(folder, model):
        path.unlink(missing_ok=True)
    receipt = read_receipt(folder).without({file.path for file in model.files})
    if receipt.files:
        write_receipt(folder, receipt)
    elif not any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")):
        _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """In the hub's cache a revision's files are links into the model's own folder, which goes as a whole."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        folder = folder.parent.parent
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
