from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.models import MODELS as ENGINE_MODELS
from pipelines.sizes import aspect_size, control_size, init_size
from server.api.segmind.models import MODELS, SegmindCall, parse, size_of
from server.errors import InvalidInput, NotFound

DRAWN = 123_456_789
ROOM = "https://segmind-sd-models.s3.us-east-1.amazonaws.com/display_images/flux-tools/flux-dev-depth-ip-1.png"

# The sample payloads of Segmind's pages, values as the pages write them.
PAGES: dict[str, dict[str, Any]] = {
    "flux-dev": {
        "prompt": "detailed cinematic dof render of an old dusty detailed CRT monitor on a wooden desk in a dim room"
        " with items around, messy dirty room. On the screen are the letters “FLUX dev” glowing softly. High detail"
        " hard surface render",
        "samples": 1,
        "guidance": 3.5,
        "steps": 25,
        "prompt_strength": 0.8,
        "aspect_ratio": "1:1",
        "seed": 46588,
        "output_format": "webp",
        "output_quality": 80,
    },
    "flux-depth-dev": {
        "seed": 85412,
        "prompt": "spiderman lecture, photorealistic",
        "guidance": 10,
        "megapixels": "1",
        "num_outputs": 1,
        "control_image": ROOM,
        "output_format": "jpg",
        "output_quality": 80,
        "num_inference_steps": 28,
        "disable_safety_checker": False,
    },
    "flux-depth-pro": {
        "seed": 96522,
        "steps": 40,
        "prompt": "American man, smiling, waving, eyeglasses, casual clothing, sitting at desk, laptop, home office",
        "guidance": 7,
        "control_image": ROOM,
        "output_format": "jpg",
        "safety_tolerance": 2,
        "prompt_upsampling": False,
    },
}
CALLS = {
    "flux-dev": SegmindCall(
        slug="flux-dev",
        engine_model="flux-dev",
        prompt=PAGES["flux-dev"]["prompt"],
        steps=25,
        guidance=3.5,
        seed=46588,
        num_outputs=1,
        output_format="webp",
        output_quality=80,
        aspect_ratio="1:1",
        megapixels=None,
        control_image=None,
        init_image=None,
        strength=0.8,
        loras=(),
        tier="",
        go_fast=False,
        preprocess=True,
        return_depth=False,
        check_safety=True,
        safety_tolerance=2,
        prompt_upsampling=False,
        wants_base64=False,
        price_micro_usd=19_600,
    ),
    "flux-depth-dev": SegmindCall(
        slug="flux-depth-dev",
        engine_model="flux-depth-dev",
        prompt=PAGES["flux-depth-dev"]["prompt"],
        steps=28,
        guidance=10.0,
        seed=85412,
        num_outputs=1,
        output_format="jpg",
        output_quality=80,
        aspect_ratio=None,
        megapixels="1",
        control_image=ROOM,
        init_image=None,
        strength=1.0,
        loras=(),
        tier="",
        go_fast=False,
        preprocess=True,
        return_depth=False,
        check_safety=True,
        safety_tolerance=2,
        prompt_upsampling=False,
        wants_base64=False,
        price_micro_usd=31_250,
    ),
    "flux-depth-pro": SegmindCall(
        slug="flux-depth-pro",
        engine_model="flux-depth-dev",
        prompt=PAGES["flux-depth-pro"]["prompt"],
        steps=40,
        guidance=7.0,
        seed=96522,
        num_outputs=1,
        output_format="jpg",
        output_quality=80,
        aspect_ratio=None,
        megapixels=None,
        control_image=ROOM,
        init_image=None,
        strength=1.0,
        loras=(),
        tier="",
        go_fast=False,
        preprocess=True,
        return_depth=False,
        check_safety=True,
        safety_tolerance=2,
        prompt_upsampling=False,
        wants_base64=False,
        price_micro_usd=62_500,
    ),
}
# What the pages' parameter tables say for a body of required parameters only, where it differs from the samples.
DEFAULTS = {
    "flux-dev": replace(CALLS["flux-dev"], guidance=3.0),
    "flux-depth-dev": CALLS["flux-depth-dev"],
    "flux-depth-pro": replace(CALLS["flux-depth-pro"], prompt_upsampling=True),
}
SLUGS = tuple(PAGES)
DEPTH = ("flux-depth-dev", "flux-depth-pro")


def draw_seed() -> int:
    return DRAWN


def required(slug: str) -> dict[str, Any]:
    return {name: PAGES[slug][name] for name in ("prompt", "control_image") if name in PAGES[slug]}


def call(slug: str, **parameters: Any) -> SegmindCall:
    return parse(slug, required(slug) | parameters, draw_seed=draw_seed)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_pages_samples(slug: str) -> None:
    assert parse(slug, PAGES[slug], draw_seed=draw_seed) == CALLS[slug]
    form = {name: str(value) for name, value in PAGES[slug].items()}
    assert parse(slug, form, draw_seed=draw_seed) == CALLS[slug]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_pages_defaults(slug: str) -> None:
    assert call(slug) == DEFAULTS[slug]
    blank = dict.fromkeys((field.name for field in MODELS[slug].fields.values()), "")
    assert parse(slug, blank | required(slug), draw_seed=draw_seed) == DEFAULTS[slug]


@pytest.mark.parametrize("slug", SLUGS)
def test_null_is_absent_but_for_the_seed(slug: str) -> None:
    null = dict.fromkeys(field.name for field in MODELS[slug].fields.values())
    assert parse(slug, null | required(slug), draw_seed=draw_seed) == replace(DEFAULTS[slug], seed=DRAWN)


def test_what_each_slug_is() -> None:
    assert [(model.slug, model.engine_model, model.v1_reply) for model in MODELS.values()] == [
        ("flux-dev", "flux-dev", "json"),
        ("flux-depth-dev", "flux-depth-dev", "image"),
        ("flux-depth-pro", "flux-depth-dev", "image"),
    ]
    for model in MODELS.values():
        assert ENGINE_MODELS[model.engine_model].takes_control is ("control_image" in model.fields)


@pytest.mark.parametrize("slug", ["flux", "FLUX-DEV", "flux-dev ", "", "../etc", "\ud800", "x" * 1000])
def test_unknown_slugs(slug: str) -> None:
    with pytest.raises(NotFound) as refused:
        parse(slug, {}, draw_seed=draw_seed)
    assert refused.value.message.startswith("Model or endpoint not found: '")
    assert refused.value.message.endswith("', available: flux-dev, flux-depth-dev, flux-depth-pro") or len(slug) > 60
    assert len(refused.value.message.encode()) < 200


@pytest.mark.parametrize("drawn", [0, 2**32, 2**64 + 5, -1])
def test_drawn_seeds_are_brought_into_range(drawn: int) -> None:
    assert parse("flux-dev", {"prompt": "a", "seed": -1}, draw_seed=lambda: drawn).seed == drawn % 2**32


def test_no_seed_is_drawn_in_vain() -> None:
    def never() -> int:
        raise AssertionError("a seed was drawn")

    assert parse("flux-dev", {"prompt": "a"}, draw_seed=never).seed == 46588


def test_the_price_is_per_image() -> None:
    assert call("flux-dev", samples=4).price_micro_usd == 4 * 19_600
    assert call("flux-depth-dev", num_outputs="3").price_micro_usd == 3 * 31_250
    assert call("flux-depth-pro", num_outputs=4).price_micro_usd == 62_500


@pytest.mark.parametrize("slug", SLUGS)
def test_unknown_parameters_are_ignored(slug: str) -> None:
    unknown = {
        "negative_prompt": "ugly",
        "width": "wide",
        "height": 10**9,
        "img_width": -1,
        "scheduler": ["euler"],
        "guidance_scale": "nan",
        "image_format": b"file",
        "enable_safety_checker": {},
        "tier": None,
        "": "",
    }
    assert call(slug, **unknown) == DEFAULTS[slug]


def test_sizes() -> None:
    assert size_of(call("flux-dev", aspect_ratio="16:9"), None) == aspect_size("16:9") == (1344, 768)
    assert size_of(call("flux-dev"), None) == (1024, 1024)
    assert size_of(call("flux-dev", aspect_ratio="16:9", image="aGk="), (640, 490)) == init_size(640, 490) == (640, 496)
    for megapixels in ("1", "0.25", "match_input"):
        sized = call("flux-depth-dev", megapixels=megapixels)
        assert size_of(sized, (800, 600)) == control_size(800, 600, megapixels)
    assert size_of(call("flux-depth-pro"), (800, 600)) == control_size(800, 600, "1")


@pytest.mark.parametrize("slug", DEPTH)
def test_unusable_control_sizes(slug: str) -> None:
    with pytest.raises(InvalidInput, match=r"^control_image is 900×100 pixels; ") as refused:
        size_of(call(slug), (900, 100))
    assert refused.value.parameter == "control_image"
    with pytest.raises(ValueError, match="takes its size from the control image"):
        size_of(call(slug), None)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@settings(deadline=None)
@given(slug=st.sampled_from(SLUGS), data=st.data())
def test_any_body_makes_a_call_or_an_error_that_names_a_parameter(slug: str, data: st.DataObject) -> None:
    names = st.sampled_from([field.name for field in MODELS[slug].fields.values()]) | st.text()
    body = required(slug) | data.draw(st.dictionaries(names, VALUES, max_size=4))
    try:
        read = parse(slug, body, draw_seed=draw_seed)
    except InvalidInput as refused:
        named = refused.parameter
    else:
        named = "prompt"
        assert 0 <= read.seed < 2**32
        assert read.price_micro_usd == MODELS[slug].price_micro_usd * read.num_outputs
    assert named in {field.name for field in MODELS[slug].fields.values()}
