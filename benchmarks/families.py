"""The models that benchmarks compute with in their own process: demo, full size with random values, or real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.places import build_demo_weights, weights_folder
from pipelines.components import Components, Folders, load_components, quicken
from pipelines.control import ControlEncoder
from pipelines.depth import DepthEstimator
from pipelines.heap import keep_freed_memory
from pipelines.init_image import InitEncoder
from pipelines.memory.planning import fp8_products
from pipelines.models import MODELS
from pipelines.speed.fast_copy import fast_copy
from pipelines.speed.tiers import offered
from pipelines.text import TextEncoder


def load_family(
    weights: str, scratch: Path, device: torch.device, dtype: torch.dtype, *, fast: bool = False
) -> Components:
    """The components, eager. scratch: an empty folder for the demo family. fast: with the fast tiers, where the device
    multiplies fp8. Raises SystemExit for what cannot be."""
    fast = fast and fp8_products(device)
    if device.type == "cpu":
        keep_freed_memory()  # as the server's worker does
    if weights == "random":
        return random_components(build_demo_weights(scratch), device, dtype, fast=fast)
    folder = weights_folder(weights, scratch)
    return load_components(folders_in(folder), device=device, dtype=dtype, fast=fast)


def folders_in(root: Path) -> Folders:
    """What is in a weights folder, found as the server finds it. Raises SystemExit where no model is."""
    from server.app import find_weights
    from server.settings import Settings

    found = find_weights(Settings(weights_dir=root))
    if not found.models:
        raise SystemExit("\n".join((f"no usable model under {root}:", *found.problems)))
    return Folders(
        models=found.models,
        depth_estimator=found.depth_estimator,
        safety_concepts=found.safety_concepts,
        nsfw_detector=found.nsfw_detector,
    )


def random_components(demo: Path, device: torch.device, dtype: torch.dtype, *, fast: bool) -> Components:
    """Full-size modules with random values, and the demo family's tokenizers: their ids are in every vocabulary.

    Without safety checkers: what they would say of noise is chance.
    """
    from transformers import AutoImageProcessor, CLIPTokenizer, T5TokenizerFast

    from pipelines.depth.pretrained import PretrainedDisparity
    from weights.full_size import SCHEDULER

    if device.type != "cuda":
        raise SystemExit("full-size random weights need a CUDA card; try --weights demo")
    dev, vae = demo / "FLUX.1-dev", _random("vae", device, dtype)
    processor = AutoImageProcessor.from_pretrained(demo / "depth-anything-large-hf", backend="pil")
    depth = PretrainedDisparity(_random("depth-anything-large", device, torch.float32), processor, "near-large")
    text = TextEncoder(
        CLIPTokenizer.from_pretrained(dev / "tokenizer"),
        _random("clip-l", device, dtype),
        T5TokenizerFast.from_pretrained(dev / "tokenizer_2"),
        _random("t5-xxl", device, dtype),
        device=device,
        dtype=dtype,
    )
    transformers = {name: _random(f"transformer-{_short(name)}", device, dtype) for name in MODELS}
    parts = Components(
        device=device,
        dtype=dtype,
        text=text,
        vae=vae,
        control=ControlEncoder(vae, DepthEstimator(depth, "minmax"), dtype=dtype),
        init=InitEncoder(vae, dtype=dtype),
        scheduler_config=dict(SCHEDULER),
        transformers=transformers,
        fast={name: fast_copy(network, None) for name, network in transformers.items()} if fast else {},
        tiers=offered("full", fp8_products=fast),
    )
    quicken(parts, compiled=False)
    return parts


def _short(model: str) -> str:
    return model.removeprefix("flux-")


def _random(component: str, device: torch.device, dtype: torch.dtype) -> Any:
    from weights.full_size import build_on_meta, materialise

    return materialise(build_on_meta(component), device, dtype, seed=0).eval().requires_grad_(False)
