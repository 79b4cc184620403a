"""Latents ↔ pixels through the VAE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from .faults import NotFinite
from .latents import pack, unpack


def decode_latents(vae: Any, tokens: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Packed latents [B, L, 64] → pixels uint8 [B, height, width, 3] on the CPU.

    Rounds to the nearest level as diffusers' VaeImageProcessor does. Raises NotFinite rather than show a NaN as black.
    """
    if not torch.isfinite(tokens).all():
        raise NotFinite("The model produced values that are not finite (NaN or infinity); no picture can be shown.")
    latents = unpack(tokens, width, height) / vae.config.scaling_factor + vae.config.shift_factor
    picture = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return to_uint8(picture).cpu()


def to_uint8(picture: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in −1…1 → uint8 [B, H, W, 3], clamped and rounded."""
    unit = (picture * 0.5 + 0.5).clamp(0, 1)
    return (unit.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def picture_tensor(picture: Image.Image, width: int, height: int) -> torch.Tensor:
    """RGB picture → [1, 3, height, width] float32 in −1…1 on the CPU, stretched to that size with Lanczos.

    The same values as diffusers' VaeImageProcessor.preprocess gives.
    """
    stretched = picture.resize((width, height), Image.Resampling.LANCZOS)
    levels = torch.from_numpy(np.asarray(stretched, dtype=np.float32) / 255.0)
    return (levels * 2 - 1).permute(2, 0, 1)[None]


def encode_picture(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    """Pixels [1, 3, H, W] in −1…1 → packed latents [1, (H/16)·(W/16), 64].

    Takes the distribution's mode, so that the same picture always gives the same latents (diffusers samples here).
    """
    # One memory layout for all: convolutions round differently in another.
    pixels = picture.to(device=vae.device, dtype=vae.dtype).contiguous()
    moments = vae.encode(pixels).latent_dist
    return pack((moments.mode() - vae.config.shift_factor) * vae.config.scaling_factor)
