"""The server's clock does not move with the machine's, and nothing goes round it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import server
from server.clock import SteadyClock

HOURS_S = 3600.0


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_700_000_000.0, 5_000.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


@pytest.mark.parametrize("jump_s", [2 * HOURS_S, -2 * HOURS_S, 0.0])
def test_setting_the_machines_clock_changes_nothing(jump_s: float) -> None:
    machine = Machine()
    clock = SteadyClock(wall_s=lambda: machine.wall, mono_s=lambda: machine.mono)
    assert clock.now() == 1_700_000_000.0
    machine.pass_time(10)
    machine.wall += jump_s
    machine.pass_time(5)
    assert clock.now() == pytest.approx(1_700_000_015.0)


def test_nothing_else_in_the_server_reads_the_wall_clock() -> None:
    root = Path(server.__file__).parent
    readers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now"):
                readers.add(path.relative_to(root).as_posix())
    # A header that tells a client the time of day, which is what the wall clock is for.
    assert readers == {"clock.py", "api/segmind/replies.py"}
