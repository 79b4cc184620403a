"""From a recipe to the loaded parts' residency: who is managed, with whom they compete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from .budget import host_budget_bytes
from .plans import Recipe
from .residency import stream

if TYPE_CHECKING:
    from ..components import Components

TEXT, DEPTH, SAFETY, UPSAMPLER = "text", "depth", "safety", "upsampler"
"""Names that residency knows beside the models' names."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Modules that come and go together, under which names, and whose names must be away while they are there."""

    names: tuple[str, ...]
    modules: tuple[Any, ...]
    rivals: tuple[str, ...] = ()
    visits: bool = True


def settle(parts: Components) -> None:
    """Gives every part the place that `parts.recipe` has for it. Parts that come and go already are left so."""
    if parts.recipe.transformers == "stream":
        _stream(parts)
    for group in _groups(parts, parts.recipe):
        if not parts.residency.manages(group.names[0]):
            parts.residency.manage(group.names, group.modules, parts.device, visits=group.visits, rivals=group.rivals)


def bytes_to_host(parts: Components, recipe: Recipe) -> int:
    """What `settle` would take to the host for this recipe that is not there yet."""
    new = (group for group in _groups(parts, recipe) if not parts.residency.manages(group.names[0]))
    modules = chain.from_iterable(group.modules for group in new)
    weights = {id(weight): weight for module in modules for weight in module.parameters()}
    return sum(weight.nbytes for weight in weights.values())


def _groups(parts: Components, recipe: Recipe) -> Iterator[_Group]:
    if recipe.transformers == "turns":
        yield from _transformers(parts)
    if recipe.text == "visit":
        yield _Group((TEXT,), parts.text.modules, rivals=tuple(parts.transformers))
    if recipe.helpers == "visit":
        yield from (_Group((name,), modules) for name, modules in _helpers(parts).items() if modules)


def _transformers(parts: Components) -> Iterator[_Group]:
    names = tuple(parts.transformers)
    for group in [names] if parts.shares_weights else [(name,) for name in names]:
        modules = [network[name] for name in group for network in (parts.transformers, parts.fast) if name in network]
        rivals = tuple(name for name in names if name not in group)
        yield _Group(group, tuple(modules), rivals=rivals, visits=False)


def _helpers(parts: Components) -> dict[str, tuple[Any, ...]]:
    return {
        DEPTH: parts.control.modules,
        SAFETY: parts.safety.modules if parts.safety else (),
        UPSAMPLER: parts.upsampler.modules if parts.upsampler else (),
    }


def _stream(parts: Components) -> None:
    pinned = sum(value.nbytes for module in parts.transformers.values() for value in module.parameters())
    plenty = host_budget_bytes() > 2 * pinned
    for module in (*parts.transformers.values(), *parts.text.modules):
        stream(module, parts.device, plenty_of_host_memory=plenty)
