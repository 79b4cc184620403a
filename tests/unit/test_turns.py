"""Grouping jobs by model: the one on the device goes first, and nobody waits for ever."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.jobs.turns import MAX_PASSING, Turns


def order(models: list[str]) -> list[int]:
    """The order in which jobs of these models run when all of them wait."""
    turns, waiting, ran = Turns(), deque(enumerate(models)), []
    while waiting:
        preferred = turns.preferred
        pick = next((job for job in waiting if job[1] == preferred), waiting[0])
        waiting.remove(pick)
        turns.took(pick[1])
        ran.append(pick[0])
    return ran


def switches(models: list[str], ran: list[int]) -> int:
    return sum(models[one] != models[other] for one, other in pairwise(ran))


def test_alternating_requests_change_the_model_five_times_less_often() -> None:
    models = ["dev", "depth"] * 50
    assert switches(models, list(range(100))) == 99
    assert switches(models, order(models)) <= 20


@given(st.lists(st.sampled_from(["dev", "depth"]), max_size=60))
def test_a_waiting_job_lets_at_most_a_few_of_the_other_model_pass_at_a_time(models: list[str]) -> None:
    ran = order(models)
    assert sorted(ran) == list(range(len(models)))
    for place, job in enumerate(ran):
        head_from = max((ran.index(earlier) for earlier in range(job)), default=-1) + 1
        assert place - head_from <= MAX_PASSING
    for model in ("dev", "depth"):
        mine = [job for job in ran if models[job] == model]
        assert mine == sorted(mine)
