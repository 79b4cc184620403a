"""Loading diffusers' components from disk, offline, each shared part once.

FLUX.1-dev and FLUX.1-Depth-dev have the same T5, CLIP and VAE; only the transformers differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from weights.sources import ModelSources, Source

from .control import ControlEncoder
from .depth import load_estimator
from .depth_catalogue import DEFAULT_ESTIMATOR, MapMode
from .init_image import InitEncoder
from .loading import (
    is_quantised,
    load_clip,
    load_clip_tokenizer,
    load_scheduler_config,
    load_t5,
    load_t5_tokenizer,
    load_transformer,
    load_vae,
)
from .lora.depth import PUBLISHED_SCALE, depth_from_lora
from .lora.shelf import LoraShelf
from .memory.footprint import Footprint, Precision
from .memory.measure import measure
from .memory.placement import settle
from .memory.plans import RESIDENT, Recipe
from .memory.precision import hold_in
from .memory.residency import Residency
from .models import FLUX_DEPTH_DEV, FLUX_DEV
from .safety import SafetyChecker, load_safety_checker
from .speed.attention import NATIVE, attention_backend, use_attention
from .speed.blocks import compile_blocks, compile_decoder
from .speed.fast_copy import fast_copy
from .speed.tiers import EXACT, Tier, offered
from .text import TextEncoder
from .upsample import PromptUpsampler, load_upsampler

LORA_CACHE_BYTES = 4 * 1024**3
"""Of host memory, for LoRA files that were used lately, per model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where everything lies on disk. models: at least one, by model name: a folder in diffusers' layout, or the sources
    of its components one by one.

    depth_lora: the control LoRA's file that makes a depth model of the dev model, where FLUX.1-Depth-dev is not there.
    """

    models: Mapping[str, Path | ModelSources]
    depth_estimator: Path | None = None
    safety_concepts: Path | None = None
    nsfw_detector: Path | None = None
    upsampler: Path | None = None
    loras: Path | None = None
    depth_lora: Path | None = None
    depth_lora_scale: float = PUBLISHED_SCALE

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Folders:
        """From the message that tells a worker what to load; entries that are not folders are ignored."""
        paths = {
            name: Path(fields[name]) if fields[name] else None
            for name in (
                "depth_estimator",
                "safety_concepts",
                "nsfw_detector",
                "upsampler",
                "loras",
                "depth_lora",
            )
        }
        models: dict[str, Path | ModelSources] = {
            name: ModelSources.from_json(sources) for name, sources in fields["models"].items()
        }
        return cls(models=models, depth_lora_scale=fields["depth_lora_scale"], **paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Everything that the engine computes with, loaded and on its device."""

    device: torch.device
    dtype: torch.dtype
    text: TextEncoder
    vae: Any
    control: ControlEncoder
    init: InitEncoder
    scheduler_config: Any
    transformers: dict[str, Any]
    shelves: dict[str, LoraShelf] = field(default_factory=dict)
    """LoRAs by model name; empty where no folder is configured."""
    safety: SafetyChecker | None = None
    upsampler: PromptUpsampler | None = None
    residency: Residency = field(default_factory=Residency)
    recipe: Recipe = RESIDENT
    fast: dict[str, Any] = field(default_factory=dict)
    """Transformers of the fast tiers by model name; empty where those are not offered."""
    tiers: tuple[str, ...] = (EXACT.name,)
    """What requests may ask for, the default first."""
    shares_weights: bool = False
    """The depth model is made of flux-dev by a LoRA, so that they come to the device together."""

    def transformer(self, model: str, tier: Tier) -> Any:
        """The network that draws `model` in `tier`."""
        return (self.fast if tier.fp8 else self.transformers)[model]


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on. "auto" takes a CUDA card where there is one, else Apple's GPU, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_components(
    folders: Folders,
    *,
    device: torch.device,
    dtype: torch.dtype,
    recipe: Recipe = RESIDENT,
    fast: bool = False,
    compiled: bool = False,
    attention: str = "auto",
    depth_estimator: str = DEFAULT_ESTIMATOR,
    depth_map_mode: MapMode | None = None,
) -> Components:
    """Loads what `folders` names. Nothing is looked up on a network. Raises OSError for a folder that lacks a file
    and UnusableWeights for weights that cannot be loaded.

    recipe: what is held where, from a memory plan. fast: with the fast tiers. compiled: compile the transformers'
    blocks and the decoder on first use; not with a recipe that streams. attention: as `quicken`. depth_estimator: name
    of the estimator in folders.depth_estimator; depth_map_mode: None takes its own.
    """
    host = torch.device("cpu")
    place = {"stay": device}
    models = {name: sources_of(where) for name, where in folders.models.items()}
    shared = next(iter(models.values()))
    residency = Residency()
    helpers = place.get(recipe.helpers, host)
    vae = load_vae(shared.vae, device=device, dtype=dtype)
    estimator = None
    if folders.depth_estimator:
        estimator = load_estimator(depth_estimator, folders.depth_estimator, helpers, depth_map_mode)
    home = place.get(recipe.transformers, host)
    transformers = _load_transformers(folders, models, home, dtype, recipe.precision, card=device)
    clip = load_clip(shared.clip, device=place.get(recipe.text, host), dtype=dtype)
    t5 = load_t5(shared.t5, device=place.get(recipe.text, host), dtype=dtype)
    shelves = {} if recipe.transformers == "stream" else _shelves(transformers, folders.loras, compiled=compiled)
    copies = (
        {name: fast_copy(network, shelves.get(name), device) for name, network in transformers.items()} if fast else {}
    )
    parts = Components(
        device=device,
        dtype=dtype,
        text=TextEncoder(
            load_clip_tokenizer(shared.clip_tokenizer),
            clip,
            load_t5_tokenizer(shared.t5_tokenizer),
            t5,
            device=device,
            dtype=dtype,
            present=residency.presence("text"),
        ),
        vae=vae,
        control=ControlEncoder(vae, estimator, dtype=dtype),
        init=InitEncoder(vae, dtype=dtype),
        scheduler_config=load_scheduler_config(shared.scheduler),
        transformers=transformers,
        shelves=shelves,
        safety=load_safety_checker(folders.safety_concepts, folders.nsfw_detector, helpers),
        upsampler=load_upsampler(folders.upsampler, helpers, dtype) if folders.upsampler else None,
        residency=residency,
        recipe=recipe,
        fast=copies,
        tiers=offered(recipe.precision, fp8_products=fast),
        shares_weights=FLUX_DEPTH_DEV.name not in models,
    )
    settle(parts)
    quicken(parts, compiled=compiled, attention=attention)
    return parts


def quicken(parts: Components, *, compiled: bool, attention: str = "auto") -> None:
    """The attention kernel and compiled blocks for every transformer, and a compiled decoder, last of all.

    attention: auto for the best kernel that the card has, native for what torch picks.
    """
    networks = {id(network): network for network in (*parts.transformers.values(), *parts.fast.values())}
    for network in networks.values():
        head_dim = int(network.config.attention_head_dim)
        best = NATIVE if attention == NATIVE else attention_backend(parts.device, parts.dtype, head_dim)
        if best != NATIVE:
            use_attention(network, best)
        if compiled:
            compile_blocks(network)
    if compiled:
        compile_decoder(parts.vae)


def measure_folders(folders: Folders, value_bytes: int) -> Footprint:
    """What these would take, with values of the computing precision of `value_bytes`. Raises Broken, OSError."""
    models = {name: sources_of(place) for name, place in folders.models.items()}
    safety = (folders.safety_concepts, folders.nsfw_detector)
    return measure(
        models,
        value_bytes=value_bytes,
        depth_estimator=folders.depth_estimator,
        safety=tuple(folder for folder in safety if folder and all(safety)),
        upsampler=folders.upsampler,
        depth_lora=folders.depth_lora if FLUX_DEPTH_DEV.name not in models else None,
        loras=folders.loras is not None,
    )


def sources_of(place: Path | ModelSources) -> ModelSources:
    return ModelSources.in_folder(place) if isinstance(place, Path) else place


def _load_transformers(
    folders: Folders,
    models: Mapping[str, ModelSources],
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
    *,
    card: torch.device,
) -> dict[str, Any]:
    transformers = {
        name: _load_transformer(sources.transformer, device, dtype, precision, card) for name, sources in models.items()
    }
    if folders.depth_lora and FLUX_DEPTH_DEV.name not in transformers:
        dev = transformers[FLUX_DEV.name]
        transformers[FLUX_DEPTH_DEV.name] = depth_from_lora(dev, folders.depth_lora, folders.depth_lora_scale)
    return transformers


def _load_transformer(
    source: Source, device: torch.device, dtype: torch.dtype, precision: Precision, card: torch.device
) -> Any:
    """In the precision of the plan, unless its file is quantised already. card: what computes, if not `device`."""
    if is_quantised(source):
        return load_transformer(source, device=device, dtype=dtype)
    if precision == "nf4":
        # Made on the card, and off it again before the next one comes: two may not fit together.
        return load_transformer(source, device=card, dtype=dtype, storage="nf4").to(device)
    transformer = load_transformer(source, device=device, dtype=dtype)
    hold_in(transformer, precision, card)
    return transformer


def _shelves(transformers: dict[str, Any], folder: Path | None, *, compiled: bool) -> dict[str, LoraShelf]:
    if folder is None:
        return {}
    return {
        name: LoraShelf(model, folder, max_bytes=LORA_CACHE_BYTES, compiled=compiled)
        for name, model in transformers.items()
    }
