"""What one request takes beside the weights, by its size. Torch-free.

Counted on the networks themselves without memory (meta device), as the most bytes alive at once in eager mode with an
attention that does not write its matrix out; a test counts them again. What kernels take for themselves is not in them
and was not measured: `WORKSPACE_BYTES` stands for it.
"""

from __future__ import annotations

TEXT_TOKENS = 512
TOKEN_PIXELS = 16 * 16
"""Pixels that one latent token stands for."""

DECODE_PIXEL_BYTES = 768
"""VAE decode, per pixel and byte of a value: three feature maps of 256 channels at full resolution. Encoding takes
less."""

DENOISE_TOKEN_BYTES = 55_000
"""Transformer, per token and byte of a value."""

DEPTH_BYTES = 600_000_000
"""Depth Anything Large in float32 on a picture of 910×518, the widest that 16:9 gives."""

TEXT_BYTES = 100_000_000
SAFETY_BYTES = 200_000_000

WORKSPACE_BYTES = 1024**3
"""For kernels' own buffers, the caches of prompts and control latents, and memory lost between blocks."""


def denoise_bytes(pixels: int, value_bytes: int) -> int:
    return (pixels // TOKEN_PIXELS + TEXT_TOKENS) * DENOISE_TOKEN_BYTES * value_bytes


def decode_bytes(pixels: int, value_bytes: int) -> int:
    return pixels * DECODE_PIXEL_BYTES * value_bytes
