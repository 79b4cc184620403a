"""Linear layers whose weights lie in fp8, with one scale for each output row.

They multiply in one of two ways. Exactly as held: the weight is widened again and multiplied in the input's precision;
that saves memory. In fp8: the input is scaled row by row too, and the card multiplies fp8 by fp8 and adds in float32;
that saves time, where the card can (compute capability 8.9 and above).

float8_e4m3fn has 3 bits of mantissa and reaches 448 (Micikevicius et al., "FP8 formats for deep learning"). A scale for
each row keeps small weights out of its coarse lower end, where an unscaled cast would put most of FLUX.1's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import ScalingType

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST_SCALE = 1e-12
"""A row of zeros has no spread to scale by."""


class Fp8Linear(nn.Module):
    """x [..., in] → [..., out] in the dtype of x.

    weight: float8_e4m3fn [out, in]. scale: float32 [out, 1], so that weight · scale is what was there. bias: as it was.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, on: torch.device | None = None) -> None:
        """Takes the values of `linear`, which is left as it is. on: what computes them, None for where they lie."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode(False), torch.no_grad():
            home = linear.weight.device
            weight, scale = to_fp8(linear.weight.to(on or home))
            self.weight = nn.Parameter(weight.to(home), requires_grad=False)
            self.scale = nn.Parameter(scale.to(home), requires_grad=False)
        self.bias = linear.bias
        self.multiplies_in_fp8 = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.multiplies_in_fp8:
            return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features)
        values, scales = to_fp8(rows)
        product = F.scaled_mm(
            values,
            self.weight.t(),
            scales,
            ScalingType.RowWise,
            self.scale.t(),
            ScalingType.RowWise,
            output_dtype=torch.bfloat16,
            use_fast_accum=x.is_cuda,
        )
        product = product.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


def to_fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, n] of any float type → the nearest float8_e4m3fn [rows, n] and their scales float32 [rows, 1]."""
    wide = values.to(torch.float32)
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_SCALE) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def hold_linears(module: nn.Module, wanted: Callable[[str], bool], on: torch.device | None = None) -> None:
    """Replaces every plain nn.Linear whose path is `wanted` by its Fp8Linear, in place, one after the other."""
    for path, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and wanted(path):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, Fp8Linear(layer, on))


def fp8_layers(module: nn.Module) -> list[Fp8Linear]:
    return [layer for layer in module.modules() if isinstance(layer, Fp8Linear)]


@contextmanager
def multiplying_in_fp8(module: Any) -> Iterator[None]:
    """While the block runs, the module's fp8 layers multiply in fp8."""
    layers = fp8_layers(module)
    try:
        for layer in layers:
            layer.multiplies_in_fp8 = True
        yield
    finally:
        for layer in layers:
            layer.multiplies_in_fp8 = False


def multiplies_in_fp8(device: torch.device) -> bool:
    """Whether this torch has a kernel for it on this card: which one it takes, and what for, differs by version."""
    layer = Fp8Linear(nn.Linear(64, 64, device=device, dtype=torch.bfloat16).requires_grad_(False))
    layer.multiplies_in_fp8 = True
    try:
        with torch.inference_mode():
            return bool(layer(torch.ones(32, 64, device=device, dtype=torch.bfloat16)).isfinite().all())
    except (RuntimeError, ValueError, NotImplementedError):
        return False
