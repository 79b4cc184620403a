"""What people already have is recognised by what is in it, linked, and told with whether it can be loaded."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weights.catalogue import Catalogue, read_catalogue
from weights.headers import Broken, read_gguf
from weights.importing import Found, Linked, folders, linked_single_files, recognise, take_in
from weights.locate import locate
from weights.receipt import read_receipt
from weights.sources import ModelSources
from weights.verify import verify

T5 = "text_encoder_2/model.safetensors"
Shapes = dict[str, tuple[str, tuple[int, ...]]]

BLOCK = "double_blocks.0.img_attn.qkv.weight"
BFL: Shapes = {
    BLOCK: ("BF16", (6, 2)),
    **{f"double_blocks.{index}.img_attn.proj.bias": ("F32", (2,)) for index in range(19)},
    **{f"single_blocks.{index}.linear1.bias": ("F32", (2,)) for index in range(38)},
}
GUIDANCE: Shapes = {"guidance_in.in_layer.weight": ("BF16", (2, 2))}
VAE: Shapes = {"encoder.down.0.block.0.conv1.weight": ("F32", (2,)), "decoder.conv_in.weight": ("F32", (2, 16, 1, 1))}

T5_NAMES: Shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": ("F16", (2, 4096))}
CLIP_NAMES: Shapes = {"text_model.encoder.layers.0.self_attn.q_proj.weight": ("F16", (2, 768))}


def image_input(channels: int, dtype: str = "BF16") -> Shapes:
    return {"img_in.weight": (dtype, (3072, channels))}


def prefixed(tensors: Shapes, prefix: str = "model.diffusion_model.") -> Shapes:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def with_dtype(tensors: Shapes, dtype: str) -> Shapes:
    return {name: (dtype, shape) for name, (_, shape) in tensors.items()}


DEV, DEPTH = BFL | GUIDANCE | image_input(64), BFL | GUIDANCE | image_input(128)

SINGLE_FILES: dict[str, tuple[Shapes, str, str | None, str]] = {
    "bfl-dev": (DEV, "FLUX.1 [dev] transformer", "flux-dev", "bf16"),
    "bfl-depth": (DEPTH, "FLUX.1 Depth [dev] (Canny looks the same) transformer", "flux-depth-dev", "bf16"),
    "bfl-schnell": (BFL | image_input(64), "FLUX.1 [schnell] transformer", None, "bf16"),
    "bfl-fill": (BFL | GUIDANCE | image_input(384), "FLUX.1 Fill [dev] transformer", None, "bf16"),
    "comfyui-fp8": (prefixed(with_dtype(DEV, "F8_E4M3")), "FLUX.1 [dev] transformer", "flux-dev", "fp8 (e4m3)"),
    "comfyui-all-in-one": (
        prefixed(DEV)
        | prefixed(VAE, "vae.")
        | prefixed(T5_NAMES, "text_encoders.t5xxl.transformer.")
        | prefixed(CLIP_NAMES, "text_encoders.clip_l.transformer."),
        "FLUX.1 [dev] transformer with text encoders and VAE in one file",
        "flux-dev",
        "bf16",
    ),
    "nf4": (
        BFL | {"img_in.weight": ("U8", (40, 1)), f"{BLOCK}.quant_state.bitsandbytes__nf4": ("U8", (4,))},
        "FLUX.1 of a kind that its header does not tell transformer",
        None,
        "nf4 (bitsandbytes)",
    ),
    "nunchaku": (
        {"transformer_blocks.0.qkv.qweight": ("I8", (4, 4)), "transformer_blocks.0.qkv.wscales": ("F16", (1,))},
        "FLUX.1 transformer of Nunchaku (SVDQuant)",
        None,
        "int4 or fp4 (SVDQuant)",
    ),
    "diffusers-file": (
        {
            "transformer_blocks.0.attn.to_q.weight": ("BF16", (2, 2)),
            "x_embedder.weight": ("BF16", (3072, 64)),
            **{f"transformer_blocks.{index}.ff.net.2.bias": ("BF16", (2,)) for index in range(19)},
            **{f"single_transformer_blocks.{index}.proj_out.bias": ("BF16", (2,)) for index in range(38)},
            "time_text_embed.guidance_embedder.linear_1.weight": ("BF16", (2, 2)),
        },
        "FLUX.1 [dev] transformer",
        "flux-dev",
        "bf16",
    ),
    "ae": (VAE, "VAE of FLUX.1, original names", "flux-dev", "fp32"),
    "vae-of-another": (VAE | {"decoder.conv_in.weight": ("F32", (2, 4, 1, 1))}, "VAE of another model", None, "fp32"),
    "t5xxl": (
        {"encoder.block.0.layer.0.SelfAttention.q.weight": ("F16", (2, 4096))},
        "T5-XXL text encoder",
        "flux-dev",
        "fp16",
    ),
    "clip_l": (
        {"text_model.encoder.layers.0.self_attn.q_proj.weight": ("F16", (2, 768))},
        "CLIP-L text encoder",
        "flux-dev",
        "fp16",
    ),
}  # fmt: skip


WHY_NOT = {
    "bfl-schnell": "not one of the models",
    "bfl-fill": "not one of the models",
    "vae-of-another": "not one of the models",
    "nf4": "bitsandbytes' nf4 in one file is not loaded",
    "nunchaku": "Nunchaku's SVDQuant in one file is not loaded",
}
"""All others can be loaded."""

PARTS: dict[str, dict[str, str]] = {
    "comfyui-fp8": {"transformer": "model.diffusion_model."},
    "comfyui-all-in-one": {
        "transformer": "model.diffusion_model.",
        "t5": "text_encoders.t5xxl.transformer.",
        "clip": "text_encoders.clip_l.transformer.",
        "vae": "vae.",
    },
    "ae": {"vae": ""},
    "t5xxl": {"t5": ""},
    "clip_l": {"clip": ""},
}


@pytest.fixture
def known(table: Path) -> Catalogue:
    return read_catalogue(table)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    return folder


def only(path: Path, known: Catalogue) -> Found:
    (found,) = recognise(path, known)
    return found


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_a_single_file_is_told_by_its_tensors_and_linked(
    name: str, samples: Any, theirs: Path, root: Path, known: Catalogue
) -> None:
    tensors, what, model, precision = SINGLE_FILES[name]
    path = theirs / f"any name.{'sft' if name == 'ae' else 'safetensors'}"
    path.write_bytes(samples.safetensors(tensors))
    found = only(path, known)
    assert (found.what, found.model, found.precision) == (what, model, precision)
    assert found.loadable == (name not in WHY_NOT)
    assert WHY_NOT.get(name, "") in found.why_not
    assert bool(found.why_not) != found.loadable
    assert found.parts == PARTS.get(name, {"transformer": ""} if found.loadable else {})
    linked = take_in(root, known, found)
    assert linked.target == root / "imported" / found.component / path.name
    assert linked.target.is_symlink()
    assert linked.target.samefile(path)
    (again,) = linked_single_files(root)
    assert (again.what, again.path) == (what, linked.target)
    assert take_in(root, known, found).target == linked.target


def gguf(tensors: dict[str, tuple[int, tuple[int, ...]]], data: int | None = None) -> bytes:
    """A GGUF file of version 3: tensor type and shape by name, and `data` bytes of values (all of them by default)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    sizes = {0: (1, 4), 8: (32, 34), 30: (1, 2)}
    pairs = text("general.architecture") + struct.pack("<I", 8) + text("flux")
    pairs += text("general.tags") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    pairs += text("general.file_type") + struct.pack("<II", 4, 7) + text("x.scale") + struct.pack("<If", 6, 0.5)
    infos, offset = b"", 0
    for name, (kind, shape) in tensors.items():
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        infos += struct.pack("<IQ", kind, offset)
        values, size = sizes[kind]
        count = 1
        for side in shape:
            count *= side
        offset += -(-(count // values * size) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4) + pairs + infos
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (offset if data is None else data)


def gguf_dev(channels: int = 64) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {
        BLOCK: (8, (64, 32)),
        **{name: (0, (2,)) for name in BFL if name != BLOCK},
        "img_in.weight": (30, (3072, channels)),
        "guidance_in.in_layer.weight": (0, (2, 2)),
    }


@pytest.mark.parametrize(("channels", "model"), [(64, "flux-dev"), (128, "flux-depth-dev")])
def test_gguf_files_are_told_by_their_tensors(
    channels: int, model: str, theirs: Path, root: Path, known: Catalogue
) -> None:
    path = theirs / "flux-Q8_0.gguf"
    path.write_bytes(gguf(gguf_dev(channels)))
    found = only(path, known)
    assert (found.form, found.model, found.component) == ("GGUF file", model, "transformer")
    assert (found.loadable, found.parts) == (True, {"transformer": ""})
    assert take_in(root, known, found).target == root / "imported/transformer/flux-Q8_0.gguf"
    assert read_gguf(path).metadata["general.architecture"] == "flux"


@pytest.mark.parametrize("cut", [3, 20, 60, 200, -17, -2000])
def test_a_truncated_gguf_file_is_found(cut: int, tmp_path: Path, known: Catalogue) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(gguf_dev())[:cut])
    with pytest.raises(Broken):
        read_gguf(path)
    found = only(path, known)
    assert (found.form, found.loadable) == ("damaged file", False)


def test_pickles_and_unknown_files_are_not_linked(theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    (theirs / "model.ckpt").write_bytes(b"\x80\x04.")
    (theirs / "unet.safetensors").write_bytes(samples.safetensors({"down_blocks.0.weight": ("F16", (1,))}))
    (theirs / "half.safetensors").write_bytes(samples.safetensors({"down_blocks.0.weight": ("F16", (9,))})[:-1])
    (theirs / "notes.txt").write_text("mine")
    found = {item.path.name: item for item in recognise(theirs, known)}
    assert set(found) == {"model.ckpt", "unet.safetensors", "half.safetensors"}
    assert "a pickle can run code" in found["model.ckpt"].why_not
    assert "not those of a FLUX.1 component" in found["unet.safetensors"].why_not
    assert "truncated" in found["half.safetensors"].why_not
    assert [take_in(root, known, item).target for item in found.values()] == [None] * 3
    assert only(theirs / "notes.txt", known).why_not == "it is no weights file"
    assert not root.exists()


def test_the_depth_lora_is_linked_where_it_is_loaded_from(
    theirs: Path, root: Path, known: Catalogue, samples: Any
) -> None:
    path = theirs / "renamed.safetensors"
    path.write_bytes(samples.safetensors({"img_in.lora_A.weight": ("BF16", (4, 128))}))
    found = only(path, known)
    assert (found.model, found.component, found.loadable) == ("flux-depth-lora", "lora", True)
    target = root / "FLUX.1-Depth-dev-lora/flux1-depth-dev-lora.safetensors"
    assert take_in(root, known, found) == Linked(found, target)
    assert "left as it is" in take_in(root, known, found).note
    other = theirs / "style.safetensors"
    other.write_bytes(samples.safetensors({"double_blocks.0.img_attn.qkv.lora_A.weight": ("BF16", (4, 2))}))
    style = take_in(root, known, only(other, known))
    assert (style.target, style.found.what) == (None, "LoRA")
    assert "FLUX_LORA_DIR" in style.note


@pytest.mark.parametrize(("channels", "name"), [(64, "flux-dev"), (128, "flux-depth-dev")])
def test_a_diffusers_folder_is_linked_and_found(
    channels: int, name: str, theirs: Path, root: Path, known: Catalogue, samples: Any
) -> None:
    folder = samples.write(theirs / "any name", samples.flux_files(in_channels=channels))
    found = only(folder, known)
    assert (found.form, found.model, found.loadable) == ("diffusers folder", name, True)
    linked = take_in(root, known, found)
    model = known.models[name]
    assert linked == Linked(found, root / model.folder_name)
    assert locate(root, {name: model.repository}, {name: channels}).models == {
        name: ModelSources.in_folder(root / model.folder_name)
    }
    assert (root / model.folder_name / T5).is_symlink()
    assert not (root / model.folder_name / "flux1-dev.safetensors").exists()
    assert not (root / model.folder_name / "transformer/old.bin").exists()
    assert verify(model, root / model.folder_name, full=True).good
    assert "left as it is" in take_in(root, known, found).note


def test_a_folder_that_lacks_something_is_linked_and_says_what(
    theirs: Path, root: Path, known: Catalogue, samples: Any
) -> None:
    folder = samples.write(theirs / "half", samples.flux_files())
    (folder / T5).unlink()
    found = only(folder, known)
    assert not found.loadable
    linked = take_in(root, known, found)
    assert linked.target == root / "FLUX.1-dev"
    assert f"{T5} is missing" in linked.note
    assert "`pull flux-dev` fetches what is missing" in linked.note
    assert not read_receipt(root / "FLUX.1-dev").complete


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_that_bitsandbytes_quantised_is_linked(
    installed: bool, theirs: Path, root: Path, known: Catalogue, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "find_spec", lambda name: object() if installed else None)
    files = samples.flux_files(in_channels=128)
    config = {"in_channels": 128, "guidance_embeds": True}
    quantisation = {"quant_method": "bitsandbytes", "_load_in_4bit": True}
    files["transformer/config.json"] = json.dumps({**config, "quantization_config": quantisation}).encode()
    found = only(samples.write(theirs / "FLUX.1-Depth-dev-nf4", files), known)
    assert (found.model, found.precision, found.loadable) == ("flux-depth-dev", "bitsandbytes 4 bit", installed)
    assert found.why_not == ("" if installed else "it needs bitsandbytes: pip install 'flux-local-server[nf4]'")
    assert take_in(root, known, found).target == root / "FLUX.1-Depth-dev"


def test_a_folder_of_another_quantisation_is_recognised_and_not_linked(
    theirs: Path, root: Path, known: Catalogue, samples: Any
) -> None:
    files = samples.flux_files(in_channels=128)
    config = {"in_channels": 128, "guidance_embeds": True, "quantization_config": {"quant_method": "nunchaku_lite"}}
    files["transformer/config.json"] = json.dumps(config).encode()
    found = only(samples.write(theirs / "FLUX.1-Depth-dev-svdq", files), known)
    assert not found.loadable
    assert take_in(root, known, found) == Linked(found, note="this version loads no folders quantised by nunchaku_lite")


@pytest.mark.parametrize(("change", "why"), [
    ({"img_in.weight": ("BF16", (2560, 64))}, r"img_in.weight has shape \(2560, 64\), not 3072"),
    ({"double_blocks.19.img_mod.lin.bias": ("BF16", (2,))}, "20 double_blocks, not 19"),
    ({"single_blocks.0.linear1.weight": ("I8", (3072, 3072))}, "I8 in one file is not loaded"),
])  # fmt: skip
def test_what_only_resembles_a_model_cannot_be_loaded(
    change: Shapes, why: str, theirs: Path, known: Catalogue, samples: Any
) -> None:
    (theirs / "x.safetensors").write_bytes(samples.safetensors(DEV | change))
    found = only(theirs / "x.safetensors", known)
    assert (found.loadable, found.parts) == (False, {})
    assert re.search(why, found.why_not)


def test_scaled_fp8_is_told_as_such(theirs: Path, known: Catalogue, samples: Any) -> None:
    scaled = with_dtype(DEV, "F8_E4M3") | {BLOCK.replace("weight", "scale_weight"): ("F32", (1,))}
    (theirs / "x.safetensors").write_bytes(samples.safetensors(scaled))
    found = only(theirs / "x.safetensors", known)
    assert (found.precision, found.loadable) == ("fp8 (e4m3) with scales", True)


def test_t5_in_gguf_is_not_loaded(theirs: Path, known: Catalogue) -> None:
    (theirs / "t5.gguf").write_bytes(gguf({"enc.blk.0.attn_q.weight": (8, (4096, 32))}))
    found = only(theirs / "t5.gguf", known)
    assert (found.what, found.loadable) == ("T5-XXL text encoder", False)
    assert "t5xxl_fp16" in found.why_not


@pytest.mark.parametrize("name", ["FLUX.1-Canny-dev", "FLUX.1-schnell", "FLUX.1-Krea-dev"])
def test_relatives_of_the_models_are_not_taken_for_them(
    name: str, theirs: Path, root: Path, known: Catalogue, samples: Any
) -> None:
    found = only(samples.write(theirs / name, samples.flux_files(in_channels=128)), known)
    assert (found.model, found.loadable) == (None, False)
    assert take_in(root, known, found).target is None
    files = samples.flux_files()
    files["transformer/config.json"] = b'{"in_channels": 64, "guidance_embeds": false}'
    assert "schnell" in only(samples.write(theirs / "unnamed", files), known).what


def cached(hub: Path, repository: str, files: dict[str, bytes]) -> Path:
    """A repository as the hub's client keeps it: contents under their hash, revisions as links to them."""
    cache = hub / ("models--" + repository.replace("/", "--"))
    for path, content in files.items():
        blob = cache / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = cache / "snapshots/0123abcd" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return cache


def test_the_hub_s_cache(theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    cached(theirs / "hub", "black-forest-labs/FLUX.1-dev", samples.flux_files())
    cached(theirs / "hub", "someone/estimator-hf", samples.helper_files())
    cached(theirs / "hub", "city96/FLUX.1-dev-gguf", {"flux1-dev-Q8_0.gguf": gguf(gguf_dev())})
    cached(theirs / "hub", "black-forest-labs/FLUX.1-Canny-dev", samples.flux_files(in_channels=128))
    cached(theirs / "hub", "someone/chat", {"config.json": b"{}", "model.safetensors": samples.safetensors({})})
    (theirs / "hub/models--someone--empty/snapshots").mkdir(parents=True)
    for place in (theirs, theirs / "hub"):
        found = {
            item.path.parents[1].name if item.path.is_dir() else item.path.name: item
            for item in recognise(place, known)
        }
        assert {name: item.model for name, item in found.items()} == {
            "models--black-forest-labs--FLUX.1-Canny-dev": None,
            "models--black-forest-labs--FLUX.1-dev": "flux-dev",
            "models--someone--estimator-hf": "estimator",
            "flux1-dev-Q8_0.gguf": "flux-dev",
        }
    dev = take_in(root, known, found["models--black-forest-labs--FLUX.1-dev"])
    assert dev.target == root / "FLUX.1-dev"
    # Links lead to the contents and not to links, which the cache may drop.
    assert (root / "FLUX.1-dev" / T5).readlink().parent.name == "blobs"
    assert read_receipt(root / "FLUX.1-dev").files[T5].fingerprint.sha256 == (root / "FLUX.1-dev" / T5).resolve().name
    check = verify(known.models["flux-dev"], root / "FLUX.1-dev", full=True)
    assert {file.state for file in check.files} == {"good"}
    estimator = take_in(root, known, found["models--someone--estimator-hf"])
    assert (estimator.target, estimator.note) == (root / "estimator-hf", "")
    assert only(theirs / "hub/models--someone--estimator-hf", known).loadable


@pytest.mark.parametrize("inner", ["", "models"])
def test_comfyui_s_folders(inner: str, theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    models = theirs / inner
    samples.write(models, {
        "diffusion_models/flux/flux1-dev.safetensors": samples.safetensors(DEV),
        "unet/flux1-depth-dev-Q8_0.gguf": gguf(gguf_dev(128)),
        "vae/ae.safetensors": samples.safetensors(VAE),
        "text_encoders/t5xxl_fp16.safetensors": samples.safetensors(SINGLE_FILES["t5xxl"][0]),
        "clip/clip_l.safetensors": samples.safetensors(SINGLE_FILES["clip_l"][0]),
        "checkpoints/sd15.safetensors": samples.safetensors({"model.diffusion_model.input.weight": ("F16", (1,))}),
        "checkpoints/old.ckpt": b"\x80\x04.",
        "loras/put_loras_here": b"",
    })  # fmt: skip
    linked = [take_in(root, known, found) for found in recognise(theirs, known)]
    assert sorted(item.target.relative_to(root).as_posix() for item in linked if item.target) == [
        "imported/text-encoder/clip_l.safetensors",
        "imported/text-encoder/t5xxl_fp16.safetensors",
        "imported/transformer/flux1-depth-dev-Q8_0.gguf",
        "imported/transformer/flux1-dev.safetensors",
        "imported/vae/ae.safetensors",
    ]
    assert len(linked) == 5


def test_two_files_of_one_name_are_both_kept(theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    for name, tensors in (("a", DEV), ("b", DEPTH)):
        samples.write(theirs, {f"{name}/model.safetensors": samples.safetensors(tensors)})
    for name in ("a", "b", "b"):
        take_in(root, known, only(theirs / name / "model.safetensors", known))
    assert {found.path.name for found in linked_single_files(root)} == {"model.safetensors", "b--model.safetensors"}


def test_a_folder_of_model_folders(theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    samples.write(theirs / "FLUX.1-dev", samples.flux_files())
    samples.write(theirs / "estimator-hf", samples.helper_files())
    samples.write(theirs / "photos", {"config.json": b"{}"})
    assert [found.model for found in recognise(theirs, known)] == ["flux-dev", "estimator"]


def test_what_is_in_the_weights_folder_is_not_linked_to_itself(root: Path, known: Catalogue, samples: Any) -> None:
    folder = samples.write(root / "FLUX.1-dev", samples.flux_files())
    assert "already" in take_in(root, known, only(folder, known)).note
    assert not (folder / T5).is_symlink()


def test_a_source_that_went_away_is_said(theirs: Path, root: Path, known: Catalogue, samples: Any) -> None:
    path = theirs / "ae.safetensors"
    path.write_bytes(samples.safetensors(VAE))
    take_in(root, known, only(path, known))
    path.unlink()
    (gone,) = linked_single_files(root)
    assert f"its link leads nowhere: {path}" in gone.why_not


def test_the_command_tells_each_and_whether_it_can_be_loaded(
    weights_command: Callable[..., Any], table: Path, theirs: Path, samples: Any
) -> None:
    samples.write(theirs / "any name", samples.flux_files())
    samples.write(theirs, {"flux1-dev-fp8.safetensors": samples.safetensors(with_dtype(DEV, "F8_E4M3"))})
    dry = weights_command("import", theirs, "--dry-run", "--catalogue", table)
    assert dry.returncode == 0
    assert not (theirs.parent / "weights").exists()
    done = weights_command("import", theirs, "--catalogue", table)
    assert done.returncode == 0, done.stderr
    assert f"{theirs / 'any name'}: dev (diffusers folder, as saved)\n  linked in weights/FLUX.1-dev" in done.stdout
    assert "FLUX.1 [dev] transformer (single file, fp8 (e4m3))" in done.stdout
    assert "this version can load it\n" in done.stdout
    assert done.stdout.count("this version can load it\n") == 2
    listed = weights_command("ls", "--catalogue", table)
    assert "here       flux-dev" in listed.stdout
    assert "imported   weights/imported/transformer/flux1-dev-fp8.safetensors" in listed.stdout
    rows = json.loads(weights_command("import", theirs, "--json", "--catalogue", table).stdout)["imported"]
    assert [(row["model"], row["loadable"], row["target"]) for row in rows] == [
        ("flux-dev", True, "weights/FLUX.1-dev"),
        ("flux-dev", True, "weights/imported/transformer/flux1-dev-fp8.safetensors"),
    ]
    assert weights_command("import", theirs / "absent", "--catalogue", table).returncode == 1
    (theirs / "x").mkdir()
    nothing = weights_command("import", theirs / "x", "--catalogue", table)
    assert (nothing.returncode, nothing.stdout) == (1, "nothing was recognised\n")
