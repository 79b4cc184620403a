"""The job database's schema in numbered steps; SQLite's `user_version` says how many a file has been through."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from pathlib import Path

STEPS = tuple(
    step.read_text("utf-8")
    for step in sorted(files(__package__).joinpath("schema").iterdir(), key=lambda step: step.name)
    if step.name.endswith(".sql")
)
"""In order; a step that has been released is never changed. Step 1 also fits files from before there were numbers."""

NEWEST = len(STEPS)


class UnusableDatabase(RuntimeError):
    """The job database cannot be used by this version of the server."""


def migrate(connection: sqlite3.Connection) -> None:
    """Takes the database through the steps that it lacks, each in a transaction.

    Raises UnusableDatabase for a newer one.

    connection: in autocommit mode.
    """
    for number in range(version_of(connection) + 1, NEWEST + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{STEPS[number - 1]}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def version_of(connection: sqlite3.Connection) -> int:
    """How many steps the database has been through. Raises UnusableDatabase when those are more than there are here."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > NEWEST:
        raise UnusableDatabase(
            f"it was written by a newer version of the server (schema {version}; this one knows up to {NEWEST})."
            " Update the server, or give this one its own --data-dir."
        )
    return version


def check_file(path: Path) -> None:
    """Raises UnusableDatabase when there is a file that this version cannot use as its job database."""
    if path.exists():
        _version_of_file(path)


def check_current(path: Path) -> None:
    """Raises UnusableDatabase when a file is not of the newest version, and so cannot be read without changing it."""
    if _version_of_file(path) < NEWEST:
        raise UnusableDatabase(f"{path} was written by an older version of the server: start the server on it once.")


def _version_of_file(path: Path) -> int:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            return version_of(connection)
        finally:
            connection.close()
    except UnusableDatabase as error:
        raise UnusableDatabase(f"{path} cannot be used: {error}") from None
    except sqlite3.Error as error:
        raise UnusableDatabase(
            f"{path} cannot be used: {error}. Move it away to start with an empty queue, or restore a copy."
        ) from error
