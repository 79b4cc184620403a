"""The full-size networks have the published numbers of parameters, to the last one."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from pipelines.models import FLUX_DEPTH_DEV, FLUX_DEV, ModelSpec
from weights.demo.scheduler import scheduler
from weights.full_size import COMPONENTS, SCHEDULER, build_on_meta

COUNTS = {
    "transformer-dev": 11_901_408_320,
    "transformer-depth-dev": 11_901_604_928,
    "t5-xxl": 4_762_310_656,
    "clip-l": 123_060_480,
    "vae": 83_819_683,
    "depth-anything-small": 24_785_089,
    "depth-anything-base": 97_470_785,
    "depth-anything-large": 335_315_649,
}


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@cache
def published(component: str) -> Any:
    return build_on_meta(component)


@pytest.mark.parametrize("component", COMPONENTS)
def test_parameters_to_the_last_one(component: str) -> None:
    module = published(component)
    assert parameters(module) == COUNTS[component]
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert not module.training


def test_parts_of_the_transformer() -> None:
    model = published("transformer-dev")
    modulations = [module for name, module in model.named_modules() if ".norm" in name and name.endswith(".linear")]
    assert parameters(model.transformer_blocks) == 6_456_794_624
    assert parameters(model.single_transformer_blocks) == 5_380_488_704
    assert (len(modulations), parameters(*modulations)) == (2 * 19 + 38, 3_228_567_552)
    assert parameters(build_on_meta("transformer-dev", guidance_embeds=False)) == 11_891_178_560  # FLUX.1-schnell


def test_parts_of_the_vae() -> None:
    model = published("vae")
    assert (parameters(model.encoder), parameters(model.decoder)) == (34_274_208, 49_545_475)


@pytest.mark.parametrize(
    ("component", "dtype", "size"),
    [
        ("transformer-dev", torch.bfloat16, 23.803),
        ("transformer-depth-dev", torch.bfloat16, 23.803),
        ("t5-xxl", torch.bfloat16, 9.525),
        ("clip-l", torch.bfloat16, 0.246),
        ("vae", torch.bfloat16, 0.168),
        ("vae", torch.float32, 0.335),
        ("depth-anything-large", torch.float32, 1.341),
    ],
)
def test_memory_in_gigabytes(component: str, dtype: torch.dtype, size: float) -> None:
    assert round(parameters(published(component)) * dtype.itemsize / 1e9, 3) == size


@pytest.mark.parametrize(
    ("component", "model"), [("transformer-dev", FLUX_DEV), ("transformer-depth-dev", FLUX_DEPTH_DEV)]
)
def test_channels_of_the_transformers(component: str, model: ModelSpec) -> None:
    module: Any = build_on_meta(component, num_layers=0, num_single_layers=0)
    assert module.x_embedder.weight.shape == (3072, model.transformer_in_channels)
    assert module.proj_out.weight.shape == (64, 3072)
    assert (module.config.in_channels, module.config.out_channels) == (model.transformer_in_channels, 64)


def test_the_demo_family_has_the_same_schedule() -> None:
    assert dict(FlowMatchEulerDiscreteScheduler(**SCHEDULER).config) == dict(scheduler().config)


def test_unknown_components() -> None:
    with pytest.raises(KeyError):
        build_on_meta("scheduler")


def test_building_leaves_the_configuration_as_it_is() -> None:
    before = repr(COMPONENTS)
    build_on_meta("depth-anything-large")
    assert repr(COMPONENTS) == before


def test_importing_the_configurations_is_cheap() -> None:
    code = "import sys, weights.full_size; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_position_ids_are_the_only_buffers() -> None:
    found = {name for component in COMPONENTS for name, _ in published(component).named_buffers()}
    assert found == {"embeddings.position_ids"}


def test_transformers_configs_know_every_entry() -> None:
    """transformers keeps unknown entries without a word, so that a slip of the pen would change nothing."""
    for component in COMPONENTS.values():
        if component.library == "transformers":
            known = getattr(transformers, component.class_name).config_class()
            assert all(hasattr(known, name) for name in component.config)
