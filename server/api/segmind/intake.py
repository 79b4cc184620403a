"""From an HTTP request to an accepted job: read, check, keep the picture, fix every value, commit."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request

from pipelines.lora.files import UnusableLora, check_input, find, read_header
from pipelines.memory.plans import too_large
from pipelines.models import MODELS
from pipelines.picture import PictureInfo, PictureLimits
from pipelines.request import SEED_SPACE, GenerationRequest
from pipelines.speed.tiers import choose
from server.accounts import MICRO
from server.api.public_url import public_base
from server.errors import InsufficientStorage, InvalidInput, NotFound
from server.jobs.model import Idempotency, Job, Lane, NewJob
from server.media.control_image import read_picture
from server.services import Services, caller_of

from .body import read_body
from .idempotency import fingerprint, idempotency_key
from .models import SegmindCall, parse, size_of

log = structlog.get_logger(__name__)


async def accept(request: Request, services: Services, slug: str, *, waits: bool) -> tuple[Job, SegmindCall]:
    """Accepts one call as a job, or finds the one that was accepted under the same idempotency key.

    waits: its caller waits on this connection (v1). Without an idempotency key the job is then dropped with it; with
    one somebody will come back. Raises the ServerError that says why it cannot be accepted.
    """
    services.rates.take(caller_of(request).id)
    key = idempotency_key(request)
    body = await read_body(request, max_bytes=services.settings.max_body_bytes)
    seed = _Seed()
    call = parse(slug, body, draw_seed=seed.draw)
    idempotency = Idempotency(key, fingerprint(call, drew_seed=seed.drawn)) if key else None
    if idempotency and (same := services.jobs.find_same(caller_of(request).id, idempotency)):
        _note(same, "request repeated")
        return same, call
    _check_available(services, call)
    _check_tier(services, call)
    await _check_loras(services, call)
    generation = await _complete(request, services, call)
    caller = caller_of(request)
    job = await services.jobs.submit(
        NewJob(
            id=str(uuid.uuid4()),
            owner=caller.id,
            lane=Lane.INTERACTIVE if waits else Lane.BATCH,
            attached=waits and idempotency is None,
            request=generation,
            dialect={"slug": slug},
            price_micro_usd=_price(services, call),
            budget_micro_usd=caller.budget_micro_usd,
            idempotency=idempotency,
        )
    )
    _note(job, "job accepted")
    return job, call


def _note(job: Job, event: str) -> None:
    """Ties this request's log lines to its job's."""
    structlog.contextvars.bind_contextvars(job=job.id)
    log.info(event)


class _Seed:
    """Draws a seed where a call asks for a random one, and remembers that it did."""

    drawn = False

    def draw(self) -> int:
        self.drawn = True
        return secrets.randbelow(SEED_SPACE)


async def _complete(request: Request, services: Services, call: SegmindCall) -> GenerationRequest:
    """The canonical request: its picture kept on disk, the size known."""
    control_image, init_image, source_size = None, None, None
    if call.control_image is not None:
        control_image, source_size = await _keep(request, services, call, call.control_image, "control_image")
    elif call.init_image is not None:
        init_image, source_size = await _keep(request, services, call, call.init_image, "image")
    width, height = size_of(call, source_size)
    _check_size(services, width, height)
    return GenerationRequest(
        model=call.engine_model,
        prompt=call.prompt,
        width=width,
        height=height,
        steps=call.steps,
        guidance=call.guidance,
        seed=call.seed,
        num_outputs=call.num_outputs,
        control_image=control_image,
        init_image=init_image,
        strength=call.strength,
        preprocess=call.preprocess,
        return_depth=call.return_depth,
        check_safety=call.check_safety,
        safety_tolerance=call.safety_tolerance,
        upsample_prompt=call.prompt_upsampling,
        loras=call.loras,
        tier=call.tier,
        prefer_fast=call.go_fast,
        output_format=call.output_format,
        output_quality=call.output_quality,
    )


def _check_tier(services: Services, call: SegmindCall) -> None:
    """Raises InvalidInput for a tier that this server does not offer, as far as that is known yet."""
    greeting = services.worker.greeting
    if greeting is None:
        return
    try:
        choose(call.tier, prefer_fast=call.go_fast, offered=greeting.tiers)
    except ValueError as error:
        raise InvalidInput(str(error), parameter="tier") from error


def _check_size(services: Services, width: int, height: int) -> None:
    """Raises InvalidInput for a picture that the memory plan has no room for, as far as the plan is known yet."""
    greeting = services.worker.greeting
    if greeting is not None and width * height > greeting.max_pixels:
        raise InvalidInput(too_large(width, height, greeting.max_pixels))


async def _keep(
    request: Request, services: Services, call: SegmindCall, value: str | bytes, parameter: str
) -> tuple[str, tuple[int, int]]:
    """Keeps a call's picture for its job. Returns its name and its size in pixels, once a size follows from it."""
    data, info = await take_picture(request, services, value, parameter)
    size_of(call, (info.width, info.height))
    return await services.results.keep_input(data, info.format), (info.width, info.height)


async def take_picture(
    request: Request, services: Services, value: str | bytes, parameter: str
) -> tuple[bytes, PictureInfo]:
    """A client's picture in any of its forms, checked to its last pixel: its bytes and PictureInfo."""
    return await read_picture(
        value,
        fetcher=services.fetcher,
        own_file=lambda url: _own_file(url, public_base(request, services.settings), services),
        parameter=parameter,
        limits=PictureLimits(max_pixels=services.settings.max_picture_pixels),
        known=lambda data, info: services.results.keeps_input(data, info.format),
    )


def check_disk(services: Services) -> None:
    """Raises InsufficientStorage when the disk is below its floor."""
    if services.results.free_bytes() < services.settings.min_free_bytes:
        raise InsufficientStorage


def _own_file(url: str, base: str, services: Services) -> Path | None:
    """The published file that a URL of this very server names."""
    try:
        own, asked = urlsplit(base), urlsplit(url)
    except ValueError:  # half an IPv6 address, odd characters: the fetcher says what is wrong with the URL
        return None
    folder = f"{own.path}/files/"
    if asked.netloc.lower() != own.netloc.lower() or not asked.path.startswith(folder):
        return None
    return services.results.find(asked.path.removeprefix(folder))


def _check_available(services: Services, call: SegmindCall) -> None:
    check_disk(services)
    if call.engine_model not in services.models:
        raise NotFound(
            f"Model {call.slug} is not available here: the weights of {call.engine_model} are not on its disk."
            f" Available here: {', '.join(services.models) or 'none'}."
        )
    if call.control_image is not None and call.preprocess and services.weights.depth_estimator is None:
        raise InvalidInput(
            "This server has no depth estimator: pass a ready depth map as control_image, and preprocess=false.",
            parameter="preprocess",
        )


async def _check_loras(services: Services, call: SegmindCall) -> None:
    """Raises InvalidInput for a LoRA that is not there or was made for another model, as far as its header tells."""
    if not call.loras:
        return
    folder = services.settings.lora_dir
    if folder is None:
        raise InvalidInput("loras cannot be used: this server has no LoRA folder (FLUX_LORA_DIR)", parameter="loras")
    channels = MODELS[call.engine_model].transformer_in_channels
    try:
        for lora in call.loras:
            header = await asyncio.to_thread(read_header, find(folder, lora.name))
            check_input(header, channels)
    except UnusableLora as error:
        raise InvalidInput(str(error), parameter="loras") from error


def _price(services: Services, call: SegmindCall) -> int:
    own = services.settings.prices.get(call.slug)
    return call.price_micro_usd if own is None else round(own * MICRO) * call.num_outputs
