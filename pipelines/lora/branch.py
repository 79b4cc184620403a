"""A linear layer with a low-rank layer beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer of a LoRA: it adds strength · scale · (up @ down @ x + bias), strength being the request's.

    down: [rank, in]. up: [out, rank]. bias: [out] or None. scale: alpha / rank or what the file says.
    """

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    scale: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


class Branch(nn.Module):
    """base(x) + up @ down @ x + bias, or base(x) alone while `on` is False.

    Several LoRAs are one: their `down` stand below each other, their `up`, times their strengths, side by side. That
    costs two matrix products whatever their number. The tensors stay the same objects, so a compiled caller sees new
    values and not new shapes.

    down: [capacity, in], up: [out, capacity], bias: [out], buffers of `dtype`; `rank` of the capacity are computed.
    """

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor

    def __init__(self, base: Any, capacity: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)
        shapes = {
            "down": (capacity, self.in_features),
            "up": (self.out_features, capacity),
            "bias": (self.out_features,),
        }
        # Tensors made in inference mode could not be changed outside of it, and compiled code tells them apart.
        with torch.inference_mode(False):
            for name, shape in shapes.items():
                self.register_buffer(name, torch.zeros(shape, device=device, dtype=dtype), persistent=False)
        self.rank = 0
        self.on = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(x)
        if not self.on:
            return result
        low = F.linear(x, self.down[: self.rank])
        return result + F.linear(low, self.up[:, : self.rank], self.bias)

    @torch.no_grad()
    def fill(self, parts: Sequence[tuple[LowRank, float]], *, whole: bool = False) -> None:
        """Takes these LoRA layers with their strengths and forgets those before.

        The ranks must add up to at most the capacity. A `down` narrower than the layer reads its first inputs only.
        whole: compute with the full capacity, however much of it is used.
        """
        for tensor in (self.down, self.up, self.bias):
            tensor.zero_()
        used = 0
        for part, strength in parts:
            self._place(part, strength * part.scale, slice(used, used + part.rank))
            used += part.rank
        self.rank = self.down.shape[0] if whole else used

    def _place(self, part: LowRank, scale: float, rows: slice) -> None:
        self.down[rows, : part.down.shape[1]] = part.down.to(self.down)
        self.up[:, rows] = _scaled(part.up, scale, self.up)
        if part.bias is not None:
            self.bias += _scaled(part.bias, scale, self.bias)


def _scaled(tensor: torch.Tensor, scale: float, like: torch.Tensor) -> torch.Tensor:
    """Rounded once to the dtype of `like`."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return (tensor.to(like.device, wide) * scale).to(like.dtype)


def linear_layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every linear layer with its path: nn.Linear, its quantised kin and Branch, which is not looked into."""
    for name, child in module.named_children():
        if hasattr(child, "in_features"):
            yield f"{path}{name}", child
        else:
            yield from linear_layers(child, f"{path}{name}.")


def layer_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer by its path."""
    return {path: (layer.out_features, layer.in_features) for path, layer in linear_layers(transformer)}


def attach(transformer: Any, path: str, capacity: int) -> Branch:
    """Puts a Branch around the linear layer at `path`, on the transformer's device and in its dtype."""
    parent, _, name = path.rpartition(".")
    holder = transformer.get_submodule(parent)
    branch = Branch(getattr(holder, name), capacity, device=transformer.device, dtype=transformer.dtype)
    setattr(holder, name, branch)
    return branch
