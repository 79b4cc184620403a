"""Segmind's three FLUX.1 models, and the way from a request body to one complete call in the engine's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines import models as engine
from pipelines import sizes
from pipelines.request import DEFAULT_SAFETY_TOLERANCE, SEED_SPACE, Lora, OutputFormat
from pipelines.sizes import Megapixels
from server.errors import InvalidInput, NotFound

from . import parameters
from .fields import Field
from .values import ABSENT, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmindModel:
    """One slug.

    engine_model: name of the spec in `pipelines.models` that draws its pictures.
    price_micro_usd: list price of one image, in millionths of a US dollar.
    v1_reply: what v1 answers when the request does not say: JSON with the picture in it, or the picture's bytes.
    fields: its parameters, by the name that SegmindCall has for them.
    """

    slug: str
    title: str
    description: str
    engine_model: str
    price_micro_usd: int
    v1_reply: Literal["json", "image"]
    fields: Mapping[str, Field]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmindCall:
    """One call, complete: every default and the seed are fixed in it.

    engine_model: name of the spec in `pipelines.models` that draws its pictures.
    guidance: in the range of the slug's page, widest 0–100.
    seed: of image 0, in [0, 2³²), already drawn where a random one was asked for.
    output_quality: 0–100, meaningless for png.
    aspect_ratio: for flux-dev, a key of `pipelines.sizes.ASPECT_SIZES`; else None.
    megapixels: for flux-depth-dev; None elsewhere, which is one megapixel.
    init_image: for flux-dev, a picture to start from in the same forms as control_image, or None.
    strength: 0–1, the share of the init image that is replaced.
    control_image: a URL, data URI or base64 text, or a file's bytes, not looked into yet; None for flux-dev.
    preprocess: False means that the control image already is a depth map.
    return_depth: also give back the depth map.
    check_safety: False only where the model has `disable_safety_checker` and the client set it.
    safety_tolerance: 1 (strict) to 6; the reference's 2 where the model has no such parameter.
    loras: adapters by name, in the order given.
    tier: speed tier, "" for the server's default. go_fast: the fast one where it is offered.
    wants_base64: the client set `base64` or `base_64`.
    price_micro_usd: of the whole call, in millionths of a US dollar.
    """

    slug: str
    engine_model: str
    prompt: str
    steps: int
    guidance: float
    seed: int
    num_outputs: int
    output_format: OutputFormat
    output_quality: int
    aspect_ratio: str | None
    megapixels: Megapixels | None
    init_image: str | bytes | None
    strength: float
    control_image: str | bytes | None
    preprocess: bool
    return_depth: bool
    check_safety: bool
    safety_tolerance: int
    prompt_upsampling: bool
    loras: tuple[Lora, ...]
    tier: str
    go_fast: bool
    wants_base64: bool
    price_micro_usd: int


FLUX_DEV = SegmindModel(
    slug="flux-dev",
    title="Flux.1 Dev",
    description="Flux Dev is a 12 billion parameter rectified flow transformer capable of generating images from text"
    " descriptions.",
    engine_model=engine.FLUX_DEV.name,
    price_micro_usd=19_600,
    v1_reply="json",
    fields=parameters.FLUX_DEV,
)

FLUX_DEPTH_DEV = SegmindModel(
    slug="flux-depth-dev",
    title="Flux Depth Dev",
    description="Open-weight depth-aware image generation. Edit images while preserving spatial relationships.",
    engine_model=engine.FLUX_DEPTH_DEV.name,
    price_micro_usd=31_250,
    v1_reply="image",
    fields=parameters.FLUX_DEPTH_DEV,
)

FLUX_DEPTH_PRO = SegmindModel(
    slug="flux-depth-pro",
    title="Flux Depth Pro",
    description="Depth-aware image generation with the parameters of Flux Depth Pro, drawn by FLUX.1-Depth-dev.",
    engine_model=engine.FLUX_DEPTH_DEV.name,
    price_micro_usd=62_500,
    v1_reply="image",
    fields=parameters.FLUX_DEPTH_PRO,
)

MODELS = {model.slug: model for model in (FLUX_DEV, FLUX_DEPTH_DEV, FLUX_DEPTH_PRO)}
"""The models by slug."""


def model_of(slug: str) -> SegmindModel:
    """The model that a slug names, in exactly this spelling. Raises NotFound with the slugs that exist."""
    if slug not in MODELS:
        raise NotFound(f"Model or endpoint not found: {shown(slug)}, available: {', '.join(MODELS)}")
    return MODELS[slug]


def parse(slug: str, body: Mapping[str, Any], *, draw_seed: Callable[[], int]) -> SegmindCall:
    """The call that a body asks of a model.

    body: JSON values, or a form's text and files' bytes; unknown parameters are ignored.
    draw_seed: gives a random integer, taken modulo 2³²; called only where the client asks for a random seed.
    Raises NotFound for an unknown slug, and InvalidInput with the parameter's name for the first one that is missing
    or cannot be used.
    """
    model = model_of(slug)
    values = {attribute: field.read(body.get(field.name, ABSENT)) for attribute, field in model.fields.items()}
    return _call(model, values, draw_seed)


def _call(model: SegmindModel, values: Mapping[str, Any], draw_seed: Callable[[], int]) -> SegmindCall:
    seed = values["seed"]
    num_outputs = values.get("num_outputs", 1)
    return SegmindCall(
        slug=model.slug,
        engine_model=model.engine_model,
        prompt=values["prompt"],
        steps=values["steps"],
        guidance=values["guidance"],
        seed=(draw_seed() if seed is None else seed) % SEED_SPACE,
        num_outputs=num_outputs,
        output_format=values["output_format"],
        output_quality=values["output_quality"],
        aspect_ratio=values.get("aspect_ratio"),
        megapixels=values.get("megapixels"),
        init_image=values.get("init_image"),
        strength=values.get("prompt_strength", 1.0),
        control_image=values.get("control_image"),
        preprocess=values.get("preprocess", True),
        return_depth=values.get("return_depth", False),
        check_safety=not values.get("disable_safety_checker", False),
        safety_tolerance=values.get("safety_tolerance", DEFAULT_SAFETY_TOLERANCE),
        prompt_upsampling=values.get("prompt_upsampling", False),
        loras=values["loras"],
        tier=values["tier"],
        go_fast=values["go_fast"],
        wants_base64=values["base64"] or values["base_64"],
        price_micro_usd=model.price_micro_usd * num_outputs,
    )


def size_of(call: SegmindCall, source_size: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height in pixels of the call's pictures.

    source_size: width and height in pixels of the control or init image, after its EXIF turn; None without one.
    Raises InvalidInput for a picture whose shape gives no size, ValueError for a depth call without its size.
    """
    try:
        if call.aspect_ratio is not None:
            return sizes.aspect_size(call.aspect_ratio) if source_size is None else sizes.init_size(*source_size)
        if source_size is None:
            raise ValueError(f"a {call.slug} call takes its size from the control image, and none was given")
        return sizes.control_size(*source_size, call.megapixels or "1")
    except sizes.UnusableSize as error:
        name = "control_image" if call.aspect_ratio is None else "image"
        raise InvalidInput(f"{name} {error}", parameter=name) from error
