"""The plan for this machine: what the files say, what is free, what the operator wants."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch

from ..fp8 import multiplies_in_fp8
from .budget import device_budget_bytes, host_budget_bytes
from .footprint import Footprint, Precision
from .plans import NoPlan, Plan, choose_plan, with_fast_copies

Switch = Literal["auto", "on", "off"]

FIRST_FP8 = (8, 9)
"""Compute capability of Ada, the first with matrix units for fp8."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def plan_here(
    measured: Callable[[int], Footprint],
    device: torch.device,
    dtype: str,
    *,
    wanted: str = "auto",
    limit_bytes: int | None = None,
    fast: Switch = "auto",
) -> tuple[Plan, torch.dtype]:
    """The plan for `device`, and the dtype to compute in.

    measured: the footprint, by the bytes of one value. dtype: bfloat16, float32, or auto: bfloat16 on a card; float32
    elsewhere, unless only bfloat16 fits. float16 is not offered: FLUX overflows in it. wanted: a plan's name, or auto.
    limit_bytes: of the device, to leave the rest to others. fast: whether to make room for the fast tiers; auto where
    the card multiplies fp8. Raises NoPlan, and ValueError for a plan that is not known.
    """
    device_bytes, host_bytes = device_budget_bytes(device, limit_bytes), host_budget_bytes()
    last: NoPlan | None = None
    for candidate in _dtypes(dtype, device):
        try:
            plan = choose_plan(
                measured(candidate.itemsize),
                device_bytes=device_bytes,
                host_bytes=host_bytes,
                wanted=wanted,
                lacking=lacking(),
                one_memory=device.type != "cuda",
            )
        except NoPlan as error:
            last = error
        else:
            if fp8_products(device, fast):
                plan = with_fast_copies(plan, measured(candidate.itemsize), host_bytes)
            return plan, candidate
    assert last is not None
    raise last


def fp8_products(device: torch.device, fast: Switch = "auto") -> bool:
    """Whether the fast tiers are wanted here: as `fast` says, or where the card has units for fp8 (8.9 and above)."""
    if fast != "auto":
        return fast == "on"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_FP8 and multiplies_in_fp8(device)


def lacking() -> frozenset[Precision]:
    """Precisions that need a package which is not installed."""
    return frozenset() if find_spec("bitsandbytes") else frozenset({"nf4"})


def _dtypes(name: str, device: torch.device) -> list[torch.dtype]:
    if name != "auto":
        return [DTYPES[name]]
    return [torch.bfloat16] if device.type == "cuda" else [torch.float32, torch.bfloat16]
