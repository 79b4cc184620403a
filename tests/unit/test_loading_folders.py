"""Components come out of folders exactly as they were saved, and a folder that lacks something is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.loading import (
    UnusableWeights,
    load_clip,
    load_scheduler_config,
    load_t5,
    load_transformer,
    load_vae,
)
from weights.full_size import SCHEDULER
from weights.sources import ModelSources, Source

CPU = torch.device("cpu")
LOADERS: dict[str, tuple[Callable[..., Any], str]] = {
    "transformer": (load_transformer, "diffusion_pytorch_model"),
    "text_encoder": (load_clip, "model"),
    "text_encoder_2": (load_t5, "model"),
    "vae": (load_vae, "diffusion_pytorch_model"),
}


def load(folder: Path, part: str, dtype: torch.dtype = torch.float32) -> Any:
    return LOADERS[part][0](Source(folder), device=CPU, dtype=dtype)


@pytest.fixture(params=LOADERS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copied(part: str, demo_weights: Path, tmp_path: Path) -> Path:
    """A copy of the component's folder, for breaking."""
    folder = tmp_path / part
    folder.mkdir()
    for path in (demo_weights / "FLUX.1-dev" / part).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_every_value_is_as_saved_and_the_component_can_be_moved(part: str, copied: Path) -> None:
    model = load(copied, part)
    tensors, loaded = saved(copied), model.state_dict()
    assert tensors
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "hf_device_map")
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_it_computes_in_the_dtype_that_is_asked_for(part: str, copied: Path) -> None:
    loaded = load(copied, part, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_a_folder_in_shards_is_the_same(part: str, copied: Path, tmp_path: Path) -> None:
    whole = load(copied, part)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shards = load(tmp_path / "shards", part)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), shards.parameters(), strict=True))


def test_a_tensor_that_is_missing_is_refused_and_never_made_up(part: str, copied: Path) -> None:
    tensors = saved(copied)
    gone = next(name for name in sorted(tensors, reverse=True) if name.endswith("weight") and "shared" not in name)
    del tensors[gone]
    save_file(tensors, copied / f"{LOADERS[part][1]}.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableWeights, match="lacks 1 tensors") as refusal:
        load(copied, part)
    assert str(refusal.value).startswith(str(copied))
    assert gone in str(refusal.value)


def test_a_tensor_of_another_shape_is_refused(part: str, copied: Path) -> None:
    tensors = saved(copied)
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2 or ".conv1.weight" in name)
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, copied / f"{LOADERS[part][1]}.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableWeights) as refusal:
        load(copied, part)
    assert name in str(refusal.value)


@pytest.mark.parametrize("change", [-1, -100, 1])
def test_a_file_of_another_length_than_its_header_says_is_refused(part: str, copied: Path, change: int) -> None:
    (path,) = copied.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(UnusableWeights, match="its header says") as refusal:
        load(copied, part)
    assert str(refusal.value).startswith(str(path))


def test_the_published_schedule_is_built_in(demo_weights: Path) -> None:
    assert load_scheduler_config(None) == SCHEDULER
    shipped = load_scheduler_config(demo_weights / "FLUX.1-dev/scheduler")
    assert (
        shipped["shift"]
        == json.loads((demo_weights / "FLUX.1-dev/scheduler/scheduler_config.json").read_text())["shift"]
    )


def test_sources_survive_the_way_to_another_process(tmp_path: Path) -> None:
    sources = ModelSources.in_folder(tmp_path / "FLUX.1-dev")
    assert ModelSources.from_json(json.loads(json.dumps(sources.to_json()))) == sources
    single = ModelSources(
        transformer=Source(tmp_path / "flux1-dev.gguf", "gguf"),
        t5=Source(tmp_path / "all.safetensors", "safetensors", "text_encoders.t5xxl.transformer."),
        clip=Source(tmp_path / "clip"),
        vae=Source(tmp_path / "ae.safetensors", "safetensors"),
        t5_tokenizer=tmp_path / "a",
        clip_tokenizer=tmp_path / "b",
    )
    assert ModelSources.from_json(json.loads(json.dumps(single.to_json()))) == single
    assert (sources.home, single.home) == (tmp_path / "FLUX.1-dev", tmp_path / "flux1-dev.gguf")
