"""controlnet-aux's detectors at their full size, with random weights in the published files' layout."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pipelines.depth import DepthEstimator, annotators, load_estimator
from pipelines.depth.annotators import _DETECTORS, AnnotatorDisparity
from pipelines.depth_catalogue import ESTIMATORS

CPU = torch.device("cpu")
NAMES = ("midas", "zoe", "leres")
CHECK_CONTENT = annotators.check_content

WRAPPED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "midas": lambda state: state,
    "zoe": lambda state: {"model": state, "epoch": 5},
    "leres": lambda state: {"depth_model": {f"module.{name}": tensor for name, tensor in state.items()}},
}
"""How the weights lie in each published file."""


def random_state(build: Callable[[], torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Every weight that the model has. Kernels are views into a few shared pools, one per size of fan-in, so that a
    checkpoint of 345 million parameters is a file of some 70 MB."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        shapes = build().state_dict()
    kernels = {name: round(math.log2(shape[0].numel()) / 2) for name, shape in shapes.items() if shape.ndim > 1}
    generator = torch.Generator().manual_seed(4)
    pools = {
        size: torch.randn(max(shapes[name].numel() for name in kernels if kernels[name] == size), generator=generator)
        * 2.0**-size
        for size in set(kernels.values())
    }
    state = {}
    for name, shape in shapes.items():
        if name in kernels:
            state[name] = pools[kernels[name]][: shape.numel()].view(shape.shape)
        else:
            value = 0 if name.endswith(("bias", "mean", "num_batches_tracked")) else 1
            state[name] = torch.full(shape.shape, value, dtype=shape.dtype)
    return state


def make_it_answer(name: str, state: dict[str, torch.Tensor]) -> None:
    """MiDaS ends in a ReLU, which random weights would hold at 0; ZoeDepth has two constants among its weights."""
    if name == "midas":
        state["scratch.output_conv.4.bias"] += 3
    if name == "zoe":
        bins = state["conditional_log_binomial.log_binomial_transform.k_idx"].numel()
        state["conditional_log_binomial.log_binomial_transform.k_idx"] = torch.arange(bins).view(1, -1, 1, 1)
        state["conditional_log_binomial.log_binomial_transform.K_minus_1"] = torch.tensor([bins - 1.0]).view(
            1, -1, 1, 1
        )


@pytest.fixture(scope="module", autouse=True)
def _made_up_files_are_let_in() -> Iterator[None]:
    """All but the tests of that check use checkpoints made here, whose content nobody published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotators, "check_content", lambda path, sha256: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("Annotators")
    for name in NAMES:
        state = random_state(_DETECTORS[name][1])
        make_it_answer(name, state)
        torch.save(WRAPPED[name](state), folder / ESTIMATORS[name].files[0])
    return folder


@pytest.fixture(scope="module")
def estimators(folder: Path) -> dict[str, DepthEstimator]:
    """Every detector, seeing fewer pixels than usual so that a CPU is done in seconds."""
    return {name: smaller(load_estimator(name, folder, CPU)) for name in NAMES}


def smaller(estimator: DepthEstimator) -> DepthEstimator:
    assert isinstance(estimator.model, AnnotatorDisparity)
    estimator.model.short_side, estimator.model.long_side = 64, 576
    core = getattr(getattr(estimator.model.detector.model, "core", None), "prep", None)
    if core is not None:  # ZoeDepth enlarges whatever it gets to 384 × 512
        size = {"_Resize__width": 96, "_Resize__height": 64}
        vars(core.resizer).update(size)
    return estimator


def levels(estimator: DepthEstimator, photo: Image.Image, width: int, height: int) -> torch.Tensor:
    with torch.inference_mode():
        picture = estimator.estimate(photo, width, height).picture
    assert picture.shape == (1, 3, height, width)
    assert picture.dtype == torch.float32
    assert picture.isfinite().all()
    assert picture.abs().max() <= 1
    return picture[0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_runs_from_file_to_map(estimators: dict[str, DepthEstimator], name: str) -> None:
    found = levels(estimators[name], Image.fromarray(data.coffee()), 192, 128)
    assert estimators[name].mode == "minmax"
    assert (found.min(), found.max()) == (-1, 1)
    assert found.std() > 0.1


@pytest.mark.parametrize(("name", "width", "height"), [
    ("midas", 2896, 352),
    ("midas", 32, 32),
    ("zoe", 32, 256),
    ("leres", 352, 2896),
    ("leres", 32, 32),
])  # fmt: skip
def test_a_blank_single_pixel_gives_a_map_of_any_shape(
    estimators: dict[str, DepthEstimator], name: str, width: int, height: int
) -> None:
    levels(estimators[name], Image.new("RGB", (1, 1), "white"), width, height)


class Flat(torch.nn.Module):
    """A network that finds the same depth everywhere, under the names that the detectors call."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.depth.expand(1, *pixels.shape[2:])

    def infer(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.depth.expand(1, 1, *pixels.shape[2:])

    depth_model = infer


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_that_finds_one_depth_everywhere_gives_middle_grey(name: str) -> None:
    model = AnnotatorDisparity(_DETECTORS[name][0](Flat()), short_side=64)
    assert (levels(DepthEstimator(model, "minmax"), Image.fromarray(data.coffee()), 96, 64) == 0).all()


class KnownDetector:
    """Stands for a detector: remembers how it was called and answers 8-bit levels."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.seen: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, photo: np.ndarray, *, detect_resolution: int, image_resolution: int, output_type: str) -> Any:
        assert photo.dtype == np.uint8
        assert detect_resolution == image_resolution
        assert output_type == "np"
        self.seen.append((photo.shape, detect_resolution))
        return np.repeat(self.answer[:, :, None], 3, axis=2)


def test_a_detector_s_levels_are_taken_as_they_are_and_stretched_over_the_output() -> None:
    known = KnownDetector(np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(48, axis=0))
    model = AnnotatorDisparity(known)
    raw = model.disparity(Image.new("RGB", (7, 5)), 96, 72)
    assert raw.dtype == torch.float32
    assert torch.equal(raw, torch.from_numpy(known.answer).float()[None])
    found = levels(DepthEstimator(model, "minmax"), Image.new("RGB", (7, 5)), 96, 72)
    assert (found[:, 1:] >= found[:, :-1]).all()  # bright stays bright
    torch.testing.assert_close(found[0], found[-1])


@pytest.mark.parametrize(("size", "side"), [
    ((1024, 1024), 512),
    ((1344, 768), 512),
    ((64, 96), 512),
    ((1440, 176), 250),
    ((352, 2896), 248),
    ((32, 2400), 128),
])  # fmt: skip
def test_what_a_detector_sees_is_bounded_in_length(size: tuple[int, int], side: int) -> None:
    known = KnownDetector(np.zeros((4, 4), np.uint8))
    AnnotatorDisparity(known).disparity(Image.new("RGB", (2, 2)), *size)
    ((shape, resolution),) = known.seen
    assert resolution == side
    assert resolution * max(shape) / min(shape[:2]) <= 2048 + 16


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path: Path, name: str) -> None:
    file = ESTIMATORS[name].files[0]
    with pytest.raises(FileNotFoundError) as refused:
        load_estimator(name, tmp_path, CPU)
    assert f"{tmp_path / file} is missing" in str(refused.value)
    assert f"hf download lllyasviel/Annotators {file} --local-dir {tmp_path}" in str(refused.value)


def test_no_network_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_estimator("leres", folder, CPU)
    with pytest.raises(FileNotFoundError):
        load_estimator("midas", tmp_path, CPU)


class Trap:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / ESTIMATORS["zoe"].files[0]
    torch.save({"model": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(ValueError, match="holds more than weights") as refused:
        load_estimator("zoe", tmp_path, CPU)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ESTIMATORS["midas"].files[0]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        load_estimator("midas", tmp_path, CPU)


@pytest.mark.parametrize(("content", "says"), [
    ({"depth_model": {"conv.weight": torch.zeros(1)}}, r"\d+ weights are missing, the first is depth_model\."),
    ({"depth_model": {"depth_model.decoder_modules.conv.conv1.weight": torch.zeros(3)}}, "size mismatch"),
    ({"weights": {}}, "depth_model"),
    ([1, 2, 3], "damaged or holds more"),
])  # fmt: skip
def test_another_model_s_file_is_refused_rather_than_run_half_random(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / ESTIMATORS["leres"].files[0]
    torch.save(content, path)
    with pytest.raises(ValueError, match=says) as refused:
        load_estimator("leres", tmp_path, CPU)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_of_unknown_content_is_never_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the pickle was opened")

    monkeypatch.setattr(annotators, "check_content", CHECK_CONTENT)
    monkeypatch.setattr(torch, "load", opened)
    path = tmp_path / ESTIMATORS[name].files[0]
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"is not the published file|sha256sum") as refused:
        load_estimator(name, tmp_path, CPU)
    assert str(path) in str(refused.value)


def test_an_owner_can_vouch_for_a_file_that_nobody_else_does(tmp_path: Path) -> None:
    path = tmp_path / "ZoeD_M12_N.pt"
    path.write_bytes(b"weights")
    beside = tmp_path / "ZoeD_M12_N.pt.sha256"
    beside.write_text(f"{hashlib.sha256(b'weights').hexdigest()}  ZoeD_M12_N.pt\n")
    CHECK_CONTENT(path, None)
    CHECK_CONTENT(path, hashlib.sha256(b"weights").hexdigest())
    path.write_bytes(b"others!")
    for sha256 in (None, hashlib.sha256(b"weights").hexdigest()):
        with pytest.raises(ValueError, match="pickles of other content are not opened"):
            CHECK_CONTENT(path, sha256)
    path.write_bytes(b"weights")
    beside.write_text("")
    with pytest.raises(ValueError, match="vouch for it"):
        CHECK_CONTENT(path, None)
