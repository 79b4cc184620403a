"""Choosing a plan: pure arithmetic over free memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.memory.activations import DEPTH_BYTES, decode_bytes
from pipelines.memory.footprint import FULL_SIZE
from pipelines.memory.plans import (
    RECIPES,
    REFERENCE_PIXELS,
    RESIDENT,
    NoPlan,
    Plan,
    choose_plan,
    make_plan,
    smaller_recipe,
    stage_peaks,
)

GIB = 2**30
PLENTY = 200 * 10**9


def plan(card_gib: float, host: int = PLENTY, **wishes: object) -> Plan:
    return choose_plan(FULL_SIZE, device_bytes=round(card_gib * GIB), host_bytes=host, **wishes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("card", "name"),
    [(141, "resident"), (80, "resident"), (64, "resident"), (48, "swap"), (32, "lean"), (24, "fp8"), (16, "fp8-all")],
)
def test_each_card_gets_the_best_that_fits(card: int, name: str) -> None:
    assert plan(card - 0.7).name == name


def test_twelve_and_eight_gigabytes_take_four_bits_or_stream() -> None:
    assert plan(11.3).name == "nf4"
    assert plan(11.3, lacking=("nf4",)).name == "stream"
    assert plan(7.3).name == "stream"
    assert plan(7.3, host=40 * 10**9).name == "stream-fp8"


def test_little_host_memory_keeps_everything_on_the_card() -> None:
    assert plan(47.3, host=16 * 10**9).name == "fp8-resident"


@pytest.mark.parametrize("card", [8, 12, 16, 24, 32, 40, 48, 64, 80, 141])
def test_a_chosen_plan_fits_and_the_ones_before_it_do_not(card: int) -> None:
    chosen = plan(card - 0.7)
    assert chosen.peak_bytes <= chosen.budget_bytes
    before = RECIPES[: RECIPES.index(chosen.recipe)]
    assert all(make_plan(recipe, FULL_SIZE, chosen.budget_bytes).peak_bytes > chosen.budget_bytes for recipe in before)


def test_nothing_fits_and_the_text_says_what_would() -> None:
    with pytest.raises(NoPlan, match=r"3\.2 GB of device memory .* stream-fp8, takes 4\.2 and 36\.6 GB"):
        plan(3, lacking=("nf4",))


def test_the_processor_and_apple_silicon_take_only_plans_that_stay() -> None:
    assert plan(47, one_memory=True).name == "fp8-resident"
    with pytest.raises(NoPlan):
        plan(30, one_memory=True)


def test_a_plan_is_forced_by_name_whether_it_fits_or_not() -> None:
    forced = plan(8, wanted="resident")
    assert forced.name == "resident"
    assert forced.max_pixels == 1440 * 1440, "else it would refuse its own warm-up"
    assert plan(25, wanted="lean").max_pixels < 1440 * 1440
    with pytest.raises(ValueError, match="there are auto, resident, swap"):
        plan(8, wanted="huge")
    with pytest.raises(ValueError, match="bitsandbytes"):
        plan(12, wanted="nf4", lacking=("nf4",))


def test_the_largest_picture_just_fits() -> None:
    chosen = plan(31)
    fits = stage_peaks(chosen.recipe, FULL_SIZE, chosen.max_pixels)
    too_large = stage_peaks(chosen.recipe, FULL_SIZE, chosen.max_pixels + 10_000)
    assert max(fits["decode"], fits["denoise"]) <= chosen.budget_bytes
    assert max(too_large["decode"], too_large["denoise"]) > chosen.budget_bytes


@pytest.mark.parametrize("card", [48, 80, 141])
def test_the_next_request_is_prepared_beside_pictures_that_leave_room_for_it(card: int) -> None:
    chosen = plan(card - 0.7)
    beside = max(DEPTH_BYTES, decode_bytes(REFERENCE_PIXELS, FULL_SIZE.value_bytes))
    assert REFERENCE_PIXELS <= chosen.ahead_pixels < chosen.max_pixels
    fullest = max(stage_peaks(chosen.recipe, FULL_SIZE, chosen.ahead_pixels).values())
    assert fullest + beside <= chosen.budget_bytes
    fuller = max(stage_peaks(chosen.recipe, FULL_SIZE, chosen.ahead_pixels + 10_000).values())
    assert fuller + beside > chosen.budget_bytes


@pytest.mark.parametrize(("card", "name"), [(32, "lean"), (24, "fp8"), (12, "nf4"), (8, "stream")])
def test_nothing_is_prepared_where_modules_come_and_go(card: int, name: str) -> None:
    chosen = plan(card - 0.7, wanted=name)
    assert (chosen.name, chosen.ahead_pixels) == (name, 0)
    assert make_plan(chosen.recipe, FULL_SIZE, 200 * GIB).ahead_pixels == 0


def test_nothing_is_prepared_on_a_card_that_is_full() -> None:
    full = make_plan(RESIDENT, FULL_SIZE, make_plan(RESIDENT, FULL_SIZE, 0).peak_bytes)
    assert full.max_pixels >= REFERENCE_PIXELS
    assert full.ahead_pixels == 0


def test_one_model_alone_stays_where_two_take_turns() -> None:
    alone = replace(FULL_SIZE, transformers={"flux-dev": FULL_SIZE.transformers["flux-dev"]})
    assert choose_plan(alone, device_bytes=47 * GIB, host_bytes=PLENTY).name == "resident"


def test_depth_by_lora_shares_the_base() -> None:
    shared = replace(
        FULL_SIZE,
        transformers={"flux-dev": FULL_SIZE.transformers["flux-dev"]},
        depth_lora_bytes=622_126_144 * 2,
    )
    chosen = choose_plan(shared, device_bytes=47 * GIB, host_bytes=PLENTY)
    assert chosen.name == "resident"
    assert chosen.device["transformers"] == 11_901_408_320 * 2 + 622_126_144 * 2


def test_an_out_of_memory_falls_back_to_the_same_weights_in_less_space() -> None:
    names = {recipe.name: smaller_recipe(recipe) for recipe in RECIPES}
    assert names["resident"] is not None
    assert names["resident"].name == "swap"
    assert [recipe and recipe.name for recipe in names.values()] == [
        "swap", "lean", None, "fp8", None, None, None, None, None,
    ]  # fmt: skip


def test_the_line_says_where_and_how_much() -> None:
    line = make_plan(RESIDENT, FULL_SIZE, 80 * GIB).line()
    assert line.startswith("resident: everything stays on the card. 63.1 of 85.9 GB")
    assert "0.0 GB of the host" in line
