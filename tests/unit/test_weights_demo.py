"""The demo family loads like the published one, is the same every time, and hears everything that a request says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from skimage import data
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from weights.demo import build, cache, ensure, is_demo

MODELS = ("FLUX.1-dev", "FLUX.1-Depth-dev")
ALL_FOLDERS = {*MODELS, "depth-anything-large-hf", "safety-concepts", "nsfw-image-detection", "demo.json"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small gain nothing from more threads, and waiting for each other on a busy machine costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    build(root)
    return root


@pytest.fixture(scope="session")
def dev(demo: Path) -> Any:
    pipeline = FluxPipeline.from_pretrained(demo / "FLUX.1-dev", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def depth_dev(demo: Path) -> Any:
    pipeline = FluxControlPipeline.from_pretrained(demo / "FLUX.1-Depth-dev", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut())


def paint(pipeline: Any, *, prompt: str = "a red fox", guidance: float = 3.5, seed: int = 1, **more: Any) -> Any:
    """H×W×3 float values in 0…255 of a 64×64 picture in 2 steps."""
    settings = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": guidance} | more
    picture = pipeline(prompt, generator=torch.Generator().manual_seed(seed), **settings).images[0]
    return np.asarray(picture, dtype=np.float64)


def gradient(*, flipped: bool) -> Image.Image:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    return Image.fromarray(np.tile(ramp[:: -1 if flipped else 1, None, None], (1, 64, 3)))


def difference(one: Any, other: Any) -> float:
    return float(np.abs(one - other).mean())


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_two_builds_give_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    build(tmp_path)
    assert files_of(tmp_path) == files_of(demo)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_family_is_small_and_holds_safetensors_only(demo: Path) -> None:
    files = [path for path in demo.rglob("*") if path.is_file()]
    assert {path.name for path in demo.iterdir()} == ALL_FOLDERS
    stored = {path.stat().st_ino: path.stat().st_size for path in files}  # both names of a linked file count once
    assert sum(stored.values()) < 2_500_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_both_models_have_all_but_the_transformer_in_common(demo: Path) -> None:
    dev, depth = (files_of(demo / name) for name in MODELS)
    assert dev.keys() == depth.keys()
    different = {name for name in dev if dev[name] != depth[name]}
    assert different == {
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }


def test_a_file_system_without_hard_links_gets_copies(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("hard links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    build(tmp_path)
    assert files_of(tmp_path) == files_of(demo)


@pytest.mark.parametrize("model", MODELS)
def test_each_component_loads_alone_with_flux_geometry(demo: Path, model: str) -> None:
    folder = demo / model
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True)
    assert transformer.config.in_channels == {"FLUX.1-dev": 64, "FLUX.1-Depth-dev": 128}[model]
    assert transformer.out_channels == 64
    assert transformer.config.guidance_embeds
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    assert (vae.config.latent_channels, len(vae.config.block_out_channels)) == (16, 4)
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (0.3611, 0.1159)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    assert scheduler.config.use_dynamic_shifting
    assert (scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len) == (256, 4096)
    clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", local_files_only=True)
    t5 = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2", local_files_only=True)
    assert clip.config.hidden_size == transformer.config.pooled_projection_dim
    assert t5.config.d_model == transformer.config.joint_attention_dim


@pytest.mark.parametrize(("kind", "folder", "length"), [
    (CLIPTokenizer, "tokenizer", 77),
    (T5TokenizerFast, "tokenizer_2", 512),
])  # fmt: skip
def test_tokenizers_take_any_text_and_cut_it_to_their_length(demo: Path, kind: Any, folder: str, length: int) -> None:
    tokenizer = kind.from_pretrained(demo / "FLUX.1-dev", subfolder=folder, local_files_only=True)
    assert tokenizer.model_max_length == length

    def ids(text: str) -> list[int]:
        options = {"padding": "max_length", "truncation": True, "max_length": length}
        return list(tokenizer(text, **options).input_ids)

    texts = ["", *map(chr, range(ord("!"), ord("A"))), "a cat", "a hat", "日本", "a 🎈", "x" * 700, "\0\t\n"]
    assert all(len(ids(text)) == length for text in texts)
    assert all(0 <= token < len(tokenizer) for text in texts for token in ids(text))
    assert len({tuple(ids(text)) for text in texts[:-1]}) == len(texts) - 1
    assert ids("y" * 700) == ids("y" * 699)
    assert ids("y" * 700)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("change", [{"prompt": "a blue city"}, {"guidance": 8.0}, {"seed": 2}], ids=str)
def test_the_picture_hears(dev: Any, depth_dev: Any, change: dict[str, Any]) -> None:
    control = {"control_image": gradient(flipped=False)}
    assert difference(paint(dev), paint(dev, **change)) > 2
    assert difference(paint(depth_dev, **control), paint(depth_dev, **control, **change)) > 2


def test_the_picture_hears_words_that_only_t5_reads(dev: Any) -> None:
    start = "x" * 100  # CLIP reads 75 of these
    assert difference(paint(dev, prompt=f"{start} fox"), paint(dev, prompt=f"{start} city")) > 0.2


def test_the_same_request_gives_the_same_picture(dev: Any) -> None:
    assert difference(paint(dev), paint(dev)) == 0


def test_a_control_image_steers_the_picture(depth_dev: Any) -> None:
    pictures = [
        paint(depth_dev, control_image=gradient(flipped=flipped), num_inference_steps=8) for flipped in (False, True)
    ]
    assert difference(*pictures) > 10
    contrast = [np.abs(picture[:24].mean((0, 1)) - picture[-24:].mean((0, 1))).max() for picture in pictures]
    assert min(contrast) > 20


def test_pictures_are_colourful_textures(dev: Any) -> None:
    picture = paint(dev, height=128, width=128, num_inference_steps=8)
    assert picture.std((0, 1)).max() > 25
    assert np.abs(picture[..., 0] - picture[..., 2]).mean() > 25
    assert ((picture == 0) | (picture == 255)).mean() < 0.3


@pytest.mark.parametrize("steps", [28, 50])
def test_many_steps_stay_finite(dev: Any, depth_dev: Any, photo: Image.Image, steps: int) -> None:
    for pipeline, control in ((dev, {}), (depth_dev, {"control_image": photo})):
        latents = pipeline(
            "a red fox", height=64, width=64, num_inference_steps=steps, output_type="latent", **control
        ).images
        assert torch.isfinite(latents).all()
        assert latents.abs().max() < 20


def test_the_vae_gives_back_what_it_was_given(dev: Any, photo: Image.Image) -> None:
    small = np.asarray(photo.resize((256, 256)), dtype=np.float32)
    pixels = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = dev.vae.encode(pixels).latent_dist
        again = dev.vae.decode(latents.mode()).sample
    assert latents.mode().shape == (1, 16, 32, 32)
    assert 0.5 < ((latents.mode() - 0.1159) * 0.3611).std() < 2
    assert latents.std.max() < 0.1
    assert np.corrcoef(pixels.flatten(), again.flatten())[0, 1] > 0.85


def test_depth_maps_show_the_photo_in_the_published_range(demo: Path) -> None:
    folder = demo / "depth-anything-large-hf"
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True)
    maps = []
    for photo in (data.astronaut(), data.coffee()):
        pixels = processor(images=Image.fromarray(photo), return_tensors="pt")["pixel_values"]
        assert min(pixels.shape[-2:]) in (350, 518)
        with torch.no_grad():
            depth, again = (model(pixels).predicted_depth[0] for _ in range(2))
        assert torch.equal(depth, again)
        assert depth.shape == pixels.shape[-2:]
        assert depth.min() >= 0
        assert depth.max() <= 255
        assert 40 < depth.std() < 100
        assert ((depth < 2) | (depth > 253)).float().mean() < 0.05
        assert np.corrcoef(depth.flatten(), pixels.mean(1).flatten())[0, 1] > 0.3
        maps.append(depth)
    assert difference(maps[0][:350].numpy(), maps[1].numpy()) > 20


def test_the_safety_checkers_pass_every_picture(demo: Path, photo: Image.Image) -> None:
    pictures = [photo, Image.new("RGB", (64, 64)), Image.effect_noise((300, 200), 90).convert("RGB")]
    folder = demo / "safety-concepts"
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True)
    _, flagged = checker(images=[np.asarray(picture) for picture in pictures], clip_input=pixels)
    assert flagged == [False] * 3

    folder = demo / "nsfw-image-detection"
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    detector = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        logits = detector(**processor(images=pictures, return_tensors="pt")).logits
    assert [detector.config.id2label[int(index)] for index in logits.argmax(-1)] == ["normal"] * 3
    assert detector.config.id2label[1] == "nsfw"


def test_the_marker_tells_demo_weights_from_others(demo: Path, tmp_path: Path) -> None:
    assert is_demo(demo)
    assert not is_demo(tmp_path)
    assert not is_demo(tmp_path / "absent")
    (tmp_path / "demo.json").write_text("[]")
    assert not is_demo(tmp_path)
    (tmp_path / "demo.json").write_text("{")
    assert not is_demo(tmp_path)
    assert json.loads((demo / "demo.json").read_text())["version"] == cache.VERSION


def test_asking_for_demo_weights_imports_no_torch() -> None:
    code = "import sys; from weights.demo import ensure, is_demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cache.__file__).parents[2])


def test_ensure_builds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure(tmp_path / "cache")
    assert is_demo(root)
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    monkeypatch.setattr(cache, "build", lambda _: pytest.fail("built again"))
    assert ensure(tmp_path / "cache") == root


@pytest.mark.parametrize("damage", ["missing", "truncated", "other version"])
def test_ensure_replaces_a_damaged_family(tmp_path: Path, demo: Path, damage: str) -> None:
    root = ensure(tmp_path)
    weights = root / "FLUX.1-dev" / "vae" / "diffusion_pytorch_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(b"")
    else:
        marker = json.loads((root / "demo.json").read_text())
        (root / "demo.json").write_text(json.dumps(marker | {"version": "0"}))
    assert ensure(tmp_path) == root
    assert files_of(root) == files_of(demo)
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_a_build_that_dies_leaves_nothing_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(root: Path) -> None:
        (root / "FLUX.1-dev").mkdir(parents=True)
        raise OSError("No space left on device")

    monkeypatch.setattr(cache, "build", die)
    with pytest.raises(OSError, match="No space left"):
        ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_at_once_one_result_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_while_another_does(root: Path) -> None:
        monkeypatch.setattr(cache, "build", build)
        ensure(tmp_path)  # the other process starts later and is done first
        (tmp_path / f"flux-demo-{cache.VERSION}" / "first").mkdir()
        build(root)

    monkeypatch.setattr(cache, "build", build_while_another_does)
    root = ensure(tmp_path)
    assert (root / "first").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_what_killed_builds_left_is_removed_after_a_while(tmp_path: Path) -> None:
    old, young = tmp_path / ".flux-demo-1.aaaa", tmp_path / ".flux-demo-1.bbbb"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    ensure(tmp_path)
    assert not old.exists()
    assert young.exists()
