"""The table of weights agrees with itself, with the models that are run, and with their sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.depth_catalogue import ESTIMATORS
from pipelines.models import MODELS
from server.cli import cli
from weights.catalogue import Model, read_catalogue
from weights.errors import UnknownModel
from weights.fingerprint import Fingerprint, named_by_hub
from weights.locate import DEPTH_ESTIMATOR, NSFW_DETECTOR, SAFETY_CONCEPTS
from weights.selection import PICKLE_SUFFIXES, belongs

CATALOGUE = read_catalogue()
BFLOAT16 = 2
PARAMETERS = {
    "transformer": 11_901_408_320,
    "text_encoder_2": 4_762_310_656,
    "text_encoder": 123_060_480,
    "vae": 83_819_683,
}
"""Of FLUX.1-dev; tests/unit/test_full_size.py counts them."""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_depth_estimator_can_be_pulled(name: str) -> None:
    spec, model = ESTIMATORS[name], CATALOGUE.models[name]
    assert (model.repository, model.licence.name) == (spec.repository, spec.licence)
    assert {file.path: file.sha256 for file in model.files if file.path.endswith(PICKLE_SUFFIXES)} == {
        checkpoint.file: checkpoint.sha256 for checkpoint in spec.checkpoints
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_model_that_is_run_can_be_pulled(name: str) -> None:
    spec, model = MODELS[name], CATALOGUE.models[name]
    assert (model.repository, model.in_channels, model.layout) == (
        spec.repository,
        spec.transformer_in_channels,
        "flux",
    )
    assert model.gated


def test_what_the_server_looks_for_by_default_is_the_standard_set() -> None:
    standard = CATALOGUE.find(["standard"])
    helpers = {DEPTH_ESTIMATOR, SAFETY_CONCEPTS, NSFW_DETECTOR}
    assert {model.repository for model in standard} == helpers | {spec.repository for spec in MODELS.values()}
    assert {model.repository for model in CATALOGUE.find(["safety"])} == {SAFETY_CONCEPTS, NSFW_DETECTOR}


@pytest.mark.parametrize("model", CATALOGUE.models.values(), ids=lambda model: model.name)
def test_entries_are_well_formed(model: Model) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}|main|refs/pr/\d+", model.revision)
    assert model.licence.page.startswith("https://")
    for file in model.known_files():
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert belongs(model, file.path)
    paths = [file.path for file in model.known_files()]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("name", ["flux-dev", "flux-depth-dev"])
def test_sizes_are_those_of_the_networks(name: str) -> None:
    sizes = dict.fromkeys(PARAMETERS, 0)
    for file in CATALOGUE.models[name].known_files():
        sizes[file.path.partition("/")[0]] += file.size or 0
    for part, parameters in PARAMETERS.items():
        assert sizes[part] == pytest.approx(parameters * BFLOAT16, rel=3e-4), part


def test_shared_parts_are_known_exactly_only_in_their_own_repository() -> None:
    dev, depth = (CATALOGUE.models[name].known_file("vae/diffusion_pytorch_model.safetensors") for name in MODELS)
    assert dev
    assert depth
    assert (dev.exact, depth.exact) == (True, False)
    assert (dev.sha256 is None, depth.sha256 is None) == (False, True)
    assert dev.size == depth.size


def test_models_are_found_by_name_alias_repository_and_set() -> None:
    names = ["dev", "flux-dev", "black-forest-labs/FLUX.1-Depth-dev", "safety"]
    assert [model.name for model in CATALOGUE.find(names)] == [
        "flux-dev", "flux-depth-dev", "safety-concepts", "nsfw-detector"
    ]  # fmt: skip
    with pytest.raises(UnknownModel, match="did you mean flux-depth-dev"):
        CATALOGUE.find(["flux-depth-def"])


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("model_index.json", True),
        ("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", True),
        ("text_encoder_2/model.safetensors.index.json", True),
        ("tokenizer_2/spiece.model", True),
        ("tokenizer/merges.txt", True),
        ("flux1-dev.safetensors", False),
        ("ae.safetensors", False),
        ("transformer/diffusion_pytorch_model.fp16.safetensors", False),
        ("transformer/diffusion_pytorch_model.bin", False),
        ("transformer/../../.ssh/config.json", False),
        ("/etc/config.json", False),
        ("transformer/C:config.json", False),
        ("transformer/.hidden.json", False),
        ("scheduler/x.py", False),
        ("README.md", False),
    ],
)
def test_only_what_is_loaded_is_fetched(path: str, wanted: bool) -> None:
    assert belongs(CATALOGUE.models["flux-dev"], path) is wanted


@pytest.mark.parametrize("text", ["", "licences = {}", "[models.x]\nlicence = 3", "models = 3\nlicences = 4"])
def test_another_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.toml").write_text(text)
    with pytest.raises(ValueError, match="is no table of weights"):
        read_catalogue(tmp_path / "table.toml")


def test_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin` and sha256sum.
    git, sha = (
        "ce013625030ba8dba906f756967f9e9ca394464a",
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    )
    for name in (git, sha):
        known = named_by_hub(name)
        assert known
        assert known.matches(path)
        assert not Fingerprint(5, known.sha256, known.git_sha1).matches(path)
        path.write_bytes(b"hullo\n")
        assert not known.matches(path)
        path.write_bytes(b"hello\n")
    assert named_by_hub("W/something") is None


def test_the_command_costs_the_server_neither_torch_nor_the_hub_s_client() -> None:
    probe = (
        "import sys, server.cli; early = 'huggingface_hub' in sys.modules;"
        "import weights.pull, weights.verify, weights.importing, weights.stock, server.weights_text;"
        "print(early, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize("command", ["", "ls", "pull", "verify", "import", "locate", "rm"])
def test_help_lists_the_exit_statuses(command: str) -> None:
    words = [word for word in ("weights", command, "--help") if word]
    done = CliRunner().invoke(cli, words, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert done.exit_code == 0
    for status in ("0 done", "2 the command line", "3 a licence", "4 the disk is full", "5 a file is not"):
        assert status in " ".join(done.output.split())
