"""The server with a worker that needs no torch, and, where STOP_AT says so, killed at a point of publishing.

STOP_AT is a point of `server.media.publishing.POINTS` and the how-manieth time it is reached: `placed:2`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from server import app
from server.cli import main
from server.media.results import ResultFiles
from server.worker.supervisor import WorkerSupervisor

WORKER = (sys.executable, "-P", str(Path(__file__).with_name("dummy_worker.py")))


def stop_at(wish: str) -> Callable[[str], None]:
    point, _, count = wish.partition(":")
    left = [int(count or 1)]

    def reached(where: str) -> None:
        left[0] -= where == point
        if where == point and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


app.WorkerSupervisor = partial(WorkerSupervisor, command=WORKER)  # type: ignore[misc,assignment]
app.ResultFiles = partial(ResultFiles, reached=stop_at(os.environ.get("STOP_AT", "")))  # type: ignore[misc,assignment]

if __name__ == "__main__":
    main()
