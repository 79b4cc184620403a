"""The byte counts of the plans against the networks themselves, without memory (meta device)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pipelines.memory import activations
from pipelines.memory.footprint import FULL_SIZE, NF4_BYTES, transformer_size
from pipelines.memory.measure import measure
from pipelines.memory.precision import hold_in
from weights.full_size import build_on_meta
from weights.sources import ModelSources

NAMES = {"flux-dev": "transformer-dev", "flux-depth-dev": "transformer-depth-dev"}


def held_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


@pytest.mark.parametrize("model", NAMES)
def test_full_size_counts_are_those_of_the_network(model: str) -> None:
    network = build_on_meta(NAMES[model])
    shapes = [(name, tuple(value.shape)) for name, value in network.named_parameters()]
    assert transformer_size(shapes) == FULL_SIZE.transformers[model]


@pytest.mark.parametrize("precision", ["full", "fp8", "fp8-all"])
def test_a_transformer_held_in_a_precision_takes_what_the_plan_says(precision: Any) -> None:
    network = build_on_meta("transformer-depth-dev").to(torch.bfloat16)
    hold_in(network, precision)
    said = FULL_SIZE.transformer_bytes(precision)["flux-depth-dev"]
    assert math.isclose(held_bytes(network), said, rel_tol=0.002)


def test_fp8_keeps_the_modulation_and_what_lies_outside_the_blocks() -> None:
    network = build_on_meta("transformer-dev", num_layers=1, num_single_layers=1).to(torch.bfloat16)
    hold_in(network, "fp8")
    kept = {name for name, value in network.named_parameters() if value.ndim == 2 and value.dtype == torch.bfloat16}
    assert all(".norm" in name or not name.startswith(("transformer_", "single_")) for name in kept)
    assert "transformer_blocks.0.norm1.linear.weight" in kept
    assert "single_transformer_blocks.0.proj_out.weight" not in kept


def test_helpers_counts_are_those_of_the_networks() -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, ViTConfig, ViTForImageClassification

    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": 768,
    }
    with torch.device("meta"):
        concepts = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=768))
        detector = ViTForImageClassification(ViTConfig(num_labels=2))
    assert held_bytes(concepts) + held_bytes(detector) == FULL_SIZE.safety_bytes
    assert held_bytes(build_on_meta("depth-anything-large")) == FULL_SIZE.depth_bytes
    text = build_on_meta("t5-xxl"), build_on_meta("clip-l")
    assert sum(map(held_bytes, text)) == 4 * FULL_SIZE.text
    assert held_bytes(build_on_meta("vae")) == 4 * FULL_SIZE.vae


def test_nf4_takes_what_bitsandbytes_makes_of_a_layer() -> None:
    quantise = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional.quantize_4bit
    values, state = quantise(torch.randn(256, 512), quant_type="nf4")
    assert values.nbytes + state.absmax.nbytes == 256 * 512 * NF4_BYTES


class _FlashAttention(TorchFunctionMode):
    """Attention that does not write its matrix out, as on a card."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return func(*args, **(kwargs or {}))


class _LiveBytes(TorchDispatchMode):
    """The most bytes of new tensors that were alive at one time."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {weight.untyped_storage()._cdata: 0 for weight in chain(module.parameters(), module.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        if (key := storage._cdata) in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._seen.pop(key)


def peak_bytes(module: torch.nn.Module, call: Callable[[], Any]) -> int:
    with torch.no_grad(), _FlashAttention(), _LiveBytes(module) as counted:
        call()
    return counted.peak


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 1024), (1440, 1440), (1536, 640)])
def test_decoding_takes_what_the_plan_says(width: int, height: int) -> None:
    vae: Any = build_on_meta("vae").to(torch.bfloat16)
    latents = meta(1, 16, height // 8, width // 8)
    counted = peak_bytes(vae, lambda: vae.decode(latents, return_dict=False))
    print(f"decode {width}x{height}: {counted / 1e6:.0f} MB counted")
    assert math.isclose(counted, activations.decode_bytes(width * height, 2), rel_tol=0.02)
    assert peak_bytes(vae, lambda: vae.encode(meta(1, 3, height, width))) <= counted


@pytest.mark.parametrize("tokens", [1024, 4096, 8100])
def test_a_step_takes_what_the_plan_says(tokens: int) -> None:
    network = build_on_meta("transformer-dev").to(torch.bfloat16)

    def step() -> Any:
        return network(
            hidden_states=meta(1, tokens, 64),
            timestep=meta(1),
            guidance=meta(1, dtype=torch.float32),
            pooled_projections=meta(1, 768),
            encoder_hidden_states=meta(1, 512, 4096),
            txt_ids=meta(512, 3),
            img_ids=meta(tokens, 3),
            return_dict=False,
        )

    counted = peak_bytes(network, step)
    said = activations.denoise_bytes(tokens * activations.TOKEN_PIXELS, 2)
    print(f"step of {tokens} tokens: {counted / 1e6:.0f} MB counted, {said / 1e6:.0f} MB said")
    assert said * 0.95 <= counted <= said


def test_the_other_stages_take_no_more_than_the_plan_says() -> None:
    t5 = build_on_meta("t5-xxl").to(torch.bfloat16)
    assert peak_bytes(t5, lambda: t5(meta(1, 512, dtype=torch.long))) <= activations.TEXT_BYTES
    depth = build_on_meta("depth-anything-large")
    wide = meta(1, 3, 518, 910, dtype=torch.float32)
    assert peak_bytes(depth, lambda: depth(wide)) <= activations.DEPTH_BYTES


def test_folders_are_measured_as_they_are(demo_weights: Path) -> None:
    from diffusers import FluxTransformer2DModel

    models = {"flux-dev": ModelSources.in_folder(demo_weights / "FLUX.1-dev")}
    footprint = measure(models, value_bytes=4, depth_estimator=demo_weights / "depth-anything-large-hf", loras=True)
    network = FluxTransformer2DModel.from_pretrained(demo_weights / "FLUX.1-dev" / "transformer")
    bare = measure(models, value_bytes=4)
    assert bare.transformer_bytes("full")["flux-dev"] == held_bytes(network)
    assert footprint.transformer_bytes("full")["flux-dev"] == held_bytes(network) + footprint.lora_slot_bytes
    assert footprint.depth_bytes > 0
    assert bare.depth_bytes == 0


def test_the_lora_slot_is_counted_as_the_shelf_makes_it(demo_weights: Path, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    from pipelines.lora.shelf import LoraShelf

    models = {"flux-dev": ModelSources.in_folder(demo_weights / "FLUX.1-dev")}
    network = FluxTransformer2DModel.from_pretrained(demo_weights / "FLUX.1-dev" / "transformer")
    shelf = LoraShelf(network, tmp_path, max_bytes=0)
    assert measure(models, value_bytes=4, loras=True).lora_slot_bytes == shelf.slot_bytes
