"""What this server adds to Segmind's pages, through HTTP: image-to-image, safety, prompt upsampling, metadata."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

QUICK = {"prompt": "a red fox", "steps": 2, "seed": 7, "output_format": "png"}


def open_picture(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def draw(server: Any, body: dict[str, Any], **options: Any) -> Image.Image:
    reply = server.post("/v1/flux-dev", json=body, headers={"accept": "image/*"}, **options)
    assert reply.status_code == 200, reply.text
    return open_picture(reply.content)


@pytest.fixture(scope="module")
def small_photo(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    open_picture(photo).resize((300, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_init_image_gives_the_outputs_shape(server: Any, small_photo: bytes) -> None:
    body = {**QUICK, "image": base64.b64encode(small_photo).decode(), "aspect_ratio": "1:1"}
    assert draw(server, body).size == (304, 208)


def test_prompt_strength_says_how_much_of_the_init_image_is_left(server: Any, small_photo: bytes) -> None:
    body = {**QUICK, "steps": 10, "image": base64.b64encode(small_photo).decode()}
    original = np.asarray(open_picture(small_photo).resize((304, 208), Image.Resampling.LANCZOS)).astype(float)
    distances = [
        np.abs(np.asarray(draw(server, {**body, "prompt_strength": strength})).astype(float) - original).mean()
        for strength in (0, 0.2, 1)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_an_init_image_may_be_a_multipart_file(server: Any, small_photo: bytes) -> None:
    form = {name: str(value) for name, value in QUICK.items()}
    reply = server.post("/v1/flux-dev", data=form, files={"image": small_photo}, headers={"accept": "image/*"})
    text = base64.b64encode(small_photo).decode()
    assert open_picture(reply.content).tobytes() == draw(server, {**QUICK, "image": text}).tobytes()


@pytest.mark.parametrize("strength", [-0.1, 1.1, "x"])
def test_a_strength_outside_zero_to_one_is_400(server: Any, strength: Any) -> None:
    reply = server.post("/v2/flux-dev", json={**QUICK, "prompt_strength": strength})
    assert reply.status_code == 400
    assert "prompt_strength should be a number between 0 and 1" in reply.json()["error"]


def test_an_animated_init_image_is_400(server: Any, small_photo: bytes) -> None:
    frame = open_picture(small_photo).convert("RGB")
    buffer = io.BytesIO()
    frame.save(buffer, "WEBP", save_all=True, append_images=[frame.rotate(90)])
    reply = server.post("/v2/flux-dev", json={**QUICK, "image": base64.b64encode(buffer.getvalue()).decode()})
    assert reply.status_code == 400
    assert "image has 2 frames" in reply.json()["error"]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_pictures_say_how_they_were_made(server: Any, kind: str) -> None:
    picture = draw(server, {**QUICK, "prompt": "füchse, 狐", "output_format": kind, "samples": 1})
    if kind == "png":
        text = picture.text["parameters"]
    else:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"UNICODE\0")
        text = comment[8:].decode("utf-16-be")
    assert text.startswith("füchse, 狐\nSteps: 2, Sampler: Euler, ")
    assert "Seed: 7, Size: 1024x1024, Model: flux-dev" in text


def test_pictures_are_checked_and_the_reply_says_so(server: Any) -> None:
    assert server.get("/health/ready").json()["safety_checker"] is True
    body = server.post("/v1/flux-dev", json=QUICK)
    assert body.headers["x-safety-check"] == "checked"
    assert body.json()["safety"] == {"check": "checked", "flagged": []}
    unchecked = server.post("/v1/flux-dev", json={**QUICK, "disable_safety_checker": True})
    assert unchecked.headers["x-safety-check"] == "off"


def copy_of(demo_weights: Path, folder: Path) -> Path:
    return Path(shutil.copytree(demo_weights, folder))


@pytest.fixture(scope="module")
def strict_server(run_server: Any, demo_weights: Path, tmp_path_factory: Any) -> Iterator[Any]:
    """A server whose classifiers flag everything."""
    weights = copy_of(demo_weights, tmp_path_factory.mktemp("strict") / "weights")
    concepts = weights / "safety-concepts" / "model.safetensors"
    tensors = load_file(concepts)
    tensors["concept_embeds_weights"] = torch.full_like(tensors["concept_embeds_weights"], -2.0)
    save_file(tensors, concepts, metadata={"format": "pt"})
    detector = weights / "nsfw-image-detection" / "model.safetensors"
    tensors = load_file(detector)
    tensors["classifier.bias"] = tensors["classifier.bias"].flip(0) * 10
    save_file(tensors, detector, metadata={"format": "pt"})
    with run_server(weights_dir=str(weights)) as server:
        yield server


def test_a_wholly_flagged_request_is_failed_with_the_word_safety(strict_server: Any) -> None:
    blocking = strict_server.post("/v1/flux-dev", json=QUICK)
    assert blocking.status_code == 400
    assert "safety" in blocking.json()["error"]
    request_id = strict_server.submit("flux-dev", {**QUICK, "samples": 2})
    result = strict_server.finish(request_id)
    assert result["status"] == "FAILED"
    assert "safety" in result["error"]
    assert strict_server.get(f"/v2/requests/{request_id}").status_code == 422


def test_the_check_can_be_turned_off_per_request(strict_server: Any) -> None:
    assert draw(strict_server, {**QUICK, "disable_safety_checker": True}).size == (1024, 1024)


def test_without_classifiers_and_without_metadata_the_server_says_so_and_does_not_pretend(
    run_server: Any, demo_weights: Path, tmp_path: Path
) -> None:
    weights = copy_of(demo_weights, tmp_path / "weights")
    shutil.rmtree(weights / "nsfw-image-detection")
    with run_server(weights_dir=str(weights), metadata="false") as server:
        for kind in ("png", "jpg", "webp"):
            picture = draw(server, {**QUICK, "output_format": kind})
            assert not picture.getexif()
            assert "parameters" not in picture.info
        assert "not checked for safety" in server.log()
        assert server.get("/health/ready").json()["safety_checker"] is False
        reply = server.post("/v1/flux-dev", json=QUICK)
        assert reply.headers["x-safety-check"] == "unavailable"
        assert reply.json()["safety"]["check"] == "unavailable"


def test_without_a_depth_estimator_only_ready_depth_maps_are_taken(
    run_server: Any, demo_weights: Path, tmp_path: Path, small_photo: bytes
) -> None:
    weights = copy_of(demo_weights, tmp_path / "weights")
    shutil.rmtree(weights / "depth-anything-large-hf")
    form = {"prompt": "x", "num_inference_steps": "1", "megapixels": "match_input"}
    with run_server(weights_dir=str(weights)) as server:
        photo = server.post("/v1/flux-depth-dev", data=form, files={"control_image": small_photo})
        assert photo.status_code == 400
        assert "preprocess=false" in photo.json()["error"]
        ready = server.post(
            "/v1/flux-depth-dev", data={**form, "preprocess": "false"}, files={"control_image": small_photo}
        )
        assert open_picture(ready.content).size == (288, 192)


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory: Any) -> Path:
    """A tiny random causal language model with a byte-level tokenizer, in transformers' layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("upsampler")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=1024, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_prompt_upsampling_rewrites_the_prompt_and_tells_it(run_server: Any, upsampler: Path) -> None:
    with run_server(prompt_upsampler=str(upsampler)) as server:
        first = server.post("/v1/flux-dev", json={**QUICK, "prompt_upsampling": True})
        again = server.post("/v1/flux-dev", json={**QUICK, "prompt_upsampling": True}).json()
        plain = server.post("/v1/flux-dev", json=QUICK).json()
    assert first.headers["x-prompt-upsampling"] == "done"
    assert first.json()["prompt"] != QUICK["prompt"]
    assert first.json()["image"] == again["image"] != plain["image"]
    assert plain["prompt"] == QUICK["prompt"]


def test_prompt_upsampling_without_a_model_changes_nothing_and_says_so(server: Any) -> None:
    reply = server.post("/v1/flux-dev", json={**QUICK, "prompt_upsampling": True})
    assert reply.headers["x-prompt-upsampling"].startswith("unavailable")
    assert reply.json()["prompt"] == QUICK["prompt"]
    assert reply.json()["image"] == server.post("/v1/flux-dev", json=QUICK).json()["image"]


def test_a_prompt_that_is_too_long_is_told(server: Any) -> None:
    reply = server.post("/v1/flux-dev", json={**QUICK, "prompt": "fox " * 700})
    assert int(reply.headers["x-prompt-unseen-tokens"]) > 0
    assert reply.json()["prompt_unseen_tokens"] == int(reply.headers["x-prompt-unseen-tokens"])
    assert "prompt longer than the model reads" in server.log()


def save_lora(path: Path, width: int = 32, input_width: int | None = None) -> None:
    """A random LoRA for the demo family's transformers, in diffusers' layout."""
    generator = torch.Generator().manual_seed(1)
    layers = {"transformer.transformer_blocks.0.attn.to_q": (width, width)}
    if input_width:
        layers["transformer.x_embedder"] = (input_width, width)
    tensors = {}
    for name, (inner, outer) in layers.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(outer, 4, generator=generator)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def lora_server(run_server: Any, tmp_path_factory: Any) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("loras")
    save_lora(folder / "style.safetensors")
    save_lora(folder / "fill.safetensors", input_width=384)
    (folder / "broken.safetensors").write_bytes(b"not safetensors")
    with run_server(lora_dir=str(folder), prepare_ahead="on") as server:
        yield server


def test_a_job_that_was_prepared_while_another_was_drawn_gives_the_same_picture(
    lora_server: Any, server: Any, photo: bytes
) -> None:
    following = {
        "prompt": "a fox that waits",
        "num_inference_steps": 1,
        "seed": 3,
        "megapixels": "0.25",
        "output_format": "png",
    }
    following["control_image"] = base64.b64encode(photo).decode()
    before = cache_requests(lora_server)
    first = lora_server.submit("flux-dev", {"prompt": "a lake", "steps": 12, "seed": 3, "megapixels": "0.25"})
    second = lora_server.submit("flux-depth-dev", following)
    prepared = lora_server.finish(second)
    assert lora_server.status(first)["status"] == "COMPLETED"
    new = {name: count - before[name] for name, count in cache_requests(lora_server).items()}
    # Each value was computed once, by whoever prepared it, and found by whoever drew.
    assert {name: new[name, "hit"] for name in ("text", "control")} == {"text": 1, "control": 1}
    assert {name: new[name, "miss"] for name in ("text", "control")} == {"text": 2, "control": 1}
    assert not {"depth", "control"} & prepared["timings"].keys(), "the drawing thread had nothing to estimate"
    alone = server.finish(server.submit("flux-depth-dev", following))
    pictures = [
        where.get(body["images"][0]["url"]).content for where, body in ((lora_server, prepared), (server, alone))
    ]
    assert open_picture(pictures[0]).tobytes() == open_picture(pictures[1]).tobytes()


def cache_requests(server: Any) -> Counter[tuple[str, str]]:
    """Look-ups in the worker's caches so far, by cache and outcome."""
    line = re.compile(r'^flux_cache_requests_total\{cache="(\w+)",outcome="(\w+)"\} (\S+)$', re.MULTILINE)
    return Counter(
        {(cache, outcome): int(float(count)) for cache, outcome, count in line.findall(server.get("/metrics").text)}
    )


def test_a_lora_changes_the_picture_and_leaves_no_trace(lora_server: Any) -> None:
    plain = draw(lora_server, QUICK).tobytes()
    adapted = draw(lora_server, {**QUICK, "loras": [{"name": "style", "scale": 1.5}]})
    assert adapted.tobytes() != plain
    assert "Lora: style:1.5" in adapted.text["parameters"]
    assert draw(lora_server, {**QUICK, "loras": '[{"name": "style", "scale": 1.5}]'}).tobytes() == adapted.tobytes()
    assert draw(lora_server, {**QUICK, "loras": [{"name": "style", "scale": 0}]}).tobytes() == plain
    assert draw(lora_server, QUICK).tobytes() == plain


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ["unknown", "style"]),
        ("../style", ["unknown"]),
        ("fill", ["FLUX.1-Fill", "384"]),
        ("broken", ["damaged"]),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_lora_that_cannot_be_used_is_400_with_the_reason(
    lora_server: Any, version: str, name: str, words: list[str]
) -> None:
    reply = lora_server.post(f"/{version}/flux-dev", json={**QUICK, "loras": [name]})
    assert reply.status_code == 400
    for word in words:
        assert word in reply.json()["error"]


def test_loras_on_a_server_without_their_folder_are_400(server: Any) -> None:
    reply = server.post("/v2/flux-dev", json={**QUICK, "loras": ["style"]})
    assert reply.status_code == 400
    assert "FLUX_LORA_DIR" in reply.json()["error"]
