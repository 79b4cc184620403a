"""Where single files are looked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from .found import Found
from .recognise import SUFFIXES, recognise_file

IMPORTED_FOLDER = "imported"
"""In the weights folder: what `weights import` links, by component."""


def linked_single_files(root: Path) -> list[Found]:
    """What lies under `root`/imported, recognised again. Raises OSError."""
    files = sorted((root / IMPORTED_FOLDER).rglob("*"))
    return [_recognise(path) for path in files if path.suffix in SUFFIXES]


def single_files(root: Path, folders: Iterable[Path]) -> list[Found]:
    """What was imported, then what lies in `root` itself and in `folders`, not deeper. Raises OSError."""
    there = (path for folder in (root, *folders) for path in _weights_in(folder))
    return [*linked_single_files(root), *map(_recognise, there)]


def _weights_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES and path.is_file())


def _recognise(path: Path) -> Found:
    if path.is_file():
        return recognise_file(path)
    why = f"its link leads nowhere: {path.readlink()}" if path.is_symlink() else "it is no file"
    return Found(path=path, form="file", what="unknown", component="other", why_not=why)
