"""The two text encoders and their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from weights.sources import Source

from .architecture import Architecture, published
from .folders import load_folder, pretrained
from .refusals import UnusableWeights
from .single_files import read_tensors
from .storage import Storage, check_quantisation, nf4_options

PROJECTIONS = ("text_projection.weight", "text_projection", "logit_scale")
"""Of CLIP as a whole: they lie in files of its text encoder, which does not use them."""


def load_t5(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype,
    storage: Storage = "computed",
    architecture: Architecture | None = None,
) -> Any:
    """A T5EncoderModel on `device` that computes in `dtype`.

    storage: how its weights are kept. architecture: of a file; None for T5-XXL's. Raises UnusableWeights, OSError.
    """
    options = nf4_options(BitsAndBytesConfig, dtype) if storage == "nf4" else {}
    if source.form == "folder":
        if check_quantisation(source.path) and options:
            raise UnusableWeights(f"{source.path} is quantised already and cannot be kept as {storage}")
        return load_folder(T5EncoderModel, source.path, device=device, dtype=dtype, **options)
    if source.form == "gguf":
        raise UnusableWeights(
            f"{source.path}: T5 is not loaded from GGUF; take t5xxl_fp16 or t5xxl_fp8_e4m3fn safetensors"
        )
    tensors = dict(read_tensors(source, device=device, dtype=dtype).items())
    architecture = architecture or published("t5-xxl")
    return _from_tensors(T5EncoderModel, source, tensors, architecture, device=device, dtype=dtype, **options)


def load_clip(
    source: Source, *, device: torch.device, dtype: torch.dtype, architecture: Architecture | None = None
) -> Any:
    """A CLIPTextModel on `device` that computes in `dtype`.

    architecture: of a file; None for CLIP-L's. Raises UnusableWeights, OSError.
    """
    if source.form == "folder":
        return load_folder(CLIPTextModel, source.path, device=device, dtype=dtype)
    tensors = dict(read_tensors(source, device=device, dtype=dtype).items())
    used = {name: value for name, value in tensors.items() if name not in PROJECTIONS}
    return _from_tensors(CLIPTextModel, source, used, architecture or published("clip-l"), device=device, dtype=dtype)


def _from_tensors(
    kind: Any, source: Source, tensors: Mapping[str, torch.Tensor], architecture: Architecture, **options: Any
) -> Any:
    config = kind.config_class(**architecture)
    return pretrained(kind, source.path, None, config=config, state_dict=dict(tensors), **options)


def load_t5_tokenizer(folder: Path) -> Any:
    """T5's tokenizer. Raises OSError where its files are not there."""
    return T5TokenizerFast.from_pretrained(folder, local_files_only=True)


def load_clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer. Raises OSError where its files are not there."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
