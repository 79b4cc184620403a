"""Where people keep weights: a file, a model folder, the hub's cache, ComfyUI's folders, or a folder of such things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..catalogue import Catalogue
from ..locate import candidates
from ..single_files import SUFFIXES, Found, recognise_file
from .folders import recognise_folder

COMFYUI_FOLDERS = ("checkpoints", "diffusion_models", "unet", "vae", "clip", "text_encoders", "loras")


def recognise(path: Path, catalogue: Catalogue) -> list[Found]:
    """Everything under `path` that is known, and every weights file there that is not. Raises OSError.

    In caches and ComfyUI's folders, which hold weights of all sorts, what has nothing to do with FLUX.1 is passed over.
    """
    if path.is_file():
        return [recognise_file(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    if found := recognise_folder(path, catalogue):
        return [found]
    if caches := _caches(path):
        return [found for cache in caches for found in _in_cache(cache, catalogue)]
    if folders := _comfyui(path):
        return [found for folder in folders for found in _files(folder, deep=True) if found.component != "other"]
    return list(_collection(path, catalogue))


def _caches(path: Path) -> list[Path]:
    """Repositories in the hub's cache: `path` is one, or holds them, or has a `hub` that does."""
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return [path]
    return sorted(path.glob("models--*")) or sorted(path.glob("hub/models--*"))


def _in_cache(cache: Path, catalogue: Catalogue) -> Iterator[Found]:
    repository = cache.name.removeprefix("models--").replace("--", "/", 1)
    snapshot = next(candidates(cache.parent, repository, ()), None)
    if snapshot is None:
        return
    if found := recognise_folder(snapshot, catalogue, repository.rpartition("/")[2]):
        yield found
    yield from (found for found in _files(snapshot) if found.component not in ("other", "helper"))


def _comfyui(path: Path) -> list[Path]:
    """The folders in which ComfyUI looks for parts of FLUX.1, where `path` is its folder or the one of its models."""
    for place in (path, path / "models"):
        folders = [place / name for name in COMFYUI_FOLDERS if (place / name).is_dir()]
        # One of these names alone may be anybody's; a diffusers folder has a `vae` too, and was asked before.
        if len(folders) > 1:
            return folders
    return []


def _collection(path: Path, catalogue: Catalogue) -> Iterator[Found]:
    for folder in sorted(child for child in path.iterdir() if child.is_dir()):
        if found := recognise_folder(folder, catalogue):
            yield found
    yield from _files(path)


def _files(folder: Path, *, deep: bool = False) -> Iterator[Found]:
    files = folder.rglob("*") if deep else folder.iterdir()
    for path in sorted(files):
        if path.suffix in SUFFIXES and path.is_file():
            yield recognise_file(path)
