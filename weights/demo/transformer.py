"""The demo transformers: FLUX's blocks, 32 wide, with a picture to paint.

Random weights alone paint coloured noise. Here 24 of the 32 hidden channels mean something: 12 hold the colours that a
token's noisy latents show (3 colours × 2×2 latent pixels), 12 those that they should show, and the output is the
velocity from the second to the first. What should show are the control image's colours, where there is one, and large
blobs that the first attention makes of the noise. The rest is random and tints them as prompt, guidance and timestep
say.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .colour import code, decode
from .initialise import draw

WIDTH = 32
SHOWN = slice(0, 12)
WANTED = slice(12, 24)
COLOURS = 24
PATCH = 4
"""Latent pixels in a token, 2×2; in a packed token they vary faster than the channel (diffusers' _pack_latents)."""

NOISE_SPREAD = 3**0.5 / 4
"""Spread of the colours read from latents of unit normal noise."""
SPEED = 2.0
"""How often the way from shown to wanted colours is gone while time runs from 1 to 0."""
ROTARY_SCALE = (0, 0, 0, 0, 1.7, 1.7, 20, 20, 1.7, 1.7, 7, 7, 0, 0, 0, 0)
"""Weights of queries and keys by rotary frequency, for axes (4, 4, 8): a token looks at those near it, farther up and
down than left and right."""


def transformer(*, in_channels: int) -> FluxTransformer2DModel:
    """The model in float32 for 64 (text to image) or 128 (control) packed channels; it gives 64."""
    model = draw(lambda: _untrained(in_channels), seed=65)
    has_control = in_channels == 128
    with torch.no_grad():
        model.time_text_embed.text_embedder.linear_2.weight *= 3  # the prompt counts more than the timestep
        _read_colours(model.x_embedder.weight)
        _make_blobs(model.transformer_blocks[0], strength=1.0 if has_control else 8.0)
        _mix_in(model.transformer_blocks[0].ff.net[2].weight, 0.2)
        _mix_in(model.single_transformer_blocks[0].proj_out.weight, 0.2)
        model.single_transformer_blocks[0].proj_out.weight[:COLOURS, :WIDTH] *= (
            3  # what attention gathers, also from T5
        )
        _tint(model.norm_out.linear.weight)
        _write_velocity(model.proj_out.weight)
    return model


def _untrained(in_channels: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _read_colours(weight: Tensor) -> None:
    """Sets the 32×in_channels embedding: noisy latents are channels 0–63, control latents 64–127."""
    colours = torch.kron(decode(), torch.eye(PATCH))
    weight[:COLOURS] = 0
    weight[COLOURS:] *= 0.3
    weight[SHOWN, :64] = colours / NOISE_SPREAD
    if weight.shape[1] == 128:
        weight[COLOURS:, 64:] = 0
        weight[WANTED, 64:] = colours * 1.5


def _make_blobs(block: FluxTransformer2DModel, *, strength: float) -> None:
    """Head 0 averages the shown colours near a token, head 1 over the whole picture; their difference is wanted."""
    attention = block.attn
    for projection in (attention.to_q, attention.to_k):
        projection.weight.zero_()
        projection.bias[:16] = 1  # head 1 stays 0: it looks at everything alike
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.copy_(torch.tensor(ROTARY_SCALE))
    attention.add_v_proj.weight.zero_()
    average = torch.kron(torch.eye(3), torch.full((PATCH, PATCH), 1 / PATCH))
    attention.to_v.weight.zero_()
    attention.to_v.weight[0:12, SHOWN] = average
    attention.to_v.weight[16:28, SHOWN] = average
    out = attention.to_out[0].weight
    out[:COLOURS] = 0
    out[WANTED, 0:12] = torch.eye(12) * strength
    out[WANTED, 16:28] = -torch.eye(12) * strength
    modulation = block.norm1.linear
    modulation.weight *= 0.2
    modulation.bias[2 * WIDTH : 3 * WIDTH] = 1  # the attention's gate (AdaLayerNormZero: shift, scale, gate, …)


def _tint(weight: Tensor) -> None:
    """Tames the last modulation (scales, then shifts): colours are stretched freely, shifted and denoised less so."""
    scale, shift = weight[:WIDTH], weight[WIDTH:]
    shift *= 0.15
    for part in (scale, shift):
        part[SHOWN] *= 0.2
        _alike_in_patch(part)


def _mix_in(weight: Tensor, strength: float) -> None:
    """Lets a random layer change the colours by so much."""
    weight[:COLOURS] *= strength
    _alike_in_patch(weight)


def _alike_in_patch(weight: Tensor) -> None:
    """Makes a layer write each colour alike to the 2×2 latent pixels of a token, or a grid would show."""
    weight[:COLOURS] = weight[:COLOURS:PATCH].repeat_interleave(PATCH, dim=0)


def _write_velocity(weight: Tensor) -> None:
    """Sets the 64×32 head to SPEED · (shown − wanted), in latents."""
    latents = torch.kron(code(), torch.eye(PATCH))
    weight.zero_()
    weight[:, SHOWN] = latents * SPEED * NOISE_SPREAD
    weight[:, WANTED] = latents * -SPEED
