"""The engine: one request in, pictures out, one step at a time.

    text → (depth map → control latents | init image → latents) → noise → step, step, … → decode → safety check

Requests of one `company` can be denoised together; all else is done for each by itself. Between steps it reports
progress and obeys cancel. It keeps nothing of a request but cached embeddings and latents, so a cancelled or failed
request leaves no trace in the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch

from .ahead import RoomBeside
from .cache import TensorCache
from .company import company, pixels_as_one
from .components import Components
from .control import Control
from .decode import decode_latents
from .denoise import Denoiser, add_noise, make_schedule
from .faults import BadRequest, Flagged
from .fp8 import multiplying_in_fp8
from .latents import draw_noise, image_ids
from .memory.budget import host_budget_bytes
from .memory.placement import DEPTH, SAFETY, UPSAMPLER, bytes_to_host, settle
from .memory.plans import REFERENCE_PIXELS, prepares_in_place, smaller_recipe, too_large
from .models import MODELS
from .order import Asked, Conditions, Drawn, Generated, Group, NobodyLeft, Order
from .request import GenerationRequest
from .sizes import sequence_length
from .source import Source
from .speed.step_cache import step_cache
from .speed.tiers import Tier, choose
from .watch import StepReport, Watch


class Engine:
    """Computes requests with loaded components, one or one batch at a time. One other thread may call `prepare`."""

    def __init__(self, components: Components, *, max_pixels: int | None = None, ahead_pixels: int = 0) -> None:
        """max_pixels: of the largest picture that there is memory for, None where that is not known.

        ahead_pixels: of the largest beside which the next request can be prepared, 0 for never.
        """
        self._parts, self._max_pixels = components, max_pixels
        self._beside = RoomBeside(components.device, ahead_pixels)

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(self._parts.transformers)

    @property
    def tiers(self) -> tuple[str, ...]:
        """What requests may ask for, the default first."""
        return self._parts.tiers

    @contextmanager
    def rehearsing_loras(self, model: str) -> Iterator[bool]:
        """Requests in the block compute as with LoRAs that change nothing. Gives False where there is no slot."""
        shelf = self._parts.shelves.get(model)
        if shelf is None:
            yield False
            return
        with self._parts.residency.present(model), shelf.rehearsal():
            yield True

    @property
    def checks_safety(self) -> bool:
        """False where no safety classifiers are loaded."""
        return self._parts.safety is not None

    @property
    def estimates_depth(self) -> bool:
        """False where no depth estimator is loaded, so that control images must be ready depth maps."""
        return self._parts.control.estimates

    def generate(
        self,
        request: GenerationRequest,
        *,
        control_image: Source | None = None,
        init_image: Source | None = None,
        on_step: Callable[[StepReport], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Computes every image of the request.

        on_step is called after each step; cancelled is asked before each step and between stages.
        Raises Cancelled, BadRequest (the request cannot be computed), Flagged, NotFinite, and whatever torch raises.
        """
        return self.generate_one(
            Asked(
                request=request,
                control_image=control_image,
                init_image=init_image,
                on_step=on_step,
                cancelled=cancelled,
            )
        )

    def generate_one(self, asked: Asked) -> Generated:
        """As `generate`."""
        [outcome] = self.generate_together([asked])
        if isinstance(outcome, Generated):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # else it and this frame would keep each other

    def generate_together(self, asked: Sequence[Asked]) -> list[Generated | Exception]:
        """Computes one request, or several of one `company` in one batch.

        Gives for each, in order, what it gave or why it gave nothing: Cancelled, BadRequest, Flagged or NotFinite; the
        others go on without it. Raises whatever torch raises, and then all are lost. ValueError for requests that may
        not be drawn together.
        """
        if len(asked) > 1 and len({company(each.request) or id(each) for each in asked}) > 1:
            raise ValueError("these requests are not of one company, so they cannot be drawn together")
        orders = [Order(each, self._parts.device) for each in asked]
        with torch.inference_mode(), self._beside.drawing(pixels_as_one([each.request for each in asked])):
            for order in orders:
                with order.judged():
                    self._begin(order)
            with suppress(NobodyLeft):
                self._draw_all(Group(orders))
            for order in orders:
                if order.error is None:
                    with order.judged():
                        self._finish(order)
        return [order.outcome() for order in orders]

    @property
    def prepares(self) -> bool:
        """Whether `prepare` does anything."""
        return self._beside.any and prepares_in_place(self._parts.recipe)

    def prepare(
        self,
        request: GenerationRequest,
        *,
        control_image: Source | None = None,
        init_image: Source | None = None,
    ) -> bool:
        """Puts what this request needs before its first step into the caches, while another one is drawn.

        Of pictures larger than the reference only the prompt. False where nothing was prepared: no room now, or a
        prompt that is to be rewritten. Changes nothing else, so that the picture is the same without it. Raises what
        `generate` raises before its first step.
        """
        with self._beside.preparing() as may:
            rewritten = request.upsample_prompt and self._parts.upsampler is not None
            if not may or rewritten or not self.prepares:
                return False
            self._check(request, control_image, init_image)
            if request.width * request.height > REFERENCE_PIXELS:
                control_image = init_image = None
            self._prepare(request, control_image, init_image, Watch.over_nothing(self._parts.device))
            return True

    def shrink(self) -> bool:
        """Frees device memory that the request in hand does not need; False when there is nothing left to give back.

        The caches go, and the next smaller memory plan for the same weights takes over, where the host has room for it.
        """
        with self._beside.moving():
            return self._shrink()

    def _shrink(self) -> bool:
        held = any(cache.used_bytes for cache in self._caches)
        for cache in self._caches:
            cache.clear()
        recipe = smaller_recipe(self._parts.recipe)
        if recipe is None or bytes_to_host(self._parts, recipe) > host_budget_bytes():
            return held
        self._parts = replace(self._parts, recipe=recipe)
        settle(self._parts)
        return True

    @property
    def _caches(self) -> tuple[TensorCache[Any], ...]:
        return self._parts.text.cache, self._parts.control.cache, self._parts.init.cache

    def cache_counts(self) -> dict[str, tuple[int, int]]:
        """Hits and misses so far, by the cache's name."""
        named = zip(("text", "control", "init"), self._caches, strict=True)
        return {name: (cache.hits, cache.misses) for name, cache in named}

    @property
    def plan_name(self) -> str:
        """Of the memory plan that holds now."""
        return self._parts.recipe.name

    def _check(self, request: GenerationRequest, control_image: Source | None, init_image: Source | None) -> None:
        if request.model not in self._parts.transformers:
            raise BadRequest(f"model {request.model} is not loaded; loaded are {', '.join(self.model_names)}")
        self._tier(request)
        if self._max_pixels is not None and request.width * request.height > self._max_pixels:
            raise BadRequest(too_large(request.width, request.height, self._max_pixels))
        takes_control = MODELS[request.model].takes_control
        if takes_control and control_image is None:
            raise BadRequest(f"model {request.model} needs a control image")
        if takes_control and init_image is not None:
            raise BadRequest(f"model {request.model} takes no init image")

    def _adapted(self, request: GenerationRequest) -> AbstractContextManager[tuple[str, ...]]:
        """The request's LoRAs on its transformer, for as long as it runs. Gives notes about what they could not do."""
        if not request.loras:
            return nullcontext(())
        shelf = self._parts.shelves.get(request.model)
        if shelf is None:
            raise BadRequest("loras cannot be used: this server has no LoRA folder (its operator sets FLUX_LORA_DIR)")
        return shelf.applied([(lora.name, lora.scale) for lora in request.loras])

    def _begin(self, order: Order) -> None:
        """All that comes before the first step, but for the noise."""
        asked, watch = order.asked, order.watch
        self._check(order.request, asked.control_image, asked.init_image)
        if order.request.upsample_prompt and self._parts.upsampler is not None:
            with watch.stage("upsample"), self._parts.residency.present(UPSAMPLER):
                order.request = replace(order.request, prompt=self._parts.upsampler.rewrite(order.request.prompt))
        order.conditions = self._prepare(order.request, asked.control_image, asked.init_image, watch)
        order.generated = Generated(
            order.request.prompt,
            unseen_tokens=order.conditions.text.unseen_tokens,
            tier=self._tier(order.request).name,
        )

    def _finish(self, order: Order) -> None:
        """All that comes after decoding."""
        if order.conditions.control is not None and order.request.return_depth:
            order.generated.depth_map = order.conditions.control.depth_map
        self._check_safety(order.request, order.generated, order.watch)
        order.generated.timings_s = order.watch.timings_s

    def _prepare(
        self,
        request: GenerationRequest,
        control_image: Source | None,
        init_image: Source | None,
        watch: Watch,
    ) -> Conditions:
        with watch.stage("text"):
            text = self._parts.text.encode(request.prompt)
        control = self._control(request, control_image, watch) if control_image else None
        init_latents = None
        if init_image is not None:
            with watch.stage("init"):
                init_latents = self._parts.init.encode(init_image, request.width, request.height)
        return Conditions(text, control, init_latents)

    def _control(self, request: GenerationRequest, image: Source, watch: Watch) -> Control:
        def compute() -> Control:
            with watch.stage("depth"), self._parts.residency.present(DEPTH):
                depth_map = self._parts.control.depth_map(
                    image.picture, request.width, request.height, preprocess=request.preprocess
                )
            with watch.stage("control"):
                return self._parts.control.encode(depth_map)

        key = (image.key, request.width, request.height, request.preprocess)
        return self._parts.control.cache.get_or_compute(key, compute)

    def _tier(self, request: GenerationRequest) -> Tier:
        try:
            return choose(request.tier, prefer_fast=request.prefer_fast, offered=self._parts.tiers)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _draw_all(self, group: Group) -> None:
        """Every image of every order. Raises NobodyLeft when each has ended before."""
        residency = self._parts.residency
        with group.stage("place"):
            request, tier = group.orders[0].request, self._tier(group.orders[0].request)
            residency.bring(request.model)
        # LoRAs go into a transformer that is there: one that leaves forgets what was changed in it.
        transformer = self._parts.transformer(request.model, tier)
        quick = multiplying_in_fp8(transformer) if tier.fp8 else nullcontext()
        try:
            with residency.present(request.model), self._adapted(request) as notes, quick:
                for index in range(request.num_outputs):
                    self._draw(group, index, transformer, tier)
        except BadRequest as error:
            group.refuse(error)
            return
        for order in group.orders:
            order.generated.lora_notes = notes

    def _draw(self, group: Group, index: int, transformer: Any, tier: Tier) -> None:
        """The image at this place in each order's request."""
        short_steps = step_cache(transformer) if tier.step_cache else nullcontext()
        with group.stage("denoise"), short_steps:
            together = len(group.orders)
            denoiser = self._denoiser(group.orders, index, transformer)
            while not denoiser.done:
                denoiser.keep(group.obey())
                with group.step():
                    denoiser.step()
            group.finish_steps()
        for order, latents in zip(group.orders, torch.split(denoiser.latents, 1), strict=True):
            order.generated.together = together
            with order.judged(), order.watch.stage("decode"):
                [pixels] = decode_latents(self._parts.vae, latents, order.request.width, order.request.height)
                encoded = order.asked.encode(order.generated, index, pixels)
                order.generated.images.append(Drawn(index, pixels, encoded))

    def _denoiser(self, orders: Sequence[Order], index: int, transformer: Any) -> Denoiser:
        parts, request = self._parts, orders[0].request
        scheduler = make_schedule(
            parts.scheduler_config,
            request.steps,
            sequence_length(request.width, request.height),
            parts.device,
            first_step=request.first_step,
        )
        controls = [order.conditions.control.latents for order in orders if order.conditions.control]
        return Denoiser(
            transformer,
            scheduler,
            latents=torch.cat([self._start(order, index, scheduler) for order in orders]),
            image_ids=image_ids(request.width, request.height, parts.device, parts.dtype),
            texts=[order.conditions.text for order in orders],
            guidance=[order.request.guidance for order in orders],
            control=torch.cat(controls) if controls else None,
        )

    def _start(self, order: Order, index: int, scheduler: Any) -> torch.Tensor:
        """What the first step begins with: [1, L, 64]."""
        request, init_latents = order.request, order.conditions.init_latents
        noise = draw_noise(request.seed_of(index), request.width, request.height, self._parts.dtype)
        latents = noise.to(self._parts.device)
        return latents if init_latents is None else add_noise(scheduler, init_latents, latents)

    def _check_safety(self, request: GenerationRequest, generated: Generated, watch: Watch) -> None:
        """Drops flagged pictures. Raises Flagged when none is left."""
        if not request.check_safety:
            generated.safety = "off"
            return
        if self._parts.safety is None:
            return
        with watch.stage("safety"), self._parts.residency.present(SAFETY):
            pixels = [drawn.pixels for drawn in generated.images]
            verdicts = self._parts.safety.check(pixels, request.safety_tolerance)
        generated.safety = "checked"
        generated.flagged = tuple(index for index, verdict in enumerate(verdicts) if verdict.flagged)
        generated.images = [drawn for drawn in generated.images if drawn.index not in generated.flagged]
        if not generated.images:
            raise Flagged(
                "The safety checker flagged every generated image, so there is none to show."
                " Try another prompt or seed."
            )
