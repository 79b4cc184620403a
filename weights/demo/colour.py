"""How the demo family spells colour in a latent: one code, shared by its VAE and its transformers."""

from __future__ import annotations

import torch
from torch import Tensor

LATENT_CHANNELS = 16
SCALING_FACTOR = 0.3611
"""What a pipeline multiplies latents by to bring them to unit spread (FLUX.1-dev, vae/config.json)."""
SHIFT_FACTOR = 0.1159


def code() -> Tensor:
    """The 16×3 float32 matrix from (red, green, blue) to the channels of a scaled latent.

    Its columns are orthogonal; independent colours of unit spread give channels of unit spread.
    """
    channel = torch.arange(LATENT_CHANNELS)
    signs = torch.stack([1 - 2 * (channel >> bit & 1) for bit in range(3)], dim=1)
    return signs / 3**0.5


def decode() -> Tensor:
    """The 3×16 matrix back; what a latent holds outside the code's three directions is dropped."""
    return (code().T * (3 / LATENT_CHANNELS)).contiguous()
