"""Loading diffusers' components from folders on disk, offline, each shared part once.

FLUX.1-dev and FLUX.1-Depth-dev have the same T5, CLIP and VAE; only the transformers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    CLIPTextModel,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.utils import logging as transformers_logging

from .control import ControlEncoder
from .depth import DepthEstimator
from .text import TextEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Everything that the engine computes with, loaded and on its device."""

    device: torch.device
    dtype: torch.dtype
    text: TextEncoder
    vae: Any
    control: ControlEncoder
    scheduler_config: Any
    transformers: dict[str, Any]


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on. "auto" takes a CUDA card where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 on a card, float32 on the CPU, unless named. float16 is not offered: FLUX overflows in it."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def load_components(
    models: dict[str, Path], depth_estimator: Path | None, *, device: torch.device, dtype: torch.dtype
) -> Components:
    """Loads the named models' folders (at least one) and the depth estimator's. Nothing is looked up on a network."""
    transformers_logging.disable_progress_bar()
    shared = next(iter(models.values()))
    vae = _load(AutoencoderKL, shared / "vae", device, dtype)
    estimator = _load_estimator(depth_estimator, device) if depth_estimator else None
    return Components(
        device=device,
        dtype=dtype,
        text=_load_text(shared, device, dtype),
        vae=vae,
        control=ControlEncoder(vae, estimator, dtype=dtype),
        scheduler_config=FlowMatchEulerDiscreteScheduler.load_config(shared / "scheduler", local_files_only=True),
        transformers={
            name: _load(FluxTransformer2DModel, folder / "transformer", device, dtype)
            for name, folder in models.items()
        },
    )


def _load(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def _load_text(folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    return TextEncoder(
        CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        _load(CLIPTextModel, folder / "text_encoder", device, dtype),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
        _load(T5EncoderModel, folder / "text_encoder_2", device, dtype),
        device=device,
        dtype=dtype,
    )


def _load_estimator(folder: Path, device: torch.device) -> DepthEstimator:
    # The PIL backend is pinned because the torchvision one resizes differently, which would change every depth map.
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return DepthEstimator(_load(AutoModelForDepthEstimation, folder, device, torch.float32), processor)
