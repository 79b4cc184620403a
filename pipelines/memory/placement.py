"""From a recipe to the loaded parts' residency: who is managed, with whom they compete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .budget import host_budget_bytes
from .residency import stream

if TYPE_CHECKING:
    from ..components import Components

TEXT, DEPTH, SAFETY, UPSAMPLER = "text", "depth", "safety", "upsampler"
"""Names that residency knows beside the models' names."""


def settle(parts: Components, *, shares_weights: bool) -> None:
    """Gives every part the place that `parts.recipe` has for it.

    shares_weights: whether the depth model is made of flux-dev by a LoRA, so that they come together.
    """
    recipe = parts.recipe
    if recipe.transformers == "turns":
        _take_turns(parts, together=shares_weights)
    elif recipe.transformers == "stream":
        _stream(parts)
    if recipe.text == "visit":
        parts.residency.manage([TEXT], parts.text.modules, parts.device, visits=True, rivals=tuple(parts.transformers))
    if recipe.helpers == "visit":
        _let_helpers_visit(parts)


def _take_turns(parts: Components, *, together: bool) -> None:
    names = tuple(parts.transformers)
    for group in [names] if together else [(name,) for name in names]:
        parts.residency.manage(
            group,
            [network[name] for name in group for network in (parts.transformers, parts.fast) if name in network],
            parts.device,
            visits=False,
            rivals=[name for name in names if name not in group],
        )


def _stream(parts: Components) -> None:
    pinned = sum(value.nbytes for module in parts.transformers.values() for value in module.parameters())
    plenty = host_budget_bytes() > 2 * pinned
    for module in (*parts.transformers.values(), *parts.text.modules):
        stream(module, parts.device, plenty_of_host_memory=plenty)


def _let_helpers_visit(parts: Components) -> None:
    helpers = {
        DEPTH: parts.control.modules,
        SAFETY: parts.safety.modules if parts.safety else (),
        UPSAMPLER: parts.upsampler.modules if parts.upsampler else (),
    }
    for name, modules in helpers.items():
        if modules:
            parts.residency.manage([name], modules, parts.device, visits=True)
