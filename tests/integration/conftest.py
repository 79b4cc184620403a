"""Small weights of every layout, a small catalogue of them, and the `flux-server weights` command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

Files = dict[str, bytes]


@pytest.fixture
def weights_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Runs `flux-server weights` in this process, in `tmp_path` and without a terminal."""
    from server.cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUX_WEIGHTS_DIR", raising=False)

    def run(*arguments: object, **settings: str) -> SimpleNamespace:
        done = CliRunner().invoke(cli, ["weights", *map(str, arguments)], env={"COLUMNS": "200", **settings})
        return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)

    return run


def safetensors(tensors: dict[str, tuple[str, tuple[int, ...]]], fill: bytes = b"\1") -> bytes:
    """A valid file with these tensors, dtype and shape by name; every byte of their values is `fill`."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4}
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = sizes[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + fill * end


def flux_files(*, in_channels: int = 64, shard_bytes: int = 1000, seed: int = 1) -> Files:
    """A repository as Black Forest Labs publish them: diffusers' layout in shards, and the single files beside it."""
    stem = "transformer/diffusion_pytorch_model"
    shards = {f"{stem}-0000{i}-of-00002.safetensors": _bytes(shard_bytes, 10 * seed + i) for i in (1, 2)}
    index = {"metadata": {}, "weight_map": {f"layer.{i}": Path(name).name for i, name in enumerate(shards)}}
    texts = {
        "model_index.json": {"_class_name": "FluxPipeline"},
        "scheduler/scheduler_config.json": {"shift": 3.0},
        "text_encoder/config.json": {"hidden_size": 768},
        "text_encoder_2/config.json": {"d_model": 4096},
        "tokenizer/tokenizer_config.json": {},
        "tokenizer/vocab.json": {"a": 0},
        "tokenizer_2/tokenizer_config.json": {},
        "tokenizer_2/tokenizer.json": {"model": {}},
        "transformer/config.json": {"in_channels": in_channels, "guidance_embeds": True},
        f"{stem}.safetensors.index.json": index,
        "vae/config.json": {"latent_channels": 16},
    }
    return {
        **{path: json.dumps(content).encode() for path, content in texts.items()},
        **shards,
        "text_encoder/model.safetensors": _bytes(2000, 1),
        "text_encoder_2/model.safetensors": _bytes(5000, 2),
        "vae/diffusion_pytorch_model.safetensors": _bytes(3000, 3),
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "tokenizer_2/spiece.model": b"pieces",
        "README.md": b"# FLUX",
        ".gitattributes": b"*.safetensors filter=lfs",
        "flux1-dev.safetensors": _bytes(9000, 4),
        "ae.safetensors": _bytes(900, 5),
        "dev_grid.jpg": b"\xff\xd8",
        "transformer/old.bin": b"\x80\x04.",
    }


def helper_files(content: int = 7) -> Files:
    return {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "model.safetensors": _bytes(700, content),
        "pytorch_model.bin": b"\x80\x04.",
    }


def _bytes(size: int, fill: int) -> bytes:
    """A safetensors file with one tensor of so many bytes, different for each fill."""
    return safetensors({"tensor": ("U8", (size,))}, bytes([fill % 256]))


CATALOGUE = """
[sets]
standard = ["flux-dev", "flux-depth-dev"]
[licences.strict]
name = "Strict License"
page = "https://example.org/strict"
ask = true
[licences.easy]
name = "Easy License"
page = "https://example.org/easy"
ask = false
[parts.t5-xxl]
of = "flux-dev"
folders = ["text_encoder_2", "tokenizer_2"]
files = [{ path = "text_encoder_2/model.safetensors", about_bytes = 5000 }]
[models.flux-dev]
title = "dev"
aliases = ["dev"]
repository = "black-forest-labs/FLUX.1-dev"
licence = "strict"
gated = true
layout = "flux"
in_channels = 64
parts = ["t5-xxl"]
files = [{ path = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors", about_bytes = 1000 }]
[models.flux-depth-dev]
title = "depth"
repository = "black-forest-labs/FLUX.1-Depth-dev"
licence = "strict"
gated = true
layout = "flux"
in_channels = 128
parts = ["t5-xxl"]
files = [{ path = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors", about_bytes = 1000 }]
[models.flux-depth-lora]
title = "lora"
repository = "black-forest-labs/FLUX.1-Depth-dev-lora"
licence = "strict"
layout = "files"
files = [{ path = "flux1-depth-dev-lora.safetensors" }]
[models.estimator]
title = "estimator"
repository = "someone/estimator-hf"
licence = "easy"
layout = "transformers"
[models.known]
title = "one file, known by hash"
repository = "someone/annotators"
licence = "easy"
layout = "files"
files = [{ path = "known.pt", sha256 = "KNOWN" }]
[models.unknown]
title = "one file, not known by hash"
repository = "someone/annotators"
licence = "easy"
layout = "files"
files = [{ path = "unknown.pt" }]
"""

KNOWN_PICKLE = b"\x80\x04known."


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A small catalogue under the real models' names."""
    path = tmp_path / "catalogue.toml"
    path.write_text(CATALOGUE.replace("KNOWN", hashlib.sha256(KNOWN_PICKLE).hexdigest()))
    return path


@pytest.fixture(scope="session")
def samples() -> SimpleNamespace:
    """Makers of small files: `safetensors`, `flux_files`, `helper_files`, and `write`, which puts them on disk."""
    return SimpleNamespace(
        safetensors=safetensors,
        flux_files=flux_files,
        helper_files=helper_files,
        write=write,
        known_pickle=KNOWN_PICKLE,
    )


def write(folder: Path, files: Files) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory, demo_weights: Path) -> Path:
    """A folder with one LoRA for both demo transformers, in diffusers' names."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    network = FluxTransformer2DModel.from_pretrained(demo_weights / "FLUX.1-dev" / "transformer")
    draw_from = torch.Generator().manual_seed(0)
    state = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn.to_q" in name:
            state[f"transformer.{name}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=draw_from)
            state[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=draw_from)
    folder = tmp_path_factory.mktemp("loras")
    save_file(state, folder / "style.safetensors")
    return folder
