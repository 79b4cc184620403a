"""Carries a memory plan out: who is on the device, who comes for a while, who takes turns, who streams.

What comes and goes keeps its values in the host's memory, pinned where there is a card, and gets copies of them on the
device; leaving drops the copies, so nothing is ever copied back. Values that are changed while they are on the device
are lost when they leave (`LoraShelf` fills its slot anew for that reason).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

PINNED_PIECE_BYTES = 1024**3


class Lodger:
    """Modules that come to the device together."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._modules, self._device = tuple(modules), device
        tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in self._modules)
        # Two modules may share tensors, as a depth model made by a LoRA shares flux-dev's.
        self._tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self._movable_by_value = all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in self._tensors)
        self._home: list[torch.Tensor] | None = None
        self.present = False

    def settle(self) -> None:
        """Takes the values to the host, from wherever they are."""
        self.present = False
        if not self._movable_by_value:
            self._move("cpu")
            return
        if self._home is None:
            pinned = _Pinned(sum(tensor.nbytes for tensor in self._tensors)) if self._device.type == "cuda" else None
            with torch.inference_mode(False), torch.no_grad():
                self._home = [_to_host(tensor.data, pinned) for tensor in self._tensors]
        self._point_at(self._home)

    def come(self) -> None:
        """Copies the values to the device; where they are there already, nothing is done."""
        if self.present:
            return
        try:
            if self._movable_by_value:
                assert self._home is not None
                self._point_at(tensor.to(self._device, non_blocking=True) for tensor in self._home)
            else:
                self._move(self._device)
        except BaseException:
            self.settle()  # what had come already would stay and be nobody's
            raise
        self.present = True

    def leave(self) -> None:
        if self.present:
            self.settle()

    def _point_at(self, values: Iterable[torch.Tensor]) -> None:
        with torch.inference_mode(False):
            for tensor, value in zip(self._tensors, values, strict=True):
                tensor.data = value

    def _move(self, device: torch.device | str) -> None:
        """For quantised values, which are more than one tensor and know themselves how to move."""
        for module in self._modules:
            module.to(device)


class Residency:
    """Who is where. Names are model names for transformers, and "text", "depth", "safety", "upsampler"."""

    def __init__(self) -> None:
        self._lodgers: dict[str, Lodger] = {}
        self._rivals: dict[str, frozenset[str]] = {}
        self._visitors: set[str] = set()
        self.switches = 0
        """How often a transformer had to come to the device."""

    def manage(
        self,
        names: Iterable[str],
        modules: Iterable[nn.Module],
        device: torch.device,
        *,
        visits: bool,
        rivals: Collection[str] = (),
    ) -> None:
        """From now on these modules are on `device` only while they are needed.

        names: what they are asked for by. visits: they leave as soon as they were used; else when a rival comes.
        rivals: names that must leave before they come.
        """
        lodger = Lodger(modules, device)
        lodger.settle()
        for name in names:
            self._lodgers[name] = lodger
            self._rivals[name] = frozenset(rivals)
            if visits:
                self._visitors.add(name)

    def manages(self, name: str) -> bool:
        return name in self._lodgers

    def bring(self, name: str) -> None:
        """Makes sure that `name` is on the device. Names that are not managed always are."""
        lodger = self._lodgers.get(name)
        if lodger is None or lodger.present:
            return
        for rival in self._rivals[name]:
            if rival in self._lodgers:
                self._lodgers[rival].leave()
        lodger.come()
        if name not in self._visitors:
            self.switches += 1

    @contextmanager
    def present(self, name: str) -> Iterator[None]:
        """`name` is on the device while the block runs."""
        self.bring(name)
        try:
            yield
        finally:
            if name in self._visitors:
                self._lodgers[name].leave()

    def presence(self, name: str) -> Callable[[], AbstractContextManager[None]]:
        """`present(name)`, to be called later."""
        return partial(self.present, name)

    def on_device(self) -> frozenset[str]:
        """The managed names that are on the device now."""
        return frozenset(name for name, lodger in self._lodgers.items() if lodger.present)


def stream(module: Any, device: torch.device, *, plenty_of_host_memory: bool) -> None:
    """Makes the module's blocks pass through the device one after the other, whenever it is called.

    On a card the next block is copied while one computes (diffusers' group offloading). plenty_of_host_memory: pin
    all blocks beforehand, which takes their bytes once more while it is done, and makes the copies faster.
    """
    on_card = device.type == "cuda"
    apply_group_offloading(
        _holder_of_blocks(module),
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_card,
        record_stream=on_card,
        non_blocking=on_card,
        low_cpu_mem_usage=on_card and not plenty_of_host_memory,
    )


def _holder_of_blocks(module: nn.Module) -> nn.Module:
    """diffusers looks for blocks among a module's own children only; T5's lie in its encoder, which has all of it."""
    weights = {id(weight) for weight in module.parameters()}
    for child in module.children():
        has_blocks = any(isinstance(grandchild, nn.ModuleList) for grandchild in child.children())
        if has_blocks and {id(weight) for weight in child.parameters()} == weights:
            return child
    return module


class _Pinned:
    """Pinned memory for `size_bytes` of tensors, in large pieces.

    torch rounds each pinned allocation up to a power of two (ATen/core/CachingHostAllocator.h); FLUX.1's matrices, each
    by itself, would take 1.6 times their bytes.
    """

    _ALIGNMENT = 512

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        """A pinned copy of a contiguous tensor. Raises RuntimeError where no more can be pinned."""
        if self._used + value.nbytes > len(self._piece):
            wanted = max(min(self._left, PINNED_PIECE_BYTES), value.nbytes)
            self._piece = torch.empty(1 << (wanted - 1).bit_length(), dtype=torch.uint8, pin_memory=True)
            self._used = 0
        place = self._piece[self._used : self._used + value.nbytes].view(value.dtype).view(value.shape)
        self._used += -(-value.nbytes // self._ALIGNMENT) * self._ALIGNMENT
        self._left -= value.nbytes
        return place.copy_(value)


def _to_host(value: torch.Tensor, pinned: _Pinned | None) -> torch.Tensor:
    if pinned is None or not value.nbytes or not value.is_contiguous():
        return value.to("cpu")
    try:
        return pinned.hold(value)
    except RuntimeError:
        return value.to("cpu")  # pinned memory is a limited good; copies from elsewhere are slower, not wrong
