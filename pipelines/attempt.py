"""One attempt at a request, and what is tried before it counts as failed.

out of memory  →  drop everything, shrink, once more
unknown        →  a tiny picture; when that fails too, the device counts as lost
either of a batch  →  each of its requests alone, and then as above
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from .engine import Engine
from .faults import FaultKind, classify, release_memory
from .order import Generated
from .warmup import draw_small

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fault:
    """kind: of `pipelines.faults`; "fatal" means that this process must not go on.

    text: for the client where the engine wrote it for the client (input, safety, not_finite); else for the log.
    """

    kind: FaultKind
    text: str


FOR_CLIENTS: frozenset[FaultKind] = frozenset({"input", "safety", "not_finite", "cancelled"})


def attempt(engine: Engine, draw: Callable[[], Generated]) -> Generated | Fault:
    """What `draw` gives, or why it gives nothing. Raises nothing; memory is given back after a fault.

    draw: computes the request with `engine`; called twice at most.
    """
    outcome = _try(draw)
    if isinstance(outcome, Fault) and outcome.kind == "out_of_memory":
        release_memory()
        if engine.shrink():
            outcome = _try(draw)
    if isinstance(outcome, Fault):
        release_memory()
        if outcome.kind == "unknown":
            return _judge(engine, outcome)
    return outcome


def attempt_together(
    engine: Engine, draw: Callable[[], list[Generated | Exception]], alone: Sequence[Callable[[], Generated]]
) -> Iterator[Generated | Fault]:
    """What `draw` gives for each of several requests, in order. Raises nothing.

    alone: draws each by itself, in the same order; called where the batch failed as a whole, each when it is its turn.
    """
    outcomes = _try(draw)
    if not isinstance(outcomes, Fault):
        yield from (_fault(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes)
    elif outcomes.kind == "fatal":
        yield from [outcomes] * len(alone)
    else:
        release_memory()
        yield from (attempt(engine, draw_one) for draw_one in alone)


def _try(draw: Callable[[], T]) -> T | Fault:
    """When this returns, the exception is gone, and with its traceback the tensors that it held."""
    try:
        return draw()
    except Exception as error:
        return _fault(error)


def _fault(error: Exception) -> Fault:
    kind = classify(error)
    return Fault(kind, str(error) if kind in FOR_CLIENTS else describe(error))


def _judge(engine: Engine, fault: Fault) -> Fault:
    """An unknown fault, or a fatal one when the engine cannot draw a tiny picture after it."""
    second = _try_small(engine)
    if second is None:
        return fault
    return replace(fault, kind="fatal", text=f"{fault.text}; then the self-test failed: {second}")


def _try_small(engine: Engine) -> str | None:
    try:
        draw_small(engine, engine.model_names[0])
    except Exception as error:
        return describe(error)
    return None


def describe(error: Exception) -> str:
    """Type, text and place in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno} in {place.name})"
