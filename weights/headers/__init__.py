"""What weight files say of themselves in their first bytes, read without loading a tensor or importing torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .gguf import read_gguf
from .safetensors import read_safetensors
from .tensors import Broken, Tensor, WeightsFile

__all__ = ["READERS", "Broken", "Tensor", "WeightsFile", "read_gguf", "read_safetensors"]

READERS: Mapping[str, Callable[[Path], WeightsFile]] = {
    ".safetensors": read_safetensors,
    ".sft": read_safetensors,
    ".gguf": read_gguf,
}
"""By suffix. Each raises Broken for a truncated or damaged file and OSError for an unreadable one."""
