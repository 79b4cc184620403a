"""fp8 weights that were stretched before they were cast, as ComfyUI's "scaled fp8" files hold them.

Beside `layer.weight` in float8 lies `layer.scale_weight` (newer files: `layer.weight_scale`), in float32: a number, or
one per row; the weight is their product. Further `layer.scale_input` or `layer.input_scale`, of use only to kernels
that multiply in fp8, and a mark: a tensor `scaled_fp8`, or `layer.comfy_quant` with JSON that names the format.
Sources: comfyanonymous/ComfyUI, `comfy/ops.py` (`scaled_fp8_ops`) and `comfy/quant_ops.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .refusals import UnusableWeights, listed

SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale")
MARK, FORMAT = "scaled_fp8", ".comfy_quant"
FORMATS = ("float8_e4m3fn", "float8_e5m2")

FOREIGN = {
    ".absmax": "bitsandbytes' nf4 in one file",
    "quant_state": "bitsandbytes' nf4 in one file",
    ".wscales": "Nunchaku's SVDQuant",
    ".qweight": "Nunchaku's SVDQuant",
    ".weight_scale_2": "NVFP4",
    ".SCB": "bitsandbytes' int8 in one file",
}
"""Marks of quantisations that are not read here: their numbers mean nothing without their own code."""

Tensors = dict[str, torch.Tensor]


def split_scales(path: Path, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors without what only helps to read them, and by the name of a weight what it has to be multiplied by.

    A scale comes out in the shape that multiplies its weight: of one value, or of one per row. Raises UnusableWeights
    for any other quantisation.
    """
    _refuse_foreign(path, tensors)
    kept = {name: value for name, value in tensors.items() if not _is_helper(name)}
    scales = {}
    for name, scale in tensors.items():
        if name.endswith(SCALES):
            weight = f"{name.rpartition('.')[0]}.weight"
            if weight not in kept:
                raise UnusableWeights(f"{path} has {name} and no {weight}: its fp8 scales are of an unknown kind")
            scales[weight] = _for_rows(path, weight, kept[weight], scale)
    return kept, scales


def _is_helper(name: str) -> bool:
    return name == MARK or name.endswith((*SCALES, *UNUSED, FORMAT))


def _for_rows(path: Path, name: str, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.numel() == 1:
        return scale.float().reshape(())
    if scale.numel() != weight.shape[0]:
        raise UnusableWeights(f"{path} scales {name} by {tuple(scale.shape)} numbers, which is no number per row")
    return scale.float().reshape(-1, *[1] * (weight.ndim - 1))


def _refuse_foreign(path: Path, tensors: Tensors) -> None:
    for mark, kind in FOREIGN.items():
        if any(mark in name for name in tensors):
            raise UnusableWeights(
                f"{path} is quantised as {kind}, which this version does not load; "
                "fp8, GGUF and diffusers' nf4 folders are loaded"
            )
    if odd := [name for name, value in tensors.items() if name.endswith(FORMAT) and _format(value) not in FORMATS]:
        raise UnusableWeights(f"{path} is quantised in a format that is not read here ({listed(odd)})")
    integers = [name for name, value in tensors.items() if name.endswith(".weight") and not value.is_floating_point()]
    if integers:
        raise UnusableWeights(f"{path} holds whole numbers for weights ({listed(integers)}): its scales are unknown")


def _format(value: torch.Tensor) -> str:
    try:
        return str(json.loads(bytes(value.tolist()))["format"])
    except (ValueError, KeyError, TypeError):
        return ""
