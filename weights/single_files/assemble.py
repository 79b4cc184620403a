"""A model out of single files, and of parts that other folders have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..completeness import part_problem, vocabulary_problem
from ..sources import Form, ModelSources, Source
from .found import Found, Part

FOLDERS: Mapping[Part, str] = {"t5": "text_encoder_2", "clip": "text_encoder", "vae": "vae"}
WORDS: Mapping[str, str] = {
    "t5": "the T5-XXL text encoder",
    "clip": "the CLIP-L text encoder",
    "vae": "the VAE",
    "t5_tokenizer": "T5's tokenizer",
    "clip_tokenizer": "CLIP's tokenizer",
}
COMMANDS: Mapping[str, str] = {
    "t5": "flux-server weights pull text-encoders",
    "clip": "flux-server weights pull text-encoders",
    "vae": "flux-server weights import PATH with ae.safetensors in it, or flux-server weights pull flux-dev",
    "t5_tokenizer": "flux-server weights pull tokenizers",
    "clip_tokenizer": "flux-server weights pull tokenizers",
}
PRECISIONS = ("bf16", "fp32", "fp16", "fp8")
"""The first is taken where there are several files; what is not listed comes last."""


def assemble(
    model: str,
    transformers: Sequence[Source],
    files: Iterable[Found],
    folders: Sequence[Path],
    tokenizers: Mapping[str, Sequence[Path]],
) -> tuple[ModelSources | None, list[str]]:
    """The model's sources and no problems, or None and a sentence for each part that is missing.

    transformers: folders of its own that can be loaded. files: everything that was recognised. folders: in diffusers'
    layout, complete or not, whose text encoders, VAE and tokenizers may be shared. tokenizers: further folders of
    t5_tokenizer and clip_tokenizer. Both are empty where there is no transformer of this model at all.
    """
    loadable = sorted((found for found in files if found.loadable and found.parts), key=_rank)
    own = (_source(found, "transformer") for found in loadable if found.model == model and "transformer" in found.parts)
    transformer = next(iter((*transformers, *own)), None)
    if transformer is None:
        return None, []
    parts: dict[str, Source | None] = {part: _shared(part, name, loadable, folders) for part, name in FOLDERS.items()}
    places = {
        "t5_tokenizer": _tokenizer("tokenizer_2", folders, tokenizers["t5_tokenizer"]),
        "clip_tokenizer": _tokenizer("tokenizer", folders, tokenizers["clip_tokenizer"]),
    }
    found: dict[str, Any] = {**parts, **places}
    if missing := [name for name, there in found.items() if there is None]:
        home = f"its transformer is {transformer.path}, but"
        return None, [f"{home} {WORDS[name]} is missing. Run: {COMMANDS[name]}" for name in missing]
    return ModelSources(transformer=transformer, **found), []


def _shared(part: Part, name: str, files: Sequence[Found], folders: Sequence[Path]) -> Source | None:
    whole = (Source(folder / name) for folder in folders if part_problem(folder, name) is None)
    single = (_source(found, part) for found in files if part in found.parts)
    return next(whole, None) or next(single, None)


def _tokenizer(name: str, folders: Sequence[Path], others: Sequence[Path]) -> Path | None:
    places = (*(folder / name for folder in folders), *others)
    return next((place for place in places if vocabulary_problem(place, name) is None), None)


def _source(found: Found, part: Part) -> Source:
    form: Form = "gguf" if found.path.suffix == ".gguf" else "safetensors"
    return Source(found.path, form, found.parts[part])


def _rank(found: Found) -> tuple[int, str]:
    precision = found.precision.partition(" ")[0]
    place = PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
    return place, str(found.path)
