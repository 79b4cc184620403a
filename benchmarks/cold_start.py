"""From nothing to the first picture: the server's start by phases, twice.

    python -m benchmarks.cold_start --weights random [--model flux-dev] [--steps 28] [--save]
    python -m benchmarks.cold_start --weights demo

The first start has an empty folder for compiled code (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR); the second one has
what the first left there. Python's own bytecode and the system's page cache are as they are: nothing is dropped from
memory, so a start after a reboot is slower by reading the weights from disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.calls import Call, depth_call, dev_call
from benchmarks.client import Client
from benchmarks.logs import events, when_s
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.processes import Running, answers, our_server, wait_for
from benchmarks.rows import ColdStartRow

CALLS: Mapping[str, Callable[[int], Call]] = {"flux-dev": dev_call, "flux-depth-dev": depth_call}


def main() -> None:
    given = parse()
    run = report.Run(given)
    rows, device = [], "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = weights_folder(given.weights, folder)
        os.environ |= {f"{name}_CACHE_DIR": str(folder / name.lower()) for name in ("TORCHINDUCTOR", "TRITON")}
        for start in range(1, given.starts + 1):
            row, device = measure(weights, folder, start, CALLS[given.model](given.steps))
            rows.append(row)
    run.finish(report.ColdStartReport, rows, weights=kind_of(given.weights), device=device)


def parse() -> argparse.Namespace:
    options = report.arguments(__doc__)
    options.add_argument("--weights", required=True, help=HELP)
    options.add_argument("--model", choices=tuple(CALLS), default="flux-dev")
    options.add_argument("--steps", type=int, default=28)
    options.add_argument("--starts", type=int, default=2)
    given = options.parse_args()
    if given.quick:
        given.model, given.steps, given.starts = "flux-depth-dev", 2, 1
    return given


def measure(weights: Path, folder: Path, start: int, call: Call) -> tuple[ColdStartRow, str]:
    """One start, and the device that the worker chose."""
    clock_s = time.time()
    with our_server(weights, folder / f"data-{start}", wait_ready=False) as running:
        listening_s = age_s(running)
        wait_for(lambda: answers(running, "/health/live"), running.process, poll_s=0.005)
        live_s = age_s(running)
        wait_for(lambda: answers(running, "/health/ready"), running.process, poll_s=0.005)
        ready_s = age_s(running)
        with Client(running.port) as client:
            first = client.post(f"/v1/{call.slug}", call.json)
        first_picture_s = age_s(running)
        device = running.get("/health/ready").json()["device"]
    said = {event["event"]: event for event in events(running.log)}
    started, ready = said["worker started"], said["worker ready"]
    imports_s = when_s(ready) - when_s(started) - ready["load_s"] - ready["warmup_s"]
    row = ColdStartRow(
        start=start,
        model=call.fields["model"],
        listening_s=rounded(listening_s),
        live_s=rounded(live_s),
        worker_started_s=rounded(when_s(started) - clock_s),
        imports_s=rounded(imports_s),
        load_s=rounded(ready["load_s"]),
        warmup_s=rounded(ready["warmup_s"]),
        ready_s=rounded(ready_s),
        first_request_s=rounded(first.wait_s),
        first_picture_s=rounded(first_picture_s),
    )
    return row, device


def age_s(running: Running) -> float:
    return time.monotonic() - running.started_mono_s


def rounded(value: Any) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    main()
