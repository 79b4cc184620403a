"""Truncated, altered and missing files are found and named, by size and form at once and by content on request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weights.catalogue import Catalogue, KnownFile, Model, read_catalogue
from weights.fingerprint import Fingerprint
from weights.receipt import Entry, Receipt, write_receipt
from weights.stock import find_complete
from weights.verify import FileCheck, verify, verify_single_files

T5 = "text_encoder_2/model.safetensors"


@pytest.fixture
def known(table: Path) -> Catalogue:
    return read_catalogue(table)


@pytest.fixture
def folder(samples: Any, tmp_path: Path) -> Path:
    """A model as a pull leaves it, with its receipt."""
    files = samples.flux_files()
    folder: Path = samples.write(tmp_path / "weights/FLUX.1-dev", files)
    entries = {path: Entry(fingerprint(files[path]), True) for path in files if path.endswith(".safetensors")}
    write_receipt(folder, Receipt("black-forest-labs/FLUX.1-dev", "c" * 40, entries))
    return folder


def fingerprint(content: bytes) -> Fingerprint:
    return Fingerprint(len(content), sha256=hashlib.sha256(content).hexdigest())


def bad(known: Catalogue, folder: Path, *, full: bool = False) -> list[FileCheck]:
    check = verify(known.models["flux-dev"], folder, full=full)
    found = [file for file in check.files if file.state not in ("good", "unproven")]
    assert check.good == (not found)
    return found


def test_a_whole_model_is_good(known: Catalogue, folder: Path) -> None:
    assert bad(known, folder) == []
    check = verify(known.models["flux-dev"], folder, full=True)
    states = {file.path: file.state for file in check.files}
    assert states[T5] == "good"
    assert states["model_index.json"] == "unproven"
    assert "flux1-dev.safetensors" not in states


def damage_end(content: bytes) -> bytes:
    return content[:-10]


def damage_middle(content: bytes) -> bytes:
    return content[:-10] + b"\0" + content[-9:]


@pytest.mark.parametrize("receipt", [True, False])
def test_a_truncated_file_is_found_without_reading_it(known: Catalogue, folder: Path, receipt: bool) -> None:
    if not receipt:
        (folder / ".flux-server.json").unlink()
    (folder / T5).write_bytes(damage_end((folder / T5).read_bytes()))
    (found,) = bad(known, folder)
    assert (found.path, found.state) == (T5, "truncated")
    assert "bytes" in found.detail
    assert find_complete(folder.parent, known.models["flux-dev"]) is None


def test_an_altered_file_of_the_right_size_is_found_by_content(known: Catalogue, folder: Path) -> None:
    (folder / T5).write_bytes(damage_middle((folder / T5).read_bytes()))
    assert bad(known, folder) == []
    (found,) = bad(known, folder, full=True)
    assert (found.path, found.state) == (T5, "altered")
    assert "ought to be" in found.detail


@pytest.mark.parametrize("path", ["vae/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"])
def test_a_truncated_json_file_is_found(known: Catalogue, folder: Path, path: str) -> None:
    (folder / path).write_bytes((folder / path).read_bytes()[:-1])
    found = bad(known, folder)
    assert found[0].path == path
    assert found[0].state == "truncated"


@pytest.mark.parametrize("path", [T5, "tokenizer/merges.txt", "model_index.json"])
def test_a_missing_file_is_found(known: Catalogue, folder: Path, path: str) -> None:
    (folder / path).unlink()
    if path == "tokenizer/merges.txt":
        (folder / "tokenizer/vocab.json").unlink()
    assert bad(known, folder)[0].state == "missing"


def test_a_link_that_leads_nowhere_is_said(known: Catalogue, folder: Path, tmp_path: Path) -> None:
    (folder / T5).unlink()
    (folder / T5).symlink_to(tmp_path / "gone")
    (found,) = bad(known, folder)
    assert (found.state, found.detail) == ("missing", "its link leads nowhere")


def test_what_the_hub_s_own_client_wrote_down_is_used(known: Catalogue, folder: Path) -> None:
    (folder / ".flux-server.json").unlink()
    for path, hashed in ((T5, hashlib.sha256((folder / T5).read_bytes()).hexdigest()), ("vae/config.json", "0" * 40)):
        record = folder / f".cache/huggingface/download/{path}.metadata"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{'c' * 40}\n{hashed}\n1700000000.0\n")
    check = verify(known.models["flux-dev"], folder, full=True)
    states = {file.path: file.state for file in check.files}
    assert (states[T5], states["vae/config.json"]) == ("good", "altered")
    assert states["vae/diffusion_pytorch_model.safetensors"] == "unproven"


def test_the_names_in_the_hub_s_cache_are_used(known: Catalogue, folder: Path, tmp_path: Path) -> None:
    (folder / ".flux-server.json").unlink()
    content = (folder / T5).read_bytes()
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(damage_middle(content))
    (folder / T5).unlink()
    (folder / T5).symlink_to(blob)
    (found,) = bad(known, folder, full=True)
    assert (found.path, found.state) == (T5, "altered")


def test_the_catalogue_s_hash_counts_above_what_lies_beside_the_file(known: Catalogue, folder: Path) -> None:
    dev = known.models["flux-dev"]
    content = (folder / T5).read_bytes()
    strict = KnownFile(T5, len(content), True, hashlib.sha256(b"published").hexdigest())
    model = Model(**{name: getattr(dev, name) for name in dev.__slots__} | {"files": (strict,), "parts": ()})
    states = {file.path: file.state for file in verify(model, folder, full=True).files}
    assert states[T5] == "altered"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x08" + b"\0" * 7 + b"[1,2,3] ", b"\x02" + b"\0" * 7 + b"{]"])
def test_what_is_no_safetensors_file_at_all(known: Catalogue, folder: Path, content: bytes) -> None:
    (folder / ".flux-server.json").unlink()
    (folder / T5).write_bytes(content)
    (found,) = bad(known, folder)
    assert found.path == T5
    assert found.state in ("truncated", "altered")


def test_a_receipt_that_cannot_be_read_is_none(known: Catalogue, folder: Path) -> None:
    for content in ("", "{}", "[]", '{"format": 99, "files": {}}', '{"format": 1, "files": 3}'):
        (folder / ".flux-server.json").write_text(content)
        assert bad(known, folder) == []


def test_the_command_names_the_file_and_its_status_is_5(
    weights_command: Callable[..., Any], table: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / T5).write_bytes(damage_end((folder / T5).read_bytes()))
    done = weights_command("verify", "--catalogue", table, "--json", FLUX_WEIGHTS_DIR=str(folder.parent))
    assert done.returncode == 5
    (model,) = json.loads(done.stdout)["models"]
    assert model["good"] is False
    assert [file["path"] for file in model["files"] if file["state"] == "truncated"] == [T5]
    text = weights_command("verify", "--full", "dev", "--catalogue", table)
    assert text.returncode == 5
    assert f"truncated: {T5}: has" in text.stdout
    assert "verifying flux-dev" in text.stderr
    absent = weights_command("verify", "estimator", "--catalogue", table)
    assert absent.returncode == 1
    assert "estimator: not in weights" in absent.stdout


def test_imported_single_files_are_compared_with_the_published_ones(tmp_path: Path, samples: Any) -> None:
    genuine, other = samples.safetensors({"a": ("U8", (5,))}), samples.safetensors({"b": ("U8", (5,))})
    folder = samples.write(tmp_path / "imported", {
        "transformer/mine.safetensors": genuine, "vae/other.sft": other, "vae/cut.safetensors": other[:-1]
    })  # fmt: skip
    published = [KnownFile("flux1-dev.safetensors", sha256=hashlib.sha256(genuine).hexdigest())]
    quick = {file.path: file.state for file in verify_single_files(folder, published).files}
    assert quick == {
        "transformer/mine.safetensors": "good",
        "vae/other.sft": "good",
        "vae/cut.safetensors": "truncated",
    }
    full = {file.path: file.state for file in verify_single_files(folder, published, full=True).files}
    assert full == quick | {"vae/other.sft": "unproven"}
