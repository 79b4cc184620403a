"""A server killed at each point of publishing: whole pictures only, no row without its files, no file without a row."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from typing import Any

import pytest
from PIL import Image

from server.media.publishing import POINTS


def rows(server: Any) -> list[tuple[str, str, str | None]]:
    with sqlite3.connect(server.data_dir / "jobs.sqlite3") as connection:
        return connection.execute("SELECT id, state, result FROM jobs").fetchall()


def check_everything(server: Any) -> int:
    """Returns how many pictures there are."""
    named: dict[str, str] = {}
    for job, state, result in rows(server):
        assert state == "succeeded", job
        named |= {image["file"]: image["sha256"] for image in json.loads(result or "")["images"]}
    there = {path.name: path.read_bytes() for path in (server.data_dir / "files").iterdir()}
    assert set(there) == set(named)
    for name, data in there.items():
        assert hashlib.sha256(data).hexdigest() == named[name]
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    left = [path.name for path in (server.data_dir / "spool").rglob("*") if path.is_file()]
    assert left == []
    return len(there)


def interrupt(server: Any, wish: str) -> None:
    """One job of two pictures whose server is killed at the point, then a start that has to put things right."""
    server.stop()
    server.environment["STOP_AT"] = wish
    server.start()
    job = server.submit("flux-dev", {"prompt": "x", "steps": 1, "samples": 2})
    assert server.process.wait(30) != 0
    server.process.stdout.close()
    server.environment["STOP_AT"] = ""
    server.start()
    assert server.finish(job)["status"] == "COMPLETED"


def interrupt_at_each_point(server: Any, rounds: int) -> None:
    for round_ in range(rounds):
        for point in POINTS:
            interrupt(server, f"{point}:{1 + round_ % 2 if point == 'placed' else 1}")
    pictures = check_everything(server)
    print(
        f"R12: killed at {len(POINTS)} points × {rounds}: {pictures} pictures, all whole and named by their job's row;"
        " 0 succeeded rows without file, 0 files without row, 0 temporary files"
    )
    assert pictures == 2 * len(POINTS) * rounds


def test_a_server_killed_at_any_point_of_publishing_leaves_nothing_torn(dummy_server: Any) -> None:
    interrupt_at_each_point(dummy_server, rounds=1)


@pytest.mark.soak
def test_a_server_killed_twenty_times_at_each_point_of_publishing_leaves_nothing_torn(dummy_server: Any) -> None:
    interrupt_at_each_point(dummy_server, rounds=20)


def test_a_result_whose_file_is_gone_is_drawn_again(dummy_server: Any) -> None:
    server = dummy_server
    body = {"prompt": "x", "steps": 1, "seed": 7}
    lost, kept = server.submit("flux-dev", body), server.submit("flux-dev", body)
    before = {job: server.finish(job) for job in (lost, kept)}
    server.stop()
    gone = before[lost]["output"].rpartition("/")[2]
    (server.data_dir / "files" / gone).unlink()
    server.start()
    after = {job: server.finish(job) for job in (lost, kept)}
    assert after[lost]["status"] == "COMPLETED"
    assert server.get(after[lost]["output"], key=None).status_code == 200
    assert after[kept]["output"].rpartition("/")[2] == before[kept]["output"].rpartition("/")[2]
    assert after[lost]["output"].rpartition("/")[2] != gone
    assert check_everything(server) == 2
