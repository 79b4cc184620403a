"""What the headers of all formats come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal


class Broken(ValueError):
    """A weights file is truncated or damaged. The text says how, without the file's name."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """dtype: as the format calls it (BF16, F8_E4M3, Q8_0). shape: outermost dimension first."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many values it has."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """format: of the file. tensors: by name. metadata: what else its header says, as text."""

    format: Literal["safetensors", "gguf"]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def main_dtype(self) -> str:
        """The dtype that most values have; empty for a file without tensors."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.count
        return max(counts, key=lambda dtype: counts[dtype], default="")
