"""Model folders are found wherever they usually lie, and what is wrong with one is said by the path of a file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from weights.locate import Located, WeightsMissing, locate
from weights.sources import ModelSources

REPOSITORIES = {"flux-dev": "black-forest-labs/FLUX.1-dev", "flux-depth-dev": "black-forest-labs/FLUX.1-Depth-dev"}
IN_CHANNELS = {"flux-dev": 64, "flux-depth-dev": 128}
FLUX_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
HELPER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def write_files(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def flux(folder: Path, *, in_channels: int = 64) -> Path:
    write_files(folder, FLUX_FILES)
    (folder / "transformer/config.json").write_text(json.dumps({"in_channels": in_channels}))
    return folder


def helper(folder: Path) -> Path:
    return write_files(folder, HELPER_FILES)


def look(root: Path) -> Located:
    return locate(root, REPOSITORIES, IN_CHANNELS)


def only_problem(root: Path, model: str = "flux-dev") -> str:
    found = look(root)
    assert model not in found.models
    (problem,) = (problem for problem in found.problems if problem.startswith(f"{model}: "))
    return problem


@pytest.mark.parametrize("place", [
    "FLUX.1-dev",
    "black-forest-labs/FLUX.1-dev",
    "models--black-forest-labs--FLUX.1-dev/snapshots/0123abcd",
    "hub/models--black-forest-labs--FLUX.1-dev/snapshots/0123abcd",
])  # fmt: skip
def test_a_model_is_found_where_it_usually_lies(tmp_path: Path, place: str) -> None:
    folder = flux(tmp_path / place)
    found = look(tmp_path)
    assert found.models == {"flux-dev": ModelSources.in_folder(folder)}
    assert found.sources("flux-dev") == ModelSources.in_folder(folder)
    assert found.root == tmp_path


def test_a_whole_family_has_no_problems(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-dev")
    flux(tmp_path / "FLUX.1-Depth-dev", in_channels=128)
    depth = helper(tmp_path / "LiheYoung/depth-anything-large-hf")
    concepts = helper(tmp_path / "models--CompVis--stable-diffusion-safety-checker/snapshots/1")
    detector = helper(tmp_path / "nsfw_image_detection")
    found = look(tmp_path)
    assert list(found.models) == ["flux-dev", "flux-depth-dev"]
    assert (found.depth_estimator, found.safety_concepts, found.nsfw_detector) == (depth, concepts, detector)
    assert found.problems == ()


def test_the_demo_family_s_names_are_known(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-dev")
    concepts = helper(tmp_path / "safety-concepts")
    detector = helper(tmp_path / "nsfw-image-detection")
    found = look(tmp_path)
    assert (found.safety_concepts, found.nsfw_detector) == (concepts, detector)


@pytest.mark.parametrize("name", [name for name in FLUX_FILES if name != "tokenizer_2/tokenizer.json"])
def test_a_model_without_one_of_its_files_is_a_problem_that_names_it(tmp_path: Path, name: str) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    (folder / name).unlink()
    problem = only_problem(tmp_path)
    assert f"{name} is missing" in problem
    assert str(folder) in problem


def test_a_tokenizer_without_any_vocabulary_is_a_problem_that_names_both_forms(tmp_path: Path) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    (folder / "tokenizer_2/tokenizer.json").unlink()
    assert "tokenizer_2/spiece.model is missing, and so is tokenizer_2/tokenizer.json" in only_problem(tmp_path)


def test_either_form_of_a_tokenizer_s_vocabulary_will_do(tmp_path: Path) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/tokenizer.json"):
        (folder / name).unlink()
    write_files(folder, ("tokenizer/tokenizer.json", "tokenizer_2/spiece.model"))
    assert look(tmp_path).models == {"flux-dev": ModelSources.in_folder(folder)}


def shard(folder: Path, part: str, stem: str) -> list[Path]:
    names = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / part / f"{stem}.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a.weight": names[0], "b.weight": names[1], "c.weight": names[1]}}
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    write_files(folder / part, tuple(names))
    return [folder / part / name for name in names]


@pytest.mark.parametrize(("part", "stem"), [("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")])
def test_every_shard_that_the_index_names_must_be_there(tmp_path: Path, part: str, stem: str) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    shards = shard(folder, part, stem)
    assert look(tmp_path).models == {"flux-dev": ModelSources.in_folder(folder)}
    shards[1].unlink()
    assert f"{part}/{stem}-00002-of-00002.safetensors is missing" in only_problem(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1, "b": "c"}}'])
def test_a_broken_index_is_a_problem(tmp_path: Path, content: str) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    shard(folder, "transformer", "diffusion_pytorch_model")
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    assert "transformer/diffusion_pytorch_model.safetensors.index.json cannot be read" in only_problem(tmp_path)


def test_an_index_that_names_nothing_is_a_problem(tmp_path: Path) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    shard(folder, "transformer", "diffusion_pytorch_model")
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "names no files" in only_problem(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_in_words(tmp_path: Path, suffix: str) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(suffix))
    problem = only_problem(tmp_path)
    assert f"transformer/diffusion_pytorch_model{suffix} is a pickle" in problem
    assert "only safetensors are loaded" in problem


def test_another_model_s_transformer_is_a_problem(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-Depth-dev", in_channels=64)
    problem = only_problem(tmp_path, "flux-depth-dev")
    assert "transformer/config.json says in_channels 64, not 128" in problem


def test_channels_are_checked_only_where_they_are_expected(tmp_path: Path) -> None:
    folder = flux(tmp_path / "FLUX.1-dev", in_channels=384)
    assert locate(tmp_path, REPOSITORIES).models == {"flux-dev": ModelSources.in_folder(folder)}


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_an_unreadable_transformer_config_is_a_problem(tmp_path: Path, content: str) -> None:
    folder = flux(tmp_path / "FLUX.1-dev")
    (folder / "transformer/config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "transformer/config.json cannot be read" in only_problem(tmp_path)


def test_a_model_that_is_nowhere_is_a_problem_that_says_what_to_do(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-dev")
    problem = only_problem(tmp_path, "flux-depth-dev")
    assert "not found" in problem
    assert str(tmp_path) in problem
    assert problem.endswith("Run: flux-server weights pull flux-depth-dev")


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    found = look(tmp_path / "absent")
    assert found.models == {}
    assert (found.depth_estimator, found.safety_concepts, found.nsfw_detector) == (None, None, None)
    assert len(found.problems) == len(REPOSITORIES)


def test_asking_for_a_missing_model_raises_with_its_own_problems(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-dev")
    (flux(tmp_path / "FLUX.1-Depth-dev", in_channels=128) / "vae/config.json").unlink()
    (helper(tmp_path / "safety-concepts") / "config.json").unlink()
    with pytest.raises(WeightsMissing, match=r"vae/config\.json is missing") as raised:
        look(tmp_path).sources("flux-depth-dev")
    assert "safety" not in str(raised.value)


def test_a_complete_folder_counts_before_an_incomplete_one(tmp_path: Path) -> None:
    (flux(tmp_path / "FLUX.1-dev") / "vae/config.json").unlink()
    complete = flux(tmp_path / "black-forest-labs/FLUX.1-dev")
    found = look(tmp_path)
    assert found.models == {"flux-dev": ModelSources.in_folder(complete)}
    assert not any(problem.startswith("flux-dev") for problem in found.problems)


def test_of_several_revisions_the_one_of_main_counts_and_then_the_newest(tmp_path: Path) -> None:
    cache = tmp_path / "models--black-forest-labs--FLUX.1-dev"
    revisions = {name: flux(cache / "snapshots" / name) for name in ("aaa", "bbb", "ccc")}
    for age, folder in enumerate(revisions.values()):
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    assert look(tmp_path).sources("flux-dev").home == revisions["aaa"]
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("ccc")
    assert look(tmp_path).sources("flux-dev").home == revisions["ccc"]
    shutil.rmtree(revisions["ccc"] / "vae")
    assert look(tmp_path).sources("flux-dev").home == revisions["aaa"]


def test_a_link_to_a_blob_that_was_never_downloaded_is_a_missing_file(tmp_path: Path) -> None:
    folder = flux(tmp_path / "models--black-forest-labs--FLUX.1-dev/snapshots/aaa")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("../../../blobs/absent")
    assert "transformer/diffusion_pytorch_model.safetensors is missing" in only_problem(tmp_path)


def test_a_control_model_without_the_depth_estimator_is_listed_with_a_problem(tmp_path: Path) -> None:
    folder = flux(tmp_path / "FLUX.1-Depth-dev", in_channels=128)
    found = look(tmp_path)
    assert found.models == {"flux-depth-dev": ModelSources.in_folder(folder)}
    (problem,) = (problem for problem in found.problems if problem.startswith("flux-depth-dev: "))
    assert "LiheYoung/depth-anything-large-hf" in problem


def test_an_incomplete_helper_is_a_problem_and_does_not_count(tmp_path: Path) -> None:
    flux(tmp_path / "FLUX.1-dev")
    for name, file in {"depth-anything-large-hf": "model.safetensors", "safety-concepts": "config.json"}.items():
        (helper(tmp_path / name) / file).unlink()
    found = look(tmp_path)
    assert found.depth_estimator is None
    assert found.safety_concepts is None
    assert any(
        text.startswith("depth estimator: ") and "model.safetensors is missing" in text for text in found.problems
    )
    assert any(text.startswith("safety checker: ") and "config.json is missing" in text for text in found.problems)
