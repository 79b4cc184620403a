"""Holding a transformer's weights in fewer bytes than it computes with."""

from __future__ import annotations

from typing import Any

import torch

from ..fp8 import hold_linears
from .footprint import Precision

_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def hold_in(transformer: Any, precision: Precision, on: torch.device | None = None) -> None:
    """Changes how the matrices of the transformer's blocks lie in memory, in place; it computes in the dtype it had.

    fp8 leaves the modulation (AdaLN) as it is, a quarter of the values and what steers every token; fp8-all does not.
    What lies outside the blocks is small and always stays. "full" does nothing. Raises ValueError for "nf4", which only
    loading can give (`pipelines.loading`). on: the device that converts, None for where the weights lie.
    """
    if precision == "nf4":
        raise ValueError("nf4 is made while loading, not afterwards")
    if precision != "full":
        hold_linears(transformer, is_matrix if precision == "fp8" else is_in_block, on)


def is_in_block(path: str) -> bool:
    return path.startswith(_BLOCKS)


def is_matrix(path: str) -> bool:
    """In a block, and none of its modulation."""
    return is_in_block(path) and ".norm" not in path
