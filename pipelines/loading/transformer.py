"""The FLUX.1 transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from weights.sources import Source

from .folders import load_folder


def load_transformer(source: Source, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A FluxTransformer2DModel on `device` that computes in `dtype`. Raises UnusableWeights, OSError."""
    return load_folder(FluxTransformer2DModel, source.path, device=device, dtype=dtype)
