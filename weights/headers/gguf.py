"""The header of a GGUF file: key-value pairs, then names, shapes and types of the tensors.

Format: github.com/ggml-org/ggml, docs/gguf.md; block sizes of the types: ggml's `ggml_type` and gguf-py's constants.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from .tensors import Broken, Tensor, WeightsFile

MAGIC = b"GGUF"
MOST_ENTRIES = 1_000_000
LONGEST_TEXT = 1 << 20
"""Bytes. Longer ones, and more entries, are a damaged file's."""

TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}  # fmt: skip
"""By number: name, values in a block, bytes of a block."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


def read_gguf(path: Path) -> WeightsFile:
    """What the file holds. Raises Broken where it is truncated or no GGUF, OSError where it is unreadable."""
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise Broken("has a damaged or truncated header") from error


def _read(file: BinaryIO, size: int) -> WeightsFile:
    if file.read(4) != MAGIC:
        raise Broken("is no GGUF file")
    version, tensor_count, pair_count = _unpack(file, "IQQ")
    if version not in (2, 3) or tensor_count > MOST_ENTRIES or pair_count > MOST_ENTRIES:
        raise Broken(f"is GGUF of an unknown version {version} or has a damaged header")
    metadata = dict(_pair(file) for _ in range(pair_count))
    tensors, end = {}, 0
    for _ in range(tensor_count):
        name, tensor, ends_at = _tensor(file)
        tensors[name], end = tensor, max(end, ends_at)
    alignment = int(metadata.get("general.alignment") or _DEFAULT_ALIGNMENT)
    start = -(-file.tell() // alignment) * alignment
    if size < start + end:
        raise Broken(f"is truncated: it has {size} bytes and its header says at least {start + end}")
    return WeightsFile("gguf", tensors, metadata)


def _tensor(file: BinaryIO) -> tuple[str, Tensor, int]:
    """Name, tensor, and where its data end, in bytes after the header; 0 where the type's size is not known."""
    name = _text(file)
    (dimensions,) = _unpack(file, "I")
    shape = _unpack(file, f"{min(dimensions, 8)}Q")
    kind, offset = _unpack(file, "IQ")
    dtype, values, size = TYPES.get(kind, (f"type {kind}", 1, 0))
    tensor = Tensor(dtype, tuple(reversed(shape)))  # GGUF counts dimensions from the innermost
    return name, tensor, offset + -(-tensor.count // values) * size if size else 0


def _pair(file: BinaryIO) -> tuple[str, str]:
    key = _text(file)
    (kind,) = _unpack(file, "I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> str:
    """A value as text; of an array only what it takes to step over it."""
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _unpack(file, "IQ")
        if count > MOST_ENTRIES:
            raise Broken("has a damaged header")
        for _ in range(count):
            _value(file, inner)
        return ""
    if kind not in _SCALARS:
        raise Broken("has a damaged header")
    return str(_unpack(file, _SCALARS[kind])[0])


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > LONGEST_TEXT:
        raise Broken("has a damaged header")
    text = file.read(length)
    if len(text) < length:
        raise Broken("is truncated")
    return text.decode("utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))
