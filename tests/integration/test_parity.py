"""The engine computes what diffusers' pipelines compute, bit for bit, on the same components and noise.

float32 on the CPU. Each test is also run with something made wrong, to show that it would see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline, FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from pipelines import denoise
from pipelines.components import Components, Folders, load_components
from pipelines.decode import encode_picture
from pipelines.engine import Engine
from pipelines.latents import draw_noise, unpack
from pipelines.request import GenerationRequest
from pipelines.source import SourceImage

CASES = [
    # width, height, steps, guidance, seed
    (64, 64, 1, 3.5, 0),
    (128, 64, 4, 0.0, 7),
    (64, 128, 3, 10.0, 2**32 - 1),
    (256, 192, 2, 30.0, 46588),
    (320, 320, 5, 3.0, 85412),
]

PROMPTS = ["a red fox in snow", "", "é ü 漢字 " * 300]


@pytest.fixture(scope="module")
def components(demo_weights: Path) -> Components:
    folders = Folders(
        models={"flux-dev": demo_weights / "FLUX.1-dev", "flux-depth-dev": demo_weights / "FLUX.1-Depth-dev"},
        depth_estimator=demo_weights / "depth-anything-large-hf",
    )
    return load_components(folders, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def dev(demo_weights: Path) -> Any:
    pipeline = FluxPipeline.from_pretrained(demo_weights / "FLUX.1-dev", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def depth(demo_weights: Path) -> Any:
    pipeline = FluxControlPipeline.from_pretrained(demo_weights / "FLUX.1-Depth-dev", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def img2img(dev: Any) -> Any:
    pipeline = FluxImg2ImgPipeline(**dev.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def engine(components: Components) -> Engine:
    components.text.cache.clear()
    components.control.cache.clear()
    components.init.cache.clear()
    return Engine(components)


def request(case: tuple[int, int, int, float, int], **fields: Any) -> GenerationRequest:
    width, height, steps, guidance, seed = case
    given = {"model": "flux-dev", "prompt": PROMPTS[0], **fields}
    return GenerationRequest(width=width, height=height, steps=steps, guidance=guidance, seed=seed, **given)


def reference(pipeline: Any, wanted: GenerationRequest, **inputs: Any) -> np.ndarray[Any, Any]:
    images = pipeline(
        prompt=wanted.prompt,
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="pil",
        **inputs,
    ).images
    return np.asarray(images[0])


def depth_picture(width: int, height: int) -> Image.Image:
    rows = np.linspace(0, 255, height)[:, None] + 40 * np.sin(np.linspace(0, 9, width))[None, :]
    return Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8)).convert("RGB")


def control_latents(pipeline: Any, picture: Image.Image, wanted: GenerationRequest) -> torch.Tensor:
    """The control picture encoded by diffusers' own image processor and VAE, with the distribution's mode."""
    pixels = pipeline.image_processor.preprocess(picture, height=wanted.height, width=wanted.width)
    with torch.inference_mode():
        return encode_picture(pipeline.vae, pixels)


def init_latents(pipeline: Any, picture: Image.Image, wanted: GenerationRequest) -> torch.Tensor:
    """The init picture as 16-channel latents, which the pipeline takes in place of an image."""
    return unpack(control_latents(pipeline, picture, wanted), wanted.width, wanted.height)


@pytest.mark.parametrize("case", CASES)
def test_parity_of_text_to_image_with_flux_pipeline(engine: Engine, dev: Any, case: Any) -> None:
    wanted = request(case)
    assert np.array_equal(engine.generate(wanted).images[0].pixels.numpy(), reference(dev, wanted))


@pytest.mark.filterwarnings("ignore:Token indices sequence length")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_parity_of_prompts_short_empty_and_too_long(engine: Engine, dev: Any, prompt: str) -> None:
    wanted = request(CASES[1], prompt=prompt)
    assert np.array_equal(engine.generate(wanted).images[0].pixels.numpy(), reference(dev, wanted))


@pytest.mark.parametrize("case", CASES)
def test_parity_of_depth_with_flux_control_pipeline(engine: Engine, depth: Any, case: Any) -> None:
    wanted = request(case, model="flux-depth-dev", preprocess=False)
    picture = depth_picture(wanted.width, wanted.height)
    ours = engine.generate(wanted, control_image=SourceImage(picture, "gradient")).images[0].pixels.numpy()
    theirs = reference(depth, wanted, control_image=control_latents(depth, picture, wanted))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("strength", [1.0, 0.9, 0.8, 0.5, 0.3, 0.04])
@pytest.mark.parametrize("case", [(64, 64, 25, 3.5, 0), (128, 96, 5, 7.0, 46588), (320, 256, 3, 3.0, 9)])
def test_parity_of_image_to_image_with_flux_img2img_pipeline(
    engine: Engine, img2img: Any, case: Any, strength: float
) -> None:
    wanted = request(case, init_image="gradient", strength=strength)
    picture = depth_picture(wanted.width, wanted.height)
    ours = engine.generate(wanted, init_image=SourceImage(picture, "gradient")).images[0].pixels.numpy()
    theirs = reference(img2img, wanted, image=init_latents(img2img, picture, wanted), strength=strength)
    assert np.array_equal(ours, theirs)


def test_strength_zero_gives_the_vae_round_trip(engine: Engine, img2img: Any) -> None:
    wanted = request((64, 64, 4, 3.5, 0), init_image="gradient", strength=0.0)
    picture = depth_picture(64, 64)
    reports: list[Any] = []
    ours = engine.generate(wanted, init_image=SourceImage(picture, "gradient"), on_step=reports.append)
    latents = init_latents(img2img, picture, wanted) / img2img.vae.config.scaling_factor
    with torch.inference_mode():
        trip = img2img.vae.decode(latents + img2img.vae.config.shift_factor).sample
    theirs = np.asarray(img2img.image_processor.postprocess(trip, output_type="pil")[0])
    assert np.array_equal(ours.images[0].pixels.numpy(), theirs)
    assert reports == []


def test_strength_one_ignores_the_init_image(engine: Engine) -> None:
    wanted = request((64, 64, 3, 3.5, 5), init_image="gradient", strength=1.0)
    with_image = engine.generate(wanted, init_image=SourceImage(depth_picture(64, 64), "gradient"))
    without = engine.generate(request((64, 64, 3, 3.5, 5)))
    assert torch.equal(with_image.images[0].pixels, without.images[0].pixels)


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(25, 0.8, 5), (30, 0.9, 3), (50, 0.9, 5), (28, 0.8, 5), (4, 0, 4)]
)
def test_first_step_is_what_exact_arithmetic_gives(steps: int, strength: float, first: int) -> None:
    assert request((64, 64, steps, 3.5, 0), init_image="x", strength=strength).first_step == first


def test_parity_of_image_to_image_fails_with_a_step_more(engine: Engine, img2img: Any) -> None:
    wanted = request((64, 64, 10, 3.5, 0), init_image="gradient", strength=0.5)
    wrong = request((64, 64, 10, 3.5, 0), init_image="gradient", strength=0.6)
    picture = depth_picture(64, 64)
    ours = engine.generate(wrong, init_image=SourceImage(picture, "gradient")).images[0].pixels.numpy()
    theirs = reference(img2img, wanted, image=init_latents(img2img, picture, wanted), strength=0.5)
    assert not np.array_equal(ours, theirs)


def test_parity_of_depth_fails_with_a_rounded_control_image(engine: Engine, depth: Any) -> None:
    wanted = request((64, 64, 2, 10.0, 0), model="flux-depth-dev", preprocess=False)
    picture = depth_picture(64, 64)
    coarse = picture.point(lambda level: level & 0xF8)
    ours = engine.generate(wanted, control_image=SourceImage(coarse, "coarse")).images[0].pixels.numpy()
    theirs = reference(depth, wanted, control_image=control_latents(depth, picture, wanted))
    assert not np.array_equal(ours, theirs)


def test_parity_fails_with_one_step_more(engine: Engine, dev: Any) -> None:
    wanted = request((64, 64, 4, 3.5, 0))
    wrong = request((64, 64, 5, 3.5, 0))
    assert not np.array_equal(engine.generate(wrong).images[0].pixels.numpy(), reference(dev, wanted))


def test_parity_fails_with_another_seed(engine: Engine, dev: Any) -> None:
    wanted, wrong = request((64, 64, 2, 3.5, 0)), request((64, 64, 2, 3.5, 1))
    assert not np.array_equal(engine.generate(wrong).images[0].pixels.numpy(), reference(dev, wanted))


def test_parity_fails_with_another_guidance(engine: Engine, dev: Any) -> None:
    wanted, wrong = request((64, 64, 2, 3.5, 0)), request((64, 64, 2, 4.5, 0))
    assert not np.array_equal(engine.generate(wrong).images[0].pixels.numpy(), reference(dev, wanted))


def test_parity_fails_with_a_rounded_schedule(engine: Engine, dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request((320, 256, 4, 3.5, 0))
    exact = denoise.time_shift
    monkeypatch.setattr(denoise, "time_shift", lambda length, config: round(exact(length, config), 2))
    assert not np.array_equal(engine.generate(wanted).images[0].pixels.numpy(), reference(dev, wanted))


def test_noise_is_what_diffusers_draws(dev: Any) -> None:
    theirs, _ = dev.prepare_latents(
        1, 16, 96, 160, torch.bfloat16, torch.device("cpu"), torch.Generator("cpu").manual_seed(5)
    )
    assert torch.equal(draw_noise(5, 160, 96, torch.bfloat16), theirs)
