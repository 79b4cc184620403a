"""The table of estimators, and its way from a setting to the files on disk and into the worker's first message."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from pipelines import depth_catalogue as catalogue
from pipelines.depth_catalogue import DEFAULT_ESTIMATOR, ESTIMATORS, UnknownEstimator
from server.app import create_app, find_weights, load_message
from server.settings import Settings
from weights.locate import WantedEstimator, locate
from weights.sources import ModelSources

HELPER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
FLUX_FILES = ("transformer/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model")


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def settings(folder: Path, **given: object) -> Settings:
    return Settings(weights_dir=folder, data_dir=folder / "data", **given)  # type: ignore[arg-type]


def test_the_table_offers_the_promised_estimators() -> None:
    sizes = ("small", "base", "large")
    assert set(ESTIMATORS) == {
        *(f"depth-anything-v{version}-{size}" for version in (1, 2) for size in sizes),
        *(f"depth-anything-v2-metric-{scene}-{size}" for scene in ("indoor", "outdoor") for size in sizes),
        *("dpt-large", "dpt-hybrid-midas", "zoedepth-nyu", "zoedepth-kitti", "zoedepth-nyu-kitti"),
        *("midas", "zoe", "leres"),
    }


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_entry_is_whole(name: str) -> None:
    spec = ESTIMATORS[name]
    assert catalogue.find_estimator(name) is spec
    assert spec.name == name
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", spec.repository)
    assert spec.licence
    assert (spec.family == "annotator") == bool(spec.files)
    assert (spec.polarity == "far-large") == ("metric" in name or name.startswith("zoedepth"))
    assert (spec.default_mode == "bfl-raw") == (name == DEFAULT_ESTIMATOR)
    for checkpoint in spec.checkpoints:
        assert checkpoint.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", checkpoint.sha256)


@pytest.mark.parametrize(("name", "repository"), [
    ("depth-anything-v1-large", "LiheYoung/depth-anything-large-hf"),
    ("depth-anything-v2-base", "depth-anything/Depth-Anything-V2-Base-hf"),
    ("depth-anything-v2-metric-outdoor-small", "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf"),
    ("dpt-hybrid-midas", "Intel/dpt-hybrid-midas"),
    ("zoedepth-nyu-kitti", "Intel/zoedepth-nyu-kitti"),
    ("leres", "lllyasviel/Annotators"),
])  # fmt: skip
def test_repositories_are_spelled_as_on_the_hub(name: str, repository: str) -> None:
    assert ESTIMATORS[name].repository == repository


def test_only_small_models_of_depth_anything_v2_may_be_used_commercially() -> None:
    licences = {name: spec.licence for name, spec in ESTIMATORS.items() if "anything-v2" in name}
    assert {name for name, licence in licences.items() if licence == "Apache-2.0"} == {
        name for name in licences if name.endswith("small")
    }
    assert set(licences.values()) == {"Apache-2.0", "CC-BY-NC-4.0"}


def test_a_file_named_after_its_hash_has_that_hash() -> None:
    (checkpoint,) = ESTIMATORS["midas"].checkpoints
    assert checkpoint.sha256 is not None
    assert checkpoint.file == f"dpt_hybrid-midas-{checkpoint.sha256[:8]}.pt"


@pytest.mark.parametrize(("name", "choice", "mode"), [
    ("depth-anything-v1-large", "auto", "bfl-raw"),
    ("depth-anything-v1-large", "minmax", "minmax"),
    ("depth-anything-v1-small", "auto", "minmax"),
    ("dpt-large", "bfl-raw", "bfl-raw"),
])  # fmt: skip
def test_a_mode_is_the_choice_or_the_estimators_own(name: str, choice: str, mode: str) -> None:
    assert catalogue.resolve_mode(name, choice) == mode


def test_an_unknown_mode_or_estimator_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"called raw; choose one of auto, bfl-raw, minmax"):
        catalogue.resolve_mode("dpt-large", "raw")
    with pytest.raises(UnknownEstimator, match=r"called dpt; choose one of depth-anything-v1-small, .*, leres$"):
        catalogue.find_estimator("dpt")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_only_bfl_raw_on_another_estimator_is_worth_a_warning(name: str) -> None:
    assert catalogue.mode_warning(name, "auto") is None
    assert catalogue.mode_warning(name, "minmax") is None
    warning = catalogue.mode_warning(name, "bfl-raw")
    assert (warning is None) == (name == DEFAULT_ESTIMATOR)
    assert warning is None or name in warning


def test_the_setting_knows_the_table() -> None:
    assert Settings().depth_estimator == DEFAULT_ESTIMATOR
    assert Settings().depth_map_mode == "auto"
    assert Settings(depth_estimator="leres").depth_estimator == "leres"
    with pytest.raises(ValidationError, match=r"depth_estimator[\s\S]*depth-anything-v1-small, .*, leres"):
        Settings(depth_estimator="Midas")
    with pytest.raises(ValidationError, match="depth_map_mode"):
        Settings(depth_map_mode="raw")  # type: ignore[arg-type]


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_DEPTH_ESTIMATOR", "zoe")
    monkeypatch.setenv("FLUX_DEPTH_MAP_MODE", "minmax")
    assert (Settings().depth_estimator, Settings().depth_map_mode) == ("zoe", "minmax")


def test_the_chosen_estimators_folder_is_looked_for(tmp_path: Path) -> None:
    default = files(tmp_path / "depth-anything-large-hf", *HELPER_FILES)
    chosen = files(tmp_path / "Intel/dpt-large", *HELPER_FILES)
    assert find_weights(settings(tmp_path)).depth_estimator == default
    assert find_weights(settings(tmp_path, depth_estimator="dpt-large")).depth_estimator == chosen
    assert find_weights(settings(tmp_path, depth_estimator="dpt-hybrid-midas")).depth_estimator is None


@pytest.mark.parametrize("place", [
    "Annotators",
    "lllyasviel/Annotators",
    "models--lllyasviel--Annotators/snapshots/0123abcd",
])  # fmt: skip
def test_an_annotators_folder_needs_the_chosen_checkpoint_and_nothing_else(tmp_path: Path, place: str) -> None:
    folder = files(tmp_path / place, "res101.pth")
    assert find_weights(settings(tmp_path, depth_estimator="leres")).depth_estimator == folder
    found = find_weights(settings(tmp_path, depth_estimator="zoe"))
    assert found.depth_estimator is None
    assert f"depth estimator: {folder}: ZoeD_M12_N.pt is missing." in found.problems


def test_a_control_model_without_its_estimator_says_which_file_to_fetch(tmp_path: Path) -> None:
    model = files(
        tmp_path / "m",
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}{end}" for part in FLUX_FILES for end in (".safetensors",)),
        *(f"{part}/config.json" for part in ("transformer", "text_encoder", "text_encoder_2", "vae")),
        "vae/diffusion_pytorch_model.safetensors",
        *(f"tokenizer{two}/{name}" for two in ("", "_2") for name in ("tokenizer_config.json", "tokenizer.json")),
    )
    (model / "transformer/config.json").write_text('{"in_channels": 128}')
    wanted = WantedEstimator("lllyasviel/Annotators", ("res101.pth",), "leres")
    found = locate(tmp_path, {"depth": "x/m"}, {"depth": 128}, estimator=wanted)
    assert found.models == {"depth": ModelSources.in_folder(model)}
    (problem,) = found.problems
    assert problem.startswith("depth: takes ready depth maps only")
    assert problem.endswith("Run: flux-server weights pull leres")


def test_the_worker_is_told_name_mode_and_folder(tmp_path: Path) -> None:
    folder = files(tmp_path / "dpt-large", *HELPER_FILES)
    chosen = settings(tmp_path, depth_estimator="dpt-large", depth_map_mode="minmax")
    load = load_message(chosen, find_weights(chosen), tmp_path)
    assert load.depth_estimator == str(folder.resolve())
    assert (load.depth_estimator_name, load.depth_map_mode) == ("dpt-large", "minmax")


@pytest.mark.parametrize(("mode", "warns"), [("bfl-raw", True), ("auto", False)])
def test_the_server_warns_at_its_start_of_maps_that_would_be_black(tmp_path: Path, mode: str, warns: bool) -> None:
    app = create_app(settings(tmp_path, depth_estimator="dpt-large", depth_map_mode=mode))

    async def live() -> None:
        async with app.router.lifespan_context(app):
            pass

    with capture_logs() as logs:
        asyncio.run(live())
    said = [entry for entry in logs if entry["event"] == "depth maps"]
    assert [entry["log_level"] for entry in said] == ["warning"] * warns
    assert all("dpt-large may come out almost black" in entry["problem"] for entry in said)


def test_the_server_process_needs_no_torch_for_the_table() -> None:
    code = (
        "import sys, server.app, pipelines.depth_catalogue\n"
        "print([name for name in ('torch', 'transformers', 'controlnet_aux') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
