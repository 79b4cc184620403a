"""The header of a safetensors file: 8 bytes of length, JSON of that length, then the tensors without gaps.

Format: github.com/huggingface/safetensors, "Format". Its own library maps the file and wants a tensor library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .tensors import Broken, Tensor, WeightsFile

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def read_safetensors(path: Path) -> WeightsFile:
    """What the file holds. Raises Broken where its size is not what its header says, OSError where it is unreadable."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise Broken(f"is truncated: {size} bytes do not hold its header")
        header = _parse(file.read(length))
    metadata = header.pop("__metadata__", {})
    try:
        tensors = {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise Broken("has a damaged header") from error
    if size != end:
        raise Broken(f"has {size} bytes and its header says {end}: it is {'truncated' if size < end else 'damaged'}")
    return WeightsFile("safetensors", tensors, {str(key): str(value) for key, value in dict(metadata).items()})


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise Broken("has a damaged header") from error
    if not isinstance(header, dict):
        raise Broken("has a damaged header")
    return header
