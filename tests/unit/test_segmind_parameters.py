from typing import Any

import pytest

from pipelines.request import Lora
from pipelines.sizes import ASPECT_SIZES
from server.api.segmind.models import MODELS, SegmindCall, parse
from server.api.segmind.parameters import ASPECT_RATIOS
from server.errors import InvalidInput

DRAWN = 123_456_789
ROOM = "https://host/room.png"
DEPTH = ("flux-depth-dev", "flux-depth-pro")
REQUIRED: dict[str, dict[str, Any]] = {
    slug: {"prompt": "a room"} | ({"control_image": ROOM} if slug in DEPTH else {}) for slug in MODELS
}


def draw_seed() -> int:
    return DRAWN


def call(slug: str, **parameters: Any) -> SegmindCall:
    return parse(slug, REQUIRED[slug] | parameters, draw_seed=draw_seed)


def refusal(slug: str, body: dict[str, Any]) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        parse(slug, body, draw_seed=draw_seed)
    return refused.value


BOUNDS = [
    ("flux-dev", "guidance", "guidance", 0, 10, 0.01),
    ("flux-dev", "output_quality", "output_quality", 0, 100, 1),
    ("flux-dev", "prompt_strength", None, 0, 1, 0.01),
    ("flux-dev", "samples", "num_outputs", 1, 4, 1),
    ("flux-dev", "steps", "steps", 1, 50, 1),
    ("flux-depth-dev", "guidance", "guidance", 0, 100, 0.01),
    ("flux-depth-dev", "num_inference_steps", "steps", 1, 50, 1),
    ("flux-depth-dev", "num_outputs", "num_outputs", 1, 4, 1),
    ("flux-depth-dev", "output_quality", "output_quality", 0, 100, 1),
    ("flux-depth-pro", "guidance", "guidance", 1, 50, 0.01),
    ("flux-depth-pro", "output_quality", "output_quality", 0, 100, 1),
    ("flux-depth-pro", "safety_tolerance", "safety_tolerance", 1, 6, 1),
    ("flux-depth-pro", "steps", "steps", 15, 50, 1),
]


@pytest.mark.parametrize(("slug", "name", "attribute", "low", "high", "step"), BOUNDS)
def test_numbers_at_and_beyond_their_bounds(
    slug: str, name: str, attribute: str | None, low: int, high: int, step: float
) -> None:
    for inside in (low, high, low + step, high - step):
        for spelling in (inside, str(inside)):
            read = call(slug, **{name: spelling})
            assert attribute is None or getattr(read, attribute) == inside
    for outside in (low - step, high + step):
        for spelling in (outside, str(outside)):
            refused = refusal(slug, REQUIRED[slug] | {name: spelling})
            assert refused.parameter == name
            assert f"{name} should be a" in refused.message
            assert f"between {low} and {high}; got " in refused.message


def test_every_numeric_parameter_is_in_the_table_of_bounds() -> None:
    numeric = {
        (slug, field.name)
        for slug, model in MODELS.items()
        for field in model.fields.values()
        if field.schema()["type"] in ("integer", "number") and field.name != "seed"
    }
    assert numeric == {(slug, name) for slug, name, *_ in BOUNDS}


@pytest.mark.parametrize("slug", MODELS)
def test_output_formats(slug: str) -> None:
    for output_format in ("webp", "jpg", "png"):
        assert call(slug, output_format=output_format).output_format == output_format
    refused = refusal(slug, REQUIRED[slug] | {"output_format": "gif"})
    assert (refused.message, refused.parameter) == (
        "output_format should be one of webp, jpg, png; got 'gif'",
        "output_format",
    )


def test_aspect_ratios() -> None:
    for ratio in ASPECT_RATIOS:
        assert call("flux-dev", aspect_ratio=ratio).aspect_ratio == ratio
    for square in ("", None, "1", 1, "1:1", " 1:1 "):
        assert call("flux-dev", aspect_ratio=square).aspect_ratio == "1:1"
    refused = refusal("flux-dev", REQUIRED["flux-dev"] | {"aspect_ratio": "7:5"})
    assert refused.message == f"aspect_ratio should be one of {', '.join(ASPECT_RATIOS)}; got '7:5'"
    assert set(ASPECT_RATIOS) <= set(ASPECT_SIZES)


@pytest.mark.parametrize(
    ("value", "read"),
    [("1", "1"), (1, "1"), (1.0, "1"), ("1.0", "1"), ("0.25", "0.25"), (0.25, "0.25"), ("match_input", "match_input")],
)
def test_megapixels(value: object, read: str) -> None:
    assert call("flux-depth-dev", megapixels=value).megapixels == read


@pytest.mark.parametrize("value", ["2", 0.5, 4, True, [1], "match"])
def test_megapixels_refusals(value: object) -> None:
    refused = refusal("flux-depth-dev", REQUIRED["flux-depth-dev"] | {"megapixels": value})
    assert refused.message.startswith("megapixels should be one of 1, 0.25, match_input; got ")


@pytest.mark.parametrize("slug", MODELS)
def test_seeds(slug: str) -> None:
    assert call(slug, seed=0).seed == 0
    assert call(slug, seed="0").seed == 0
    assert call(slug, seed=2**63 - 1).seed == 2**32 - 1
    assert call(slug, seed=str(2**32 + 7)).seed == 7
    for random in (-1, "-1", None):
        assert call(slug, seed=random).seed == DRAWN
    for wrong in (-2, 2**63, "one"):
        assert refusal(slug, REQUIRED[slug] | {"seed": wrong}).parameter == "seed"


@pytest.mark.parametrize("slug", MODELS)
def test_prompts(slug: str) -> None:
    for missing in ({}, {"prompt": ""}, {"prompt": None}, {"prompt": 7}, {"prompt": b"a file"}):
        refused = refusal(slug, {**{key: value for key, value in REQUIRED[slug].items() if key != "prompt"}, **missing})
        assert (refused.message, refused.parameter) == ("Prompt is Mandatory and must be string", "prompt")
    assert len(call(slug, prompt="x" * 10_000).prompt) == 10_000
    assert refusal(slug, REQUIRED[slug] | {"prompt": "x" * 10_001}).parameter == "prompt"


def test_the_prompt_is_asked_for_first() -> None:
    for slug in MODELS:
        assert refusal(slug, {}).parameter == "prompt"


@pytest.mark.parametrize("slug", DEPTH)
def test_control_images(slug: str) -> None:
    assert call(slug, control_image=b"\x89PNG").control_image == b"\x89PNG"
    assert call(slug, control_image=f" {ROOM}\n").control_image == ROOM
    for missing in ({}, {"control_image": ""}, {"control_image": None}, {"control_image": b""}):
        refused = refusal(slug, {"prompt": "a", **missing})
        assert refused.parameter == "control_image"
        assert refused.message.startswith("control_image is mandatory: pass ")


@pytest.mark.parametrize("slug", MODELS)
def test_a_file_is_no_value_but_for_a_picture(slug: str) -> None:
    for field in MODELS[slug].fields.values():
        if field.name not in ("control_image", "image"):
            assert refusal(slug, REQUIRED[slug] | {field.name: b"\x00"}).parameter == field.name


def test_safety() -> None:
    assert call("flux-depth-dev", disable_safety_checker="True").check_safety is False
    assert call("flux-dev", disable_safety_checker=True).check_safety is False
    assert call("flux-depth-pro", disable_safety_checker=True).check_safety is True
    assert call("flux-dev").safety_tolerance == call("flux-depth-dev").safety_tolerance == 2
    assert call("flux-depth-pro", safety_tolerance="6").safety_tolerance == 6


@pytest.mark.parametrize("slug", DEPTH)
def test_depth_extensions(slug: str) -> None:
    read = call(slug, preprocess="false", return_depth=1)
    assert (read.preprocess, read.return_depth) == (False, True)


@pytest.mark.parametrize("slug", MODELS)
@pytest.mark.parametrize("name", ["base64", "base_64"])
def test_base64_flags(slug: str, name: str) -> None:
    assert call(slug, **{name: "True"}).wants_base64 is True
    assert call(slug, **{name: 0}).wants_base64 is False


def test_prompt_upsampling_is_on_where_the_page_says_so() -> None:
    assert call("flux-depth-pro").prompt_upsampling is True
    assert call("flux-depth-pro", prompt_upsampling="0").prompt_upsampling is False
    assert call("flux-dev").prompt_upsampling is call("flux-depth-dev").prompt_upsampling is False
    assert call("flux-dev", prompt_upsampling=True).prompt_upsampling is True


def test_an_init_image_is_optional_and_comes_with_its_strength() -> None:
    assert call("flux-dev").init_image is None
    assert call("flux-dev", image="").init_image is None
    read = call("flux-dev", image=b"picture", prompt_strength="0.35")
    assert (read.init_image, read.strength) == (b"picture", 0.35)
    assert refusal("flux-dev", REQUIRED["flux-dev"] | {"prompt_strength": 1.01}).parameter == "prompt_strength"
    assert refusal("flux-dev", REQUIRED["flux-dev"] | {"image": ["a", "b"]}).parameter == "image"


@pytest.mark.parametrize("slug", MODELS)
def test_loras_are_a_list_or_its_json_text(slug: str) -> None:
    wanted = (Lora(name="a", scale=0.5), Lora(name="b"))
    assert call(slug, loras=[{"name": "a", "scale": 0.5}, {"name": "b"}]).loras == wanted
    assert call(slug, loras='[{"name": "a", "scale": "0.5"}, "b"]').loras == wanted
    assert call(slug).loras == call(slug, loras=[]).loras == call(slug, loras="").loras == ()


@pytest.mark.parametrize(
    "loras",
    [
        "a",
        [1],
        [{}],
        [{"name": ""}],
        [{"name": "a", "scale": 11}],
        [{"name": "a", "scale": "x"}],
        ["a"] * 5,
        ["a", {"name": "a", "scale": 2}],
        {},
        "[" * 9999,
    ],
)
def test_other_loras_are_refused(loras: object) -> None:
    assert refusal("flux-dev", REQUIRED["flux-dev"] | {"loras": loras}).parameter == "loras"
