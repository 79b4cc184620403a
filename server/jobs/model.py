"""A job, its states and the transitions between them. Pure: no clock, no database, no loop.

    queued ──claim──► running ──► succeeded
      ├──────────────────┼──────► failed       (from the queue: it waited too long)
      └──► cancelled ◄───┤
    queued ◄──requeue────┘        (the worker was lost or the server stopped, and attempts are left)

A finished job is deleted when its time is over; until then it never changes again, but for one case: a start finds that
a succeeded job's files are gone, and takes it up as if it still ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from pipelines.request import GenerationRequest, GenerationResult

MAX_WORKER_DEATHS = 2
"""A job during which the worker died this often fails, so that one poisonous request cannot keep the card down."""


LEAST_AFTER_END_S = 600.0
"""A job that waited long is kept at least this long after it ended, so that its caller can still fetch the result."""


class State(StrEnum):
    QUEUED = "queued"  # accepted and on disk, waiting for a worker
    RUNNING = "running"  # a worker has it, under the row's attempt number
    SUCCEEDED = "succeeded"  # its files are published
    FAILED = "failed"  # ended with an error code and text
    CANCELLED = "cancelled"  # its caller went away or asked for it

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS = frozenset(
    {
        (State.QUEUED, State.RUNNING),
        (State.QUEUED, State.CANCELLED),
        (State.QUEUED, State.FAILED),
        (State.RUNNING, State.SUCCEEDED),
        (State.RUNNING, State.FAILED),
        (State.RUNNING, State.CANCELLED),
        (State.RUNNING, State.QUEUED),
    }
)


class IllegalTransition(RuntimeError):
    """A job was asked to go where the table of transitions does not lead."""


def check_transition(old: State, new: State) -> None:
    """Raises IllegalTransition for anything that is not in TRANSITIONS."""
    if (old, new) not in TRANSITIONS:
        raise IllegalTransition(f"{old} → {new}")


class Lane(IntEnum):
    """Callers that hold a connection open go before those that poll; first come, first served within each."""

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class Expiry:
    """Which finished jobs are over: those old enough on both counts. Times are readings of the server's clock."""

    submitted_before: float
    finished_before: float

    @classmethod
    def at(cls, now: float, ttl_s: float) -> Expiry:
        """What is over now. ttl_s: from submission; a job that waited long is kept a while after its end anyway."""
        return cls(now - ttl_s, now - min(ttl_s, LEAST_AFTER_END_S))

    def covers(self, job: Job) -> bool:
        return (
            job.finished_at is not None
            and job.submitted_at <= self.submitted_before
            and job.finished_at <= self.finished_before
        )


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes two submissions one: the key that the caller chose, and what it asked for in a few bytes.

    fingerprint: equal for equal requests, before anything random is fixed in them.
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to accept.

    owner: the caller's id. attached: somebody waits on an open connection, so the job is dropped with it.
    dialect: what the dialect wants to find again, opaque to everyone else. price_micro_usd: for the whole job.
    budget_micro_usd: what the caller may spend in all, None for no limit.
    idempotency: a job of the same owner under the same key takes this one's place.
    """

    id: str
    owner: str
    lane: Lane
    attached: bool
    request: GenerationRequest
    dialect: dict[str, Any] = field(default_factory=dict)
    price_micro_usd: int = 0
    budget_micro_usd: int | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its row has it. Times named `_at` are the server's clock's readings; `_s` are durations in seconds."""

    id: str
    seq: int
    owner: str
    lane: Lane
    attached: bool
    state: State
    attempt: int
    deaths: int
    request: GenerationRequest
    dialect: dict[str, Any]
    price_micro_usd: int
    submitted_at: float
    queue_s: float | None = None
    compute_s: float | None = None
    total_s: float | None = None
    finished_at: float | None = None
    result: GenerationResult | None = None
    error_code: str | None = None
    error_text: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended: the final state with what belongs to it."""

    state: State
    queue_s: float
    compute_s: float
    total_s: float
    result: GenerationResult | None = None
    error_code: str | None = None
    error_text: str | None = None
