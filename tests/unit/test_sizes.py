"""Output sizes are the published ones, and every picture has a usable size or is refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.denoise import time_shift
from pipelines.sizes import (
    ASPECT_SIZES,
    MATCH_INPUT_LIMIT,
    Megapixels,
    UnusableSize,
    aspect_size,
    control_size,
    init_size,
    sequence_length,
)
from weights.full_size import SCHEDULER

ASPECT_TABLE = [
    # ratio, size, tokens and mu at 1 megapixel; the same at 0.25
    ("1:1", (1024, 1024), 4096, 1.1500, (512, 512), 1024, 0.6300),
    ("16:9", (1344, 768), 4032, 1.1392, (672, 384), 1008, 0.6273),
    ("9:16", (768, 1344), 4032, 1.1392, (384, 672), 1008, 0.6273),
    ("21:9", (1536, 640), 3840, 1.1067, (768, 320), 960, 0.6192),
    ("9:21", (640, 1536), 3840, 1.1067, (320, 768), 960, 0.6192),
    ("3:2", (1216, 832), 3952, 1.1256, (608, 416), 988, 0.6239),
    ("2:3", (832, 1216), 3952, 1.1256, (416, 608), 988, 0.6239),
    ("4:5", (896, 1088), 3808, 1.1013, (448, 544), 952, 0.6178),
    ("5:4", (1088, 896), 3808, 1.1013, (544, 448), 952, 0.6178),
    ("3:4", (896, 1152), 4032, 1.1392, (448, 576), 1008, 0.6273),
    ("4:3", (1152, 896), 4032, 1.1392, (576, 448), 1008, 0.6273),
]
SEGMIND_RATIOS = [row[0] for row in ASPECT_TABLE if row[0] not in ("3:4", "4:3")]

CONTROL_TABLE = [
    # control image; output at 1 megapixel, at 0.25, with match_input
    ((1024, 1024), (1024, 1024), (512, 512), (1024, 1024)),
    ((1920, 1080), (1344, 768), (672, 384), (1440, 800)),
    ((1080, 1920), (768, 1344), (384, 672), (800, 1440)),
    ((4032, 3024), (1152, 864), (576, 416), (1440, 1056)),
    ((1000, 1000), (1024, 1024), (512, 512), (992, 992)),
    ((1280, 720), (1344, 768), (672, 384), (1280, 704)),
    ((640, 480), (1152, 864), (576, 416), (640, 480)),
    ((3000, 500), (2496, 416), (1248, 192), (1440, 224)),
    ((100, 100), (1024, 1024), (512, 512), (96, 96)),
    ((31, 31), (1024, 1024), (512, 512), (32, 32)),
]

WITHIN_ASPECT = st.integers(1, 2000).flatmap(
    lambda short: st.tuples(st.just(short), st.integers(short, 8 * short)).flatmap(st.permutations).map(tuple)
)
AREAS: dict[Megapixels, int] = {"1": 1024 * 1024, "0.25": 512 * 512}


@pytest.mark.parametrize("row", ASPECT_TABLE, ids=lambda row: row[0])
def test_aspect_ratios_have_their_published_sizes(row: tuple[str, tuple[int, int], int, float, object]) -> None:
    ratio, *classes = row
    for megapixels, (size, tokens, mu) in zip(("1", "0.25"), (classes[:3], classes[3:]), strict=True):
        assert aspect_size(ratio, megapixels) == size
        assert sequence_length(*size) == tokens
        assert time_shift(tokens, SCHEDULER) == pytest.approx(mu, abs=5.01e-5)


def test_the_table_has_every_ratio() -> None:
    assert set(ASPECT_SIZES) == {row[0] for row in ASPECT_TABLE}


def test_the_default_is_one_megapixel() -> None:
    assert aspect_size("16:9") == aspect_size("16:9", "1")
    assert control_size(640, 480) == control_size(640, 480, "1")


@pytest.mark.parametrize(
    ("megapixels", "lengths"), [("1", {4096, 4032, 3952, 3840, 3808}), ("0.25", {1024, 1008, 988, 960, 952})]
)
def test_the_ratios_share_five_sequence_lengths(megapixels: Megapixels, lengths: set[int]) -> None:
    assert {sequence_length(*aspect_size(ratio, megapixels)) for ratio in SEGMIND_RATIOS} == lengths
    assert {sequence_length(*aspect_size(ratio, megapixels)) for ratio in ASPECT_SIZES} == lengths


def test_a_ratio_that_is_not_listed() -> None:
    with pytest.raises(KeyError):
        aspect_size("7:5")


@pytest.mark.parametrize("row", CONTROL_TABLE, ids=lambda row: "x".join(map(str, row[0])))
def test_control_sizes_are_the_published_ones(row: tuple[tuple[int, int], ...]) -> None:
    source, *outputs = row
    assert [control_size(*source, megapixels) for megapixels in ("1", "0.25", "match_input")] == outputs


@pytest.mark.parametrize("megapixels", ["1", "0.25", "match_input"])
def test_a_strip_is_refused_and_the_text_says_size_and_limit(megapixels: Megapixels) -> None:
    with pytest.raises(UnusableSize, match="is 16×2000 pixels; its long side may be at most 8 times its short side"):
        control_size(16, 2000, megapixels)


@settings(deadline=None)
@given(short=st.integers(1, 20_000), megapixels=st.sampled_from(["1", "0.25", "match_input"]), is_tall=st.booleans())
def test_the_aspect_limit_is_inclusive(short: int, megapixels: Megapixels, is_tall: bool) -> None:
    def size(longer: int) -> tuple[int, int]:
        return (short, longer) if is_tall else (longer, short)

    control_size(*size(8 * short), megapixels)
    init_size(*size(8 * short))
    for refuse in (lambda: control_size(*size(8 * short + 1), megapixels), lambda: init_size(*size(8 * short + 1))):
        with pytest.raises(UnusableSize):
            refuse()


@settings(deadline=None)
@given(size=WITHIN_ASPECT, megapixels=st.sampled_from(["1", "0.25", "match_input"]))
@example(size=(1, 1), megapixels="match_input")
@example(size=(8, 1), megapixels="match_input")
def test_control_sides_are_whole_cells(size: tuple[int, int], megapixels: Megapixels) -> None:
    for side in control_size(*size, megapixels):
        assert side >= 32
        assert side % 32 == 0


@settings(deadline=None)
@given(size=WITHIN_ASPECT)
@example(size=(1440, 1440))
@example(size=(1441, 181))
def test_match_input_only_scales_down(size: tuple[int, int]) -> None:
    for side, given_side in zip(control_size(*size, "match_input"), size, strict=True):
        assert side <= MATCH_INPUT_LIMIT
        assert side <= max(given_side, 32)


@settings(deadline=None)
@given(size=WITHIN_ASPECT, megapixels=st.sampled_from(["1", "0.25"]))
@example(size=(1, 1), megapixels="1")
@example(size=(1, 8), megapixels="0.25")
def test_the_area_is_a_ceiling_that_is_nearly_reached(size: tuple[int, int], megapixels: Megapixels) -> None:
    width, height = control_size(*size, megapixels)
    assert width * height <= AREAS[megapixels]
    assert (width + 33) * (height + 33) > AREAS[megapixels]


@settings(deadline=None)
@given(size=WITHIN_ASPECT, megapixels=st.sampled_from(["1", "0.25", "match_input"]))
def test_a_turned_picture_has_the_turned_size(size: tuple[int, int], megapixels: Megapixels) -> None:
    assert control_size(*size[::-1], megapixels) == control_size(*size, megapixels)[::-1]
    assert init_size(*size[::-1]) == init_size(*size)[::-1]


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ((1024, 768), (1024, 768)),
        ((1000, 600), (1008, 608)),
        ((999, 599), (992, 592)),
        ((4032, 3024), (1440, 1088)),
        ((8, 8), (32, 32)),
    ],
)
def test_init_sizes(source: tuple[int, int], output: tuple[int, int]) -> None:
    assert init_size(*source) == output


@settings(deadline=None)
@given(width=st.integers(180, MATCH_INPUT_LIMIT), height=st.integers(180, MATCH_INPUT_LIMIT))
def test_an_init_picture_keeps_its_size_to_half_a_token(width: int, height: int) -> None:
    for side, given_side in zip(init_size(width, height), (width, height), strict=True):
        assert side % 16 == 0
        assert abs(side - given_side) <= 8
