"""Holding a transformer's weights in fewer bytes than it computes with."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import apply_layerwise_casting

from .footprint import Precision

_SENSITIVE = ("x_embedder", "context_embedder", "time_text_embed", "norm_out", "^proj_out$")
"""Layers outside the blocks. They are small, and every value of the picture passes through them."""

_MODULATION = ("norm",)
"""AdaLN: a quarter of the values, and what steers every token."""


def hold_in(transformer: Any, precision: Precision) -> None:
    """Changes how the transformer's matrices lie in memory, in place; it computes in the dtype that it had.

    fp8 keeps each value's nearest float8_e4m3fn and casts a layer when it computes (diffusers' layerwise casting).
    "full" does nothing. Raises ValueError for "nf4", which only loading can give (`pipelines.loading`).
    """
    if precision == "full":
        return
    if precision == "nf4":
        raise ValueError("nf4 is made while loading, not afterwards")
    # Not the model's own method, which leaves the modulation out whatever it is told.
    apply_layerwise_casting(
        transformer,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=transformer.dtype,
        skip_modules_pattern=(*_SENSITIVE, *_MODULATION) if precision == "fp8" else _SENSITIVE,
    )
