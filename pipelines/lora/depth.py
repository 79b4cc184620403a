"""A depth model made of FLUX.1-dev and its control LoRA (black-forest-labs/FLUX.1-Depth-dev-lora).

What diffusers' `FluxControlPipeline.load_lora_weights` does to a transformer in place is done here to a second one that
shares the first one's tensors: the image input is widened with zeros, the norm scales are replaced, and every linear
layer gets its low-rank branch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..twin import share_weights
from .branch import attach, layer_shapes
from .files import Header, UnusableLora, read_header
from .weights import LoraWeights, load_weights

PUBLISHED_SCALE = 0.85
"""What black-forest-labs/flux applies its control LoRAs with (`lora_scale`); diffusers and others take 1."""


def depth_from_lora(transformer: Any, file: Path, scale: float = PUBLISHED_SCALE) -> Any:
    """A transformer of its own that reads [noisy latents, control latents], 128 channels, made of a 64-channel one.

    All weights that stay as they are share their memory with `transformer`, which is not touched; new are the LoRA
    (1.2 GB in bfloat16), the image input and the norm scales. Moving either of the two to another device or dtype parts
    them. A canny LoRA looks the same and gives a canny model. diffusers 0.42 reads a file in black-forest-labs' layout
    with the rank's two halves exchanged on one side of `norm_out.linear`; that is kept, to draw the same pictures.

    Raises UnusableLora when the file is no control LoRA for this transformer, ValueError for a scale that is no number,
    TypeError when the transformer already has LoRA branches.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a control LoRA must be a number, not {scale}")
    if getattr(transformer, "hf_quantizer", None) is not None or not _is_plain(transformer.x_embedder):
        raise UnusableLora(f"lora {file.stem} makes no depth model of a quantised flux-dev (GGUF, nf4)")
    if not isinstance(transformer.x_embedder, nn.Linear):
        raise TypeError("make the depth transformer before a LoraShelf on the same transformer")
    channels = 2 * int(transformer.config.in_channels)
    header = read_header(file)
    _check(header, channels)
    twin = share_weights(transformer)
    _widen(twin, channels)
    weights = load_weights(header, layer_shapes(twin), transformer.dtype)
    _replace_norms(twin, weights)
    for path, layer in weights.layers.items():
        branch = attach(twin, path, layer.rank)
        branch.fill([(layer, scale)])
        branch.on = True
    return twin


def _check(header: Header, channels: int) -> None:
    if not header.is_control:
        raise UnusableLora(f"lora {header.name} is no control LoRA; only one of those makes a depth model")
    if header.input_width != channels:
        raise UnusableLora(
            f"lora {header.name} reads {header.input_width or 'no'} input channels; "
            f"one that makes a depth model of this model reads {channels}"
        )


def _is_plain(layer: nn.Module) -> bool:
    """False where the weight is packed, as nf4 is."""
    return all(parameter.is_floating_point() for parameter in layer.parameters())


@torch.no_grad()
def _widen(twin: Any, channels: int) -> None:
    """Gives the image input further channels with zero weights, and says so in the config."""
    narrow = twin.x_embedder
    weight = narrow.weight.new_zeros(narrow.out_features, channels)
    weight[:, : narrow.in_features] = narrow.weight
    wide = nn.Linear(channels, narrow.out_features, device="meta")
    wide.weight, wide.bias = nn.Parameter(weight, requires_grad=False), narrow.bias
    twin.x_embedder = wide
    # A config without out_channels would mean that the head is as wide as the input.
    twin.register_to_config(in_channels=channels, out_channels=twin.out_channels)


def _replace_norms(twin: Any, weights: LoraWeights) -> None:
    for path, values in weights.norms.items():
        module_path, _, name = path.rpartition(".")
        norm = twin.get_submodule(module_path)
        old = getattr(norm, name)
        if old.shape != values.shape:
            raise UnusableLora(
                f"lora {weights.name} was made for another model: {path} has {tuple(values.shape)} values"
            )
        setattr(norm, name, nn.Parameter(values.to(old), requires_grad=False))
