"""The transformer from a GGUF file. Its values stay quantised in memory; a layer is dequantised when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

from weights.headers import Tensor
from weights.sources import Source

from .architecture import Architecture
from .headers import refuse_unknown
from .refusals import UnusableWeights, listed
from .single_files import convert

TYPES = {"F32", "F16", *(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES)}


def load_gguf(
    source: Source,
    header: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """A FluxTransformer2DModel that computes in `dtype`. The file is read into memory. Raises UnusableWeights."""
    if odd := {tensor.dtype for tensor in header.values()} - TYPES:
        raise UnusableWeights(f"{source.path} has tensors of type {listed(odd)}, which diffusers does not compute with")
    read = load_gguf_checkpoint(str(source.path))
    tensors = {name.removeprefix(source.prefix): value for name, value in read.items()}
    model = convert(
        FluxTransformer2DModel,
        source,
        tensors,
        architecture,
        device=device,
        dtype=dtype,
        quantisation=GGUFQuantizationConfig(compute_dtype=dtype),
    )
    refuse_unknown(source.path, tensors.keys() - model.state_dict().keys())
    return model
