"""What can go wrong with a job that the worker has, or is to have."""

from __future__ import annotations


class WorkerLost(RuntimeError):
    """The worker process ended while it had the job."""


class WorkerLostAfterDrawing(WorkerLost):
    """The worker process ended while it encoded the job's pictures: another job, or nobody, was to blame."""


class WorkerStuck(RuntimeError):
    """The worker made no step for too long and was ended."""


class WorkerNotReady(RuntimeError):
    """A job was given to a worker that is not ready for one."""


class WorkerStarted(RuntimeError):
    """The supervisor was started a second time."""
