"""How much work a picture is: floating-point operations of the transformer, from its shape alone.

A multiply-add counts as 2. Per token and block 12·D² weights, in double blocks (3 + 1 + 8) and single ones (7 + 5)
alike; attention's two products are 4·L²·D per block, over L = text and image tokens. Embeddings, norms and modulation,
some 0.03 % at 1024×1024, are left out, and so are text encoders, VAE, depth and safety: a limit computed from this is
too low, never too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXT_TOKENS = 512
TOKEN_SIDE = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """width: of the hidden states. blocks: double and single ones together."""

    width: int
    blocks: int

    @classmethod
    def of(cls, transformer: Any) -> Shape:
        config = transformer.config
        return cls(config.num_attention_heads * config.attention_head_dim, config.num_layers + config.num_single_layers)


def tokens(width: int, height: int) -> int:
    """Text and image tokens of one picture."""
    return TEXT_TOKENS + (width // TOKEN_SIDE) * (height // TOKEN_SIDE)


def step_tflop(shape: Shape, width: int, height: int) -> float:
    """Work of one denoising step in 10¹² operations: 74.4 for FLUX.1 at 1024×1024."""
    length = tokens(width, height)
    weights = 2 * 12 * shape.width**2 * length
    attention = 4 * length**2 * shape.width
    return shape.blocks * (weights + attention) / 1e12
