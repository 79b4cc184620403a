"""What a model folder must hold before anything tries to load it. Looks at names and small JSON files only.

Each function gives the first thing that is wrong, starting with its path inside the folder, or None.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SLOW_FILES = {"tokenizer": ("vocab.json", "merges.txt"), "tokenizer_2": ("spiece.model",)}
"""A tokenizer's vocabulary where it has no tokenizer.json, by its folder's name in a FLUX folder."""

PUBLISHED_IN_CHANNELS = 64
"""What FluxTransformer2DModel reads where its config.json says nothing."""


def flux_problem(folder: Path, in_channels: int | None) -> str | None:
    """A FLUX folder in diffusers' layout whose transformer reads `in_channels` packed channels (None: any number)."""
    return _first(
        lambda: _files(folder, "model_index.json"),
        lambda: _model(folder, "transformer", "diffusion_pytorch_model"),
        lambda: _channels(folder / "transformer" / "config.json", in_channels),
        lambda: _model(folder, "text_encoder", "model"),
        lambda: _model(folder, "text_encoder_2", "model"),
        lambda: _model(folder, "vae", "diffusion_pytorch_model"),
        lambda: _files(folder, "scheduler/scheduler_config.json"),
        lambda: _vocabulary(folder, "tokenizer/", SLOW_FILES["tokenizer"]),
        lambda: _vocabulary(folder, "tokenizer_2/", SLOW_FILES["tokenizer_2"]),
    )


def classifier_problem(folder: Path) -> str | None:
    """A single model in transformers' layout with its image processor: depth estimator, safety checker, detector."""
    return _first(lambda: _model(folder, "", "model"), lambda: _files(folder, "preprocessor_config.json"))


def part_problem(folder: Path, part: str) -> str | None:
    """A component's own folder in a FLUX folder: transformer, text_encoder, text_encoder_2 or vae."""
    return _model(folder, part, "model" if part.startswith("text_encoder") else "diffusion_pytorch_model")


def quantised_transformer_problem(folder: Path, in_channels: int | None) -> str | None:
    """A FLUX folder of which at least the transformer is there, quantised: those come without the other parts."""
    config = folder / "transformer" / "config.json"
    try:
        quantised = bool(_json(config).get("quantization_config"))
    except (OSError, ValueError):
        quantised = False
    if not quantised:
        return "transformer/config.json says of no quantisation"
    return _first(lambda: part_problem(folder, "transformer"), lambda: _channels(config, in_channels))


def vocabulary_problem(folder: Path, part: str) -> str | None:
    """A tokenizer's folder; part: tokenizer (CLIP's) or tokenizer_2 (T5's)."""
    return _vocabulary(folder, "", SLOW_FILES[part])


def _first(*checks: Callable[[], str | None]) -> str | None:
    return next((problem for check in checks if (problem := check())), None)


def _files(folder: Path, *names: str) -> str | None:
    return next((f"{name} is missing" for name in names if not (folder / name).is_file()), None)


def _model(folder: Path, part: str, stem: str) -> str | None:
    """A component: config.json and `stem`.safetensors, or every shard that `stem`.safetensors.index.json names."""
    prefix = f"{part}/" if part else ""
    if problem := _files(folder, f"{prefix}config.json"):
        return problem
    index = f"{prefix}{stem}.safetensors.index.json"
    if (folder / index).is_file():
        return _shards(folder, prefix, index)
    weights = f"{prefix}{stem}.safetensors"
    if (folder / weights).is_file():
        return None
    if pickle := _pickle(folder / part):
        return f"{weights} is missing; {prefix}{pickle} is a pickle, and only safetensors are loaded"
    return f"{weights} is missing"


def _shards(folder: Path, prefix: str, index: str) -> str | None:
    try:
        names = sorted(set(_json(folder / index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{index} cannot be read"
    if not names:
        return f"{index} names no files"
    missing = _files(folder, *(f"{prefix}{name}" for name in names))
    return f"{missing}, which {index} names" if missing else None


def _pickle(folder: Path) -> str | None:
    return next((path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLE_SUFFIXES), None)


def _channels(config: Path, expected: int | None) -> str | None:
    if expected is None:
        return None
    try:
        found = _json(config).get("in_channels", PUBLISHED_IN_CHANNELS)
    except (OSError, ValueError):
        return "transformer/config.json cannot be read"
    if found == expected:
        return None
    return f"transformer/config.json says in_channels {found}, not {expected}: these are another model's weights"


def _vocabulary(folder: Path, prefix: str, slow_files: tuple[str, ...]) -> str | None:
    """A tokenizer: its settings, and its vocabulary as tokenizer.json or in the older files."""
    if problem := _files(folder, f"{prefix}tokenizer_config.json"):
        return problem
    fast = f"{prefix}tokenizer.json"
    if (folder / fast).is_file():
        return None
    problem = _files(folder, *(f"{prefix}{name}" for name in slow_files))
    return f"{problem}, and so is {fast}" if problem else None


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
