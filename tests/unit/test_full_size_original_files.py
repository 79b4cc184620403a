"""Files as black-forest-labs/flux names their tensors become diffusers' modules without a tensor too few or too many.

The layouts here are written down from the architecture (black-forest-labs/flux, `model.py`, `modules/layers.py`,
`modules/autoencoder.py`, `modules/lora.py`), not from diffusers' converters, which are what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import infer_diffusers_model_type

from weights.full_size import build_on_meta

Layout = dict[str, tuple[int, ...]]
"""Shapes of a file's tensors by name."""

WIDTH, HEAD, LORA_RANK = 3072, 128, 128


def linear(name: str, inputs: int, outputs: int) -> Layout:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def convolution(name: str, inputs: int, outputs: int, size: int = 3) -> Layout:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def group_norm(name: str, channels: int) -> Layout:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def query_key_norm(name: str) -> Layout:
    return {f"{name}.query_norm.scale": (HEAD,), f"{name}.key_norm.scale": (HEAD,)}


def embedder(name: str, inputs: int) -> Layout:
    return linear(f"{name}.in_layer", inputs, WIDTH) | linear(f"{name}.out_layer", WIDTH, WIDTH)


def double_block(name: str) -> Layout:
    layout: Layout = {}
    for stream in (f"{name}.img", f"{name}.txt"):
        layout |= linear(f"{stream}_mod.lin", WIDTH, 6 * WIDTH)
        layout |= linear(f"{stream}_attn.qkv", WIDTH, 3 * WIDTH) | query_key_norm(f"{stream}_attn.norm")
        layout |= linear(f"{stream}_attn.proj", WIDTH, WIDTH)
        layout |= linear(f"{stream}_mlp.0", WIDTH, 4 * WIDTH) | linear(f"{stream}_mlp.2", 4 * WIDTH, WIDTH)
    return layout


def single_block(name: str) -> Layout:
    layout = linear(f"{name}.modulation.lin", WIDTH, 3 * WIDTH) | query_key_norm(f"{name}.norm")
    return layout | linear(f"{name}.linear1", WIDTH, 7 * WIDTH) | linear(f"{name}.linear2", 5 * WIDTH, WIDTH)


def flux_file(in_channels: int, doubles: int = 19, singles: int = 38) -> Layout:
    layout = linear("img_in", in_channels, WIDTH) | linear("txt_in", 4096, WIDTH)
    layout |= embedder("time_in", 256) | embedder("vector_in", 768) | embedder("guidance_in", 256)
    for index in range(doubles):
        layout |= double_block(f"double_blocks.{index}")
    for index in range(singles):
        layout |= single_block(f"single_blocks.{index}")
    layout |= linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH)
    return layout | linear("final_layer.linear", WIDTH, 64)


def lora_file() -> Layout:
    """Every linear layer's two factors, the second with a bias, and the norms that the adapter replaces."""
    layout: Layout = {}
    for name, shape in flux_file(128).items():
        if name.endswith(".scale"):
            layout[name] = shape
        elif name.endswith(".weight"):
            outputs, inputs = shape
            rank, layer = min(LORA_RANK, *shape), name.removesuffix(".weight")
            layout |= {f"{layer}.lora_A.weight": (rank, inputs)} | linear(f"{layer}.lora_B", rank, outputs)
    return layout


def residual(name: str, inputs: int, outputs: int) -> Layout:
    layout = group_norm(f"{name}.norm1", inputs) | convolution(f"{name}.conv1", inputs, outputs)
    layout |= group_norm(f"{name}.norm2", outputs) | convolution(f"{name}.conv2", outputs, outputs)
    return layout if inputs == outputs else layout | convolution(f"{name}.nin_shortcut", inputs, outputs, 1)


def middle(name: str, channels: int = 512) -> Layout:
    layout = residual(f"{name}.block_1", channels, channels) | residual(f"{name}.block_2", channels, channels)
    for part in ("q", "k", "v", "proj_out"):
        layout |= convolution(f"{name}.attn_1.{part}", channels, channels, 1)
    return layout | group_norm(f"{name}.attn_1.norm", channels)


def level(name: str, inputs: int, outputs: int, blocks: int, resample: str) -> Layout:
    layout = convolution(f"{name}.{resample}.conv", outputs, outputs) if resample else {}
    for index in range(blocks):
        layout |= residual(f"{name}.block.{index}", outputs if index else inputs, outputs)
    return layout


def vae_file() -> Layout:
    layout = convolution("encoder.conv_in", 3, 128) | convolution("decoder.conv_in", 16, 512)
    layout |= middle("encoder.mid") | middle("decoder.mid")
    channels = [128, 256, 512, 512]
    for index, (inputs, outputs) in enumerate(zip([128, *channels], channels, strict=False)):
        layout |= level(f"encoder.down.{index}", inputs, outputs, 2, "downsample" if index < 3 else "")
    for index, (inputs, outputs) in enumerate(zip([*channels[1:], 512], channels, strict=True)):
        layout |= level(f"decoder.up.{index}", inputs, outputs, 3, "upsample" if index > 0 else "")
    layout |= group_norm("encoder.norm_out", 512) | convolution("encoder.conv_out", 512, 2 * 16)
    return layout | group_norm("decoder.norm_out", 128) | convolution("decoder.conv_out", 128, 3)


def on_meta(layout: Layout) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def convert(module: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `from_single_file` makes of a file for this module."""
    converter: Callable[..., dict[str, torch.Tensor]]
    converter = SINGLE_FILE_LOADABLE_CLASSES[type(module).__name__]["checkpoint_mapping_fn"]
    return converter(checkpoint=tensors, config=module.config)


def fits(layout: Layout, module: Any) -> bool:
    """True where a converted file has the module's tensors, each in its shape, and no others."""
    try:
        converted = convert(module, on_meta(layout))
    except (KeyError, RuntimeError):
        return False
    # The VAE's converter gives None for some tensors that are missing.
    if any(tensor is None for tensor in converted.values()):
        return False
    return shapes(converted) == shapes(module.state_dict())


def shapes(tensors: dict[str, torch.Tensor]) -> Layout:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def parameters(layout: Layout) -> int:
    return sum(math.prod(shape) for shape in layout.values())


@pytest.mark.parametrize(
    ("component", "in_channels", "kind"),
    [("transformer-dev", 64, "flux-dev"), ("transformer-depth-dev", 128, "flux-depth")],
)
def test_the_transformer_file_is_the_module(component: str, in_channels: int, kind: str) -> None:
    module, layout = build_on_meta(component), flux_file(in_channels)
    tensors = on_meta(layout)
    assert len(layout) == 780
    assert parameters(layout) == sum(parameter.numel() for parameter in module.parameters())
    assert infer_diffusers_model_type(tensors) == kind
    assert shapes(convert(module, tensors)) == shapes(module.state_dict())
    assert not tensors, "tensors that the converter did not use"


def test_the_vae_file_is_the_module() -> None:
    module, layout = build_on_meta("vae"), vae_file()
    assert len(layout) == len(module.state_dict()) == 244
    assert parameters(layout) == sum(parameter.numel() for parameter in module.parameters())
    assert fits(layout, module)


def test_the_depth_lora_file() -> None:
    layout = lora_file()
    factors = {name: shape for name, shape in layout.items() if ".lora_" in name}
    assert (len(factors), parameters(factors)) == (3 * 314, 622_106_688)
    assert (len(layout), parameters(layout)) == (1094, 622_126_144)


@pytest.mark.parametrize(
    ("layout", "bytes_each", "published"),
    [
        pytest.param(flux_file(64), 2, 23_802_932_552, id="flux1-dev.safetensors"),
        pytest.param(vae_file(), 4, 335_304_388, id="ae.safetensors"),
        pytest.param(lora_file(), 2, 1_244_440_512, id="flux1-depth-dev-lora.safetensors"),
    ],
)
def test_published_files_have_room_for_these_tensors_and_a_header(
    layout: Layout, bytes_each: int, published: int
) -> None:
    """A safetensors header takes about 100 bytes a tensor, and here and there a note about the model."""
    header = published - parameters(layout) * bytes_each
    assert 80 * len(layout) < header < 200 * len(layout)


def test_each_model_refuses_the_other_models_file() -> None:
    dev = build_on_meta("transformer-dev", num_layers=1, num_single_layers=1)
    depth = build_on_meta("transformer-depth-dev", num_layers=1, num_single_layers=1)
    assert fits(flux_file(64, 1, 1), dev)
    assert fits(flux_file(128, 1, 1), depth)
    assert not fits(flux_file(128, 1, 1), dev)
    assert not fits(flux_file(64, 1, 1), depth)
    assert not fits(flux_file(64, 1, 2), dev)
    assert not fits(flux_file(64, 2, 1), dev)


@pytest.mark.parametrize("name", flux_file(128, 1, 1))
def test_one_transformer_tensor_missing_or_of_another_shape(name: str) -> None:
    module, layout = build_on_meta("transformer-depth-dev", num_layers=1, num_single_layers=1), flux_file(128, 1, 1)
    rows, *rest = layout.pop(name)
    assert not fits(layout, module)
    assert not fits(layout | {name: (rows + 1, *rest)}, module)
    assert fits(layout | {name: (rows, *rest)}, module)


def test_one_vae_tensor_missing_or_of_another_shape() -> None:
    """Every fifth, which meets weights and biases in every part; all of them would take seconds."""
    module, whole = build_on_meta("vae"), vae_file()
    for name, (rows, *rest) in list(whole.items())[::5]:
        assert not fits({key: shape for key, shape in whole.items() if key != name}, module), name
        assert not fits(whole | {name: (rows + 1, *rest)}, module), name


def test_joined_tensors_are_cut_and_turned_as_the_original_reads_them() -> None:
    tensors = on_meta(flux_file(64, 1, 1))
    joined = ("double_blocks.0.txt_attn.qkv", "single_blocks.0.linear1", "final_layer.adaLN_modulation.1")
    for name in joined:
        tensors[f"{name}.bias"] = torch.arange(len(tensors[f"{name}.bias"]))
    converted = convert(build_on_meta("transformer-dev", num_layers=1, num_single_layers=1), tensors)
    cuts = {
        "transformer_blocks.0.attn.add_q_proj": (0, 1),
        "transformer_blocks.0.attn.add_k_proj": (1, 2),
        "transformer_blocks.0.attn.add_v_proj": (2, 3),
        "single_transformer_blocks.0.attn.to_q": (0, 1),
        "single_transformer_blocks.0.attn.to_k": (1, 2),
        "single_transformer_blocks.0.attn.to_v": (2, 3),
        "single_transformer_blocks.0.proj_mlp": (3, 7),
    }
    for name, (start, end) in cuts.items():
        assert torch.equal(converted[f"{name}.bias"], torch.arange(start * WIDTH, end * WIDTH))
    # The original's last layer reads shift, then scale; diffusers' reads scale, then shift.
    turned = torch.arange(2 * WIDTH).roll(WIDTH)
    assert torch.equal(converted["norm_out.linear.bias"], turned)
