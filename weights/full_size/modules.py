"""From a configuration to a module without memory, and from there to one with random values."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from .configurations import COMPONENTS, Component

if TYPE_CHECKING:
    import torch
    from torch import nn

Module = TypeVar("Module", bound="nn.Module")

SPREAD = 0.02
"""Standard deviation of random matrices, kernels and biases: near what trained networks have. Values then stay
finite in bfloat16 through the full depth, and a card has real numbers to multiply: zeros would flatter it."""


def build_on_meta(component: str, **changes: Any) -> nn.Module:
    """The network `COMPONENTS[component]` in eval mode, float32 and on the meta device: shapes without memory.

    changes: entries of its configuration to replace, such as `num_layers=1` for fewer blocks of the same width.
    Imports torch and the component's library. Raises KeyError for a component that is not listed.
    """
    import torch

    part = COMPONENTS[component]
    with torch.device("meta"):
        return _build(part, deepcopy({**part.config, **changes})).eval().requires_grad_(False)


def _build(part: Component, config: dict[str, Any]) -> nn.Module:
    kind = getattr(import_module(part.library), part.class_name)
    module: nn.Module = kind(**config) if part.library == "diffusers" else kind(kind.config_class(**config))
    return module


def materialise(module: Module, device: torch.device | str, dtype: torch.dtype, seed: int) -> Module:
    """Gives a module from the meta device memory on `device` and random values, in place, and returns it.

    Everything is normal with standard deviation 0.02, drawn in `dtype` by a generator on `device`, but for the scales
    of norms and layers, which are 1. Tied parameters stay tied; buffers hold what they hold in a built module. The same
    seed gives the same values on the same kind of device. Peak memory is that of the result. The result is for
    measuring: what such a network computes is finite and means nothing.

    Raises ValueError, before any memory is taken, for a module with a buffer whose content is not known here.
    """
    import torch

    _check_buffers(module)
    _allocate(module, torch.device(device), dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0.0, SPREAD, generator=generator)
            else:
                parameter.fill_(1.0)
    return module


def _check_buffers(module: nn.Module) -> None:
    unknown = [name for name, _ in module.named_buffers() if not _is_position_ids(name)]
    if unknown:
        raise ValueError(f"what belongs into {', '.join(unknown)} of {type(module).__name__} is not known")


def _is_position_ids(name: str) -> bool:
    return name.rpartition(".")[2] == "position_ids"


def _allocate(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Replaces every parameter by an empty one and every buffer by its content.

    Unlike `Module.to_empty`, it makes one parameter of one that two modules share: T5's table of tokens.
    """
    import torch

    fresh: dict[torch.Tensor, torch.Tensor] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in fresh:
                empty = torch.empty_like(parameter, device=device, dtype=dtype)
                fresh[parameter] = torch.nn.Parameter(empty, requires_grad=False)
            setattr(owner, name, fresh[parameter])
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
