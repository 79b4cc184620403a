"""The transformer of the fast tiers, beside the one of the exact tier."""

from __future__ import annotations

from typing import Any

import torch

from ..fp8 import fp8_layers, hold_linears
from ..lora.shelf import LoraShelf
from ..memory.precision import is_matrix
from ..twin import share_weights


def fast_copy(transformer: Any, shelf: LoraShelf | None, on: torch.device | None = None) -> Any:
    """A transformer whose matrices lie in fp8 and whose everything else is that of `transformer`, LoRA slot included.

    A transformer that is held in fp8 already is its own copy. on: the device that converts.
    """
    if fp8_layers(transformer):
        return transformer
    twin = share_weights(transformer)
    hold_linears(twin, is_matrix, on)
    if shelf is not None:
        shelf.also_for(twin)
    return twin
