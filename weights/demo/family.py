"""Builds the demo family and lays it out as the published repositories are: one folder per model, one per component."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from transformers.utils import logging as transformers_logging

from . import depth, safety, text, tokenizers
from .scheduler import scheduler
from .transformer import transformer
from .vae import vae

CLASSES = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Components of a FLUX folder and their classes, as the published model_index.json names them."""


def write(root: Path) -> None:
    """Writes every model's folder under `root`, which must not hold them yet. Raises OSError as the disk does."""
    with _without_progress_bars():
        shared = _shared_components()
        first = root / "FLUX.1-dev"
        _save(first, "FluxPipeline", shared | {"transformer": transformer(in_channels=64)})
        second = root / "FLUX.1-Depth-dev"
        _save(second, "FluxControlPipeline", {"transformer": transformer(in_channels=128)})
        for name in shared:
            shutil.copytree(first / name, second / name, copy_function=_link_or_copy)
        for folder, parts in {
            "depth-anything-large-hf": (depth.depth_estimator(), depth.image_processor()),
            "safety-concepts": (safety.concept_checker(), safety.concept_processor()),
            "nsfw-image-detection": (safety.nsfw_detector(), safety.nsfw_processor()),
        }.items():
            for part in parts:
                part.save_pretrained(root / folder)


def _shared_components() -> dict[str, Any]:
    """What both FLUX models have alike, by the name of its folder."""
    clip, t5 = tokenizers.clip_tokenizer(), tokenizers.t5_tokenizer()
    return {
        "scheduler": scheduler(),
        "text_encoder": text.clip_encoder(clip),
        "text_encoder_2": text.t5_encoder(t5),
        "tokenizer": clip,
        "tokenizer_2": t5,
        "vae": vae(),
    }


def _save(folder: Path, pipeline: str, components: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    index = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, component in components.items():
        component.save_pretrained(folder / name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for each file that it saves, and only a process-wide switch turns that off."""
    were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            transformers_logging.enable_progress_bar()
