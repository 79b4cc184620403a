"""Status polls beside running jobs: how many, how fast, and what they cost the job.

    python -m benchmarks.polls [--clients 8] [--rounds 8] [--save]

The server has one core and its worker another, as on a machine that does little else. The clients share the server's
core, so that what they cost is not taken from the worker. Jobs with and without polls alternate. Each client polls
again as soon as it has its answer. Demo weights; needs Linux and two cores. On a machine that does other work too, the
polls drive that work to the worker's core: then only the worker's own processor time says what polls cost the job.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.calls import Call, dev_call
from benchmarks.client import Client
from benchmarks.figures import milliseconds, percentile
from benchmarks.logs import worker_pid
from benchmarks.places import HELP, kind_of, weights_folder
from benchmarks.processes import Running, our_server
from benchmarks.rows import PollsRow

STEPS = 25
POLL_PAUSE_S = 0.02
"""Of the one client that only waits for the job's end, in both kinds of rounds."""


@dataclass
class Polled:
    waits_s: list[float] = field(default_factory=list)
    lasted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Computed:
    """What one job took in the worker: time on the clock, and time on a processor."""

    clock_s: float
    processor_s: float


def main() -> None:
    options = report.arguments(__doc__)
    options.add_argument("--weights", default="demo", help=HELP)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--rounds", type=int, default=8)
    given = options.parse_args()
    rounds, steps = (1, 4) if given.quick else (given.rounds, STEPS)
    run = report.Run(given)
    server_core, worker_core = two_cores()
    with tempfile.TemporaryDirectory() as folder:
        weights = weights_folder(given.weights, Path(folder))
        with our_server(weights, Path(folder) / "data", cores={worker_core}) as running:
            pin(running.process.pid, server_core)
            os.sched_setaffinity(0, {server_core})
            row = measure(running, dev_call(steps), given.clients, rounds, (server_core, worker_core))
    run.finish(report.PollsReport, [row], weights=kind_of(given.weights), device="cpu")


def two_cores() -> tuple[int, int]:
    """A core for the server and one for the worker. Raises SystemExit where this process may not use two."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        raise SystemExit("this benchmark pins two processes and needs Linux and two cores")
    return cores[0], cores[-1]


def pin(pid: int, core: int) -> None:
    """Moves every thread of a process, but not its children, to one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def measure(running: Running, call: Call, clients: int, rounds: int, cores: tuple[int, int]) -> PollsRow:
    alone, polled_jobs, polled = [], [], Polled()
    run_job(running, call, clients=0, polled=Polled())
    for _ in range(rounds):
        alone.append(run_job(running, call, clients=0, polled=Polled()))
        polled_jobs.append(run_job(running, call, clients=clients, polled=polled))
    job_alone_s, job_polled_s = (statistics.median(job.clock_s for job in jobs) for jobs in (alone, polled_jobs))
    own_alone_s, own_polled_s = (statistics.median(job.processor_s for job in jobs) for jobs in (alone, polled_jobs))
    return PollsRow(
        call=call.name,
        clients=clients,
        jobs=rounds,
        polls=len(polled.waits_s),
        polls_per_s=round(len(polled.waits_s) / polled.lasted_s, 1),
        poll_median_ms=milliseconds(statistics.median(polled.waits_s)),
        poll_p99_ms=milliseconds(percentile(polled.waits_s, 99)),
        job_alone_s=round(job_alone_s, 4),
        job_polled_s=round(job_polled_s, 4),
        slowed=round(job_polled_s / job_alone_s - 1, 4),
        worker_processor_alone_s=round(own_alone_s, 3),
        worker_processor_polled_s=round(own_polled_s, 3),
        worker_processor_more=round(own_polled_s / own_alone_s - 1, 4),
        server_core=cores[0],
        worker_core=cores[1],
    )


def run_job(running: Running, call: Call, *, clients: int, polled: Polled) -> Computed:
    """Runs one job while so many clients poll its status."""
    worker = worker_pid(running.log)
    before_s = processor_s(worker)
    with Client(running.port) as client:
        submitted = json.loads(client.post(f"/v2/{call.slug}", call.json).body)
        path = f"/v2/requests/{submitted['request_id']}/status"
        over = threading.Event()
        pollers = [threading.Thread(target=poll, args=(running.port, path, over, polled)) for _ in range(clients)]
        start = time.perf_counter()
        for poller in pollers:
            poller.start()
        status = wait_for_end(client, path)
        over.set()
        polled.lasted_s += time.perf_counter() - start
        for poller in pollers:
            poller.join()
    return Computed(status["metrics"]["inference_time"], processor_s(worker) - before_s)


def processor_s(pid: int) -> float:
    """Processor time that a process has had so far, in user and system mode (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def poll(port: int, path: str, over: threading.Event, polled: Polled) -> None:
    with Client(port) as client:
        while not over.is_set():
            polled.waits_s.append(client.get(path).wait_s)


def wait_for_end(client: Client, path: str) -> dict[str, dict[str, float]]:
    while True:
        status: dict[str, dict[str, float]] = json.loads(client.get(path).body)
        if status["metrics"]:
            return status
        time.sleep(POLL_PAUSE_S)


if __name__ == "__main__":
    main()
