"""The states of a job: the table of transitions, both ways, and what the model may know of the world."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

from server.jobs import model
from server.jobs.model import IllegalTransition, Lane, State, check_transition

ALLOWED = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "queued"),
}


@pytest.mark.parametrize(("old", "new"), [pair for pair in itertools.product(State, State) if pair in ALLOWED])
def test_a_job_may_go_where_the_table_leads(old: State, new: State) -> None:
    check_transition(old, new)


@pytest.mark.parametrize(("old", "new"), [pair for pair in itertools.product(State, State) if pair not in ALLOWED])
def test_a_job_may_go_nowhere_else(old: State, new: State) -> None:
    with pytest.raises(IllegalTransition, match=f"{old.value} → {new.value}"):
        check_transition(old, new)


def test_the_table_names_known_states_only() -> None:
    assert {state.value for state in State} == {"queued", "running", "succeeded", "failed", "cancelled"}
    assert {(old.value, new.value) for old, new in model.TRANSITIONS} == ALLOWED


@pytest.mark.parametrize("state", State)
def test_final_states_are_those_that_nothing_leaves(state: State) -> None:
    assert state.final == (not any(old == state for old, _ in model.TRANSITIONS))


def test_callers_on_an_open_connection_go_first() -> None:
    assert sorted(Lane) == [Lane.INTERACTIVE, Lane.BATCH]


def test_a_job_may_see_one_worker_die_and_not_two() -> None:
    assert model.MAX_WORKER_DEATHS == 2


def test_the_model_knows_no_clock_database_or_loop() -> None:
    tree = ast.parse(Path(model.__file__).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "dataclasses", "enum", "typing", "pipelines.request"}
