"""LoRA files added to a loaded transformer for one request, and taken off again without a trace.

Every linear layer gets one branch of a fixed capacity, the slot, when the shelf is made; a request's LoRAs are copied
into it, one after the other along the rank. So there are two states only: off, where the layers compute what they
always did and nothing else, and on, where one branch is added whatever the number of LoRAs. Compiled blocks have one
graph for each. peft's own hot swapping (`enable_lora_hotswap`) would add as many branches as LoRAs are allowed,
computed in every request, and could not load a LoRA for layers that the first one left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef

from ..cache import TensorCache, tensor_bytes
from ..faults import BadRequest
from .branch import Branch, attach, layer_shapes
from .files import UnusableLora, check_input, find, read_header, shown
from .weights import LoraWeights, load_weights

Key = tuple[str, int, int, int]
"""Name, inode, time of change in ns and size of a file: a file that was replaced is read again."""

MAX_LORAS = 4
MAX_SCALE = 10.0


class LoraShelf:
    """The LoRAs of one folder for one transformer. Not thread-safe: one request at a time.

    Files are kept in the host's memory up to `max_bytes`, least recently used first to go; on the device is the slot
    alone, `slot_bytes` all the time.
    """

    def __init__(
        self, transformer: Any, folder: Path, *, max_bytes: int, max_rank: int = 128, compiled: bool = False
    ) -> None:
        """Puts the slot into `transformer`: after quantising and `depth_from_lora`, before compiling and offloading.

        max_rank: highest sum of a request's ranks; the slot's size goes with it. compiled: say True when blocks will be
        compiled: every layer then computes with the whole slot, so that all LoRAs have the same shapes; otherwise only
        with what a request's LoRAs use. Raises NotADirectoryError.
        """
        if not folder.is_dir():
            raise NotADirectoryError(f"the LoRA folder {folder} is not there")
        self._folder, self._max_rank, self._compiled = folder, max_rank, compiled
        self._channels = int(transformer.config.in_channels)
        self._dtype = transformer.dtype
        self._shapes = layer_shapes(transformer)
        self._slot: dict[str, Branch] = {path: attach(transformer, path, max_rank) for path in self._shapes}
        self._content: list[tuple[Key, float]] | None = None
        self._filled_at: StorageWeakRef | None = None
        self._twins: list[Branch] = []
        self.cache = TensorCache[LoraWeights](max_bytes, lambda weights: weights.tensors)

    def also_for(self, twin: Any) -> None:
        """`twin` shares the transformer's values, slot included: from now on both are switched together."""
        slots = {id(branch.down) for branch in self._slot.values()}
        self._twins += [module for module in twin.modules() if isinstance(module, Branch) and id(module.down) in slots]

    @property
    def slot_bytes(self) -> int:
        """Bytes on the transformer's device, whether LoRAs are in use or not."""
        return sum(tensor_bytes(branch.down, branch.up, branch.bias) for branch in self._slot.values())

    @contextmanager
    def applied(self, loras: Sequence[tuple[str, float]]) -> Iterator[tuple[str, ...]]:
        """Adds these LoRAs, (name, scale) with scale in −10…10, to the transformer while the block runs.

        Gives notes for the caller, such as tensors that are not used. The order does not matter; scale 0 is as if it
        was not named, down to the bit. Raises BadRequest, and then nothing has been changed.
        """
        _check(loras)
        try:
            loaded = [(*self._load(name), float(scale)) for name, scale in sorted(loras)]
            parts = [part for part in loaded if part[2] != 0]
            self._put(parts)
        except UnusableLora as error:
            raise BadRequest(str(error)) from error
        with self._switched_on() if parts else nullcontext():
            yield tuple(note for _, weights, _ in loaded for note in weights.notes)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """The slot on and empty while the block runs: what warm-up computes in it compiles the graph with LoRAs."""
        self._fill([])
        with self._switched_on():
            yield

    def _load(self, name: str) -> tuple[Key, LoraWeights]:
        path = find(self._folder, name)
        state = path.stat()
        key = (path.name, state.st_ino, state.st_mtime_ns, state.st_size)
        return key, self.cache.get_or_compute(key, lambda: self._read(path))

    def _read(self, path: Path) -> LoraWeights:
        header = read_header(path)
        check_input(header, self._channels)
        return load_weights(header, self._shapes, self._dtype)

    def _put(self, parts: list[tuple[Key, LoraWeights, float]]) -> None:
        """Makes the slot hold these, unless it holds them already or there are none."""
        content = [(key, scale) for key, _, scale in parts]
        if content and (content, self._place()) != (self._content, self._filled_at):
            self._check_ranks(parts)
            self._fill([(weights, scale) for _, weights, scale in parts])
            self._content, self._filled_at = content, self._place()

    def _place(self) -> StorageWeakRef | None:
        """Where the slot's values lie now: a transformer that left the device and came back has an old slot.

        Not an address: a card's allocator gives the same one again. A weak reference keeps its storage's identity.
        """
        first = next(iter(self._slot.values()), None)
        return StorageWeakRef(first.down.untyped_storage()) if first else None  # type: ignore[no-untyped-call]

    def _check_ranks(self, parts: list[tuple[Key, LoraWeights, float]]) -> None:
        rank = sum(max(layer.rank for layer in weights.layers.values()) for _, weights, _ in parts)
        if rank > self._max_rank:
            raise UnusableLora(f"the ranks of these loras add up to {rank}; this server takes up to {self._max_rank}")

    def _fill(self, parts: list[tuple[LoraWeights, float]]) -> None:
        self._content = None  # until all is copied
        for path, branch in self._slot.items():
            layers = [(weights.layers[path], scale) for weights, scale in parts if path in weights.layers]
            branch.fill(layers, whole=self._compiled)

    @contextmanager
    def _switched_on(self) -> Iterator[None]:
        ranks = {id(branch.down): branch.rank for branch in self._slot.values()}
        branches = (*self._slot.values(), *self._twins)
        try:
            for branch in branches:
                branch.rank = ranks[id(branch.down)]
                branch.on = branch.rank > 0
            yield
        finally:
            for branch in branches:
                branch.on = False


def _check(loras: Sequence[tuple[str, float]]) -> None:
    if len(loras) > MAX_LORAS:
        raise BadRequest(f"{len(loras)} loras were asked for; at most {MAX_LORAS} go into one request")
    names = [name for name, _ in loras]
    for name, scale in loras:
        if not math.isfinite(scale) or abs(scale) > MAX_SCALE:
            raise BadRequest(f"lora {shown(name)}: its scale must be a number from {-MAX_SCALE:g} to {MAX_SCALE:g}")
        if names.count(name) > 1:
            raise BadRequest(f"lora {shown(name)} is named more than once")
