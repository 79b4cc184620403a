"""Weights in 4 bits: loaded where bitsandbytes is, and else refused with what to install."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.loading import UnusableWeights, load_t5, load_transformer, storage
from pipelines.lora.depth import depth_from_lora
from pipelines.lora.files import UnusableLora
from weights.sources import Source

CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def quantised(folder: Path, source: Path, method: str) -> Path:
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("load", "part"), [(load_transformer, "transformer"), (load_t5, "text_encoder_2")])
def test_without_bitsandbytes_it_is_said_what_to_install(
    load: Callable[..., Any], part: str, demo_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    plain = demo_weights / "FLUX.1-dev" / part
    folder = quantised(tmp_path / "nf4", plain, "bitsandbytes")
    with pytest.raises(UnusableWeights, match=r"pip install 'flux-local-server\[nf4\]'") as refusal:
        load(Source(folder), device=CPU, dtype=torch.float32)
    assert str(refusal.value).startswith(str(folder))
    with pytest.raises(UnusableWeights, match=r"needs bitsandbytes|needs a CUDA card"):
        load(Source(plain), device=CPU, dtype=torch.float32, storage="nf4")


@pytest.mark.parametrize(("load", "part"), [(load_transformer, "transformer"), (load_t5, "text_encoder_2")])
def test_other_quantised_folders_are_refused_by_name(
    load: Callable[..., Any], part: str, demo_weights: Path, tmp_path: Path
) -> None:
    folder = quantised(tmp_path / "x", demo_weights / "FLUX.1-dev" / part, "nunchaku_lite")
    with pytest.raises(UnusableWeights, match=r"quantised by nunchaku_lite") as refusal:
        load(Source(folder), device=CPU, dtype=torch.float32)
    assert str(refusal.value).startswith(str(folder))


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")
def test_a_single_file_is_kept_in_the_4_bits_that_bitsandbytes_makes_of_it(demo_weights: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import quantize_4bit

    folder = demo_weights / "FLUX.1-dev/transformer"
    config = {name: value for name, value in json.loads((folder / "config.json").read_text()).items() if name[0] != "_"}
    (path,) = folder.glob("*.safetensors")
    model = load_transformer(
        Source(path, "safetensors"), device=CPU, dtype=torch.float32, storage="nf4", architecture=config
    )
    tensors = load_file(path)
    for name in ("x_embedder", "transformer_blocks.0.attn.to_q", "proj_out"):
        expected, state = quantize_4bit(tensors[f"{name}.weight"], quant_type="nf4", compress_statistics=False)
        layer = model.get_submodule(name)
        assert torch.equal(layer.weight.data, expected), name
        assert torch.equal(layer.weight.quant_state.absmax, state.absmax), name
        assert torch.equal(layer.bias, tensors[f"{name}.bias"]), name
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    with pytest.raises(UnusableLora, match="quantised flux-dev"):
        depth_from_lora(model, tmp_path / "lora.safetensors")


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")
def test_t5_is_quantised_alike_from_a_folder_and_from_a_file_and_read_back(demo_weights: Path, tmp_path: Path) -> None:
    plain = demo_weights / "FLUX.1-dev/text_encoder_2"
    config = json.loads((plain / "config.json").read_text())
    save_file(load_file(plain / "model.safetensors"), tmp_path / "t5.safetensors")
    single = Source(tmp_path / "t5.safetensors", "safetensors")
    options: dict[str, Any] = {"device": CPU, "dtype": torch.float32}
    first = load_t5(Source(plain), storage="nf4", **options)
    second = load_t5(single, storage="nf4", architecture=config, **options)
    first.save_pretrained(tmp_path / "nf4")
    third = load_t5(Source(tmp_path / "nf4"), **options)
    weights = [model.encoder.block[1].layer[0].SelfAttention.q.weight for model in (first, second, third)]
    assert weights[0].dtype == torch.uint8
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    with pytest.raises(UnusableWeights, match="quantised already"):
        load_t5(Source(tmp_path / "nf4"), storage="nf4", **options)
