"""Pictures drawn with single files are, bit for bit, those drawn with the folders that the files were made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.components import Folders, load_components
from pipelines.engine import Engine
from pipelines.loading import architecture
from pipelines.request import GenerationRequest
from weights.full_size import COMPONENTS
from weights.sources import ModelSources, Source

PARTS = {
    "transformer": ("transformer", "transformer-dev", "model.diffusion_model."),
    "t5": ("text_encoder_2", "t5-xxl", "text_encoders.t5xxl.transformer."),
    "clip": ("text_encoder", "clip-l", "text_encoders.clip_l.transformer."),
    "vae": ("vae", "vae", "vae."),
}
"""Of a source: its folder, its published configuration, and the prefix of its names in an all-in-one file."""


@pytest.fixture
def demo_sized(demo_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the demo family's configurations the published ones: files carry none, and the published are too large."""
    small = dict(COMPONENTS)
    for folder, component, _ in PARTS.values():
        config = json.loads((demo_weights / "FLUX.1-dev" / folder / "config.json").read_text())
        plain = {name: value for name, value in config.items() if not name.startswith("_")}
        small[component] = replace(COMPONENTS[component], config=plain)
    monkeypatch.setattr(architecture, "COMPONENTS", small)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def as_files(model: Path, place: Path) -> ModelSources:
    sources: dict[str, Any] = {}
    for part, (folder, _, _) in PARTS.items():
        path = place / f"{part}.safetensors"
        save_file(tensors_of(model / folder), path)
        sources[part] = Source(path, "safetensors")
    return ModelSources(**sources, t5_tokenizer=model / "tokenizer_2", clip_tokenizer=model / "tokenizer")


def as_one_file(model: Path, place: Path) -> ModelSources:
    every = {
        prefix + name: tensor
        for folder, _, prefix in PARTS.values()
        for name, tensor in tensors_of(model / folder).items()
    }
    save_file(every, place / "all.safetensors")
    sources: dict[str, Any] = {
        part: Source(place / "all.safetensors", "safetensors", prefix) for part, (_, _, prefix) in PARTS.items()
    }
    return ModelSources(**sources, t5_tokenizer=model / "tokenizer_2", clip_tokenizer=model / "tokenizer")


def draw(place: Path | ModelSources) -> torch.Tensor:
    components = load_components(Folders(models={"flux-dev": place}), device=torch.device("cpu"), dtype=torch.float32)
    request = GenerationRequest(
        model="flux-dev", prompt="a red fox", width=256, height=192, steps=3, guidance=3.5, seed=7
    )
    return Engine(components).generate(request).images[0].pixels


@pytest.mark.usefixtures("demo_sized")
def test_pictures_from_files_are_those_from_folders(demo_weights: Path, tmp_path: Path) -> None:
    model = demo_weights / "FLUX.1-dev"
    expected = draw(model)
    assert expected.float().std() > 1
    for made in (as_files, as_one_file):
        assert torch.equal(draw(made(model, tmp_path)), expected), made.__name__
