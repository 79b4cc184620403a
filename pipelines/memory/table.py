"""The plans that common cards get with the published weights, as a table. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .footprint import FULL_SIZE
from .plans import NoPlan, Plan, choose_plan

CARDS_GIB = (8, 12, 16, 24, 32, 48, 64, 80, 141)

DRIVER_BYTES = 700_000_000
"""What driver and CUDA context keep of a card before anything is loaded: an assumption for the table only. The server
asks the card what is free."""

COLUMNS = ("card", "plan", "transformers", "text", "VAE", "depth, safety", "peak at 1024×1024", "host", "largest")


def rows(cards_gib: Iterable[float], host_bytes: int) -> Iterator[tuple[str, ...]]:
    """One row for each card, in GB of 10⁹ bytes: what stays on the card, the peak, and what the host keeps."""
    for card in cards_gib:
        budget = round(card * 2**30) - DRIVER_BYTES
        try:
            yield (f"{card:g} GB", *_row(choose_plan(FULL_SIZE, device_bytes=budget, host_bytes=host_bytes)))
        except NoPlan:
            yield (f"{card:g} GB", "none fits", *[""] * (len(COLUMNS) - 2))


def markdown(cards_gib: Iterable[float], host_bytes: int) -> Iterator[str]:
    yield _line(COLUMNS)
    yield _line(["---"] * len(COLUMNS))
    yield from map(_line, rows(cards_gib, host_bytes))


def _row(plan: Plan) -> Iterator[str]:
    yield f"`{plan.name}`"
    for part in ("transformers", "text encoders", "vae", "depth, safety"):
        yield _gb(plan.device.get(part, 0))
    yield _gb(plan.peak_bytes)
    yield _gb(plan.host_bytes)
    yield f"{plan.max_pixels / 1e6:.1f} MP"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}" if count else "–"
