"""What is tried before an attempt counts as failed, over an engine and jobs that fail as told."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipelines import attempt as attempt_module
from pipelines.attempt import Fault, attempt, attempt_together
from pipelines.engine import Generated
from pipelines.fault_switches import FAULTS, find_fault
from pipelines.faults import BadRequest, Cancelled

RESULT = Generated("a fox")


class PlayedEngine:
    """Can shrink so many times."""

    model_names = ("m",)

    def __init__(self, shrinks: int = 0) -> None:
        self.shrinks = shrinks

    def shrink(self) -> bool:
        self.shrinks -= 1
        return self.shrinks >= 0


def draws(*outcomes: Exception | Generated) -> Callable[[], Generated]:
    """A job that ends like this, each time it is drawn."""
    left = iter(outcomes)

    def draw() -> Generated:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return draw


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def run(engine: Any, draw: Callable[[], Generated]) -> Generated | Fault:
    return attempt(engine, draw)


@pytest.fixture
def self_test(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What the self-tests to come raise; one more than these, and it passes."""
    troubles: list[Exception] = []

    def draw_small(engine: Any, model: str) -> None:
        if troubles:
            raise troubles.pop()

    monkeypatch.setattr(attempt_module, "draw_small", draw_small)
    return troubles


def test_a_result_is_handed_on() -> None:
    assert run(PlayedEngine(), draws(RESULT)) is RESULT


def test_out_of_memory_is_tried_once_more_when_something_could_be_given_back() -> None:
    assert run(PlayedEngine(1), draws(out_of_memory(), RESULT)) is RESULT


@pytest.mark.parametrize("shrinks", [0, 1, 5])
def test_out_of_memory_is_never_tried_a_third_time(shrinks: int) -> None:
    outcome = run(PlayedEngine(shrinks), draws(out_of_memory(), out_of_memory(), RESULT))
    assert isinstance(outcome, Fault)
    assert outcome.kind == "out_of_memory"


def test_what_the_first_try_held_is_gone_before_the_second() -> None:
    held: list[weakref.ref[Any]] = []

    class Held:
        pass

    def draw() -> Generated:
        if held:
            assert held[0]() is None
            return RESULT
        tensor_like = Held()
        held.append(weakref.ref(tensor_like))
        raise out_of_memory()

    gc.disable()
    try:
        assert run(PlayedEngine(1), draw) is RESULT
    finally:
        gc.enable()


@pytest.mark.parametrize(("error", "kind"), [(BadRequest("too wide"), "input"), (Cancelled(), "cancelled")])
def test_what_the_engine_says_to_clients_is_kept_word_by_word(error: Exception, kind: str) -> None:
    assert run(PlayedEngine(), draws(error)) == Fault(kind, str(error))  # type: ignore[arg-type]


def test_an_unknown_fault_stays_one_when_the_self_test_passes(self_test: list[Exception]) -> None:
    outcome = run(PlayedEngine(), draws(KeyError("odd")))
    assert isinstance(outcome, Fault)
    assert outcome.kind == "unknown"
    assert outcome.text.startswith("KeyError: 'odd' (test_attempt.py:")


def test_an_unknown_fault_is_fatal_when_the_self_test_fails(self_test: list[Exception]) -> None:
    self_test.append(RuntimeError("still odd"))
    outcome = run(PlayedEngine(), draws(KeyError("odd")))
    assert isinstance(outcome, Fault)
    assert outcome.kind == "fatal"
    assert "KeyError" in outcome.text
    assert "still odd" in outcome.text


def test_a_fatal_fault_is_not_followed_by_anything(self_test: list[Exception]) -> None:
    self_test.append(AssertionError("a self-test on a lost device"))
    outcome = run(PlayedEngine(1), draws(torch.AcceleratorError("CUDA error: an illegal memory access")))
    assert isinstance(outcome, Fault)
    assert outcome.kind == "fatal"
    assert self_test


# Several in one batch.


def run_together(outcome: Any, *alone: Callable[[], Generated]) -> list[Generated | Fault]:
    return list(attempt_together(PlayedEngine(), draws(outcome), alone))  # type: ignore[arg-type]


def never() -> Generated:
    pytest.fail("drawn alone without need")  # no Exception, so nothing takes it for a fault


def test_each_of_a_batch_has_its_own_outcome() -> None:
    outcomes = run_together([RESULT, Cancelled(), BadRequest("too wide"), RESULT], *[never] * 4)
    assert outcomes == [RESULT, Fault("cancelled", ""), Fault("input", "too wide"), RESULT]


@pytest.mark.parametrize("error", [out_of_memory(), KeyError("odd")])
def test_a_batch_that_fails_is_drawn_one_by_one(self_test: list[Exception], error: Exception) -> None:
    outcomes = run_together(error, draws(RESULT), draws(error), draws(BadRequest("too wide")))
    assert outcomes[0] is RESULT
    kinds = [outcome.kind for outcome in outcomes[1:] if isinstance(outcome, Fault)]
    assert kinds == ["out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "unknown", "input"]


def test_one_by_one_is_told_one_by_one() -> None:
    drawn: list[int] = []

    def draw(number: int) -> Callable[[], Generated]:
        return lambda: (drawn.append(number), RESULT)[1]

    outcomes = attempt_together(PlayedEngine(), draws(out_of_memory()), [draw(0), draw(1)])  # type: ignore[arg-type]
    assert next(outcomes) is RESULT
    assert drawn == [0]


def test_a_device_that_is_lost_with_a_batch_gets_nothing_more() -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access")
    assert [outcome.kind for outcome in run_together(lost, never, never)] == ["fatal"] * 2  # type: ignore[union-attr]


# What a prompt may ask for.


def test_a_prompt_without_a_marker_asks_for_no_fault() -> None:
    assert find_fault("a fox [in brackets] fault:exit") is None


def test_a_marker_names_fault_step_and_value() -> None:
    fault = find_fault("a fox [fault:slow=0.25] in the snow")
    assert fault is not None
    assert (fault.name, fault.step, fault.value) == ("slow", 1, 0.25)
    fault = find_fault("[fault:device@3]")
    assert fault is not None
    assert (fault.name, fault.step) == ("device", 3)


def test_an_unknown_fault_is_refused_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="out_of_memory"):
        find_fault("[fault:fire]")
    assert {"slow", "out_of_memory", "device", "hang", "exit", "unknown"} <= set(FAULTS)
