"""A loaded transformer's linear layers in 4 bits (bitsandbytes, nf4 with one scale for 64 values)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .storage import require_bitsandbytes


def hold_in_nf4(model: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Replaces every linear layer by one that holds nf4 and computes in `dtype`, in place, and moves all to `device`.

    Layer by layer: a model that is mapped from its file never takes its full size in memory. diffusers does the same
    to a folder while it reads it. Raises UnusableWeights where bitsandbytes is not installed.
    """
    require_bitsandbytes("storage nf4")
    linear = [(path, layer) for path, layer in model.named_modules() if type(layer) is nn.Linear]
    for path, layer in linear:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, _quantised(layer, dtype).to(device))
    return model.to(device).eval().requires_grad_(False)


def _quantised(layer: nn.Linear, dtype: torch.dtype) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit  # takes seconds, and not everybody has it

    with torch.device("meta"):
        small = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            compress_statistics=False,
            quant_type="nf4",
        )
    small.weight = Params4bit(layer.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4")
    small.bias = layer.bias
    return small
