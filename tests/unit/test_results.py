"""Pictures on disk: published whole or not at all, found by name only, removed by age."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.request import GenerationResult, OutputFile
from server.media import results as results_module
from server.media.results import MEDIA_TYPES, ResultFiles, TornResult

NAME = "0123456789abcdef0123456789abcdef.png"


@pytest.fixture
def results(tmp_path: Path) -> ResultFiles:
    files = ResultFiles(tmp_path / "data")
    files.prepare()
    return files


def outputs(results: ResultFiles) -> Path:
    return results.spool / "outputs"


def inputs(results: ResultFiles) -> Path:
    return results.spool / "inputs"


def public(results: ResultFiles) -> Path:
    return results.spool.parent / "files"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def drawn(results: ResultFiles, index: int = 0, data: bytes = b"picture", **changes: Any) -> OutputFile:
    """A file as the worker leaves it, and what it says of it."""
    file = f"job.1.{index}.png"
    (outputs(results) / file).write_bytes(data)
    values = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "format": "png"}
    return OutputFile(index=index, seed=7 + index, file=file, width=64, height=64, **{**values, **changes})


def publish(results: ResultFiles, *images: OutputFile, depth_map: OutputFile | None = None) -> GenerationResult:
    return asyncio.run(results.publish(GenerationResult(images=images, depth_map=depth_map)))


def aged(path: Path, age_s: float) -> Path:
    when = time.time() - age_s
    os.utime(path, (when, when))
    return path


# Publishing.


def test_a_result_gets_public_names_and_keeps_everything_else(results: ResultFiles) -> None:
    first, second = drawn(results, 0, b"one"), drawn(results, 1, b"two", format="webp")
    depth = drawn(results, 2, b"depth")
    before = GenerationResult(
        images=(first, second), depth_map=depth, timings_s={"denoise": 1.5}, notes={"unseen_tokens": 2}
    )
    after = asyncio.run(results.publish(before))
    assert after.depth_map is not None
    published = [*after.images, after.depth_map]
    for old, new, data in zip([first, second, depth], published, [b"one", b"two", b"depth"], strict=True):
        path = results.find(new.file)
        assert path is not None
        assert path.read_bytes() == data
        assert path.suffix == f".{old.format}"
        assert (new.index, new.seed, new.sha256, new.size_bytes) == (old.index, old.seed, old.sha256, old.size_bytes)
    assert (after.timings_s, after.notes) == (before.timings_s, before.notes)
    assert names(outputs(results)) == []
    assert len(names(public(results))) == 3


def test_public_names_cannot_be_guessed(results: ResultFiles) -> None:
    images = publish(results, *(drawn(results, index, b"same") for index in range(20))).images
    stems = {image.file.partition(".")[0] for image in images}
    assert len(stems) == 20
    assert all(len(stem) == 32 and int(stem, 16) >= 0 for stem in stems)
    # 128 random bits: over twenty names every position takes many values.
    assert min(len({stem[position] for stem in stems}) for position in range(32)) >= 5
    assert not any(stem in hashlib.sha256(b"same").hexdigest() for stem in stems)


def torn_by_content(results: ResultFiles, image: OutputFile) -> None:
    (outputs(results) / image.file).write_bytes(b"pictu")


def torn_by_absence(results: ResultFiles, image: OutputFile) -> None:
    (outputs(results) / image.file).unlink()


@pytest.mark.parametrize("tear", [torn_by_content, torn_by_absence])
@pytest.mark.parametrize("which", [0, 1, 2, "depth map"])
def test_a_torn_result_leaves_no_public_file(
    results: ResultFiles, tear: Callable[[ResultFiles, OutputFile], None], which: int | str
) -> None:
    images = [drawn(results, index) for index in range(3)]
    depth = drawn(results, 3)
    tear(results, depth if which == "depth map" else images[int(which)])
    with pytest.raises(TornResult if tear is torn_by_content else OSError):
        publish(results, *images, depth_map=depth)
    assert names(public(results)) == []


def test_the_refusal_of_a_torn_result_shows_no_folder(results: ResultFiles, tmp_path: Path) -> None:
    image = drawn(results)
    torn_by_content(results, image)
    with pytest.raises(TornResult) as torn:
        publish(results, image)
    assert str(tmp_path) not in str(torn.value)


def test_contents_are_synced_before_the_rename_and_the_folder_after_it(
    results: ResultFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    true_rename, true_sync = Path.rename, os.fsync

    def rename(self: Path, target: Any) -> Path:
        events.append("rename")
        return true_rename(self, target)

    def fsync(descriptor: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        events.append(f"sync {kind}")
        true_sync(descriptor)

    image = drawn(results)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(os, "fsync", fsync)
    publish(results, image)
    assert events == ["sync file", "rename", "sync folder"]
    events.clear()
    asyncio.run(results.keep_input(b"new", "png"))
    assert events == ["sync file", "rename", "sync folder"]


def test_uploads_are_published_under_a_name_of_their_own_each_time(results: ResultFiles) -> None:
    uploaded = [asyncio.run(results.keep_upload(b"same", "jpg")) for _ in range(2)]
    assert len(set(uploaded)) == 2
    for name in uploaded:
        path = results.find(name)
        assert path is not None
        assert path.read_bytes() == b"same"
        assert path.suffix == ".jpg"


# Finding.


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../jobs.sqlite3",
        f"../files/{NAME}",
        f"./{NAME}",
        f"/{NAME}",
        f"{NAME}/",
        f"{NAME}\n",
        f"{NAME}\x00",
        f" {NAME}",
        NAME.upper(),
        NAME.replace("png", "PNG"),
        NAME.replace("png", "gif"),
        NAME.replace("png", "png.png"),
        NAME[1:],
        "0" + NAME,
        NAME.replace("0", "٠"),
        "%2e%2e%2fjobs.sqlite3",
        "..\\jobs.sqlite3",
        ".0123456789abcdef.part",
        "secret.png",
    ],
    ids=ascii,
)
def test_only_public_names_are_found(results: ResultFiles, name: str) -> None:
    (public(results) / NAME).write_bytes(b"picture")
    (public(results) / "secret.png").write_bytes(b"secret")
    (public(results) / ".0123456789abcdef.part").write_bytes(b"half")
    (public(results).parent / "jobs.sqlite3").write_bytes(b"jobs")
    assert results.find(NAME) == public(results) / NAME
    assert results.find(name) is None


def test_a_name_without_its_file_is_not_found(results: ResultFiles) -> None:
    assert results.find(NAME) is None
    (public(results) / NAME).mkdir()
    assert results.find(NAME) is None


def test_every_format_has_a_media_type_and_can_be_found(results: ResultFiles) -> None:
    assert set(MEDIA_TYPES) == {"jpg", "png", "webp"}
    for extension in MEDIA_TYPES:
        assert results.find(asyncio.run(results.keep_upload(b"x", extension))) is not None


# Control images.


def test_a_control_image_is_kept_once_under_its_contents_hash(results: ResultFiles) -> None:
    assert not results.keeps_input(b"a", "png")
    kept = [asyncio.run(results.keep_input(data, "png")) for data in (b"a", b"b", b"a")]
    assert results.keeps_input(b"a", "png")
    assert not results.keeps_input(b"a", "jpg")
    assert kept[0] == kept[2] == f"{hashlib.sha256(b'a').hexdigest()}.png"
    assert kept[0] != kept[1]
    assert names(inputs(results)) == sorted(set(kept))
    assert (inputs(results) / kept[0]).read_bytes() == b"a"


def test_keeping_a_control_image_again_makes_it_young(results: ResultFiles) -> None:
    name = asyncio.run(results.keep_input(b"a", "png"))
    aged(inputs(results) / name, 5000)
    asyncio.run(results.keep_input(b"a", "png"))
    assert time.time() - (inputs(results) / name).stat().st_mtime < 60
    assert results.remove_inputs(set(), older_than_s=1000) == 0


def test_control_images_have_no_public_address(results: ResultFiles) -> None:
    assert results.find(asyncio.run(results.keep_input(b"a", "png"))) is None
    assert names(public(results)) == []


def test_many_at_once_keep_the_same_image_once_and_whole(results: ResultFiles) -> None:
    data = b"x" * 300_000

    async def keep_many() -> list[str]:
        return await asyncio.gather(*(results.keep_input(data, "png") for _ in range(16)))

    (name,) = set(asyncio.run(keep_many()))
    assert names(inputs(results)) == [name]
    assert (inputs(results) / name).read_bytes() == data


def test_a_write_that_fails_leaves_nothing_half_done(results: ResultFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(results.keep_input(b"a", "png"))
    with pytest.raises(OSError, match="No space"):
        asyncio.run(results.keep_upload(b"a", "png"))
    assert names(inputs(results)) == []
    assert names(public(results)) == []


# Removing.


def test_published_files_are_removed_by_age_alone(results: ResultFiles) -> None:
    old, young = (asyncio.run(results.keep_upload(b"x", "png")) for _ in range(2))
    aged(public(results) / old, 101)
    aged(public(results) / young, 99)
    assert results.remove_files(older_than_s=100) == 1
    assert names(public(results)) == [young]
    assert results.remove_files(older_than_s=100) == 0


def test_files_from_the_future_are_kept(results: ResultFiles) -> None:
    name = asyncio.run(results.keep_upload(b"x", "png"))
    aged(public(results) / name, -7200)
    kept = asyncio.run(results.keep_input(b"x", "png"))
    aged(inputs(results) / kept, -7200)
    assert results.remove_files(older_than_s=100) == 0
    assert results.remove_inputs(set(), older_than_s=100) == 0


def test_control_images_are_removed_when_old_and_not_in_use(results: ResultFiles) -> None:
    in_use, old, young = (asyncio.run(results.keep_input(data, "png")) for data in (b"1", b"2", b"3"))
    aged(inputs(results) / in_use, 5000)
    aged(inputs(results) / old, 101)
    aged(inputs(results) / young, 99)
    assert results.remove_inputs({in_use}, older_than_s=100) == 1
    assert names(inputs(results)) == sorted([in_use, young])


@pytest.mark.parametrize("what", ["files", "inputs"])
def test_a_file_that_vanishes_meanwhile_stops_nothing(results: ResultFiles, what: str) -> None:
    folder = public(results) if what == "files" else inputs(results)
    for index in range(3):
        aged_file = folder / f"{index}.png"
        aged_file.write_bytes(b"x")
        aged(aged_file, 500)
    # In the list of the folder, and gone when it is looked at: so a temporary file looks that was just renamed.
    (folder / ".0.part").symlink_to(folder / "nowhere")
    remove = results.remove_files if what == "files" else lambda **age: results.remove_inputs(set(), **age)
    assert remove(older_than_s=100) == 3
    assert not list(folder.glob("*.png"))


def test_an_image_is_never_removed_between_being_looked_up_and_being_kept(
    results: ResultFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = asyncio.run(results.keep_input(b"a", "png"))
    aged(inputs(results) / name, 5000)
    removing = threading.Thread(target=lambda: results.remove_inputs(set(), older_than_s=1000))
    true_utime = os.utime

    def utime_while_a_sweep_begins(*arguments: Any) -> None:
        removing.start()
        removing.join(0.1)  # It cannot end: what is being kept is not its to remove.
        true_utime(*arguments)

    monkeypatch.setattr(results_module.os, "utime", utime_while_a_sweep_begins)
    asyncio.run(results.keep_input(b"a", "png"))
    removing.join(10)
    assert (inputs(results) / name).read_bytes() == b"a"


# Starting.


def test_a_start_keeps_what_is_published_and_clears_what_is_not(results: ResultFiles) -> None:
    image = publish(results, drawn(results)).images[0]
    kept = asyncio.run(results.keep_input(b"a", "png"))
    drawn(results, 1)
    (outputs(results) / "folder").mkdir()
    results.prepare()
    assert results.find(image.file) is not None
    assert names(inputs(results)) == [kept]
    assert names(outputs(results)) == []


def test_a_start_clears_what_a_killed_server_was_writing(results: ResultFiles) -> None:
    kept = asyncio.run(results.keep_input(b"a", "png"))
    uploaded = asyncio.run(results.keep_upload(b"a", "png"))
    for folder in (inputs(results), public(results)):
        (folder / ".0123456789abcdef.part").write_bytes(b"half")
    results.prepare()
    assert names(inputs(results)) == [kept]
    assert names(public(results)) == [uploaded]


def test_a_first_start_makes_every_folder(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path / "new" / "data")
    files.prepare()
    files.prepare()
    assert all(folder.is_dir() for folder in (inputs(files), outputs(files), public(files)))
    assert files.free_bytes() > 0
