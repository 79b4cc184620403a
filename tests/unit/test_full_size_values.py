"""Random values make working networks of those without memory. Small ones of the same structure stand in for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from weights.full_size import COMPONENTS, build_on_meta, materialise

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


def small(component: str, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Any:
    return materialise(build_on_meta(component, **SMALL[component]), "cpu", dtype, seed)


def built_normally(component: str) -> Any:
    part = COMPONENTS[component]
    kind = getattr(import_module(part.library), part.class_name)
    config = {**part.config, **SMALL[component]}
    return (kind(**config) if part.library == "diffusers" else kind(kind.config_class(**config))).eval()


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


@pytest.mark.parametrize("component", SMALL)
def test_nothing_is_left_without_memory(component: str) -> None:
    """All that a forward pass reads is there, and beside the values it is as in a module that was built normally."""
    module, normal = small(component, dtype=torch.float32), built_normally(component)
    assert module.state_dict().keys() == normal.state_dict().keys()
    for name, buffer in normal.named_buffers():
        assert torch.equal(module.get_buffer(name), buffer)
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers(), *held])
    normal.load_state_dict(module.state_dict())
    compute, _ = OUTPUTS[component]
    with torch.inference_mode():
        assert torch.equal(compute(module), compute(normal))


def test_unknown_buffers_are_refused_before_memory_is_taken() -> None:
    with torch.device("meta"):
        module = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="running_mean, running_var, num_batches_tracked of BatchNorm1d is not known"):
        materialise(module, "cpu", torch.float32, 0)
    assert module.weight.is_meta


def test_tied_tables_stay_one() -> None:
    model = small("t5-xxl")
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert len(list(model.parameters())) == len(list(built_normally("t5-xxl").parameters()))


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
