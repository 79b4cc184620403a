"""The engine computes what diffusers' pipelines compute, bit for bit, on the same components and noise.

float32 on the CPU. Each test is also run with something made wrong, to show that it would see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline, FluxPipeline
from PIL import Image

from pipelines import denoise
from pipelines.components import Components, load_components
from pipelines.decode import encode_picture
from pipelines.engine import ControlImage, Engine
from pipelines.latents import draw_noise
from pipelines.request import GenerationRequest

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
    return load_components(
        {"flux-dev": demo_weights / "FLUX.1-dev", "flux-depth-dev": demo_weights / "FLUX.1-Depth-dev"},
        demo_weights / "depth-anything-large-hf",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


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


@pytest.fixture
def engine(components: Components) -> Engine:
    components.text.cache.clear()
    components.control.cache.clear()
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


@pytest.mark.parametrize("case", CASES)
def test_parity_of_text_to_image_with_flux_pipeline(engine: Engine, dev: Any, case: Any) -> None:
    wanted = request(case)
    assert np.array_equal(engine.generate(wanted).images[0].numpy(), reference(dev, wanted))


@pytest.mark.filterwarnings("ignore:Token indices sequence length")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_parity_of_prompts_short_empty_and_too_long(engine: Engine, dev: Any, prompt: str) -> None:
    wanted = request(CASES[1], prompt=prompt)
    assert np.array_equal(engine.generate(wanted).images[0].numpy(), reference(dev, wanted))


@pytest.mark.parametrize("case", CASES)
def test_parity_of_depth_with_flux_control_pipeline(engine: Engine, depth: Any, case: Any) -> None:
    wanted = request(case, model="flux-depth-dev", preprocess=False)
    picture = depth_picture(wanted.width, wanted.height)
    ours = engine.generate(wanted, control_image=ControlImage(picture, "gradient")).images[0].numpy()
    theirs = reference(depth, wanted, control_image=control_latents(depth, picture, wanted))
    assert np.array_equal(ours, theirs)


def test_parity_fails_with_one_step_more(engine: Engine, dev: Any) -> None:
    wanted = request((64, 64, 4, 3.5, 0))
    wrong = request((64, 64, 5, 3.5, 0))
    assert not np.array_equal(engine.generate(wrong).images[0].numpy(), reference(dev, wanted))


def test_parity_fails_with_another_seed(engine: Engine, dev: Any) -> None:
    wanted, wrong = request((64, 64, 2, 3.5, 0)), request((64, 64, 2, 3.5, 1))
    assert not np.array_equal(engine.generate(wrong).images[0].numpy(), reference(dev, wanted))


def test_parity_fails_with_another_guidance(engine: Engine, dev: Any) -> None:
    wanted, wrong = request((64, 64, 2, 3.5, 0)), request((64, 64, 2, 4.5, 0))
    assert not np.array_equal(engine.generate(wrong).images[0].numpy(), reference(dev, wanted))


def test_parity_fails_with_a_rounded_schedule(engine: Engine, dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request((320, 256, 4, 3.5, 0))
    exact = denoise.time_shift
    monkeypatch.setattr(denoise, "time_shift", lambda length, config: round(exact(length, config), 2))
    assert not np.array_equal(engine.generate(wanted).images[0].numpy(), reference(dev, wanted))


def test_noise_is_what_diffusers_draws(dev: Any) -> None:
    theirs, _ = dev.prepare_latents(
        1, 16, 96, 160, torch.bfloat16, torch.device("cpu"), torch.Generator("cpu").manual_seed(5)
    )
    assert torch.equal(draw_noise(5, 160, 96, torch.bfloat16), theirs)
