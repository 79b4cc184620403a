"""Latents ↔ pixels through the VAE."""

from __future__ import annotations

from typing import Any

import torch

from .latents import pack, unpack


class NotFinite(ArithmeticError):
    """The model gave values that are not finite, so there is no picture to show."""


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


def encode_picture(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    """Pixels [1, 3, H, W] in −1…1 → packed latents [1, (H/16)·(W/16), 64].

    Takes the distribution's mode, so that the same picture always gives the same latents (diffusers samples here).
    """
    # One memory layout for all: convolutions round differently in another.
    pixels = picture.to(device=vae.device, dtype=vae.dtype).contiguous()
    moments = vae.encode(pixels).latent_dist
    return pack((moments.mode() - vae.config.shift_factor) * vae.config.scaling_factor)
