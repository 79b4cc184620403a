"""Jobs back to back through the real server: pictures a second, and how much of the time the device computed.

    python -m benchmarks.throughput --weights random [--model flux-dev] [--jobs 20] [--steps 28] [--save]

All jobs are submitted at once, so the queue is never empty. What a job computed, and the time of its steps, are the
worker's own figures in the job's result; when each was handed to the worker is read from the server's log.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.calls import Call, depth_call, dev_call
from benchmarks.client import Client
from benchmarks.figures import milliseconds, percentile
from benchmarks.logs import WorkSpan, work_spans
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.processes import Running, our_server
from benchmarks.rows import ThroughputRow

POLL_S = 0.5
CALLS = {"flux-dev": dev_call, "flux-depth-dev": depth_call}


@dataclass
class Busy:
    """Readings of the device's utilisation in percent, where nvidia-smi is there."""

    readings: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        return round(statistics.mean(self.readings), 1) if self.readings else None


def main() -> None:
    given = parse()
    run = report.Run(given)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = weights_folder(given.weights, folder)
        with our_server(weights, folder / "data") as running:
            device = running.get("/health/ready").json()["device"]
            call = CALLS[given.model](given.steps)
            rows = [measure(running, call, [call] * given.jobs)]
    run.finish(report.ThroughputReport, rows, weights=kind_of(given.weights), device=device)


def parse() -> argparse.Namespace:
    options = report.arguments(__doc__)
    options.add_argument("--weights", required=True, help=HELP)
    options.add_argument("--model", choices=tuple(CALLS), default="flux-dev")
    options.add_argument("--jobs", type=int, default=20)
    options.add_argument("--steps", type=int, default=28)
    given = options.parse_args()
    if given.quick:
        given.model, given.jobs, given.steps = "flux-depth-dev", 4, 2
    return given


def measure(running: Running, warm_up: Call, calls: Sequence[Call]) -> ThroughputRow:
    """The row of these calls, which are of one size, after another one that is not counted."""
    with Client(running.port) as client:
        run_all(client, [warm_up])
        with sampled_utilisation() as busy:
            results = run_all(client, calls)
    spans = work_spans(running.log, {job: body["metrics"]["inference_time"] for job, body in results.items()})
    return row(calls[0], [results[span.job] for span in spans], spans, busy)


def run_all(client: Client, calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
    """Submits all at once and waits for them. Returns their result bodies by id. Raises for one that failed."""
    ids = [json.loads(client.post(f"/v2/{call.slug}", call.json).body)["request_id"] for call in calls]
    results: dict[str, dict[str, Any]] = {}
    for job in ids:  # they run in the order of their submission
        while (body := json.loads(client.get(f"/v2/requests/{job}").body))["status"] != "COMPLETED":
            time.sleep(POLL_S if len(calls) > 1 else 0.02)
        results[job] = body
    return results


def row(call: Call, results: list[dict[str, Any]], spans: list[WorkSpan], busy: Busy) -> ThroughputRow:
    """spans: in the order in which the worker ran them; results: of the same jobs."""
    wall_s = max(span.ended_s for span in spans) - spans[0].started_s
    pictures = sum(len(result["images"]) for result in results)
    together = [int(result.get("together", 1)) for result in results]
    batches = list(batches_of(spans, together))
    gaps = [later.started_s - earlier.ended_s for earlier, later in pairwise(batches)]
    denoised_s = sum(result["timings"]["denoise"] / count for result, count in zip(results, together, strict=True))
    return ThroughputRow(
        model=call.fields["model"],
        width=call.fields["width"],
        height=call.fields["height"],
        steps=call.fields["steps"],
        jobs=len(spans),
        pictures=pictures,
        wall_s=round(wall_s, 4),
        pictures_per_s=round(pictures / wall_s, 4),
        computed_share=round(sum(batch.computed_s for batch in batches) / wall_s, 4),
        step_share=round(denoised_s / wall_s, 4),
        gap_median_ms=milliseconds(statistics.median(gaps)),
        gap_p99_ms=milliseconds(percentile(gaps, 99)),
        device_busy_percent=busy.mean,
        together_mean=round(len(spans) / len(batches), 2),
    )


def batches_of(spans: list[WorkSpan], together: list[int]) -> Iterator[WorkSpan]:
    """One span for each batch, that of its job which took longest. together: how many are in the batch of each job."""
    place = 0
    while place < len(spans):
        yield max(spans[place : place + together[place]], key=lambda span: span.ended_s)
        place += together[place]


@contextmanager
def sampled_utilisation() -> Iterator[Busy]:
    """Reads the first card's utilisation four times a second while the block runs; nothing without nvidia-smi."""
    busy = Busy()
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=250"]
    try:
        sampler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield busy
        return
    try:
        yield busy
    finally:
        sampler.terminate()
        output, _ = sampler.communicate()
        busy.readings += [float(line) for line in output.split() if line.replace(".", "").isdigit()]


if __name__ == "__main__":
    main()
