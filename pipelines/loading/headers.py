"""What is looked at before a byte of weights is loaded: whether files are whole, and hold what the component needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weights.headers import READERS, Broken, Tensor, WeightsFile

from .refusals import UnusableWeights, listed, refuse_missing


def read_header(path: Path) -> WeightsFile:
    """What the file at `path` holds. Raises UnusableWeights for a truncated or damaged one, OSError."""
    try:
        return READERS[path.suffix](path)
    except Broken as error:
        raise UnusableWeights(f"{path} {error}; fetch it again") from error


def read_headers(folder: Path) -> dict[str, Tensor]:
    """The tensors of every safetensors file in the folder, by name. Raises as `read_header`."""
    files: Iterable[Path] = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in read_header(path).tensors.items()}


def check_names_and_shapes(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> None:
    """Raises UnusableWeights unless `tensors` has each of `wanted` (a module's state) in its shape."""
    refuse_missing(path, wanted.keys() - tensors.keys())
    for name, value in wanted.items():
        if tensors[name].shape != tuple(value.shape):
            raise UnusableWeights(
                f"{path} is another model's: {name} has shape {tensors[name].shape}, not {tuple(value.shape)}"
            )


def refuse_unknown(path: Path, names: Iterable[str]) -> None:
    """Raises UnusableWeights where tensors would be left over: a file of another model, or of another quantisation."""
    if unknown := list(names):
        raise UnusableWeights(f"{path} holds {len(unknown)} tensors that this component has not: {listed(unknown)}")
