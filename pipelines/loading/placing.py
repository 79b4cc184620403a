"""Tensors of a file on their way to the device, each when its turn comes."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any

import torch

from .scaled_fp8 import Tensors


class Placed(dict[str, torch.Tensor]):
    """A file's tensors by name; what is taken out by `pop`, `[]` or `items` is on the device and in the dtype.

    diffusers' converter takes one tensor after the other, so each goes over once, as narrow as it lies in the file, and
    is widened there; no second copy of a whole model comes to be. Scaled weights are multiplied out in float32.
    """

    def __init__(self, tensors: Tensors, scales: Tensors, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(tensors)
        self._scales, self._device, self._dtype = scales, device, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._place(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """Raises KeyError as a dict does."""
        if name not in self and default:
            return default[0]
        return self._place(name, super().pop(name))

    def items(self) -> Any:
        return PlacedItems(self)

    def _place(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(self._device)
        if name in self._scales:
            tensor = tensor.float() * self._scales[name].to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


class PlacedItems(ItemsView[str, torch.Tensor]):
    """Names and placed tensors, one at a time."""
