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

    layers: by the path of the linear layer. norms: new scales of the attention's norms (control LoRAs only), by the
    path of the parameter. notes: what the caller should know of it.
    """

    name: str
    layers: dict[str, LowRank]
    norms: dict[str, torch.Tensor]
    notes: tuple[str, ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        tensors = [tensor for layer in self.layers.values() for tensor in (layer.down, layer.up, layer.bias)]
        return tuple(tensor for tensor in [*tensors, *self.norms.values()] if tensor is not None)

    @property
    def size_bytes(self) -> int:
        return tensor_bytes(*self.tensors)


def load_weights(header: Header, shapes: dict[str, tuple[int, int]], dtype: torch.dtype) -> LoraWeights:
    """Reads the file that `header` is of and copies its tensors, as `dtype`.

    shapes: (out, in) of every linear layer of the model. Raises UnusableLora when the file fits no such model, is
    incomplete or holds values that are not finite.
    """
    converted = _convert(header)
    state = converted.state
    layers = {path: _layer(header, state, path, scale, dtype) for path, scale in converted.scales.items()}
    norms = {key: _copy(header, state[key], dtype) for key in state if key.endswith(NORMS)}
    _check_layers(header, layers, shapes)
    used = len(norms) + sum(2 + (layer.bias is not None) for layer in layers.values())
    return LoraWeights(header.name, layers, norms, _notes(header, converted.ignored + len(state) - used))


@dataclass(frozen=True, slots=True)
class _Converted:
    """state: the transformer's tensors by diffusers' names. scales: of every layer. ignored: tensors beside them."""

    state: dict[str, torch.Tensor]
    scales: dict[str, float]
    ignored: int


def _convert(header: Header) -> _Converted:
    try:
        state, alphas, metadata = FluxPipeline.lora_state_dict(
            header.path, use_safetensors=True, local_files_only=True, return_alphas=True, return_lora_metadata=True
        )
        inner = _inner(state)
        if inner and not any(DOWN in key for key in inner):
            inner = convert_unet_state_dict_to_peft(inner)
        scales = _scales(inner, _inner(alphas or {}), _inner(metadata or {}))
    except Exception as error:  # the converters assert, and look up names that a damaged file lacks
        if classify(error) != "unknown":
            raise
        raise UnusableLora(f"lora {header.name} is damaged or not made for FLUX.1: {shown(error)}") from error
    if not scales:
        raise UnusableLora(f"lora {header.name} changes no layer of the transformer")
    return _Converted(inner, scales, sum(not key.startswith((PREFIX, "text_encoder.")) for key in state))


def _inner(named: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): value for key, value in named.items() if key.startswith(PREFIX)}


def _scales(state: dict[str, Any], alphas: dict[str, Any], metadata: dict[str, Any]) -> dict[str, float]:
    """alpha / rank of every layer, found as in PeftAdapterMixin.load_lora_adapter and peft's LoraLayer.update_layer."""
    ranks = {f"^{key}": value.shape[1] for key, value in state.items() if "lora_B" in key and value.ndim > 1}
    if not ranks:
        return {}
    config = _create_lora_config(state, alphas, metadata or None, ranks)
    paths = [key.removesuffix(DOWN) for key in state if key.endswith(DOWN)]
    return {path: _scale(config, path, state[path + DOWN].shape[0]) for path in paths}


def _scale(config: Any, path: str, rank: int) -> float:
    """Raises ValueError when the config does not belong to a layer of that rank."""
    told = config.rank_pattern.get(get_pattern_key(config.rank_pattern, path), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, path), config.lora_alpha)
    scale = float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)
    if told != rank or not math.isfinite(scale):
        raise ValueError(f"{path} has rank {rank}, its metadata say rank {told} and alpha {float(alpha):g}")
    return scale


def _layer(header: Header, state: dict[str, torch.Tensor], path: str, scale: float, dtype: torch.dtype) -> LowRank:
    down, up, bias = state[path + DOWN], state.get(path + UP), state.get(path + BIAS)
    if up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise UnusableLora(f"lora {header.name} is damaged: the two parts of {path} do not belong together")
    return LowRank(
        down=_copy(header, down, dtype),
        up=_copy(header, up, dtype),
        bias=None if bias is None else _copy(header, bias, dtype),
        scale=scale,
    )


def _copy(header: Header, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of its own: what diffusers gives is mapped from the file, which may be replaced at any time."""
    copied = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not math.isfinite(copied.sum(dtype=torch.float64)):  # on a CPU many times as fast as isfinite of each
        raise UnusableLora(f"lora {header.name} is damaged: it holds values that are not finite")
    return copied


def _check_layers(header: Header, layers: dict[str, LowRank], shapes: dict[str, tuple[int, int]]) -> None:
    """Every layer must be one of the model's and as wide, but the image input may be narrower (see `check_input`)."""
    for path, layer in layers.items():
        if path not in shapes:
            raise UnusableLora(f"lora {header.name} was made for another architecture: this model has no {shown(path)}")
        wide, narrow = shapes[path], (int(layer.up.shape[0]), int(layer.down.shape[1]))
        fits = narrow == wide or (path == "x_embedder" and narrow[0] == wide[0] and narrow[1] < wide[1])
        if not fits or (layer.bias is not None and layer.bias.shape != (wide[0],)):
            raise UnusableLora(
                f"lora {header.name} was made for another model: "
                f"its layer {path} maps {narrow[1]} values to {narrow[0]}, this model's {wide[1]} to {wide[0]}"
            )


def _notes(header: Header, unused: int) -> tuple[str, ...]:
    notes = []
    if header.text_tensors:
        notes.append(f"lora {header.name}: its {header.text_tensors} tensors for text encoders are not used")
    if unused:
        notes.append(f"lora {header.name}: {unused} of its tensors have no use in diffusers and are not used here")
    return tuple(notes)
