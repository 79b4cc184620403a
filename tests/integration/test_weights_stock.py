"""What is here, what is missing, what it would cost, where it is, and what removing it leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weights.catalogue import Catalogue, read_catalogue
from weights.fingerprint import Fingerprint
from weights.receipt import Entry, Receipt, write_receipt
from weights.sharing import link
from weights.stock import Holding, disk_bytes, find_complete, remove, take_stock

DEV, DEPTH = "FLUX.1-dev", "FLUX.1-Depth-dev"
T5 = "text_encoder_2/model.safetensors"


@pytest.fixture
def known(table: Path) -> Catalogue:
    return read_catalogue(table)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "weights"
    root.mkdir()
    return root


def holding(root: Path, known: Catalogue, name: str) -> Holding:
    (found,) = take_stock(root, known, known.find([name]))
    return found


def test_nothing_is_here(root: Path, known: Catalogue) -> None:
    dev = holding(root, known, "dev")
    assert (dev.state, dev.here_bytes, dev.pull_bytes, dev.part_bytes, dev.shared_bytes) == (
        "missing",
        0,
        6000,
        5000,
        0,
    )
    assert holding(root, known, "estimator").pull_bytes is None
    assert holding(root / "absent", known, "dev").state == "missing"


def test_what_is_here_costs_nothing(root: Path, known: Catalogue, samples: Any) -> None:
    folder = samples.write(root / DEV, samples.flux_files())
    dev = holding(root, known, "dev")
    assert (dev.state, dev.folder, dev.pull_bytes, dev.problem) == ("here", folder, 0, "")
    assert dev.here_bytes == sum(map(len, samples.flux_files().values()))


def test_a_part_that_another_model_has_is_not_paid_again(root: Path, known: Catalogue, samples: Any) -> None:
    samples.write(root / DEV, samples.flux_files())
    depth = holding(root, known, "flux-depth-dev")
    assert (depth.state, depth.pull_bytes, depth.part_bytes, depth.shared_bytes) == ("missing", 1000, 0, 5000)


def test_what_is_begun_says_what_it_lacks(root: Path, known: Catalogue, samples: Any) -> None:
    folder = samples.write(root / DEV, samples.flux_files())
    (folder / T5).unlink()
    dev = holding(root, known, "dev")
    assert (dev.state, dev.pull_bytes) == ("incomplete", 5000)
    assert f"{T5} is missing" in dev.problem


def test_a_pull_that_was_stopped_is_not_taken_for_a_whole_model(root: Path, known: Catalogue, samples: Any) -> None:
    folder = samples.write(root / DEV, samples.flux_files())
    write_receipt(folder, Receipt("r", "c", {"vae/config.json": Entry(Fingerprint())}, complete=False))
    assert find_complete(root, known.models["flux-dev"]) is None
    assert holding(root, known, "dev").state == "incomplete"


def test_a_file_with_two_names_counts_once(root: Path, samples: Any) -> None:
    folder = samples.write(root / DEV, {T5: b"x" * 100})
    link(folder / T5, root / DEPTH / T5)
    assert disk_bytes([root]) == 100


def test_links_across_file_systems_are_symbolic(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "link", refuse)
    link(tmp_path / "file", root / "a/b")
    assert (root / "a/b").is_symlink()
    assert (root / "a/b").read_bytes() == b"x"


def test_removing_a_model_leaves_what_another_one_shares(root: Path, known: Catalogue, samples: Any) -> None:
    dev = samples.write(root / DEV, samples.flux_files())
    depth = samples.write(root / DEPTH, samples.flux_files(in_channels=128))
    link(dev / T5, depth / T5)
    size = (dev / T5).stat().st_size
    freed = remove(root, known.models["flux-dev"])
    assert freed == sum(map(len, samples.flux_files().values())) - size
    assert not dev.exists()
    assert (depth / T5).stat().st_size == size


def test_removing_links_leaves_what_they_lead_to(root: Path, known: Catalogue, samples: Any, tmp_path: Path) -> None:
    theirs = samples.write(tmp_path / "theirs", samples.flux_files())
    link(theirs / T5, root / DEV / T5, symbolic=True)
    assert remove(root, known.models["flux-dev"]) == 0
    assert not (root / DEV).exists()
    (root / DEV).symlink_to(theirs)
    assert remove(root, known.models["flux-dev"]) == 0
    assert not (root / DEV).is_symlink()
    assert {path for path in samples.flux_files() if (theirs / path).is_file()} == set(samples.flux_files())


def test_removing_from_the_hub_s_cache_takes_the_contents_too(root: Path, known: Catalogue, samples: Any) -> None:
    cache = root / "models--black-forest-labs--FLUX.1-dev"
    blob = cache / "blobs/0123"
    samples.write(cache, {"blobs/0123": b"x" * 50})
    (cache / "snapshots/1/vae").mkdir(parents=True)
    (cache / "snapshots/1/vae/x.safetensors").symlink_to(blob)
    assert remove(root, known.models["flux-dev"]) == 50
    assert not cache.exists()


def test_models_that_share_a_folder_are_removed_one_by_one(root: Path, known: Catalogue, samples: Any) -> None:
    folder = samples.write(root / "annotators", {"known.pt": b"1", "unknown.pt": b"22"})
    assert remove(root, known.models["known"]) == 1
    assert (folder / "unknown.pt").exists()
    assert remove(root, known.models["unknown"]) == 2
    assert not folder.exists()


@pytest.fixture
def command(weights_command: Callable[..., Any], table: Path) -> Callable[..., Any]:
    return lambda name, *arguments, **settings: weights_command(name, *arguments, "--catalogue", table, **settings)


def test_the_list_as_json_and_as_text(command: Callable[..., Any], root: Path, samples: Any) -> None:
    samples.write(root / DEV, samples.flux_files())
    listed = command("ls", "--json")
    assert listed.returncode == 0
    content = json.loads(listed.stdout)
    assert content["root"] == "weights"
    assert content["free_bytes"] > 0
    rows = {row["name"]: row for row in content["models"]}
    assert (rows["flux-dev"]["state"], rows["flux-depth-dev"]["shared_bytes"]) == ("here", 5000)
    assert rows["flux-dev"]["licence"]["accepted"] is None
    text = command("ls").stdout
    assert "here       flux-dev" in text
    assert "5.0 kB linked to another model's (Strict License, gated)" in text
    assert "4 more can be pulled" in text
    assert "unknown size to pull (Easy License)" in command("ls", "--all").stdout
    assert command("ls", "dev").returncode == 0
    assert command("ls", "dev", "flux-depth-dev").returncode == 1


def test_locate_and_rm(command: Callable[..., Any], root: Path, samples: Any) -> None:
    folder = samples.write(root / DEV, samples.flux_files())
    assert json.loads(command("locate", "dev", "--json").stdout)["folder"] == f"weights/{DEV}"
    (folder / T5).unlink()
    located = command("locate", "dev")
    assert (located.returncode, located.stdout) == (1, "")
    assert f"{T5} is missing" in located.stderr
    assert command("locate", "estimator").returncode == 1
    refused = command("rm", "dev")
    assert refused.returncode == 2
    assert "pass --yes" in refused.stderr
    removed = command("rm", "dev", "estimator", "--yes", "--json")
    assert removed.returncode == 1
    content = json.loads(removed.stdout)
    assert content["removed"][0]["name"] == "flux-dev"
    assert content["removed"][0]["freed_bytes"] > 0
    assert content["absent"] == ["estimator"]
    assert not folder.exists()


def test_the_weights_folder_is_the_one_that_was_set(command: Callable[..., Any], tmp_path: Path, samples: Any) -> None:
    samples.write(tmp_path / "set" / DEV, samples.flux_files())
    assert command("locate", "dev", FLUX_WEIGHTS_DIR="set").stdout == f"set/{DEV}\n"
    assert command("locate", "dev", "--weights", "set").stdout == f"set/{DEV}\n"
    assert command("locate", "dev", FLUX_WEIGHTS_DIR="set", FLUX_PORT="x").returncode == 2
    samples.write(tmp_path / "weights", {"__init__.py": b""})
    source = command("ls")
    assert source.returncode == 2
    assert "program's own source" in source.stderr
