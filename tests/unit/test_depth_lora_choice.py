"""Which control LoRA makes the depth model: the one that is set, else a pulled one, and only where it is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.app import depth_lora, load_message, served_models
from server.settings import Settings
from weights.locate import Located
from weights.sources import ModelSources, Source

BOTH = ("flux-dev", "flux-depth-dev")


def located(root: Path, *models: str, pulled: bool = True, gguf: bool = False) -> Located:
    sources = ModelSources.in_folder(root / "m")
    if gguf:
        sources = ModelSources(
            transformer=Source(root / "x.gguf", "gguf"),
            t5=sources.t5,
            clip=sources.clip,
            vae=sources.vae,
            t5_tokenizer=sources.t5_tokenizer,
            clip_tokenizer=sources.clip_tokenizer,
        )
    return Located(
        root=root,
        models=dict.fromkeys(models, sources),
        depth_estimator=None,
        safety_concepts=None,
        nsfw_detector=None,
        problems=(),
        depth_lora=root / "pulled.safetensors" if pulled else None,
    )


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    path = tmp_path / "chosen.safetensors"
    path.write_bytes(b"")
    return Settings(depth_lora=path)


def test_a_pulled_lora_makes_the_depth_model(tmp_path: Path) -> None:
    weights = located(tmp_path, "flux-dev")
    assert depth_lora(Settings(), weights) == tmp_path / "pulled.safetensors"
    assert served_models(Settings(), weights) == BOTH
    assert load_message(Settings(), weights, tmp_path).depth_lora == str((tmp_path / "pulled.safetensors").resolve())


def test_the_one_that_is_set_counts_first(tmp_path: Path, chosen: Settings) -> None:
    assert depth_lora(chosen, located(tmp_path, "flux-dev")) == chosen.depth_lora
    assert depth_lora(chosen, located(tmp_path, "flux-dev", pulled=False)) == chosen.depth_lora


@pytest.mark.parametrize("models", [BOTH, ("flux-depth-dev",), ()])
def test_none_is_loaded_where_it_is_not_needed_or_has_nothing_to_change(
    models: tuple[str, ...], tmp_path: Path, chosen: Settings
) -> None:
    weights = located(tmp_path, *models)
    for settings in (Settings(), chosen):
        assert depth_lora(settings, weights) is None
        assert served_models(settings, weights) == models


def test_a_pulled_one_is_not_put_on_a_gguf_file(tmp_path: Path) -> None:
    assert served_models(Settings(), located(tmp_path, "flux-dev", gguf=True)) == ("flux-dev",)
