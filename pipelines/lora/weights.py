"""A LoRA file's tensors, brought into diffusers' names by diffusers and checked against a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.utils import convert_unet_state_dict_to_peft

# Private, but what turns ranks, alphas and a file's metadata into strengths must be diffusers' own.
from diffusers.utils.peft_utils import _create_lora_config
from peft.utils.other import get_pattern_key

from ..cache import tensor_bytes
from ..faults import classify
from .branch import LowRank
from .files import Header, UnusableLora, shown

PREFIX = "transformer."
DOWN, UP, BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
NORMS = tuple(f".{name}.weight" for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"))


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A LoRA in the host's memory, with nothing left in its file.

    layers: by the path of the linear layer. norms: new scales of the attention's norms (control LoRAs only), by the path
    of the parameter. notes: what the caller should know of it.
    """

    name: str
    layers: dict[str, LowRank]
    norms: dict[str, torch.Tensor]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        tensors = [tensor for layer in self.layers.values() for tensor in (layer.down, layer.up, layer.bias)]
        return tensor_bytes(*(tensor for tensor in [*tensors, *self.norms.values()] if tensor is not None))


def load_weights(header: Header, shapes: dict[str, tuple[int, int]], dtype: torch.dtype) -> LoraWeights:
    """Reads the file that `header` is of and copies its tensors, as `dtype`.

    shapes: (out, in) of every linear layer of the model. Raises UnusableLora when the file fits no such model, is
    incomplete or holds values that are not finite.
    """
    state, scales = _converted(header)
    layers = {
        path: _layer(header, state, path, scales[path], dtype)
        for path in (key.removesuffix(DOWN) for key in state if key.endswith(DOWN))
    }
    norms = {key: _copy(header, key, value, dtype) for key, value in state.items() if key.endswith(NORMS)}
    if not layers:
        raise UnusableLora(f"lora {header.name} changes no layer of the transformer")
    _check_layers(header, layers, shapes)
    used = len(norms) + sum(2 + (layer.bias is not None) for layer in layers.values())
    return LoraWeights(header.name, layers, norms, _notes(header, len(state) - used))


def _converted(header: Header) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Tensors by diffusers' names and each layer's scale. Tensors of text encoders are left out."""
    try:
        state, alphas, metadata = FluxPipeline.lora_state_dict(
            header.path, use_safetensors=True, local_files_only=True, return_alphas=True, return_lora_metadata=True
        )
        inner = _inner(state)
        if not any(DOWN in key for key in inner):
            inner = convert_unet_state_dict_to_peft(inner)
        scales = _scales(inner, _inner(alphas or {}), _inner(metadata) if metadata else None)
    except Exception as error:  # the converters assert, and look up names that a damaged file lacks
        if classify(error) != "unknown":
            raise
        raise UnusableLora(f"lora {header.name} is damaged or not made for FLUX.1: {shown(error)}") from error
    ignored = {key: value for key, value in state.items() if not key.startswith((PREFIX, "text_encoder."))}
    return inner | ignored, scales


def _inner(named: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): value for key, value in named.items() if key.startswith(PREFIX)}
