"""Links from the weights folder to what was recognised. The files stay their owner's: nothing is copied or changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..catalogue import Catalogue, Model
from ..receipt import Entry, Receipt, expected, read_receipt, write_receipt
from ..selection import belongs
from ..sharing import link
from ..single_files import IMPORTED_FOLDER, Found
from ..stock import find_complete
from .folders import BITSANDBYTES


@dataclass(frozen=True, slots=True)
class Linked:
    """What became of something found. target: the link, or the folder of links; None where none was made.

    note: why there is none, or what the model still lacks.
    """

    found: Found
    target: Path | None = None
    note: str = ""


def take_in(root: Path, catalogue: Catalogue, found: Found) -> Linked:
    """Links `found` into the weights folder `root`, unless it is there already or of no use. Raises OSError."""
    if found.component == "other" or (found.component == "lora" and not found.loadable):
        return Linked(found, note=found.why_not)
    if _inside(found.path, root):
        return Linked(found, note="it is in the weights folder already")
    if found.path.is_dir():
        return _take_folder(root, catalogue, found)
    if found.loadable and found.component == "lora" and found.model:
        return _take_only_file(root, catalogue.models[found.model], found)
    return _take_file(root, found)


def _take_folder(root: Path, catalogue: Catalogue, found: Found) -> Linked:
    if found.model is None or not (found.precision in ("as saved", "") or found.precision.startswith(BITSANDBYTES)):
        return Linked(found, note=found.why_not)
    model = catalogue.models[found.model]
    if there := find_complete(root, model):
        return Linked(found, there, f"{model.name} is here already and was left as it is")
    target = root / model.folder_name
    receipt = Receipt(model.repository, files=dict(read_receipt(target).files))
    for path in _files_of(model, found.path):
        if not (target / path).exists():
            link(found.path / path, target / path, symbolic=True)
            if known := expected(found.path, path, Receipt()):
                receipt = receipt.with_file(path, Entry(known))
    problem = model.problem(target)
    write_receipt(target, Receipt(receipt.repository, receipt.commit, receipt.files, complete=problem is None))
    return Linked(found, target, f"{problem}; `pull {model.name}` fetches what is missing" if problem else "")


def _files_of(model: Model, folder: Path) -> Iterator[str]:
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return (path for path in paths if belongs(model, path))


def _take_only_file(root: Path, model: Model, found: Found) -> Linked:
    """A file that is all of its model: under the name that the model's repository gives it."""
    target = root / model.folder_name / model.files[0].path
    if target.exists():
        return Linked(found, target, f"{model.name} is here already and was left as it is")
    link(found.path, target, symbolic=True)
    return Linked(found, target)


def _take_file(root: Path, found: Found) -> Linked:
    target = _free_name(root / IMPORTED_FOLDER / found.component, found.path)
    if not target.exists():
        link(found.path, target, symbolic=True)
    return Linked(found, target, found.why_not)


def _free_name(folder: Path, source: Path) -> Path:
    """The file's own name, or one with its folder's name before it where another file has that already."""
    for name in (source.name, f"{source.parent.name}--{source.name}"):
        target = folder / name
        if not target.exists() or target.resolve() == source.resolve():
            return target
    raise FileExistsError(f"{folder / source.name} leads to another file; `rm` it first")


def _inside(path: Path, root: Path) -> bool:
    return root.resolve() in path.resolve().parents or root.absolute() in path.absolute().parents
