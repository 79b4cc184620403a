"""Whether a recognised file can be loaded, told by its header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..headers import Tensor, WeightsFile
from .found import Part

Tensors = Mapping[str, Tensor]

PLAIN = {"BF16", "F16", "F32", "F8_E4M3", "F8_E5M2"}
"""Values that are what they say, or are with a scale beside them."""

GGUF_TYPES = {
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
}  # fmt: skip
"""Types that diffusers computes with."""

PREFIXES: Mapping[Part, tuple[str, ...]] = {
    "transformer": ("", "model.diffusion_model.", "diffusion_model."),
    "t5": ("", "text_encoders.t5xxl.transformer."),
    "clip": ("", "text_encoders.clip_l.transformer."),
    "vae": ("", "vae.", "first_stage_model."),
}
"""What ComfyUI puts before the names, and nothing where a file holds one component."""

MARKS: Mapping[Part, tuple[str, ...]] = {
    "transformer": ("img_in.weight", "x_embedder.weight"),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q.weight",),
    "clip": ("text_model.encoder.layers.0.self_attn.q_proj.weight",),
    "vae": ("decoder.conv_in.weight",),
}
"""A tensor that every file with the part has, by any of these names."""

WIDTHS: Mapping[Part, tuple[int, int]] = {"transformer": (0, 3072), "t5": (1, 4096), "clip": (1, 768), "vae": (1, 16)}
"""Dimension of that tensor, and its size in the published models."""

BLOCKS = {"double_blocks": 19, "single_blocks": 38, "transformer_blocks": 19, "single_transformer_blocks": 38}
_BLOCK = re.compile(r"^(\w+)\.(\d+)\.")


def parts_in(file: WeightsFile) -> dict[Part, str]:
    """The components in the file, each with the prefix of its names."""
    prefixes = {part: _prefix(file.tensors, part) for part in PREFIXES}
    return {part: prefix for part, prefix in prefixes.items() if prefix is not None}


def quantisation_problem(file: WeightsFile) -> str:
    """Why nothing of such a quantisation can be loaded, with what helps; empty where it can."""
    if quantisation := _quantisation(file):
        return f"{quantisation} in one file is not loaded by this version; fp8, GGUF and diffusers' nf4 folders are"
    return ""


def shape_problem(file: WeightsFile, parts: Mapping[Part, str]) -> str:
    """Why the parts of the file are not those of the published models, or not loaded in this format; or empty."""
    if file.format == "gguf" and (problem := _gguf_problem(file, parts)):
        return problem
    return next((problem for part, prefix in parts.items() if (problem := _shape_problem(file, part, prefix))), "")


def _prefix(tensors: Tensors, part: Part) -> str | None:
    return next((prefix for prefix in PREFIXES[part] for mark in MARKS[part] if prefix + mark in tensors), None)


def _quantisation(file: WeightsFile) -> str:
    if any("quant_state" in name or name.endswith(".absmax") for name in file.tensors):
        return "bitsandbytes' nf4"
    if any(name.endswith(".wscales") for name in file.tensors):
        return "Nunchaku's SVDQuant"
    if file.format == "safetensors" and file.main_dtype() not in PLAIN:
        return f"{file.main_dtype() or 'nothing'}"
    return ""


def _gguf_problem(file: WeightsFile, parts: Mapping[Part, str]) -> str:
    if "transformer" not in parts:
        return "only transformers are loaded from GGUF; take safetensors (t5xxl_fp16, t5xxl_fp8_e4m3fn) for T5"
    if odd := sorted({tensor.dtype for tensor in file.tensors.values()} - GGUF_TYPES):
        return f"GGUF type {', '.join(odd)} is not loaded by this version; {', '.join(sorted(GGUF_TYPES))} are"
    return ""


def _shape_problem(file: WeightsFile, part: Part, prefix: str) -> str:
    mark = next(name for name in MARKS[part] if prefix + name in file.tensors)
    shape, (dimension, width) = file.tensors[prefix + mark].shape, WIDTHS[part]
    if len(shape) <= dimension or shape[dimension] != width:
        return f"it is another model's: {mark} has shape {shape}, not {width} in dimension {dimension}"
    return _block_problem(file, prefix) if part == "transformer" else ""


def _block_problem(file: WeightsFile, prefix: str) -> str:
    """A shortened model has the same tensors, only fewer."""
    numbered = (_BLOCK.match(name.removeprefix(prefix)) for name in file.tensors if name.startswith(prefix))
    blocks: dict[str, set[str]] = {}
    for found in filter(None, numbered):
        blocks.setdefault(found[1], set()).add(found[2])
    for kind, numbers in blocks.items():
        if kind in BLOCKS and len(numbers) != BLOCKS[kind]:
            return f"it is another model's: it has {len(numbers)} {kind}, not {BLOCKS[kind]}"
    return ""
