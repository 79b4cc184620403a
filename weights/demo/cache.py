"""The demo family on disk: built once per version, put in place whole, recognised by a marker file."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

VERSION = "1"
"""Changes with anything that changes the family's files."""

MARKER = "demo.json"
NOTE = (
    "Small weights made by code to show and test the server. Pictures are colour textures; prompts are not understood."
)
ABANDONED_AFTER_S = 3600


def build(root: Path) -> None:
    """Writes the family under `root`: FLUX.1-dev, FLUX.1-Depth-dev, depth-anything-large-hf, safety-concepts and
    nsfw-image-detection, in diffusers' and transformers' layout, and the marker last.

    The same bytes each time. Takes about a second and imports torch. Raises OSError as the disk does, FileExistsError
    where a model's folder already is.
    """
    from .family import write

    root.mkdir(parents=True, exist_ok=True)
    write(root)
    marker = {"demo": True, "version": VERSION, "note": NOTE, "files": _sizes(root)}
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def ensure(cache_dir: Path) -> Path:
    """The folder of an intact family of this version under `cache_dir`, built first where there is none.

    A build appears whole or not at all, whenever the process dies; of two processes that build at once, one's result
    stays and both get its path. Intact means that every file is there in its length. Raises OSError as the disk does.
    """
    root = cache_dir / f"flux-demo-{VERSION}"
    if _is_intact(root):
        return root
    cache_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache_dir)
    fresh = _temporary_sibling(root)
    try:
        build(fresh)
        while not _moved_into_place(fresh, root):
            if _is_intact(root):
                break
            _move_aside(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return root


def is_demo(root: Path) -> bool:
    """True where the weights under `root` are the demo family's. Reads one small file; imports no torch."""
    return _marker(root).get("demo") is True


def _marker(root: Path) -> dict[str, Any]:
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _is_intact(root: Path) -> bool:
    marker = _marker(root)
    return marker.get("version") == VERSION and marker.get("files") == _sizes(root)


def _sizes(root: Path) -> dict[str, int]:
    """Length in bytes of each file under `root` but the marker, by its path with forward slashes."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path != root / MARKER)
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def _temporary_sibling(root: Path) -> Path:
    return root.with_name(f".{root.name}.{secrets.token_hex(8)}")


def _moved_into_place(fresh: Path, root: Path) -> bool:
    try:
        os.rename(fresh, root)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _move_aside(root: Path) -> None:
    broken = _temporary_sibling(root)
    try:
        os.rename(root, broken)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(broken, ignore_errors=True)


def _remove_abandoned(cache_dir: Path) -> None:
    """Removes what killed builds left; a younger folder may be a build that runs now."""
    for folder in cache_dir.glob(".flux-demo-*"):
        try:
            is_old = time.time() - folder.stat().st_mtime > ABANDONED_AFTER_S
        except FileNotFoundError:
            continue
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)
