"""Components come out of single files with the very values that the file holds, and what cannot be right is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.loading import UnusableWeights, architecture, load_clip, load_t5, load_transformer, load_vae
from pipelines.lora.depth import depth_from_lora
from pipelines.lora.files import UnusableLora
from weights.full_size import COMPONENTS, build_on_meta
from weights.sources import Source

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]

LOADERS: dict[str, Callable[..., Any]] = {
    "transformer": load_transformer,
    "text_encoder": load_clip,
    "text_encoder_2": load_t5,
    "vae": load_vae,
}


def stored(folder: Path) -> Tensors:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def configuration(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def write(path: Path, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> Path:
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def load(part: str, path: Path, folder: Path, *, prefix: str = "", **options: Any) -> Any:
    form = "gguf" if path.suffix == ".gguf" else "safetensors"
    options = {"device": CPU, "dtype": torch.float32, "architecture": configuration(folder), **options}
    return LOADERS[part](Source(path, form, prefix), **options)


def same(model: Any, tensors: Mapping[str, torch.Tensor]) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.fixture(params=LOADERS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(part: str, demo_weights: Path) -> Path:
    return demo_weights / "FLUX.1-dev" / part


@pytest.fixture
def demo_transformer(demo_weights: Path) -> Path:
    return demo_weights / "FLUX.1-dev/transformer"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_gives_what_it_holds(part: str, folder: Path, tmp_path: Path, prefix: str) -> None:
    tensors = stored(folder)
    path = write(tmp_path / "x.safetensors", tensors, prefix)
    model = load(part, path, folder, prefix=prefix)
    assert same(model, tensors)
    assert len(tensors) >= len(dict(model.named_parameters()))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "hf_device_map")


@pytest.mark.parametrize("dtype", [FP8, torch.float16, torch.bfloat16])
def test_narrower_values_are_widened_and_nothing_else(
    part: str, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    narrow = {name: tensor.to(dtype) for name, tensor in stored(folder).items()}
    model = load(part, write(tmp_path / "x.safetensors", narrow), folder)
    assert same(model, {name: tensor.float() for name, tensor in narrow.items()})
    half = load(part, tmp_path / "x.safetensors", folder, dtype=torch.bfloat16)
    assert same(half, {name: tensor.to(torch.bfloat16) for name, tensor in narrow.items()})


def test_all_components_out_of_one_file(demo_weights: Path, tmp_path: Path) -> None:
    prefixes = {
        "transformer": "model.diffusion_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
        "vae": "vae.",
    }
    folders = {part: demo_weights / "FLUX.1-dev" / part for part in prefixes}
    every = {
        prefix + name: tensor for part, prefix in prefixes.items() for name, tensor in stored(folders[part]).items()
    }
    path = write(tmp_path / "all.safetensors", every)
    for part, prefix in prefixes.items():
        assert same(load(part, path, folders[part], prefix=prefix), stored(folders[part])), part


def test_clip_as_published_and_with_the_projection_it_does_not_use(demo_weights: Path, tmp_path: Path) -> None:
    folder = demo_weights / "FLUX.1-dev/text_encoder"
    tensors = stored(folder)
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    extras = {"text_projection.weight": torch.ones(2, 2), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert same(load("text_encoder", write(tmp_path / "x.safetensors", named | extras), folder), tensors)


def test_t5_with_its_tokens_twice(demo_weights: Path, tmp_path: Path) -> None:
    folder = demo_weights / "FLUX.1-dev/text_encoder_2"
    tensors = stored(folder)
    twice = tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}
    assert same(load("text_encoder_2", write(tmp_path / "x.safetensors", twice), folder), tensors)


def original_vae(tensors: Tensors) -> Tensors:
    """black-forest-labs/flux `modules/autoencoder.py`: attention by 1×1 convolutions, up blocks counted from below."""
    rules = [
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{3 - int(found[1])}.block."),
        (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda found: f"up.{3 - int(found[1])}.upsample."),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    original = {}
    for name, tensor in tensors.items():
        renamed = name
        for pattern, replacement in rules:
            renamed = re.sub(pattern, replacement, renamed)
        convolves = ".attn_1." in renamed and tensor.ndim == 2
        original[renamed] = tensor[:, :, None, None] if convolves else tensor
    return original


def test_a_vae_in_the_original_names(demo_weights: Path, tmp_path: Path) -> None:
    folder = demo_weights / "FLUX.1-dev/vae"
    tensors, original = stored(folder), original_vae(stored(folder))
    assert "decoder.up.3.upsample.conv.weight" in original
    assert same(load("vae", write(tmp_path / "ae.safetensors", original), folder), tensors)
    del original["decoder.up.3.upsample.conv.weight"]
    with pytest.raises(UnusableWeights, match=str(tmp_path / "half.safetensors")):
        load("vae", write(tmp_path / "half.safetensors", original), folder)


def stretched(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Matrices as scaled fp8 with ComfyUI's names, and what they stand for."""
    scaled: Tensors = {"scaled_fp8": torch.empty(0, dtype=FP8)}
    meant: Tensors = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        if tensor.ndim != 2 or not name.endswith("weight"):
            scaled[name] = meant[name] = tensor
            continue
        by_row = index % 2 == 0
        scale = (tensor.abs().amax(1, keepdim=True) if by_row else tensor.abs().max()) / 448 + 1e-9
        layer = name.removesuffix(".weight")
        scaled[name] = (tensor / scale).to(FP8)
        scaled[f"{layer}.scale_weight"], scaled[f"{layer}.scale_input"] = scale, torch.ones(())
        meant[name] = scaled[name].float() * scale
    return scaled, meant


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_scaled_fp8_is_multiplied_out(part: str, demo_weights: Path, tmp_path: Path) -> None:
    folder = demo_weights / "FLUX.1-dev" / part
    scaled, meant = stretched(stored(folder))
    assert same(load(part, write(tmp_path / "x.safetensors", scaled), folder), meant)
    newer = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in scaled.items()}
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    newer["proj_out.comfy_quant"] = note
    assert same(load(part, write(tmp_path / "y.safetensors", newer), folder), meant)


@pytest.mark.parametrize(("names", "why"), [
    (["x_embedder.weight.absmax", "x_embedder.weight.quant_state.bitsandbytes__nf4"], "bitsandbytes' nf4"),
    (["transformer_blocks.0.qkv_proj.wscales"], "Nunchaku"),
    (["x_embedder.weight_scale_2"], "NVFP4"),
    (["nothing.scale_weight"], "no nothing.weight"),
    (["x_embedder.comfy_quant"], "not read here"),
    (["x_embedder.lora"], "tensors that this component has not: x_embedder.lora"),
])  # fmt: skip
def test_other_quantisations_and_leftovers_are_refused(
    names: list[str], why: str, demo_transformer: Path, tmp_path: Path
) -> None:
    tensors = stored(demo_transformer) | {name: torch.ones(1) for name in names}
    with pytest.raises(UnusableWeights, match=re.escape(why)) as refusal:
        load("transformer", write(tmp_path / "x.safetensors", tensors), demo_transformer)
    assert str(refusal.value).startswith(str(tmp_path / "x.safetensors"))


def test_weights_in_whole_numbers_are_refused(demo_transformer: Path, tmp_path: Path) -> None:
    tensors = stored(demo_transformer)
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.int8)
    with pytest.raises(UnusableWeights, match=r"whole numbers for weights \(proj_out\.weight\)"):
        load("transformer", write(tmp_path / "x.safetensors", tensors), demo_transformer)


def test_a_missing_tensor_is_refused(part: str, folder: Path, tmp_path: Path) -> None:
    tensors = stored(folder)
    gone = next(name for name in sorted(tensors, reverse=True) if name.endswith("weight") and "shared" not in name)
    del tensors[gone]
    with pytest.raises(UnusableWeights) as refusal:
        load(part, write(tmp_path / "x.safetensors", tensors), folder)
    assert str(refusal.value).startswith(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_file_is_refused(part: str, folder: Path, tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "x.safetensors", stored(folder))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UnusableWeights, match=r"truncated; fetch it again") as refusal:
        load(part, path, folder)
    assert str(refusal.value).startswith(str(path))


@pytest.mark.parametrize(("channels", "guided", "why"), [
    (384, True, "FLUX.1-Fill"),
    (64, False, "FLUX.1-schnell"),
    (32, True, "another model"),
])  # fmt: skip
def test_relatives_of_the_models_are_refused(channels: int, guided: bool, why: str, tmp_path: Path) -> None:
    tensors = {"img_in.weight": torch.zeros(4, channels)}
    tensors |= {"guidance_in.in_layer.weight": torch.zeros(1)} if guided else {}
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UnusableWeights, match=why):
        load_transformer(Source(path, "safetensors"), device=CPU, dtype=torch.float32)


def test_another_width_is_refused(demo_transformer: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", stored(demo_transformer))
    with pytest.raises(UnusableWeights, match="lacks") as refusal:
        load_transformer(Source(path, "safetensors"), device=CPU, dtype=torch.float32)
    assert str(path) in str(refusal.value)


def test_the_configurations_are_the_published_ones(tmp_path: Path) -> None:
    assert architecture.published("vae") == COMPONENTS["vae"].config
    with architecture.as_folder("AutoencoderKL", architecture.published("vae")) as folder:
        written = json.loads((Path(folder) / "config.json").read_text())
    assert written["block_out_channels"] == [128, 256, 512, 512]
    assert not Path(folder).exists()


def write_gguf(path: Path, tensors: Tensors, kind: str) -> Path:
    """Matrices in the named type where it goes into them, everything else in float32."""
    writer = gguf.GGUFWriter(str(path), "flux")
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        fits = tensor.ndim == 2 and tensor.shape[-1] % 32 == 0
        into = quantised if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), into), raw_dtype=into)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """What becomes of the values in such a file, by the gguf package's own arithmetic; within the format's step."""
    into = gguf.GGMLQuantizationType[kind]
    if tensor.ndim != 2 or tensor.shape[-1] % 32:
        return tensor.float()
    there = gguf.quants.quantize(tensor.float().numpy(), into)
    back = torch.from_numpy(gguf.quants.dequantize(there, into)).reshape(tensor.shape)
    largest = tensor.float().reshape(-1, 32).abs().amax(1, keepdim=True)
    step = {"Q8_0": largest / 127, "F16": largest / 1024}[kind]
    assert ((back - tensor).reshape(-1, 32).abs() <= 0.6 * step + 1e-7).all()
    # diffusers multiplies a block's scale, which is in float16, without widening it first.
    return back.half().float()


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_gguf_file_computes_with_its_rounded_values(kind: str, demo_transformer: Path, tmp_path: Path) -> None:
    tensors = stored(demo_transformer)
    path = write_gguf(tmp_path / f"{kind}.gguf", tensors, kind)
    model = load("transformer", path, demo_transformer)
    plain = load_transformer(Source(demo_transformer), device=CPU, dtype=torch.float32)
    plain.load_state_dict({name: rounded(tensor, kind) for name, tensor in tensors.items()})
    inputs = {
        "hidden_states": torch.randn(1, 16, 64, generator=torch.manual_seed(1)),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).sample, plain(**inputs).sample, atol=1e-4, rtol=1e-3)
    assert model.dtype == torch.float32 or kind == "Q8_0"
    model.to(CPU)


def test_a_gguf_file_makes_no_depth_model(demo_transformer: Path, tmp_path: Path) -> None:
    model = load("transformer", write_gguf(tmp_path / "x.gguf", stored(demo_transformer), "Q8_0"), demo_transformer)
    with pytest.raises(UnusableLora, match="quantised flux-dev"):
        depth_from_lora(model, tmp_path / "lora.safetensors")


def test_a_gguf_file_of_another_kind_is_refused(demo_transformer: Path, tmp_path: Path) -> None:
    tensors = stored(demo_transformer)
    extra = write_gguf(tmp_path / "extra.gguf", tensors | {"more.weight": torch.ones(32, 32)}, "F16")
    with pytest.raises(UnusableWeights, match=r"more\.weight"):
        load("transformer", extra, demo_transformer)
    del tensors["proj_out.bias"]
    with pytest.raises(UnusableWeights, match=r"proj_out\.bias"):
        load("transformer", write_gguf(tmp_path / "less.gguf", tensors, "F16"), demo_transformer)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(extra.read_bytes()[:-1000])
    with pytest.raises(UnusableWeights, match="truncated"):
        load("transformer", cut, demo_transformer)
    with pytest.raises(UnusableWeights, match="T5 is not loaded from GGUF"):
        load_t5(Source(extra, "gguf"), device=CPU, dtype=torch.float32)


def test_what_is_quantised_already_is_not_quantised_again(demo_transformer: Path, tmp_path: Path) -> None:
    gguf_file = write_gguf(tmp_path / "x.gguf", stored(demo_transformer), "F16")
    with pytest.raises(UnusableWeights, match="quantised already"):
        load("transformer", gguf_file, demo_transformer, storage="nf4")


def original_flux(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """A transformer in the names of black-forest-labs/flux `model.py` and `modules/layers.py`: joined projections, and
    the last modulation as shift, then scale."""
    outer = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "proj_out": "final_layer.linear",
    }
    double = {
        ("norm1.linear",): "img_mod.lin",
        ("norm1_context.linear",): "txt_mod.lin",
        ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
        ("attn.to_out.0",): "img_attn.proj",
        ("attn.to_add_out",): "txt_attn.proj",
        ("ff.net.0.proj",): "img_mlp.0",
        ("ff.net.2",): "img_mlp.2",
        ("ff_context.net.0.proj",): "txt_mlp.0",
        ("ff_context.net.2",): "txt_mlp.2",
    }
    single = {
        ("norm.linear",): "modulation.lin",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
        ("proj_out",): "linear2",
    }
    norms = {
        "transformer_blocks.0.attn.norm_q": "double_blocks.0.img_attn.norm.query_norm",
        "transformer_blocks.0.attn.norm_k": "double_blocks.0.img_attn.norm.key_norm",
        "transformer_blocks.0.attn.norm_added_q": "double_blocks.0.txt_attn.norm.query_norm",
        "transformer_blocks.0.attn.norm_added_k": "double_blocks.0.txt_attn.norm.key_norm",
        "single_transformer_blocks.0.attn.norm_q": "single_blocks.0.norm.query_norm",
        "single_transformer_blocks.0.attn.norm_k": "single_blocks.0.norm.key_norm",
    }
    joined = {(name,): original for name, original in outer.items()}
    for blocks, theirs, table in (
        ("transformer_blocks.0", "double_blocks.0", double),
        ("single_transformer_blocks.0", "single_blocks.0", single),
    ):
        joined |= {tuple(f"{blocks}.{name}" for name in names): f"{theirs}.{to}" for names, to in table.items()}
    original = {f"{to}.scale": tensors[f"{name}.weight"] for name, to in norms.items()}
    for kind in ("weight", "bias"):
        for names, to in joined.items():
            original[f"{to}.{kind}"] = torch.cat([tensors[f"{name}.{kind}"] for name in names])
        scale, shift = tensors[f"norm_out.linear.{kind}"].chunk(2)
        original[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    return original


NARROW = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 32, "pooled_projection_dim": 32}
"""One block of each kind in the full width, which diffusers' converter is written for: half a billion values."""


def full_width(numbers: torch.Tensor) -> Tensors:
    """Its tensors by diffusers' names, filled with the numbers, each from another one on; quickly."""
    shapes = {name: tensor.shape for name, tensor in build_on_meta("transformer-dev", **NARROW).state_dict().items()}
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        turned = torch.cat([numbers[index:], numbers[:index]])
        tensors[name] = turned.repeat(shape.numel() // len(numbers) + 1)[: shape.numel()].reshape(shape)
    return tensors


def some_numbers() -> torch.Tensor:
    return torch.randn(1_000_003, generator=torch.manual_seed(0)).mul(0.02)


def test_a_file_in_black_forest_labs_names(tmp_path: Path) -> None:
    """fp8, under ComfyUI's prefix."""
    numbers = some_numbers().to(FP8)
    original = original_flux(full_width(numbers))
    path = write(tmp_path / "flux1-dev-fp8.safetensors", original, "model.diffusion_model.")
    narrow = {**COMPONENTS["transformer-dev"].config, **NARROW}
    source = Source(path, "safetensors", "model.diffusion_model.")
    model = load_transformer(source, device=CPU, dtype=torch.bfloat16, architecture=narrow)
    path.unlink()
    expected = full_width(numbers.to(torch.bfloat16))
    assert same(model, expected)
    assert len(model.state_dict()) == len(expected)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["bf16", "fp32", "F16", "Q8_0"])
def test_every_format_in_black_forest_labs_names(tmp_path: Path, kind: str) -> None:
    tensors = full_width(some_numbers().to(torch.float32 if kind == "fp32" else torch.bfloat16))
    narrow = {**COMPONENTS["transformer-dev"].config, **NARROW}
    original = original_flux(tensors)
    if kind in ("bf16", "fp32"):
        source = Source(write(tmp_path / "x.safetensors", original), "safetensors")
        model = load_transformer(source, device=CPU, dtype=torch.float32, architecture=narrow)
        assert same(model, {name: tensor.float() for name, tensor in tensors.items()})
        source.path.unlink()
        return
    source = Source(write_gguf(tmp_path / "x.gguf", original, kind), "gguf")
    model = load_transformer(source, device=CPU, dtype=torch.float32, architecture=narrow)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            values = weight if kind == "F16" else dequantise(weight)
            expected = rounded(tensors[f"{name}.weight"].float(), kind)
            torch.testing.assert_close(values.float().reshape(expected.shape), expected, atol=1e-5, rtol=1e-3)
    source.path.unlink()


def dequantise(weight: Any) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return torch.as_tensor(dequantize_gguf_tensor(weight)) if hasattr(weight, "quant_type") else weight
