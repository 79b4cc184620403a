"""One job in a worker."""

from __future__ import annotations

from collections.abc import Callable

from server.worker.job import HandedOver
from server.worker.protocol import Done, Failed, Run, Step
from server.worker.supervisor import WorkerSupervisor


async def run_alone(
    worker: WorkerSupervisor, run: Run, on_step: Callable[[Step], None] = lambda _: None
) -> Done | Failed:
    """Hands over one job and waits for what becomes of it. Cancelled, it asks the worker to stop the job."""
    [outcome] = worker.run_together([HandedOver(run, on_step)])
    try:
        return await outcome
    finally:
        if outcome.cancelled():
            worker.cancel(run.job, run.attempt)
