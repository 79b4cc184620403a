"""A least-recently-used cache of tensors, bounded in bytes, with counters, for several threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import torch
from cachetools import LRUCache

T = TypeVar("T")


class TensorCache(Generic[T]):
    """Keeps values that hold tensors, up to `max_bytes` in all; the least recently used go first.

    `tensors` tells a value's tensors. A value larger than the whole cache is computed and not kept. `hits` and `misses`
    count look-ups. Values are kept where they are (device memory included), which is why the bound is in bytes.

    One value is computed at a time. Whoever asks meanwhile waits, and where it asks for that value gets it, as a hit.
    """

    def __init__(self, max_bytes: int, tensors: Callable[[T], tuple[torch.Tensor, ...]]) -> None:
        self._entries: LRUCache[Hashable, T] = LRUCache(
            max_bytes, getsizeof=lambda value: tensor_bytes(*tensors(value))
        )
        self._tensors = tensors
        self._lock = Lock()
        self.hits = 0
        self.misses = 0

    def get_or_compute(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The kept value for `key`, else what `compute` gives, kept from then on. What `compute` raises is raised.

        A value that is computed on a side stream of a card can be used on the default one when it is returned.
        """
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self.hits += 1
                return found
            self.misses += 1
            value = compute()
            tensors = self._tensors(value)
            hand_over(tensors)
            if tensor_bytes(*tensors) <= self._entries.maxsize:
                self._entries[key] = value
            return value

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Bytes that these tensors' elements take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def hand_over(tensors: tuple[torch.Tensor, ...]) -> None:
    """Makes what this thread computed on a side stream fit for use on the default stream; else does nothing.

    It is computed when this returns, and its memory is not given to others while the default stream has use for it:
    the caching allocator knows of the stream alone that a tensor was made on (torch.Tensor.record_stream).
    """
    for tensor in tensors:
        if tensor.is_cuda:
            stream, default = torch.cuda.current_stream(tensor.device), torch.cuda.default_stream(tensor.device)
            if stream != default:
                stream.synchronize()
                tensor.record_stream(default)
