"""The full-size networks have the published numbers of parameters, and random values make small ones of them work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from pipelines.models import FLUX_DEPTH_DEV, FLUX_DEV, ModelSpec
from weights.demo.scheduler import scheduler
from weights.full_size import COMPONENTS, SCHEDULER, build_on_meta, materialise

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
SMALL_BACKBONE = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 518,
    "patch_size": 14,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}
SMALL_FLUX = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
SMALL: dict[str, dict[str, Any]] = {
    "transformer-dev": SMALL_FLUX,
    "transformer-depth-dev": SMALL_FLUX,
    "t5-xxl": {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "clip-l": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vae": {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2},
    "depth-anything-large": {
        "backbone_config": SMALL_BACKBONE,
        "reassemble_hidden_size": 32,
        "neck_hidden_sizes": [8, 16, 16, 32],
        "fusion_hidden_size": 16,
        "head_hidden_size": 8,
    },
}


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def gigabytes(component: str, dtype: torch.dtype) -> float:
    return round(parameters(build_on_meta(component)) * dtype.itemsize / 1e9, 3)


def small(component: str, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Any:
    return materialise(build_on_meta(component, **SMALL[component]), "cpu", dtype, seed)


def built_normally(component: str) -> Any:
    part = COMPONENTS[component]
    kind = getattr(import_module(part.library), part.class_name)
    config = {**part.config, **SMALL[component]}
    return kind(**config) if part.library == "diffusers" else kind(kind.config_class(**config))


def flux_output(model: Any, tokens: int = 16) -> torch.Tensor:
    config, draw = model.config, torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=draw).to(model.dtype)

    output: torch.Tensor = model(
        hidden_states=noise(tokens, config.in_channels),
        encoder_hidden_states=noise(8, config.joint_attention_dim),
        pooled_projections=noise(config.pooled_projection_dim),
        timestep=torch.tensor([0.5], dtype=model.dtype),
        guidance=torch.tensor([10.0]),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(tokens / 4)),
        txt_ids=torch.zeros(8, 3),
        return_dict=False,
    )[0]
    return output


def vae_output(model: Any) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32).to(model.dtype)
    output: torch.Tensor = model.decode(model.encode(pixels).latent_dist.mean).sample
    return output


OUTPUTS: dict[str, tuple[Callable[[Any], torch.Tensor], tuple[int, ...]]] = {
    "transformer-dev": (flux_output, (1, 16, 64)),
    "transformer-depth-dev": (flux_output, (1, 16, 64)),
    "t5-xxl": (lambda model: model(input_ids=torch.arange(40)[None]).last_hidden_state, (1, 40, 32)),
    "clip-l": (lambda model: model(input_ids=torch.arange(77)[None]).pooler_output, (1, 32)),
    "vae": (vae_output, (1, 3, 32, 32)),
    "depth-anything-large": (
        lambda model: model(pixel_values=torch.ones(1, 3, 70, 56, dtype=model.dtype)).predicted_depth,
        (1, 70, 56),
    ),
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_parameters_to_the_last_one(component: str) -> None:
    module = build_on_meta(component)
    assert parameters(module) == COUNTS[component]
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert not module.training


def test_parts_of_the_transformer() -> None:
    model = build_on_meta("transformer-dev")
    modulations = [module for name, module in model.named_modules() if ".norm" in name and name.endswith(".linear")]
    assert parameters(model.transformer_blocks) == 6_456_794_624
    assert parameters(model.single_transformer_blocks) == 5_380_488_704
    assert (len(modulations), parameters(*modulations)) == (2 * 19 + 38, 3_228_567_552)
    assert parameters(build_on_meta("transformer-dev", guidance_embeds=False)) == 11_891_178_560  # FLUX.1-schnell


def test_parts_of_the_vae() -> None:
    model = build_on_meta("vae")
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
    assert gigabytes(component, dtype) == size


@pytest.mark.parametrize(("component", "model"), [("transformer-dev", FLUX_DEV), ("transformer-depth-dev", FLUX_DEPTH_DEV)])
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


@pytest.mark.parametrize("component", SMALL)
def test_nothing_is_left_without_memory(component: str) -> None:
    """Whatever a forward pass may read is there, buffers with what they hold in a module that was built normally."""
    module, normal = small(component, dtype=torch.float32), built_normally(component)
    assert module.state_dict().keys() == normal.state_dict().keys()
    for name, buffer in normal.named_buffers():
        assert torch.equal(module.get_buffer(name), buffer)
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers(), *held])


def test_position_ids_are_the_only_buffers() -> None:
    found = {name for component in COMPONENTS for name, _ in build_on_meta(component).named_buffers()}
    assert found == {"embeddings.position_ids"}


def test_unknown_buffers_are_refused_before_memory_is_taken() -> None:
    with torch.device("meta"):
        module = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="running_mean, running_var, num_batches_tracked of BatchNorm1d is not known"):
        materialise(module, "cpu", torch.float32, 0)
    assert module.weight.is_meta


def test_tied_tables_stay_one() -> None:
    model = small("t5-xxl")
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert parameters(model) == parameters(built_normally("t5-xxl"))


@pytest.mark.parametrize("component", SMALL)
def test_values_are_random_but_for_scales(component: str) -> None:
    for name, parameter in small(component).named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad
        if parameter.ndim == 1 and not name.endswith("bias"):
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.float().std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.float().mean().item()) < 0.003, name


def test_a_seed_fixes_every_value() -> None:
    one, same, other = (small("clip-l", seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("proj.weight"))


@pytest.mark.parametrize("component", SMALL)
def test_outputs_are_finite_in_bfloat16(component: str) -> None:
    compute, shape = OUTPUTS[component]
    with torch.inference_mode():
        output = compute(small(component))
    assert output.shape == shape
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()
    assert output.abs().max() > 0


def test_values_stay_small_through_57_blocks_of_full_width() -> None:
    """One single-stream block as wide as the published ones stands in for all of them."""
    model: Any = build_on_meta("transformer-dev", num_layers=0, num_single_layers=1, joint_attention_dim=64)
    materialise(model, "cpu", torch.bfloat16, 0)
    model.single_transformer_blocks = nn.ModuleList([model.single_transformer_blocks[0]] * 57)
    with torch.inference_mode():
        output = flux_output(model)
    assert output.isfinite().all()
    assert 0.1 < output.float().std() < 10


def test_transformers_configs_know_every_entry() -> None:
    """transformers keeps unknown entries without a word, so that a slip of the pen would change nothing."""
    for component in COMPONENTS.values():
        if component.library == "transformers":
            known = getattr(transformers, component.class_name).config_class()
            assert all(hasattr(known, name) for name in component.config)
