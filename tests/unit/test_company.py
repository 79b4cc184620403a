"""Who may be drawn with whom, in which tiers, and how many have room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.company import BATCH_PIXELS, MAX_TOGETHER, batching_tiers, company, most_together, pixels_as_one
from pipelines.memory.activations import decode_bytes, denoise_bytes
from pipelines.request import GenerationRequest, Lora
from pipelines.sizes import ASPECT_SIZES, aspect_size, control_size

SMALL = GenerationRequest(model="flux-dev", prompt="a", width=512, height=512, steps=4, guidance=3.5, seed=1)
DEPTH = replace(SMALL, model="flux-depth-dev", control_image="one")


@pytest.mark.parametrize("ratio", ASPECT_SIZES)
def test_every_quarter_of_a_megapixel_is_small_and_no_whole_one_is(ratio: str) -> None:
    for megapixels, is_small in (("0.25", True), ("1", False)):
        width, height = aspect_size(ratio, megapixels)  # type: ignore[arg-type]
        assert (company(replace(SMALL, width=width, height=height)) is not None) == is_small


@pytest.mark.parametrize("photo", [(1000, 1000), (4000, 3000), (900, 1600), (300, 290), (2000, 251)])
def test_a_depth_picture_of_a_quarter_of_a_megapixel_is_small(photo: tuple[int, int]) -> None:
    width, height = control_size(*photo, "0.25")
    assert company(replace(DEPTH, width=width, height=height)) is not None
    width, height = control_size(*photo, "1")
    assert company(replace(DEPTH, width=width, height=height)) is None


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "b"},
        {"seed": 2},
        {"guidance": 7.0},
        {"check_safety": False},
        {"safety_tolerance": 5},
        {"output_format": "jpg", "output_quality": 3},
        {"control_image": "two", "preprocess": False},
        {"return_depth": True},
    ],
)
def test_what_may_differ_in_company(other: dict[str, Any]) -> None:
    assert company(replace(DEPTH, **other)) == company(DEPTH)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "flux-depth-dev"},
        {"width": 496},
        {"height": 496},
        {"steps": 5},
        {"init_image": "one", "strength": 0.5},
        {"loras": (Lora(name="style"),)},
        {"tier": "exact"},
        {"prefer_fast": True},
    ],
)
def test_what_may_not(other: dict[str, Any]) -> None:
    assert company(replace(SMALL, **other)) not in (None, company(SMALL))


def test_the_order_of_loras_does_not_matter() -> None:
    loras = Lora(name="one", scale=0.5), Lora(name="two")
    assert company(replace(SMALL, loras=loras)) == company(replace(SMALL, loras=loras[::-1]))
    assert company(replace(SMALL, loras=(Lora(name="one"), Lora(name="two")))) != company(replace(SMALL, loras=loras))


@pytest.mark.parametrize(
    "other", [{"num_outputs": 2}, {"upsample_prompt": True}, {"tier": "turbo"}, {"width": 528}], ids=str
)
def test_who_is_always_alone(other: dict[str, Any]) -> None:
    assert company(replace(SMALL, **other)) is None


@pytest.mark.parametrize(
    ("switch", "on_card", "tiers"),
    [
        ("auto", True, ("fast",)),
        ("auto", False, ()),
        ("on", True, ("exact", "fast")),
        ("on", False, ("exact", "fast")),
        ("off", True, ()),
    ],
)
def test_the_switch_chooses_tiers_and_never_turbo(switch: Any, on_card: bool, tiers: tuple[str, ...]) -> None:
    assert batching_tiers(switch, ("exact", "fast", "turbo"), on_card=on_card) == tiers


def test_held_weights_are_a_tier_of_their_own() -> None:
    assert batching_tiers("on", ("nf4",), on_card=True) == ("nf4",)
    assert batching_tiers("auto", ("nf4",), on_card=True) == ()


def test_where_a_megapixel_has_room_a_whole_batch_has() -> None:
    assert most_together(1024 * 1024) == MAX_TOGETHER


def test_a_batch_counts_as_the_single_picture_of_as_many_tokens() -> None:
    assert pixels_as_one([SMALL]) == 512 * 512
    for count in (2, 4):
        assert denoise_bytes(pixels_as_one([SMALL] * count), 2) == count * denoise_bytes(512 * 512, 2)


@pytest.mark.parametrize("max_pixels", range(0, 1_000_000, 50_000))
def test_a_batch_never_takes_more_than_the_largest_single_picture(max_pixels: int) -> None:
    count = most_together(max_pixels)
    room = max(denoise_bytes(max_pixels, 2), decode_bytes(max_pixels, 2))
    assert 1 <= count <= MAX_TOGETHER
    assert count == 1 or count * denoise_bytes(BATCH_PIXELS, 2) <= room
    assert count == MAX_TOGETHER or (count + 1) * denoise_bytes(BATCH_PIXELS, 2) > room
