"""Estimators of transformers, as tiny models in their published layout: what they see, and that near is bright."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    BeitConfig,
    BitConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)
from transformers.utils import logging as transformers_logging

from pipelines.components import Folders, load_components
from pipelines.depth import DepthEstimator, load_estimator
from pipelines.depth.pretrained import PretrainedDisparity
from pipelines.depth_catalogue import Polarity, UnknownEstimator
from weights.demo import depth as demo
from weights.demo.initialise import draw

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
NAMES = (
    "depth-anything-v1-large",
    "depth-anything-v2-small",
    "depth-anything-v2-metric-indoor-small",
    "dpt-large",
    "dpt-hybrid-midas",
    "zoedepth-nyu",
    "zoedepth-nyu-kitti",
)
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def dpt(name: str) -> tuple[Any, Any]:
    hybrid: dict[str, Any] = {}
    if name == "dpt-hybrid-midas":
        backbone = BitConfig(
            global_padding="same",
            layer_type="bottleneck",
            depths=[1, 1, 1],
            hidden_sizes=[16, 16, 32],
            embedding_size=16,
            num_groups=2,
            out_features=["stage1", "stage2", "stage3"],
            embedding_dynamic_padding=True,
        )
        hybrid = {"is_hybrid": True, "backbone_featmap_shape": [1, 32, 24, 24], "backbone_config": backbone}
    config = DPTConfig(
        **VIT,
        **hybrid,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
    )
    # Not the published settings: the model takes nothing but squares, whatever its processor's file says.
    size = {"height": 384, "width": 384}
    processor = DPTImageProcessor(
        size=size, keep_aspect_ratio=True, ensure_multiple_of=32, image_mean=HALF, image_std=HALF
    )
    return draw(lambda: DPTForDepthEstimation(config), seed=1), processor


def zoedepth(name: str) -> tuple[Any, Any]:
    heads = name.split("-")[1:]
    backbone = BeitConfig(
        **(VIT | {"num_attention_heads": 1}),
        image_size=384,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 16, 16, 32],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"name": head, "n_bins": 8, "min_depth": 1e-3, "max_depth": 10.0} for head in heads],
        num_patch_transformer_layers=4,
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
    )
    processor = ZoeDepthImageProcessor(ensure_multiple_of=32, image_mean=HALF, image_std=HALF)
    return draw(lambda: ZoeDepthForDepthEstimation(config), seed=1), processor


def write_model(name: str, folder: Path) -> Path:
    if name.startswith("depth-anything"):
        parts = (demo.depth_estimator(), demo.image_processor())
    else:
        parts = dpt(name) if name.startswith("dpt") else zoedepth(name)
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("estimators")
    return {name: write_model(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def estimators(folders: dict[str, Path]) -> dict[str, DepthEstimator]:
    return {name: load_estimator(name, folder, CPU) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def coffee() -> Image.Image:
    return Image.fromarray(data.coffee())


def levels(estimator: DepthEstimator, photo: Image.Image, width: int, height: int) -> torch.Tensor:
    """The map's one channel, after the checks that hold for every map."""
    with torch.inference_mode():
        picture = estimator.estimate(photo, width, height).picture
    assert picture.shape == (1, 3, height, width)
    assert picture.dtype == torch.float32
    assert picture.isfinite().all()
    if estimator.mode == "minmax":
        assert picture.abs().max() <= 1
    return picture[0, 0]


class KnownModel:
    """Stands for a model and its processor: gives back the raw output it was made with."""

    device, dtype = CPU, torch.float32

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __call__(self, pixels: Any = None, **_: Any) -> Any:
        if pixels is None:
            return {"pixel_values": torch.zeros(1, 3, 14, 14)}
        return SimpleNamespace(predicted_depth=self.raw.clone())


@pytest.mark.parametrize(("polarity", "near", "far"), [("near-large", 9.0, 2.0), ("far-large", 0.5, 8.0)])
@pytest.mark.parametrize("mode", ["minmax", "bfl-raw"])
def test_near_is_bright_whatever_the_model_says_for_near(
    polarity: Polarity, near: float, far: float, mode: Any
) -> None:
    raw = torch.full((1, 20, 30), far)
    raw[:, :, :10] = near
    known = KnownModel(raw)
    found = levels(DepthEstimator(PretrainedDisparity(known, known, polarity), mode), Image.new("RGB", (9, 6)), 90, 64)
    assert found[:, :20].min() > found[:, 40:].max()
    if mode == "minmax":
        assert found[:, :20].min() > 0.8
        assert found[:, 40:].max() < -0.8


@pytest.mark.parametrize(("name", "sign"), [
    ("depth-anything-v1-large", 1),
    ("depth-anything-v2-small", 1),
    ("depth-anything-v2-metric-indoor-small", -1),
])  # fmt: skip
def test_the_table_s_polarity_is_applied(
    estimators: dict[str, DepthEstimator], coffee: Image.Image, name: str, sign: int
) -> None:
    """The same weights under three names: their output is larger where the photo is brighter."""
    found = levels(estimators[name], coffee, 384, 256).flatten()
    brightness = np.asarray(coffee.convert("L").resize((384, 256)), dtype=np.float32).ravel()
    correlation = np.corrcoef(brightness, found.numpy().argsort().argsort())[0, 1]
    assert correlation * sign > 0.5


@pytest.mark.parametrize("size", [(640, 448), (1024, 1024), (32, 256)])
def test_v1_large_follows_the_reference_step_by_step(
    folders: dict[str, Path], estimators: dict[str, DepthEstimator], coffee: Image.Image, size: tuple[int, int]
) -> None:
    """black-forest-labs/flux, `prepare_control` and `DepthImageEncoder`: stretch by Lanczos, 8-bit pixels, the model's
    own processor, three equal channels, antialiased bicubic, value / 127.5 − 1."""
    folder = folders["depth-anything-v1-large"]
    model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    width, height = size
    stretched = np.asarray(coffee.resize((width, height), Image.Resampling.LANCZOS))
    signed = (torch.from_numpy(stretched.copy()).float() / 127.5 - 1).permute(2, 0, 1)[None]
    pixels = ((signed.clamp(-1, 1) + 1) * 127.5).round().byte()
    with torch.inference_mode():
        depth = model(processor(pixels, return_tensors="pt")["pixel_values"]).predicted_depth
        depth = torch.stack([depth, depth, depth], dim=1)
        depth = torch.nn.functional.interpolate(depth, (height, width), mode="bicubic", antialias=True)
        expected = depth / 127.5 - 1
        found = estimators["depth-anything-v1-large"].estimate(coffee, width, height).picture
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("size", "seen"), [
    ((1024, 1024), (518, 518)),
    ((1344, 768), (910, 518)),
    ((640, 480), (686, 518)),
    ((2896, 352), (4256, 518)),
    ((32, 256), (70, 518)),
    ((32, 32), (518, 518)),
    ((32, 2400), (28, 518)),
])  # fmt: skip
def test_depth_anything_sees_whole_patches(
    estimators: dict[str, DepthEstimator], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    shapes: list[Any] = []

    class Spy(KnownModel):
        def __call__(self, pixels: Any = None, **given: Any) -> Any:
            shapes.append(tuple(pixels.shape))
            return super().__call__(pixels, **given)

    processor = estimators["depth-anything-v2-small"].model._processor  # type: ignore[attr-defined]
    estimator = DepthEstimator(PretrainedDisparity(Spy(torch.rand(1, 14, 14)), processor, "near-large"), "minmax")
    levels(estimator, Image.new("RGB", (8, 8)), *size)
    assert shapes == [(1, 3, seen[1], seen[0])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "height"), [(32, 32), (256, 32), (32, 256), (672, 448)])
def test_every_family_maps_every_shape(
    estimators: dict[str, DepthEstimator], coffee: Image.Image, name: str, width: int, height: int
) -> None:
    found = levels(estimators[name], coffee, width, height)
    assert found.std() > 0.02


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "colour"), [((1, 1), "black"), ((900, 1), "white")])
def test_every_family_maps_the_least_of_pictures(
    estimators: dict[str, DepthEstimator], name: str, size: tuple[int, int], colour: str
) -> None:
    levels(estimators[name], Image.new("RGB", size, colour), 32, 32)


@pytest.mark.parametrize(("name", "width", "height"), [
    ("depth-anything-v1-large", 2896, 352),
    ("dpt-large", 2896, 352),
    ("zoedepth-nyu", 1024, 128),
])  # fmt: skip
def test_the_longest_shape_there_is_gets_a_map(
    estimators: dict[str, DepthEstimator], coffee: Image.Image, name: str, width: int, height: int
) -> None:
    assert levels(estimators[name], coffee, width, height).std() > 0.02


@pytest.mark.parametrize(("width", "height"), [(2400, 32), (32, 2400)])
@pytest.mark.parametrize("name", ["depth-anything-v1-large", "dpt-large", "zoedepth-nyu"])
def test_a_shape_that_would_round_a_side_to_nothing_gets_a_map(
    estimators: dict[str, DepthEstimator], coffee: Image.Image, name: str, width: int, height: int
) -> None:
    assert levels(estimators[name], coffee, width, height).std() > 0.02


def test_zoedepth_cuts_off_exactly_its_padding(estimators: dict[str, DepthEstimator]) -> None:
    """Raw output that is 1 m inside the photo and 5 m in the padding: nothing of the padding is left."""
    width, height = 320, 192
    pad_x, pad_y = int((width / 2) ** 0.5 * 3), int((height / 2) ** 0.5 * 3)
    metres = torch.full((1, height + 2 * pad_y, width + 2 * pad_x), 5.0)
    metres[:, pad_y : pad_y + height, pad_x : pad_x + width] = 1
    zoe = estimators["zoedepth-nyu"].model
    model = type(zoe)(KnownModel(metres), zoe._processor, "far-large")  # type: ignore[call-arg, attr-defined]
    found = model.disparity(Image.new("RGB", (9, 9)), width, height)
    assert torch.equal(found, torch.ones(1, height, width))


def test_a_mode_may_be_chosen(folders: dict[str, Path], estimators: dict[str, DepthEstimator]) -> None:
    assert {name: estimator.mode for name, estimator in estimators.items() if estimator.mode != "minmax"} == {
        "depth-anything-v1-large": "bfl-raw"
    }
    assert load_estimator("dpt-large", folders["dpt-large"], CPU, "bfl-raw").mode == "bfl-raw"
    assert load_estimator("depth-anything-v1-large", folders["depth-anything-v1-large"], CPU, "minmax").mode == "minmax"


@pytest.mark.parametrize("name", ["depth-anything-v2-small", "dpt-large", "zoedepth-nyu"])
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file_is_named(folders: dict[str, Path], tmp_path: Path, name: str, missing: str) -> None:
    for file in folders[name].iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: {missing} is missing"):
        load_estimator(name, tmp_path, CPU)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path / 'nowhere'}: config.json is missing"):
        load_estimator("dpt-large", tmp_path / "nowhere", CPU)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownEstimator, match="depth-pro"):
        load_estimator("depth-pro", tmp_path, CPU)


def test_components_load_the_chosen_estimator(demo_weights: Path, folders: dict[str, Path]) -> None:
    places = Folders(models={"flux-depth-dev": demo_weights / "FLUX.1-Depth-dev"}, depth_estimator=folders["dpt-large"])
    parts = load_components(places, device=CPU, dtype=torch.float32, depth_estimator="dpt-large")
    map_of_photo = parts.control.depth_map(Image.fromarray(data.coffee()), 96, 64, preprocess=True).picture
    assert (map_of_photo.min(), map_of_photo.max()) == (-1, 1)


def test_controlnet_aux_is_not_imported_unless_it_is_chosen(folders: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from pipelines.depth import load_estimator\n"
        "load_estimator('dpt-large', Path(sys.argv[1]), torch.device('cpu'))\n"
        "print([name for name in ('controlnet_aux', 'cv2') if name in sys.modules])"
    )
    command = [sys.executable, "-P", "-c", code, str(folders["dpt-large"])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
