"""The autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL

from weights.sources import Source

from .architecture import Architecture, published
from .folders import load_folder
from .single_files import convert, read_tensors


def load_vae(
    source: Source, *, device: torch.device, dtype: torch.dtype, architecture: Architecture | None = None
) -> Any:
    """An AutoencoderKL on `device` that computes in `dtype`.

    architecture: of a file; None for the published one. Raises UnusableWeights, OSError.
    """
    if source.form == "folder":
        return load_folder(AutoencoderKL, source.path, device=device, dtype=dtype)
    tensors = read_tensors(source, device=device, dtype=dtype)
    return convert(AutoencoderKL, source, tensors, architecture or published("vae"), device=device, dtype=dtype)
