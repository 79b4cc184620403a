"""Noise, packing and position ids: the shapes that the transformer reads and writes.

The layout is diffusers' (`FluxPipeline._pack_latents`, `_prepare_latent_image_ids`): a latent picture of 16 channels at
an eighth of the size is cut into 2×2 patches, one token of 64 channels each.
"""

from __future__ import annotations

import torch

LATENT_CHANNELS = 16
VAE_SCALE = 8
"""Pixels per latent cell along each side."""


def draw_noise(seed: int, width: int, height: int, dtype: torch.dtype) -> torch.Tensor:
    """Packed noise [1, L, 64] on the CPU for an output of `width` × `height` pixels.

    Drawn by a CPU generator in `dtype`, as diffusers does when it is given a CPU generator, so that the same seed
    starts from the same noise on any card.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, LATENT_CHANNELS, height // VAE_SCALE, width // VAE_SCALE)
    return pack(torch.randn(shape, generator=generator, dtype=dtype))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] → [B, (h/2)·(w/2), 4·C]."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """[B, L, 4·C] → [B, C, height/8, width/8] for an output of `width` × `height` pixels."""
    batch, _, channels = tokens.shape
    rows, columns = height // (2 * VAE_SCALE), width // (2 * VAE_SCALE)
    patches = tokens.view(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, rows * 2, columns * 2)


def image_ids(width: int, height: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Position ids [L, 3] of the image tokens: (0, row, column)."""
    rows, columns = height // (2 * VAE_SCALE), width // (2 * VAE_SCALE)
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3).to(device=device, dtype=dtype)
