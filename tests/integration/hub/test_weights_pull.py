"""What a pull does to the disk and asks of the hub, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weights.catalogue import Catalogue, KnownFile, read_catalogue
from weights.download import Patience
from weights.errors import (
    AccessNeeded,
    Busy,
    HubUnreachable,
    LicenceNotAccepted,
    NoSpace,
    NotOnHub,
    NotPullable,
    WrongContent,
)
from weights.licence import record_acceptance
from weights.locate import locate
from weights.pull import Pulled, pull
from weights.receipt import read_receipt
from weights.sources import ModelSources
from weights.verify import note_damage, verify

MIB = 1 << 20
SHARD_1 = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
SHARD_2 = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"
T5 = "text_encoder_2/model.safetensors"
SHARED = ("text_encoder/model.safetensors", T5, "vae/diffusion_pytorch_model.safetensors")
LOADED = {
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder_2/config.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "vae/config.json",
    "tokenizer_2/tokenizer_config.json", "tokenizer_2/tokenizer.json", "tokenizer_2/spiece.model",
    "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json", SHARD_1, SHARD_2, *SHARED,
}  # fmt: skip


class Recorder:
    """A Progress that remembers; `tell` is called at each step."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.lock = threading.Lock()
        self.said: list[str] = []
        self.tell: Callable[[], None] = lambda: None

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count
        self.tell()

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def known(table: Path) -> Catalogue:
    return read_catalogue(table)


@pytest.fixture
def here(hub_here: Any, filled: Any, known: Catalogue, tmp_path: Path) -> SimpleNamespace:
    """Pulls in this process, with licences accepted and a token, into `root`."""
    root, progress = tmp_path / "root", Recorder()
    for licence in {model.licence for model in known.models.values()}:
        record_acceptance(root, licence, known.models.values(), "test")

    def fetch(*names: str, token: str | None = "hf_standin", tries: int = 3) -> list[Pulled]:
        patience = Patience(tries, 0.01)
        return pull(root, known.find(names), known, progress=progress, token=token, patience=patience)

    return SimpleNamespace(pull=fetch, root=root, hub=filled, progress=progress, known=known)


def files_under(folder: Path) -> set[str]:
    """Files under their final names."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def assert_only_whole_files(folder: Path, published: dict[str, bytes]) -> None:
    for path in files_under(folder):
        assert (folder / path).read_bytes() == published[path], path


def test_a_pull_fetches_what_is_loaded_and_nothing_else(here: Any) -> None:
    (pulled,) = here.pull("dev")
    folder = here.root / "FLUX.1-dev"
    published = here.hub.repositories["black-forest-labs/FLUX.1-dev"].files
    assert files_under(folder) == LOADED == set(pulled.downloaded)
    assert_only_whole_files(folder, published)
    assert pulled.downloaded_bytes == sum(len(published[path]) for path in LOADED) == here.progress.done
    assert here.progress.total == here.progress.done
    found = locate(here.root, {"flux-dev": "black-forest-labs/FLUX.1-dev"}, {"flux-dev": 64})
    assert found.models == {"flux-dev": ModelSources.in_folder(folder)}
    check = verify(here.known.models["flux-dev"], folder, full=True)
    assert check.good
    assert {file.state for file in check.files} == {"good"}
    receipt = read_receipt(folder)
    assert (receipt.repository, receipt.commit, receipt.complete) == ("black-forest-labs/FLUX.1-dev", "c" * 40, True)
    assert not (folder / ".partial").exists()
    asked = ("/api/models/black-forest-labs/", "/black-forest-labs/", "/storage/black-forest-labs/")
    assert all(request.path.startswith(asked) for request in here.hub.log)


def test_a_second_pull_asks_the_hub_nothing(here: Any) -> None:
    here.pull("dev")
    here.hub.log.clear()
    (again,) = here.pull("dev")
    assert here.hub.log == []
    assert again.downloaded == ()
    assert again.folder == here.root / "FLUX.1-dev"


def test_what_two_models_share_is_downloaded_once(here: Any) -> None:
    here.pull("dev")
    here.hub.log.clear()
    (depth,) = here.pull("flux-depth-dev")
    assert set(depth.linked) == set(SHARED)
    assert not [path for path in here.hub.fetched() if path.endswith(SHARED)]
    for path in SHARED:
        assert (here.root / "FLUX.1-Depth-dev" / path).samefile(here.root / "FLUX.1-dev" / path)
    repositories = {name: here.known.models[name].repository for name in ("flux-dev", "flux-depth-dev")}
    found = locate(here.root, repositories, {"flux-dev": 64, "flux-depth-dev": 128})
    assert list(found.models) == ["flux-dev", "flux-depth-dev"]


def test_both_at_once_share_too_and_space_is_counted_once(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dev, depth = here.pull("standard")
    assert set(depth.linked) == set(SHARED)
    for path in SHARED:
        assert here.hub.bytes_of(path) == len(here.hub.repositories["black-forest-labs/FLUX.1-dev"].files[path])
    assert here.progress.total == dev.downloaded_bytes + depth.downloaded_bytes


def test_equal_names_and_sizes_with_other_content_are_not_shared(here: Any, samples: Any) -> None:
    here.pull("dev")
    other = samples.safetensors({"tensor": ("U8", (5000,))}, b"\x77")
    here.hub.repositories["black-forest-labs/FLUX.1-Depth-dev"].files[T5] = other
    (depth,) = here.pull("flux-depth-dev")
    assert T5 in depth.downloaded
    assert (here.root / "FLUX.1-Depth-dev" / T5).read_bytes() == other
    assert (here.root / "FLUX.1-dev" / T5).read_bytes() != other


def test_a_shared_part_that_was_altered_on_disk_is_downloaded_again(here: Any) -> None:
    here.pull("dev")
    mine = here.root / "FLUX.1-dev" / T5
    (here.root / "FLUX.1-dev/.flux-server.json").unlink()
    mine.write_bytes(mine.read_bytes()[:-1] + b"\0")
    (depth,) = here.pull("flux-depth-dev")
    assert T5 in depth.downloaded
    assert set(depth.linked) == set(SHARED) - {T5}


def big(samples: Any, mebibytes: int) -> bytes:
    return bytes(samples.safetensors({"tensor": ("U8", (mebibytes * MIB,))}, b"\x05"))


def test_a_cut_connection_is_resumed_where_it_broke(here: Any, samples: Any) -> None:
    content = big(samples, 4)
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = content
    here.hub.fail("model.safetensors", cut_after=2 * MIB + 5)
    here.pull("estimator")
    assert here.hub.ranges("model.safetensors") == [None, f"bytes={2 * MIB}-"]
    assert (here.root / "estimator-hf/model.safetensors").read_bytes() == content
    assert "trying again" in here.progress.said[0]
    assert here.progress.done == here.progress.total


def test_a_pull_that_gave_up_is_resumed_by_the_next_one(here: Any, samples: Any) -> None:
    content = big(samples, 4)
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = content
    here.hub.fail("model.safetensors", cut_after=2 * MIB, times=1)
    with pytest.raises(HubUnreachable, match="estimator-hf"):
        here.pull("estimator", tries=1)
    folder = here.root / "estimator-hf"
    assert "model.safetensors" not in files_under(folder)
    (pulled,) = here.pull("estimator")
    assert here.hub.ranges("model.safetensors")[-1] == f"bytes={2 * MIB}-"
    assert pulled.resumed_bytes == 2 * MIB
    assert pulled.downloaded_bytes < len(content) - 2 * MIB + 100
    assert (folder / "model.safetensors").read_bytes() == content
    assert here.progress.done == here.progress.total


def test_a_hub_that_cannot_resume_sends_all_again(here: Any, samples: Any) -> None:
    content = big(samples, 3)
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = content
    here.hub.fail("model.safetensors", cut_after=2 * MIB)
    with pytest.raises(HubUnreachable):
        here.pull("estimator", tries=1)
    here.hub.fail("model.safetensors", ignore_range=True)
    here.pull("estimator")
    assert (here.root / "estimator-hf/model.safetensors").read_bytes() == content
    assert here.progress.done == here.progress.total


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_asked_again(here: Any, status: int) -> None:
    here.hub.fail("model.safetensors", status=status, times=2)
    here.pull("estimator")
    assert len(here.hub.ranges("model.safetensors")) == 3


def test_a_hub_that_stays_in_trouble_ends_the_pull(here: Any) -> None:
    here.hub.fail("model.safetensors", status=503, times=99)
    with pytest.raises(HubUnreachable, match="answers 503"):
        here.pull("estimator", tries=3)
    assert len(here.hub.ranges("model.safetensors")) == 3
    assert "model.safetensors" not in files_under(here.root / "estimator-hf")


def test_no_hub_at_all(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match=r"someone/estimator-hf at http://127\.0\.0\.1:9"):
        here.pull("estimator")


def test_content_of_another_hash_never_gets_the_name(here: Any) -> None:
    published = here.hub.repositories["black-forest-labs/FLUX.1-dev"].files
    here.hub.fail(SHARD_1, content=published[SHARD_1][:-1] + b"\0")
    with pytest.raises(WrongContent, match=f"{SHARD_1} of black-forest-labs/FLUX.1-dev arrived as"):
        here.pull("dev")
    folder = here.root / "FLUX.1-dev"
    assert SHARD_1 not in files_under(folder)
    assert_only_whole_files(folder, published)
    here.pull("dev")
    assert_only_whole_files(folder, published)
    assert files_under(folder) == LOADED


def test_small_files_are_compared_by_git_s_hash(here: Any) -> None:
    here.hub.fail("config.json", content=b"[]")
    with pytest.raises(WrongContent, match=r"config\.json"):
        here.pull("estimator")
    assert "config.json" not in files_under(here.root / "estimator-hf")


def test_a_file_that_is_longer_than_said_is_refused(here: Any) -> None:
    content = here.hub.repositories["someone/estimator-hf"].files["model.safetensors"]
    here.hub.fail("model.safetensors", content=content + b"more")
    with pytest.raises(WrongContent):
        here.pull("estimator")
    assert "model.safetensors" not in files_under(here.root / "estimator-hf")


def test_a_damaged_part_is_thrown_away_and_not_built_upon(here: Any, samples: Any) -> None:
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = big(samples, 3)
    here.hub.fail("model.safetensors", cut_after=2 * MIB)
    with pytest.raises(HubUnreachable):
        here.pull("estimator", tries=1)
    (part,) = [path for path in (here.root / "estimator-hf/.partial").iterdir() if path.stat().st_size]
    part.write_bytes(b"\0" * MIB)
    with pytest.raises(WrongContent):
        here.pull("estimator")
    assert not part.exists()
    here.pull("estimator")


def test_a_closed_gate_is_found_before_anything_is_fetched(here: Any) -> None:
    with pytest.raises(AccessNeeded) as raised:
        here.pull("estimator", "dev", token=None)
    text = str(raised.value)
    assert "no token was sent" in text
    assert "https://huggingface.co/black-forest-labs/FLUX.1-dev\n" in text
    assert "https://huggingface.co/settings/tokens" in text
    assert "--token hf_…" in text
    assert not [request for request in here.hub.log if "/storage/" in request.path]


@pytest.mark.parametrize(("gate", "why"), [(403, "has not accepted them"), (401, "does not take the token")])
def test_a_token_that_does_not_open_the_gate(here: Any, gate: int, why: str) -> None:
    here.hub.gate = gate
    with pytest.raises(AccessNeeded, match=why) as raised:
        here.pull("dev", token="hf_secret")
    assert "hf_secret" not in str(raised.value)


def test_the_token_goes_to_the_hub_and_never_to_its_storage(here: Any) -> None:
    here.pull("dev")
    tokens = {("/storage/" in request.path, request.token) for request in here.hub.log}
    assert tokens == {(False, "hf_standin"), (True, None)}


def test_a_gate_that_closes_on_the_way_ends_the_pull(here: Any) -> None:
    here.hub.fail(SHARD_1, status=403)
    with pytest.raises(AccessNeeded):
        here.pull("dev")
    assert SHARD_1 not in files_under(here.root / "FLUX.1-dev")


@pytest.mark.parametrize("token", [None, "hf_standin"])
def test_a_repository_that_is_not_on_the_hub(here: Any, token: str | None) -> None:
    del here.hub.repositories["someone/estimator-hf"]
    with pytest.raises(NotOnHub, match="there is no someone/estimator-hf"):
        here.pull("estimator", token=token)


def test_a_revision_that_is_not_on_the_hub(here: Any, known: Catalogue) -> None:
    model = replace(known.models["estimator"], revision="gone")
    with pytest.raises(NotOnHub, match="has no revision gone"):
        pull(here.root, [model], known, progress=here.progress)


def test_a_file_that_vanishes_from_the_hub(here: Any) -> None:
    here.hub.fail("model.safetensors", status=404)
    with pytest.raises(NotOnHub, match="someone/estimator-hf"):
        here.pull("estimator")


def test_a_repository_that_lacks_a_file_which_is_needed(here: Any) -> None:
    del here.hub.repositories["someone/estimator-hf"].files["preprocessor_config.json"]
    with pytest.raises(NotPullable, match=r"does not hold all that is needed: preprocessor_config\.json is missing"):
        here.pull("estimator")


def test_pickles_of_known_content_only(here: Any, samples: Any) -> None:
    with pytest.raises(NotPullable, match=r"unknown\.pt of someone/annotators is a pickle"):
        here.pull("unknown")
    here.pull("known")
    assert (here.root / "annotators/known.pt").read_bytes() == samples.known_pickle
    here.hub.repositories["someone/annotators"].files["known.pt"] = b"\x80\x04another."
    (here.root / "annotators/known.pt").unlink()
    with pytest.raises(WrongContent, match=r"known\.pt"):
        here.pull("known")


def test_a_repository_with_pickles_only(here: Any) -> None:
    del here.hub.repositories["someone/estimator-hf"].files["model.safetensors"]
    with pytest.raises(NotPullable, match=r"has no safetensors to load; it has pytorch_model\.bin"):
        here.pull("estimator")


def test_licences_are_asked_for_before_the_hub_is(here: Any) -> None:
    (here.root / "licences.json").unlink()
    with pytest.raises(LicenceNotAccepted, match=r"https://example\.org/strict"):
        here.pull("dev")
    assert here.hub.log == []
    here.pull("estimator")


def test_a_disk_without_room_is_found_before_anything_is_fetched(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(1 << 30) + 100))
    with pytest.raises(NoSpace, match="stay free"):
        here.pull("dev")
    assert not [request for request in here.hub.log if "/storage/" in request.path]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(1 << 30) + 100_000))
    here.pull("dev")


def test_what_arrived_before_needs_no_room_again(here: Any, samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = big(samples, 3)
    here.hub.fail("model.safetensors", cut_after=2 * MIB)
    with pytest.raises(HubUnreachable):
        here.pull("estimator", tries=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(1 << 30) + 2 * MIB))
    here.pull("estimator")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is Linux's")
def test_a_disk_that_fills_up_on_the_way(here: Any) -> None:
    content = here.hub.repositories["someone/estimator-hf"].files["model.safetensors"]
    part = here.root / "estimator-hf/.partial" / f"model.safetensors.{hashlib.sha256(content).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(NoSpace, match=r"is full while model\.safetensors arrives"):
        here.pull("estimator")
    assert "model.safetensors" not in files_under(here.root / "estimator-hf")
    part.unlink()
    here.pull("estimator")
    assert (here.root / "estimator-hf/model.safetensors").read_bytes() == content


def test_ctrl_c_keeps_what_arrived(here: Any, samples: Any) -> None:
    content = big(samples, 8)
    here.hub.repositories["someone/estimator-hf"].files["model.safetensors"] = content
    main = threading.main_thread().ident

    def interrupt() -> None:
        if here.progress.done > 3 * MIB:
            here.progress.tell = lambda: None
            assert main
            signal.pthread_kill(main, signal.SIGINT)

    here.progress.tell = interrupt
    with pytest.raises(KeyboardInterrupt):
        here.pull("estimator")
    assert "model.safetensors" not in files_under(here.root / "estimator-hf")
    (pulled,) = here.pull("estimator")
    assert pulled.resumed_bytes >= 3 * MIB
    assert (here.root / "estimator-hf/model.safetensors").read_bytes() == content


def test_one_pull_at_a_time(here: Any) -> None:
    from filelock import FileLock

    with FileLock(here.root / ".pull.lock"), pytest.raises(Busy, match="another pull works on"):
        here.pull("estimator")
    here.pull("estimator")


def test_files_that_lie_there_already_are_compared_and_kept(here: Any, samples: Any) -> None:
    published = here.hub.repositories["black-forest-labs/FLUX.1-dev"].files
    folder = here.root / "FLUX.1-dev"
    damaged = published[T5][:-1] + b"\0"
    samples.write(folder, {SHARD_1: published[SHARD_1], T5: damaged, "notes.md": b"mine"})
    (pulled,) = here.pull("dev")
    assert set(pulled.downloaded) == LOADED - {SHARD_1}
    assert here.hub.bytes_of(SHARD_1) == 0
    assert (folder / T5).read_bytes() == published[T5]
    assert (folder / "notes.md").read_bytes() == b"mine"
    assert (folder / f"{T5}.replaced").read_bytes() == damaged
    assert f"kept as {Path(T5).name}.replaced" in here.progress.said[0]


def test_a_damaged_file_and_one_that_a_pull_brought_are_not_kept(here: Any, samples: Any) -> None:
    published = here.hub.repositories["black-forest-labs/FLUX.1-dev"].files
    folder = here.root / "FLUX.1-dev"
    samples.write(folder, {T5: published[T5][:-1]})
    here.pull("dev")
    (folder / SHARD_1).write_bytes(published[SHARD_1][:-1])
    (pulled,) = here.pull("dev")
    assert pulled.downloaded == (SHARD_1,)
    assert files_under(folder) == LOADED
    assert_only_whole_files(folder, published)


def test_a_link_to_somebody_else_s_file_is_replaced_and_the_file_left_alone(here: Any, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_bytes(b"another content")
    link = here.root / "estimator-hf/model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(theirs)
    here.pull("estimator")
    assert not link.is_symlink()
    assert theirs.read_bytes() == b"another content"


def test_the_first_failure_stops_the_other_downloads(here: Any, samples: Any) -> None:
    files = here.hub.repositories["black-forest-labs/FLUX.1-dev"].files
    files[SHARD_2] = big(samples, 64)
    here.hub.fail("model_index.json", content=b"[]")
    with pytest.raises(WrongContent, match="model_index"):
        here.pull("dev")
    assert here.hub.bytes_of(SHARD_2) <= len(files[SHARD_2])
    assert SHARD_2 not in files_under(here.root / "FLUX.1-dev")


def test_licences_are_recorded_with_who_and_when(here: Any) -> None:
    record = json.loads((here.root / "licences.json").read_text())["strict"]
    assert record["name"] == "Strict License"
    assert record["page"] == "https://example.org/strict"
    assert "black-forest-labs/FLUX.1-dev" in record["repositories"]
    assert record["accepted_by"]
    assert record["accepted_at"].endswith("+00:00")


def test_somebody_s_own_edition_is_kept_also_after_verify_disliked_it(here: Any, samples: Any) -> None:
    folder = here.root / "estimator-hf"
    samples.write(folder, samples.helper_files(content=9))
    model = replace(here.known.models["estimator"], files=(KnownFile("model.safetensors", 3, True),))
    note_damage(verify(model, folder))
    here.pull("estimator")
    assert (folder / "model.safetensors.replaced").read_bytes() == samples.helper_files(content=9)["model.safetensors"]


def test_what_verify_finds_altered_is_fetched_again(here: Any) -> None:
    here.pull("dev")
    model, folder = here.known.models["flux-dev"], here.root / "FLUX.1-dev"
    published = (folder / T5).read_bytes()
    (folder / T5).write_bytes(published[:-1] + b"\0")
    assert verify(model, folder).good
    check = verify(model, folder, full=True)
    assert not check.good
    note_damage(check)
    (pulled,) = here.pull("dev")
    assert pulled.downloaded == (T5,)
    assert verify(model, folder, full=True).good


@pytest.mark.parametrize("content", ["", "[]", '{"strict": 1}'])
def test_a_record_that_is_none_is_not_written_over(here: Any, content: str) -> None:
    (here.root / "licences.json").write_text(content)
    with pytest.raises(ValueError, match=r"licences\.json is no record of licences"):
        here.pull("dev")
    assert (here.root / "licences.json").read_text() == content


def test_no_file_descriptors_are_left_open(here: Any) -> None:
    here.pull("estimator")
    before = len(os.listdir("/proc/self/fd"))
    shutil.rmtree(here.root / "estimator-hf")
    here.pull("estimator")
    assert len(os.listdir("/proc/self/fd")) <= before + 1
