"""The two text encoders and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from weights.sources import Source

from .folders import load_folder


def load_t5(source: Source, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A T5EncoderModel on `device` that computes in `dtype`. Raises UnusableWeights, OSError."""
    return load_folder(T5EncoderModel, source.path, device=device, dtype=dtype)


def load_clip(source: Source, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A CLIPTextModel on `device` that computes in `dtype`. Raises UnusableWeights, OSError."""
    return load_folder(CLIPTextModel, source.path, device=device, dtype=dtype)


def load_t5_tokenizer(folder: Path) -> Any:
    """T5's tokenizer. Raises OSError where its files are not there."""
    return T5TokenizerFast.from_pretrained(folder, local_files_only=True)


def load_clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer. Raises OSError where its files are not there."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
