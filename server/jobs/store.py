"""What the job service needs of a store. SQLite is the one behind it; another database can take its place.

Every method that changes something is one transaction and is on disk when it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from server.errors import InsufficientCredits, KeyReused, TooManyRequests

from .model import Ending, Expiry, Idempotency, Job, Lane, NewJob, State


@dataclass(frozen=True, slots=True)
class Published:
    """A succeeded job's id, the reading of the server's clock when it ended, and the names of its files."""

    job_id: str
    finished_at: float
    files: tuple[str, ...]


class QueueFull(TooManyRequests):
    """The queue is full. Try again in a minute."""

    code = "queue_full"


class TooManyQueued(TooManyRequests):
    """Too many jobs of this key are waiting. Try again when some have run."""

    code = "too_many_queued"


class CannotPay(InsufficientCredits):
    """The caller's balance does not cover the job."""

    def __init__(self, balance_micro_usd: int, price_micro_usd: int) -> None:
        super().__init__(
            f"Insufficient credits: the balance is ${balance_micro_usd / 1e6:.6f} and this call costs"
            f" ${price_micro_usd / 1e6:.6f}."
        )


def check_same(job: Job, idempotency: Idempotency) -> None:
    """Raises KeyReused when the job that has this key was asked for in other words."""
    if job.fingerprint != idempotency.fingerprint:
        raise KeyReused


class JobStore(Protocol):
    def submit(
        self,
        new: NewJob,
        *,
        now: float,
        queue_limit: int,
        owner_limit: int | None = None,
        expiry: Expiry | None = None,
    ) -> Job:
        """Accepts a job and reserves its price.

        The job that the same owner submitted under the same idempotency key is returned instead, with nothing reserved,
        unless `expiry` covers it. owner_limit: most jobs of one owner that may wait.
        Raises QueueFull, TooManyQueued, CannotPay, KeyReused.
        """

    def get(self, job_id: str) -> Job | None:
        """The job's row, or None."""

    def get_by_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The owner's job under this idempotency key, or None."""

    def latest(self, *, state: State | None, limit: int) -> list[Job]:
        """The jobs that were accepted last, newest first."""

    def claim(self, preferred_model: str | None = None) -> Job | None:
        """The next queued job, now running under a new attempt number, or None.

        preferred_model: its jobs go before others of the same lane, as far as a short look ahead reaches.
        """

    def peek(self, preferred_model: str | None = None) -> Job | None:
        """The job that `claim` would take now, left where it is, or None."""

    def claim_mates(self, head: Job, *, limit: int) -> list[Job]:
        """Up to `limit` jobs that may be drawn together with the claimed `head`, now running as after `claim`.

        Taken in the queue's order, whichever lane they wait in, as far as a short look ahead reaches.
        """

    def finish(self, job_id: str, attempt: int, ending: Ending, *, now: float) -> Job | None:
        """Ends the attempt. None, and nothing changes, when the job is not running under this attempt.

        The price is given back unless the job succeeded.
        """

    def cancel_queued(self, job_id: str, *, now: float) -> Job | None:
        """Cancels a job that still waits. None when it does not wait (any more)."""

    def fail_queued(self, *, submitted_before: float, now: float, error_code: str, error_text: str) -> list[Job]:
        """Fails what has waited since then and never ran. Returns these jobs."""

    def unclaim(self, job_id: str, attempt: int) -> bool:
        """Takes a claim back of which the worker never heard, attempt number included. False as `requeue`."""

    def requeue(self, job_id: str, attempt: int, *, worker_died: bool) -> bool:
        """Puts a running job back in its place. False when it is not running under this attempt."""

    def recover(self, *, now: float, lost: Iterable[str] = ()) -> list[Job]:
        """After a start: requeues what ran, cancels what was attached. Returns the cancelled ones.

        lost: ids of succeeded jobs whose files are gone; they count as running.
        """

    def published(self) -> list[Published]:
        """The files that succeeded jobs name."""

    def clamp_times(self, *, now: float) -> None:
        """Makes every time that lies ahead `now`: the machine's clock was set back, and no age is negative."""

    def delete_expired(self, *, submitted_before: float, finished_before: float, limit: int) -> int:
        """Deletes up to `limit` finished jobs that are old enough on both counts. Returns how many."""

    def count_queued(self) -> int:
        """How many jobs wait."""

    def counts(self) -> dict[tuple[State, Lane], int]:
        """How many jobs there are by state and lane; combinations without any may be absent."""

    def inputs_in_use(self) -> set[str]:
        """Names of the control images that unfinished jobs need."""

    def spent_micro_usd(self, owner: str) -> int:
        """What this caller has spent, unfinished jobs included."""
