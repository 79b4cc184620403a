"""The worker keeps memory while it works and gives it back when it has nothing to do."""

from __future__ import annotations

import sys
from typing import Any

import psutil
import pytest

from server.worker.main import IDLE_S
from tests.conftest import until


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_an_idle_worker_gives_freed_memory_back(server: Any) -> None:
    worker = psutil.Process(server.worker_pid())
    draw(server)
    kept = worker.memory_info().rss
    until(lambda: worker.memory_info().rss < kept - 100 * 2**20, 4 * IDLE_S, "memory given back")
    again = worker.memory_info().rss
    draw(server)
    assert worker.memory_info().rss > again + 50 * 2**20, "and takes it again for the next picture"


def draw(server: Any) -> None:
    """A picture of 1024×1024, whose tensors are hundreds of megabytes."""
    reply = server.post("/v1/flux-dev", json={"prompt": "a lake", "steps": 1})
    assert reply.status_code == 200
