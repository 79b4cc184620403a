"""Speed tiers as benchmarks name them, and the one place where a name becomes a request and a network."""

from __future__ import annotations

from typing import Any

from pipelines.components import Components
from pipelines.request import GenerationRequest
from pipelines.speed.tiers import NAMES, TIERS

EXACT = "exact"
KNOWN = NAMES


def request_for(tier: str, **of_request: Any) -> GenerationRequest:
    """A request that asks for that tier by name."""
    return GenerationRequest(tier=tier, **of_request)


def network_of(parts: Components, model: str, tier: str) -> Any:
    """The transformer that draws `model` in `tier`. Raises KeyError where the tier is not offered."""
    return parts.transformer(model, TIERS[tier])


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, for a command line. Raises ValueError for one that is no tier."""
    found = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in found if name not in KNOWN]:
        raise ValueError(f"unknown tier {unknown[0]}; known are {', '.join(KNOWN)}")
    return found
