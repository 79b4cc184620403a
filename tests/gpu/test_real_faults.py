"""True faults of a CUDA card in a real server's worker: memory that is not there, and a device-side assert."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and this machine has none"),
]

MIB = 2**20
READY_LIMIT_S = 30.0
"""With the demo weights and a warm spare; most of it is making the CUDA context."""


def until(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {limit_s} s")


def used_bytes() -> int:
    """What every process together holds of the card."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def draw(server: Any, prompt: str) -> dict[str, Any]:
    result: dict[str, Any] = server.finish(server.submit("flux-dev", {"prompt": prompt, "steps": 2, "seed": 1}))
    return result


@pytest.fixture(scope="module")
def card_server(run_server: Any) -> Iterator[Any]:
    with run_server(device="cuda", fault_switches="true", spare_worker="true") as server:
        yield server


def test_true_out_of_memory_costs_its_job_and_gives_the_memory_back(card_server: Any) -> None:
    server = card_server
    for _ in range(2):
        assert draw(server, "a fox")["status"] == "COMPLETED"
    pid, before = server.worker_pid(), used_bytes()
    for _ in range(4):
        assert draw(server, "a fox [fault:full_card]")["status"] == "FAILED"
        assert draw(server, "a fox")["status"] == "COMPLETED"
    grown = (used_bytes() - before) / MIB
    print(f"R6 on a card: same worker after 4 true out-of-memory errors; {grown:.0f} MiB more held than before")
    assert server.worker_pid() == pid
    assert "error=out_of_memory" in server.log()
    assert abs(grown) <= 64


def test_a_true_device_assert_replaces_the_worker_and_the_next_job_is_drawn(card_server: Any) -> None:
    server = card_server
    assert draw(server, "a fox")["status"] == "COMPLETED"
    server.wait_spare()
    pid, before = server.worker_pid(), used_bytes()
    poisonous = server.submit("flux-dev", {"prompt": "a fox [fault:device_assert]", "steps": 2})
    until(lambda: server.get("/health/ready").status_code == 503, 60, "not ready after the assert")
    began = time.monotonic()
    until(lambda: server.get("/health/ready").status_code == 200, READY_LIMIT_S, "a new worker")
    took_s = time.monotonic() - began
    assert server.finish(poisonous)["status"] == "FAILED"
    assert draw(server, "a fox")["status"] == "COMPLETED"
    grown = (used_bytes() - before) / MIB
    print(f"R7 on a card: ready again {took_s:.1f} s after a true device assert; {grown:.0f} MiB more held than before")
    assert server.worker_pid() != pid
    assert "error=worker_crashed" in server.log()
    assert 'flux_worker_restarts_total{reason="device"}' in server.get("/metrics").text
    assert abs(grown) <= 64
