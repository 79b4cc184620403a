"""Speed tiers as benchmarks name them, and the one place where a name becomes components and requests.

An engine that has tiers says so by `Engine.tiers` and takes them as the request's `tier`; one that has neither computes
everything exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from pipelines.components import Components
from pipelines.engine import Engine
from pipelines.request import GenerationRequest

EXACT = "exact"
KNOWN = ("exact", "fast", "turbo")


def offered() -> tuple[str, ...]:
    """The tiers that this version of the engine has."""
    tiers: tuple[str, ...] = getattr(Engine, "tiers", (EXACT,))
    return tuple(tiers)


def components_for(tier: str, load: Callable[[], Components]) -> Components:
    """The components that a tier computes with. Raises LookupError for a tier that is not offered."""
    if tier not in offered():
        raise LookupError(f"tier {tier} is not offered; offered are {', '.join(offered())}")
    return load()


def request_for(tier: str, **of_request: Any) -> GenerationRequest:
    """A request of that tier. Raises LookupError for a tier that is not offered."""
    if tier not in offered():
        raise LookupError(f"tier {tier} is not offered; offered are {', '.join(offered())}")
    if "tier" in {field.name for field in fields(GenerationRequest)}:
        of_request["tier"] = tier
    return GenerationRequest(**of_request)


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, for a command line. Raises ValueError for one that is no tier."""
    found = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in found if name not in KNOWN]:
        raise ValueError(f"unknown tier {unknown[0]}; known are {', '.join(KNOWN)}")
    return found
