"""What is said of weights that cannot be loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

NAMES_SHOWN = 3


class UnusableWeights(ValueError):
    """Weights that are there and cannot be loaded. The text begins with the path and says why and what helps."""


def refuse_missing(path: Path, names: Collection[str]) -> None:
    """Raises UnusableWeights where tensors are missing: a library would leave them random."""
    if names:
        raise UnusableWeights(f"{path} lacks {len(names)} tensors of this component: {listed(names)}")


def listed(names: Collection[str]) -> str:
    """The first few names in order, and how many more there are."""
    first = sorted(names)[:NAMES_SHOWN]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more
