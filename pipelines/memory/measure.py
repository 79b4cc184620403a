"""The footprint of what lies on disk, from the headers of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from weights.headers import READERS
from weights.sources import ModelSources, Source

from ..loading.storage import is_quantised
from .footprint import Footprint, TransformerSize, transformer_size

Shape = tuple[int, ...]

FLOAT32_BYTES = 4
SLOT_RANK = 128
"""`LoraShelf`'s default for the rank that its slot has room for."""

_TIED = ("encoder.embed_tokens.weight",)
"""Written a second time into some T5 files; in memory it is the same as `shared.weight`."""


def measure(
    models: Mapping[str, ModelSources],
    *,
    value_bytes: int,
    depth_estimator: Path | None = None,
    safety: tuple[Path, ...] = (),
    upsampler: Path | None = None,
    depth_lora: Path | None = None,
    loras: bool = False,
) -> Footprint:
    """Counts the models and the helpers beside them.

    value_bytes: of one value in the computing precision. depth_lora: its file, where it makes the depth model.
    loras: whether transformers get a LoRA slot. Raises Broken for a damaged file and OSError for an unreadable one.
    """
    shared = next(iter(models.values()))
    slot_bytes = _slot(shared.transformer) * value_bytes if loras else 0
    control_lora = _count(Source(depth_lora, "safetensors")) * value_bytes + slot_bytes if depth_lora else 0
    return Footprint(
        transformers={name: _transformer(sources.transformer) for name, sources in models.items()},
        text=_count(shared.t5) + _count(shared.clip),
        vae=_count(shared.vae),
        depth_bytes=_helper_bytes(depth_estimator),
        safety_bytes=sum(map(_helper_bytes, safety)),
        upsampler_bytes=_count(Source(upsampler)) * value_bytes if upsampler else 0,
        depth_lora_bytes=control_lora,
        lora_slot_bytes=slot_bytes,
        value_bytes=value_bytes,
    )


def _transformer(source: Source) -> TransformerSize:
    size = transformer_size(_shapes(source))
    return replace(size, fixed_bytes=_bytes_on_disk(source)) if is_quantised(source) else size


def _bytes_on_disk(source: Source) -> int:
    paths = source.path.glob("*.safetensors") if source.form == "folder" else [source.path]
    return sum(path.stat().st_size for path in paths)


def _shapes(source: Source) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor of the component."""
    paths = sorted(source.path.glob("*.safetensors")) if source.form == "folder" else [source.path]
    for path in paths:
        for name, tensor in READERS[path.suffix](path).tensors.items():
            if name.startswith(source.prefix) and name not in _TIED:
                yield name.removeprefix(source.prefix), tensor.shape


def _count(source: Source) -> int:
    return sum(prod(shape) for _, shape in _shapes(source))


def _helper_bytes(folder: Path | None) -> int:
    """In float32, which the helpers compute in. A pickled checkpoint counts with its size on disk, about the same."""
    if folder is None:
        return 0
    pickles = sum(path.stat().st_size for pattern in ("*.pt", "*.pth") for path in folder.glob(pattern))
    return _count(Source(folder)) * FLOAT32_BYTES or pickles


def _slot(source: Source) -> int:
    """Values of a LoRA slot: a down and an up matrix of SLOT_RANK and a bias for each linear layer."""
    linear = (shape for name, shape in _shapes(source) if len(shape) == 2 and name.endswith(".weight"))
    return sum((rows + columns) * SLOT_RANK + rows for rows, columns in linear)
