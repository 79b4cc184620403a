"""The parameters of Segmind's three FLUX.1 models, each table keyed by the name that SegmindCall has for the parameter.

Names, defaults and ranges are those of Segmind's flux-dev, flux-depth-dev and flux-depth-pro pages; what a page does
not list begins its description with "Extension". Tables are in the order in which parameters are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipelines.speed.tiers import NAMES as TIERS

from .fields import Choice, Field, Flag, Integer, Loras, Number, OptionalPicture, Picture, Seed, Text

FLUX_DEV_GUIDANCE = 3.0
"""Default of the flux-dev page's parameter table; the samples on the same page send 3.5."""

ASPECT_RATIOS = ("1:1", "16:9", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21", "3:4", "4:3")
"""The flux-dev page's values, and 3:4 and 4:3 as an extension."""

_EXTENSION = "Extension: "
_GUIDANCE = (
    "How closely the picture follows the prompt. Higher values follow it more, at the cost of quality and variety."
)
_STEPS = "Number of denoising steps. More give finer details and take longer."
_OUTPUTS = "Number of images to generate."


def _output_format(default: str) -> Choice:
    text = "Format of the output images."
    return Choice(name="output_format", default=default, values=("webp", "jpg", "png"), description=text)


def _output_quality(prefix: str = "") -> Integer:
    text = f"{prefix}Quality of the output images, from 0 (lowest) to 100 (best). Not relevant for png."
    return Integer(name="output_quality", default=80, low=0, high=100, description=text)


def _seed(default: int) -> Seed:
    text = "Seed, set for reproducible generation; -1 or null draws a random one. Image i of a call uses seed + i."
    return Seed(name="seed", default=default, description=text)


def _base64(name: str) -> Flag:
    text = f"{_EXTENSION}v1 answers JSON with the picture as base64 text, where it would else answer the bytes."
    return Flag(name=name, default=False, description=text)


_PROMPT = Text(name="prompt", max_length=10_000, description="Text prompt for image generation.")
_CONTROL_IMAGE = Picture(
    name="control_image",
    description="Picture (jpeg, png or webp) whose depth steers the generation; its depth map is made from it."
    " An http(s) URL, a data URI, base64 text, or a file of a multipart form.",
)
_BASE64 = {"base64": _base64("base64"), "base_64": _base64("base_64")}
_DEPTH = {
    "preprocess": Flag(
        name="preprocess",
        default=True,
        description=f"{_EXTENSION}false means that control_image already is a depth map, bright where near.",
    ),
    "return_depth": Flag(
        name="return_depth",
        default=False,
        description=f"{_EXTENSION}also give back the depth map that steered the picture.",
    ),
}

_SAFETY = Flag(
    name="disable_safety_checker", default=False, description="Disable the safety checker for generated images."
)
_UPSAMPLING = "Let the server's prompt upsampler, where it has one, rewrite the prompt more creatively."
_SPEED = {
    "go_fast": Flag(
        name="go_fast",
        default=False,
        description=f"{_EXTENSION}draw in the tier `fast` where this server offers it. May change the image slightly.",
    ),
    "tier": Choice(
        name="tier",
        default="",
        values=("", *TIERS),
        description=f"{_EXTENSION}speed tier; exact is the picture that the model's publisher computes, fast multiplies"
        " in fp8, turbo also takes steps short. Empty is the server's default. The reply's x-tier says which ran.",
    ),
}
_LORAS = {
    "loras": Loras(
        name="loras",
        most=4,
        low=-10,
        high=10,
        description=f"{_EXTENSION}adapters from the server's LoRA folder, by file name without extension.",
    )
}


def _extension(field: Flag) -> Flag:
    return replace(field, description=f"{_EXTENSION}{field.description[0].lower()}{field.description[1:]}")


FLUX_DEV: Mapping[str, Field] = {
    "prompt": _PROMPT,
    "init_image": OptionalPicture(
        name="image",
        description=f"{_EXTENSION}a picture to start from (image-to-image); the output takes its shape, at most 1440 a"
        " side, and aspect_ratio is ignored. Given in the same forms as control_image of the depth models.",
    ),
    "aspect_ratio": Choice(
        name="aspect_ratio",
        default="1:1",
        values=ASPECT_RATIOS,
        aliases={"1": "1:1"},  # the default on an older edition of the page
        description="Width to height of the output, at about one megapixel.",
    ),
    "guidance": Number(name="guidance", default=FLUX_DEV_GUIDANCE, low=0, high=10, description=_GUIDANCE),
    "steps": Integer(name="steps", default=25, low=1, high=50, description=_STEPS),
    "num_outputs": Integer(name="samples", default=1, low=1, high=4, description=_OUTPUTS),
    "prompt_strength": Number(
        name="prompt_strength",
        default=0.8,
        low=0,
        high=1,
        description="With `image`: how much of it is replaced, in steps of 1/steps; 0 gives it back, 1 ignores it."
        " Without one it has no effect.",
    ),
    "seed": _seed(46588),
    "output_format": _output_format("webp"),
    "output_quality": _output_quality(),
    "disable_safety_checker": _extension(_SAFETY),
    "prompt_upsampling": Flag(name="prompt_upsampling", default=False, description=f"{_EXTENSION}{_UPSAMPLING}"),
    **_LORAS,
    **_SPEED,
    **_BASE64,
}
"""Segmind flux-dev page. Its table calls guidance an integer and its samples send 3.5, so fractions are taken."""

FLUX_DEPTH_DEV: Mapping[str, Field] = {
    "prompt": _PROMPT,
    "control_image": _CONTROL_IMAGE,
    "guidance": Number(name="guidance", default=10.0, low=0, high=100, description=_GUIDANCE),
    "steps": Integer(
        name="num_inference_steps", default=28, low=1, high=50, description=f"{_STEPS} 28 to 50 is recommended."
    ),
    "megapixels": Choice(
        name="megapixels",
        default="1",
        values=("1", "0.25", "match_input"),
        description="Approximate size of the output. match_input takes the input's size, up to 1440×1440 pixels.",
    ),
    "num_outputs": Integer(name="num_outputs", default=1, low=1, high=4, description=_OUTPUTS),
    "disable_safety_checker": _SAFETY,
    "seed": _seed(85412),
    "output_format": _output_format("jpg"),
    "output_quality": _output_quality(),
    "prompt_upsampling": Flag(name="prompt_upsampling", default=False, description=f"{_EXTENSION}{_UPSAMPLING}"),
    **_LORAS,
    **_SPEED,
    **_DEPTH,
    **_BASE64,
}
"""Segmind flux-depth-dev page."""

FLUX_DEPTH_PRO: Mapping[str, Field] = {
    "prompt": _PROMPT,
    "control_image": _CONTROL_IMAGE,
    "guidance": Number(name="guidance", default=7.0, low=1, high=50, description=_GUIDANCE),
    "steps": Integer(name="steps", default=40, low=15, high=50, description=_STEPS),
    "safety_tolerance": Integer(
        name="safety_tolerance", default=2, low=1, high=6, description="1 is most strict and 6 is most permissive."
    ),
    "prompt_upsampling": Flag(
        name="prompt_upsampling",
        default=True,
        description=_UPSAMPLING,
    ),
    "seed": _seed(96522),
    "output_format": _output_format("jpg"),
    "output_quality": _output_quality(_EXTENSION),
    **_LORAS,
    **_SPEED,
    **_DEPTH,
    **_BASE64,
}
"""Segmind flux-depth-pro page. Its list of output formats is blank; the other pages' values are taken."""
