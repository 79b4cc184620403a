"""The autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL

from weights.sources import Source

from .folders import load_folder


def load_vae(source: Source, *, device: torch.device, dtype: torch.dtype) -> Any:
    """An AutoencoderKL on `device` that computes in `dtype`. Raises UnusableWeights, OSError."""
    return load_folder(AutoencoderKL, source.path, device=device, dtype=dtype)
