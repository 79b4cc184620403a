"""The engine: one request in, pictures out, one step at a time.

    text → (depth map → control latents) → noise → step, step, … → decode

Between steps it reports progress and obeys cancel. It keeps nothing of a request but cached embeddings and control
latents, so a cancelled or failed request leaves no trace in the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image

from .components import Components
from .control import Control
from .decode import decode_latents
from .denoise import Denoiser, make_schedule
from .faults import BadRequest
from .latents import draw_noise, image_ids
from .models import MODELS
from .request import GenerationRequest
from .sizes import sequence_length
from .text import EncodedPrompt


class Cancelled(Exception):
    """The request was cancelled; it stopped between two steps."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress: `step` of `steps` done, counted over all images of the request; `step_s` is the last step's time."""

    step: int
    steps: int
    step_s: float


@dataclass(slots=True)
class Generated:
    """Pictures as uint8 [H, W, 3] on the CPU, in order of their index, with the depth map that steered them."""

    images: list[torch.Tensor] = field(default_factory=list)
    depth_map: torch.Tensor | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    unseen_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ControlImage:
    """A decoded RGB control image and a key that names its content."""

    picture: Image.Image
    key: str


def _ignore(_: StepReport) -> None:
    return None


def _never() -> bool:
    return False


class Engine:
    """Computes requests with loaded components. Not thread-safe: one request at a time."""

    def __init__(self, components: Components) -> None:
        self._parts = components

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(self._parts.transformers)

    def generate(
        self,
        request: GenerationRequest,
        *,
        control_image: ControlImage | None = None,
        on_step: Callable[[StepReport], None] = _ignore,
        cancelled: Callable[[], bool] = _never,
    ) -> Generated:
        """Computes every image of the request.

        on_step is called after each step; cancelled is asked before each step and between stages.
        Raises Cancelled, BadRequest (the request cannot be computed), NotFinite, and whatever torch raises.
        """
        self._check(request, control_image)
        with torch.inference_mode():
            return self._generate(request, control_image, _Watch(request, on_step, cancelled))

    def _check(self, request: GenerationRequest, control_image: ControlImage | None) -> None:
        if request.model not in self._parts.transformers:
            raise BadRequest(f"model {request.model} is not loaded; loaded are {', '.join(self.model_names)}")
        if MODELS[request.model].takes_control and control_image is None:
            raise BadRequest(f"model {request.model} needs a control image")

    def _generate(self, request: GenerationRequest, control_image: ControlImage | None, watch: _Watch) -> Generated:
        with watch.stage("text"):
            text = self._parts.text.encode(request.prompt)
        control = self._control(request, control_image, watch) if control_image else None
        generated = Generated(unseen_tokens=text.unseen_tokens)
        if control is not None and request.return_depth:
            generated.depth_map = control.depth_map
        for index in range(request.num_outputs):
            with watch.stage("denoise"):
                latents = self._denoise(request, request.seed_of(index), text, control, watch)
            with watch.stage("decode"):
                pixels = decode_latents(self._parts.vae, latents, request.width, request.height)
            generated.images.append(pixels[0])
        generated.timings_s = watch.timings_s
        return generated

    def _control(self, request: GenerationRequest, image: ControlImage, watch: _Watch) -> Control:
        def compute() -> Control:
            with watch.stage("depth"):
                depth_map = self._parts.control.depth_map(
                    image.picture, request.width, request.height, preprocess=request.preprocess
                )
            with watch.stage("control"):
                return self._parts.control.encode(depth_map)

        key = (image.key, request.width, request.height, request.preprocess)
        return self._parts.control.cache.get_or_compute(key, compute)

    def _denoise(
        self,
        request: GenerationRequest,
        seed: int,
        text: EncodedPrompt,
        control: Control | None,
        watch: _Watch,
    ) -> torch.Tensor:
        parts, width, height = self._parts, request.width, request.height
        denoiser = Denoiser(
            parts.transformers[request.model],
            make_schedule(parts.scheduler_config, request.steps, sequence_length(width, height), parts.device),
            latents=draw_noise(seed, width, height, parts.dtype).to(parts.device),
            image_ids=image_ids(width, height, parts.device, parts.dtype),
            text=text,
            guidance=request.guidance,
            control=control.latents if control else None,
        )
        while not denoiser.done:
            with watch.step():
                denoiser.step()
        return denoiser.latents


class _Watch:
    """One request's clock, progress and cancel switch."""

    def __init__(
        self, request: GenerationRequest, on_step: Callable[[StepReport], None], cancelled: Callable[[], bool]
    ) -> None:
        self._steps = request.steps * request.num_outputs
        self._done = 0
        self._on_step, self._cancelled = on_step, cancelled
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of what runs inside to `name`. Stages end with a wait for the device, so the time is real."""
        self._obey()
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.timings_s[name] = self.timings_s.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        self._obey()
        start = time.perf_counter()
        yield
        self._done += 1
        self._on_step(StepReport(self._done, self._steps, time.perf_counter() - start))

    def _obey(self) -> None:
        if self._cancelled():
            raise Cancelled
