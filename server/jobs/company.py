"""Whether a job may be drawn in company. Pure."""

from __future__ import annotations

from pipelines.company import company
from pipelines.speed.tiers import choose
from server.worker.protocol import Ready

from .model import Job


def seats(head: Job, greeting: Ready | None) -> int:
    """How many mates this worker may draw together with the job; 0 for one that it draws alone.

    A job that was on a worker that died runs alone: a second death would end it, and maybe it was the one to blame.
    """
    if greeting is None or head.deaths or company(head.request) is None:
        return 0
    try:
        tier = choose(head.request.tier, prefer_fast=head.request.prefer_fast, offered=greeting.tiers)
    except ValueError:  # the worker will say so
        return 0
    return greeting.together - 1 if tier.name in greeting.together_tiers else 0


def may_join(job: Job, head: Job) -> bool:
    """Whether these two may be drawn together."""
    wanted = company(head.request)
    return wanted is not None and not job.deaths and company(job.request) == wanted
