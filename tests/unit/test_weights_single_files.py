"""A model is put together from single files and parts of other folders, and what is missing is said one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weights.locate import Located, locate
from weights.single_files.loadable import GGUF_TYPES
from weights.sources import ModelSources, Source

REPOSITORIES = {"flux-dev": "black-forest-labs/FLUX.1-dev", "flux-depth-dev": "black-forest-labs/FLUX.1-Depth-dev"}
IN_CHANNELS = {"flux-dev": 64, "flux-depth-dev": 128}
Shapes = dict[str, tuple[str, tuple[int, ...]]]

T5: Shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": ("F16", (2, 4096))}
CLIP: Shapes = {"text_model.encoder.layers.0.self_attn.q_proj.weight": ("F16", (2, 768))}
VAE: Shapes = {"encoder.down.0.block.0.conv1.weight": ("F32", (2,)), "decoder.conv_in.weight": ("F32", (2, 16, 1, 1))}


def transformer(channels: int, dtype: str = "BF16") -> Shapes:
    return {
        "img_in.weight": (dtype, (3072, channels)),
        "double_blocks.0.img_attn.qkv.weight": (dtype, (6, 2)),
        "guidance_in.in_layer.weight": (dtype, (2, 2)),
        **{f"double_blocks.{index}.img_attn.proj.bias": (dtype, (2,)) for index in range(19)},
        **{f"single_blocks.{index}.linear1.bias": (dtype, (2,)) for index in range(38)},
    }


def write(path: Path, tensors: Shapes, prefix: str = "") -> Path:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}[dtype]
        for side in shape:
            size *= side
        header[prefix + name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path


def tokenizers(root: Path) -> tuple[Path, Path]:
    """As `weights pull tokenizers` leaves them."""
    t5, clip = root / "t5-v1_1-xxl", root / "clip-vit-large-patch14"
    for folder, names in ((t5, ["spiece.model"]), (clip, ["vocab.json", "merges.txt"])):
        folder.mkdir(parents=True)
        for name in ("tokenizer_config.json", *names):
            (folder / name).write_text("{}")
    return t5, clip


def diffusers_folder(folder: Path, *without: str, channels: int = 64, quantised: bool = False) -> Path:
    config = {"in_channels": channels} | (
        {"quantization_config": {"quant_method": "bitsandbytes"}} if quantised else {}
    )
    files = {
        "model_index.json": {},
        "scheduler/scheduler_config.json": {},
        "tokenizer/tokenizer_config.json": {},
        "tokenizer/tokenizer.json": {},
        "tokenizer_2/tokenizer_config.json": {},
        "tokenizer_2/tokenizer.json": {},
        "transformer/config.json": config,
    }
    files |= {f"{part}/config.json": {} for part in ("text_encoder", "text_encoder_2", "vae")}
    files |= {f"{part}/diffusion_pytorch_model.safetensors": {} for part in ("transformer", "vae")}
    files |= {f"{part}/model.safetensors": {} for part in ("text_encoder", "text_encoder_2")}
    for name, content in files.items():
        if name.split("/")[0] not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content))
    return folder


def look(root: Path) -> Located:
    return locate(root, REPOSITORIES, IN_CHANNELS)


def problems(root: Path, model: str = "flux-dev") -> list[str]:
    found = look(root)
    assert model not in found.models
    return [problem.removeprefix(f"{model}: ") for problem in found.problems if problem.startswith(f"{model}: ")]


def single(path: Path, prefix: str = "") -> Source:
    return Source(path, "gguf" if path.suffix == ".gguf" else "safetensors", prefix)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """As `weights import` links them."""
    imported = tmp_path / "imported"
    return {
        "transformer": write(imported / "transformer/flux1-dev.safetensors", transformer(64)),
        "t5": write(imported / "text-encoder/t5xxl_fp16.safetensors", T5),
        "clip": write(imported / "text-encoder/clip_l.safetensors", CLIP),
        "vae": write(imported / "vae/ae.safetensors", VAE),
    }


def test_single_files_and_tokenizers_make_a_model(tmp_path: Path, files: dict[str, Path]) -> None:
    t5, clip = tokenizers(tmp_path)
    found = look(tmp_path)
    assert found.models == {
        "flux-dev": ModelSources(
            **{name: single(path) for name, path in files.items()}, t5_tokenizer=t5, clip_tokenizer=clip
        )
    }
    assert found.models["flux-dev"].home == files["transformer"]
    assert not any(problem.startswith("flux-dev") for problem in found.problems)


@pytest.mark.parametrize(("part", "word", "command"), [
    ("t5", "T5-XXL text encoder", "pull text-encoders"),
    ("clip", "CLIP-L text encoder", "pull text-encoders"),
    ("vae", "VAE", "weights import"),
])  # fmt: skip
def test_each_missing_part_is_said_with_its_command(
    part: str, word: str, command: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    tokenizers(tmp_path)
    files[part].unlink()
    (problem,) = problems(tmp_path)
    assert f"its transformer is {files['transformer']}, but the {word} is missing" in problem
    assert f"flux-server weights {command.removeprefix('weights ')}" in problem


def test_missing_tokenizers_are_said_with_their_command(tmp_path: Path, files: dict[str, Path]) -> None:
    said = problems(tmp_path)
    assert len(said) == 2
    assert all(text.endswith("is missing. Run: flux-server weights pull tokenizers") for text in said)


def test_a_model_folder_wins_over_single_files(tmp_path: Path, files: dict[str, Path]) -> None:
    folder = diffusers_folder(tmp_path / "FLUX.1-dev")
    assert look(tmp_path).models == {"flux-dev": ModelSources.in_folder(folder)}


def test_shared_parts_come_from_the_other_models_folder(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "FLUX.1-dev")
    path = write(tmp_path / "imported/transformer/depth.safetensors", transformer(128))
    found = look(tmp_path)
    assert found.models["flux-depth-dev"] == ModelSources(
        transformer=single(path),
        t5=Source(folder / "text_encoder_2"),
        clip=Source(folder / "text_encoder"),
        vae=Source(folder / "vae"),
        t5_tokenizer=folder / "tokenizer_2",
        clip_tokenizer=folder / "tokenizer",
    )


def test_parts_of_an_incomplete_folder_are_used(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "FLUX.1-dev", "transformer")
    path = write(tmp_path / "FLUX.1-dev/flux1-dev.safetensors", transformer(64))
    sources = look(tmp_path).models["flux-dev"]
    assert (sources.transformer, sources.vae) == (single(path), Source(folder / "vae"))


def test_everything_in_one_file(tmp_path: Path) -> None:
    tokenizers(tmp_path)
    prefixes = {
        "transformer": "model.diffusion_model.",
        "t5": "text_encoders.t5xxl.transformer.",
        "clip": "text_encoders.clip_l.transformer.",
        "vae": "vae.",
    }
    parts = {"transformer": transformer(64, "F8_E4M3"), "t5": T5, "clip": CLIP, "vae": VAE}
    every = {prefixes[part] + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    path = write(tmp_path / "flux1-dev-fp8.safetensors", every)
    sources = look(tmp_path).models["flux-dev"]
    assert {part: getattr(sources, part) for part in prefixes} == {
        part: single(path, prefix) for part, prefix in prefixes.items()
    }


def test_of_several_files_the_most_precise_counts(tmp_path: Path, files: dict[str, Path]) -> None:
    tokenizers(tmp_path)
    write(tmp_path / "imported/transformer/a-fp8.safetensors", transformer(64, "F8_E4M3"))
    assert look(tmp_path).models["flux-dev"].transformer == single(files["transformer"])
    files["transformer"].unlink()
    assert look(tmp_path).models["flux-dev"].transformer.path.name == "a-fp8.safetensors"


def test_a_quantised_folder_without_the_shared_parts_takes_them_elsewhere(tmp_path: Path) -> None:
    dev = diffusers_folder(tmp_path / "FLUX.1-dev")
    nf4 = diffusers_folder(
        tmp_path / "FLUX.1-Depth-dev", "vae", "text_encoder", "tokenizer", "tokenizer_2", channels=128, quantised=True
    )
    (nf4 / "model_index.json").unlink()
    sources = look(tmp_path).models["flux-depth-dev"]
    assert sources.transformer == Source(nf4 / "transformer")
    assert (sources.t5, sources.vae) == (Source(dev / "text_encoder_2"), Source(dev / "vae"))


@pytest.mark.parametrize("channels", [128, 384])
def test_another_models_transformer_is_not_taken(channels: int, tmp_path: Path, files: dict[str, Path]) -> None:
    tokenizers(tmp_path)
    write(files["transformer"], transformer(channels))
    assert problems(tmp_path)[0].startswith("not found")


def test_a_truncated_file_is_not_taken(tmp_path: Path, files: dict[str, Path]) -> None:
    tokenizers(tmp_path)
    files["t5"].write_bytes(files["t5"].read_bytes()[:-1])
    (problem,) = problems(tmp_path)
    assert "the T5-XXL text encoder is missing" in problem
    (why,) = (text for text in look(tmp_path).problems if text.startswith("single file"))
    assert str(files["t5"]) in why
    assert "truncated" in why


def test_why_a_file_does_not_help_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "imported/transformer/fill.safetensors", transformer(384))
    write(tmp_path / "imported/other/unet.safetensors", {"down_blocks.0.weight": ("F16", (1,))})
    assert [text for text in look(tmp_path).problems if text.startswith("single file")] == [
        f"single file {path} is not used: it is not one of the models that this server runs"
    ]


def test_the_depth_lora_is_found_where_it_is_pulled_to(tmp_path: Path) -> None:
    assert look(tmp_path).depth_lora is None
    path = tmp_path / "FLUX.1-Depth-dev-lora/flux1-depth-dev-lora.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert look(tmp_path).depth_lora == path


def test_gguf_types_are_those_that_diffusers_computes_with() -> None:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    assert {"F32", "F16"} | {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES} == GGUF_TYPES
