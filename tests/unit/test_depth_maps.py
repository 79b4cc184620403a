"""Raw disparity becomes a map by the arithmetic that is promised, and never by anything that is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipelines.decode import to_uint8
from pipelines.depth import scale_map
from pipelines.depth.disparity import LARGEST_ASPECT, near_large, stretch_photo
from pipelines.depth_catalogue import MapMode

MODES: tuple[MapMode, ...] = ("bfl-raw", "minmax")


def raw_map(height: int = 37, width: int = 53, scale: float = 80.0) -> np.ndarray:
    """A smooth map with some noise, in about 0…2.5 × scale."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    noise = np.random.default_rng(3).random((height, width), dtype=np.float32)
    return (scale * (1 + np.sin(rows / 9) * np.cos(columns / 7) + 0.5 * noise)).astype(np.float32)


def scaled(raw: np.ndarray, width: int, height: int, mode: MapMode) -> np.ndarray:
    picture = scale_map(torch.from_numpy(raw)[None], width, height, mode).picture
    assert picture.shape == (1, 3, height, width)
    assert picture.dtype == torch.float32
    assert torch.equal(picture[:, 0], picture[:, 1])
    assert torch.equal(picture[:, 0], picture[:, 2])
    return picture[0, 0].numpy()


def resized(raw: np.ndarray, width: int, height: int) -> np.ndarray:
    """Antialiased bicubic by another implementation."""
    return np.asarray(Image.fromarray(raw).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("width", "height"), [(128, 96), (32, 64), (53, 37), (256, 32)])
def test_bfl_raw_is_the_value_over_127_5_less_1(width: int, height: int) -> None:
    expected = resized(raw_map(), width, height) / 127.5 - 1
    np.testing.assert_allclose(scaled(raw_map(), width, height, "bfl-raw"), expected, atol=2e-5)


@pytest.mark.parametrize(("width", "height"), [(128, 96), (32, 64), (53, 37), (256, 32)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_minmax_stretches_any_scale_to_the_full_range(width: int, height: int, scale: float) -> None:
    large = resized(raw_map(scale=scale), width, height).astype(np.float64)
    expected = 2 * (large - large.min()) / (large.max() - large.min()) - 1
    found = scaled(raw_map(scale=scale), width, height, "minmax")
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found.min(), found.max()) == (-1, 1)


def test_bfl_raw_does_not_clamp_and_its_pixels_do_not_wrap() -> None:
    raw = np.full((8, 8), -60, np.float32)
    raw[:, 4:] = 320
    found = scaled(raw, 8, 8, "bfl-raw")
    np.testing.assert_allclose(np.unique(found), [-60 / 127.5 - 1, 320 / 127.5 - 1], rtol=1e-6)
    large = scale_map(torch.from_numpy(raw)[None], 64, 64, "bfl-raw").picture
    assert large.min() < found.min()  # bicubic overshoots beside the edge
    assert large.max() > found.max()
    pixels = to_uint8(large)[0, :, :, 0]
    assert (pixels[:, :28] == 0).all()
    assert (pixels[:, 36:] == 255).all()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-7, 0.3, 77.7, 255.0, 65504.0, -12.5])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (96, 64), (2896, 352)])
def test_a_constant_map_is_middle_grey_under_minmax(value: float, width: int, height: int) -> None:
    found = scaled(np.full((41, 67), value, np.float32), width, height, "minmax")
    assert (found == 0).all()


def test_detail_that_resizing_loses_is_a_constant_map_too() -> None:
    board = (np.indices((512, 512)).sum(0) % 2).astype(np.float32)
    assert np.isfinite(scaled(board, 32, 32, "minmax")).all()


@pytest.mark.parametrize(("gap", "stands_for"), [(np.inf, 200.0), (-np.inf, 50.0), (np.nan, 50.0), (3e38, 200.0)])
@pytest.mark.parametrize("mode", MODES)
def test_a_gap_becomes_the_nearest_or_farthest_of_the_others(gap: float, stands_for: float, mode: MapMode) -> None:
    raw = np.linspace(50, 200, 64, dtype=np.float32).reshape(8, 8)
    with_gap, filled = raw.copy(), raw.copy()
    with_gap[3, 4], filled[3, 4] = gap, stands_for
    np.testing.assert_array_equal(scaled(with_gap, 16, 16, mode), scaled(filled, 16, 16, mode))


@pytest.mark.parametrize("gap", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mode", MODES)
def test_a_map_of_gaps_alone_is_middle_grey(gap: float, mode: MapMode) -> None:
    np.testing.assert_allclose(scaled(np.full((5, 5), gap, np.float32), 32, 48, mode), 0, atol=1e-6)


@given(hnp.arrays(np.float32, (4, 5), elements=st.floats(width=32)), st.sampled_from(MODES))
@settings(max_examples=150, deadline=None)
def test_whatever_is_in_a_map_the_result_is_finite(raw: np.ndarray, mode: MapMode) -> None:
    found = scaled(raw, 16, 32, mode)
    assert np.isfinite(found).all()
    if mode == "minmax":
        assert -1 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken(kind: torch.dtype) -> None:
    raw = torch.from_numpy(raw_map())[None].to(kind)
    assert torch.equal(scale_map(raw, 32, 32, "bfl-raw").picture, scale_map(raw.float(), 32, 32, "bfl-raw").picture)


def test_metres_are_inverted_between_10_cm_and_250_m() -> None:
    metres = torch.tensor([0.0, -3.0, 0.05, 0.1, 0.5, 2.0, 250.0, 9000.0, float("inf")])
    expected = torch.tensor([10.0, 10.0, 10.0, 10.0, 2.0, 0.5, 0.004, 0.004, 0.004])
    torch.testing.assert_close(near_large(metres, "far-large"), expected)
    assert near_large(torch.tensor([float("nan")]), "far-large").isnan().all()
    assert torch.equal(near_large(metres, "near-large"), metres)


@pytest.mark.parametrize(("size", "seen"), [
    ((1024, 1024), (1024, 1024)),
    ((2896, 352), (2896, 352)),
    ((32, 256), (32, 256)),
    ((32, 512), (32, 512)),
    ((32, 513), (33, 513)),
    ((4000, 32), (4000, 250)),
])  # fmt: skip
def test_the_estimator_sees_the_output_s_size_up_to_a_longest_shape(
    size: tuple[int, int], seen: tuple[int, int]
) -> None:
    photo = stretch_photo(Image.new("RGB", (3, 2), (1, 2, 3)), *size)
    assert photo.size == seen
    assert max(photo.size) <= LARGEST_ASPECT * min(photo.size)
    assert photo.getcolors() == [(seen[0] * seen[1], (1, 2, 3))]
