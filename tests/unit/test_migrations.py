"""The job database's versions: old files are brought up, newer ones and foreign files are refused in plain words."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.jobs import migrations
from server.jobs.migrations import NEWEST, STEPS, UnusableDatabase, check_file, migrate, version_of
from server.jobs.model import State
from server.jobs.sqlite_store import SqliteStore


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


REQUEST = '{"model": "m", "prompt": "p", "width": 16, "height": 16, "steps": 1, "guidance": 1.0, "seed": 0}'


def write_unnumbered(path: Path) -> None:
    """A file from before versions had numbers, with a waiting job in it."""
    with connected(path) as connection:
        connection.executescript(STEPS[0])
        connection.execute(
            "INSERT INTO jobs (id, owner, lane, attached, state, request, dialect, price_micro_usd, submitted_at)"
            f" VALUES ('old', 'ann', 1, 0, 'queued', '{REQUEST}', '{{}}', 5, 100.0)"
        )


def test_a_new_file_is_of_the_newest_version(path: Path) -> None:
    SqliteStore(path).close()
    with connected(path) as connection:
        assert version_of(connection) == NEWEST == 2


def test_a_file_from_before_versions_had_numbers_is_brought_up_and_keeps_its_jobs(path: Path) -> None:
    write_unnumbered(path)
    store = SqliteStore(path)
    try:
        old = store.get("old")
        assert old is not None
        assert (old.state, old.price_micro_usd, old.idempotency_key) == (State.QUEUED, 5, None)
        claimed = store.claim()
        assert claimed is not None
        assert claimed.id == "old"
    finally:
        store.close()
    with connected(path) as connection:
        assert version_of(connection) == NEWEST


def test_bringing_up_twice_changes_nothing(path: Path) -> None:
    write_unnumbered(path)
    with connected(path) as connection:
        migrate(connection)
        before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        migrate(connection)
        assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before


def test_a_step_that_fails_is_taken_back_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_unnumbered(path)
    broken = (STEPS[0], "ALTER TABLE jobs ADD COLUMN extra TEXT; ALTER TABLE nothing ADD COLUMN x TEXT;")
    monkeypatch.setattr(migrations, "STEPS", broken)
    with connected(path) as connection:
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            migrate(connection)
        assert version_of(connection) == 1
        assert "extra" not in {row[1] for row in connection.execute("PRAGMA table_info(jobs)")}


def test_a_newer_file_is_refused_by_name_and_left_alone(path: Path) -> None:
    with connected(path) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
    before = path.read_bytes()
    with pytest.raises(UnusableDatabase, match=f"newer version.*schema {NEWEST + 1}.*up to {NEWEST}"):
        check_file(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_an_absent_one_is_fine(path: Path) -> None:
    check_file(path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UnusableDatabase, match="cannot be used"):
        check_file(path)


def test_the_server_says_so_in_one_line_and_does_not_start(path: Path, demo_weights: Path) -> None:
    with connected(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", "0"]
    command += ["--weights", str(demo_weights), "--data-dir", str(path.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=path.parent)
    assert ended.returncode == 2
    assert "newer version of the server (schema 99" in ended.stderr
    assert "Traceback" not in ended.stderr
