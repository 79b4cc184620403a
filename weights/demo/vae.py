"""The demo VAE: FLUX's geometry (16 latent channels at an eighth of the size), 8 wide, and it keeps what it was given.

Random weights alone would turn any picture into the same noise. Here a picture survives encode and decode as an
eighth-size copy of itself with evened-out contrast, so that image-to-image and control images do what one expects.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .colour import LATENT_CHANNELS, SCALING_FACTOR, SHIFT_FACTOR, code, decode
from .initialise import draw

WIDTH = 8
TEXTURE = 0.15
"""How much the random residual branches add to the picture they carry."""
CONTRAST = 0.45
"""Spread of the decoded picture, in units of its −1…1 range."""
LOG_VARIANCE = -6.0
"""Of the encoder's distribution: nearly certain, as that of a trained VAE."""


def vae() -> AutoencoderKL:
    """The model in float32. Encodes B×3×H×W in −1…1 to B×16×H/8×W/8 and back; H and W are multiples of 8."""
    model = draw(_untrained, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight")):
                parameter *= TEXTURE
        _carry_colours_in(model.encoder)
        _carry_colours_out(model.decoder)
    return model


def _untrained() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(WIDTH,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=LATENT_CHANNELS,
        sample_size=1024,
        scaling_factor=SCALING_FACTOR,
        shift_factor=SHIFT_FACTOR,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def _carry_colours_in(encoder: AutoencoderKL) -> None:
    encoder.conv_in.weight.copy_(_pointwise(_to_pairs()))
    for block in encoder.down_blocks[:-1]:
        block.downsamplers[0].conv.weight.copy_(_each_channel(1, 1, 0))
    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:LATENT_CHANNELS] = _pointwise(code() @ _from_pairs()) / SCALING_FACTOR
    encoder.conv_out.bias[:LATENT_CHANNELS] = SHIFT_FACTOR
    encoder.conv_out.bias[LATENT_CHANNELS:] = LOG_VARIANCE


def _carry_colours_out(decoder: AutoencoderKL) -> None:
    decoder.conv_in.weight.copy_(_pointwise(_to_pairs() @ decode()) * SCALING_FACTOR)
    for block in decoder.up_blocks[:-1]:
        block.upsamplers[0].conv.weight.copy_(_each_channel(1, 2, 1))
    decoder.conv_out.weight.copy_(_pointwise(CONTRAST * _from_pairs()))


def _to_pairs() -> Tensor:
    """8×3: each colour, then their mean, as the two channels (x, −x).

    In pairs a colour passes both GroupNorm, whose mean over such channels is 0, and SiLU: silu(x) − silu(−x) = x.
    """
    colours = torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)])
    return torch.stack([colours, -colours], dim=1).flatten(0, 1)


def _from_pairs() -> Tensor:
    """3×8: the difference of each colour's two channels; the mean's pair is not read."""
    return torch.kron(torch.eye(3, 4), torch.tensor([1.0, -1.0]))


def _pointwise(matrix: Tensor) -> Tensor:
    """A 3×3 convolution kernel that applies `matrix` to every pixel alone."""
    kernel = torch.zeros(*matrix.shape, 3, 3)
    kernel[..., 1, 1] = matrix
    return kernel


def _each_channel(*weights: float) -> Tensor:
    """A 3×3 kernel that averages each channel by itself, with these weights along both axes."""
    axis = torch.tensor(weights, dtype=torch.float32)
    axis /= axis.sum()
    return torch.eye(WIDTH)[..., None, None] * torch.outer(axis, axis)
