"""Files that are on this disk already, under another model's name: found by content and linked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .catalogue import Catalogue
from .download import PARTIAL_FOLDER
from .fingerprint import Fingerprint, hash_file
from .locate import candidates
from .progress import Progress
from .receipt import read_receipt


class Shelf:
    """All safetensors files of the catalogue's models under a weights folder, to be found by content.

    A content that a pull has checked is believed; any other is read, at most once, and only where the size is right.
    """

    def __init__(self, root: Path, catalogue: Catalogue, progress: Progress) -> None:
        self._progress = progress
        self._checked: dict[Path, str] = {}
        self._by_size: dict[int, list[Path]] = {}
        for folder in _folders(root, catalogue):
            self._add(folder)

    def find(self, wanted: Fingerprint) -> Path | None:
        """A file with this content, or None: also where size or sha256 are not known."""
        if wanted.size is None or wanted.sha256 is None:
            return None
        return next((path for path in self._by_size.get(wanted.size, ()) if self._sha256(path) == wanted.sha256), None)

    def _add(self, folder: Path) -> None:
        receipt = read_receipt(folder)
        for path in sorted(folder.rglob("*.safetensors")):
            if PARTIAL_FOLDER in path.parts or not path.is_file():
                continue
            size = path.stat().st_size
            self._by_size.setdefault(size, []).append(path)
            entry = receipt.files.get(path.relative_to(folder).as_posix())
            if entry and entry.verified and entry.fingerprint.size == size and entry.fingerprint.sha256:
                self._checked[path] = entry.fingerprint.sha256

    def _sha256(self, path: Path) -> str:
        if path not in self._checked:
            size = path.stat().st_size
            self._progress.begin(f"comparing {path.name}", size)
            self._checked[path] = hash_file(path, Fingerprint().hasher(size), self._progress)
        return self._checked[path]


def link(source: Path, target: Path, *, symbolic: bool = False) -> None:
    """Puts the file `source` also at `target`, replacing what is there, without copying. Raises OSError.

    A hard link, or a symbolic one where asked for or where the file system has no other. What the target leads to is
    the file itself, not a link on the way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.link")
    draft.unlink(missing_ok=True)
    real = source.resolve(strict=True)
    if symbolic or not _hard_link(real, draft):
        draft.symlink_to(real)
    os.replace(draft, target)
    draft.unlink(missing_ok=True)  # renaming one name of a file over another leaves both


def _hard_link(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _folders(root: Path, catalogue: Catalogue) -> Iterator[Path]:
    for repository, names in {(model.repository, model.folders) for model in catalogue.models.values()}:
        yield from candidates(root, repository, names)
