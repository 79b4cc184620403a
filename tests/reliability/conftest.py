"""Servers for the proofs of reliability: with a worker that needs no torch, and with one that fails on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DUMMY = str(Path(__file__).with_name("dummy_server.py"))


@pytest.fixture
def dummy_server(run_server: Any) -> Iterator[Any]:
    """A server of its own whose worker draws grey pictures and is there in a tenth of a second; a spare is kept."""
    with run_server(program=(DUMMY,), spare_worker="true") as server:
        yield server


@pytest.fixture(scope="module")
def faulty_server(run_server: Any) -> Iterator[Any]:
    """The demo weights with fault switches, and a spare. Tests leave a worker that works."""
    with run_server(fault_switches="true", spare_worker="true") as server:
        yield server
