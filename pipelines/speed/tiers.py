"""Speed tiers: what a request may trade for time. Torch-free.

A server offers the tiers that its card and its memory plan allow, the default first; a reply names the one that ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..memory.footprint import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """fp8: the blocks' matrices multiply in fp8. step_cache: steps that hardly change the picture are taken short."""

    name: str
    fp8: bool = False
    step_cache: bool = False


EXACT = Tier(name="exact")
FAST = Tier(name="fast", fp8=True)
TURBO = Tier(name="turbo", fp8=True, step_cache=True)

HELD = {precision: Tier(name=precision) for precision in ("fp8", "fp8-all", "nf4")}
"""What stands in for exact where a memory plan holds the weights in fewer bits: not the pictures of `exact`."""

TIERS = {tier.name: tier for tier in (EXACT, FAST, TURBO, *HELD.values())}
NAMES = ("exact", "fast", "turbo")
"""What a request may ask for."""


def offered(precision: Precision, *, fp8_products: bool) -> tuple[str, ...]:
    """The tiers of a server whose plan holds transformers in `precision`, its default first.

    fp8_products: whether the card multiplies fp8 well and there is a copy of the matrices in fp8.
    """
    default = EXACT if precision == "full" else HELD[precision]
    return (default.name, FAST.name, TURBO.name) if fp8_products else (default.name,)


def choose(wanted: str, *, prefer_fast: bool, offered: Sequence[str]) -> Tier:
    """The tier that runs. wanted: a name, or "" for the default; prefer_fast: `fast` where it is offered.

    Raises ValueError, with what is offered, for a tier that is not.
    """
    if wanted and wanted not in offered:
        raise ValueError(f"tier {wanted} is not offered by this server; it offers {', '.join(offered)}")
    if not wanted and prefer_fast and FAST.name in offered:
        return FAST
    return TIERS[wanted or offered[0]]
