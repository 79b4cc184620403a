"""A least-recently-used cache bounded in bytes, with counters."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from cachetools import LRUCache

T = TypeVar("T")


class TensorCache(Generic[T]):
    """Keeps values that hold tensors, up to `max_bytes` in all; the least recently used go first.

    `size_bytes` tells a value's size. A value larger than the whole cache is computed and not kept. `hits` and `misses`
    count look-ups. Values are kept where they are (device memory included), which is why the bound is in bytes.
    """

    def __init__(self, max_bytes: int, size_bytes: Callable[[T], int]) -> None:
        self._entries: LRUCache[Hashable, T] = LRUCache(max_bytes, getsizeof=size_bytes)
        self._size_bytes = size_bytes
        self.hits = 0
        self.misses = 0

    def get_or_compute(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The kept value for `key`, else what `compute` gives, kept from then on. What `compute` raises is raised."""
        found = self._entries.get(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        value = compute()
        if self._size_bytes(value) <= self._entries.maxsize:
            self._entries[key] = value
        return value

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def clear(self) -> None:
        self._entries.clear()


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Bytes that these tensors' elements take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
