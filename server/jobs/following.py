"""Tells the worker, while it draws one job, what comes after it."""

from __future__ import annotations

import sqlite3

from server.worker.protocol import prepare_message
from server.worker.supervisor import WorkerSupervisor

from .database import JobDatabase
from .model import Job


class FollowingJob:
    """Looks who is next in the queue and names it to each worker once. Claims nothing and changes nothing.

    Where a worker died before, be it with the running job or with the following one, nothing is prepared: what is
    prepared may kill the worker too, and would else take an innocent job's last life with it.
    """

    def __init__(self, database: JobDatabase, worker: WorkerSupervisor) -> None:
        self._database, self._worker = database, worker
        self._named: tuple[str, int, int | None] | None = None

    def announce(self, running: Job, preferred_model: str | None) -> None:
        """To be called at each step of `running`. preferred_model: as the next claim will have it."""
        if running.deaths or not self._worker.prepares:
            return
        following = self._peek(preferred_model)
        if following is None or following.deaths:
            return
        named = following.id, following.attempt, self._worker.pid
        if named == self._named:
            return
        self._named = named
        self._worker.prepare(prepare_message(following.id, following.request))

    def _peek(self, preferred_model: str | None) -> Job | None:
        try:
            return self._database.read.peek(preferred_model)
        except sqlite3.Error:
            return None  # the running job must not suffer from it
