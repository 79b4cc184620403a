"""The cache of tensors between two threads: each value is computed once, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pipelines import cache as cache_module
from pipelines.cache import TensorCache, hand_over

LIMIT_S = 5.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def make_cache() -> TensorCache[torch.Tensor]:
    return TensorCache(1000, lambda tensor: (tensor,))


class Slow:
    """Computes once it is told to go on; notes how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go_on, self.times, self._error = threading.Event(), threading.Event(), 0, error

    def __call__(self) -> torch.Tensor:
        self.times += 1
        self.begun.set()
        assert self.go_on.wait(LIMIT_S)
        if self._error:
            raise self._error
        return torch.zeros(1)


def test_who_asks_for_a_value_that_is_being_computed_gets_that_one(threads: ThreadPoolExecutor) -> None:
    cache, slow = make_cache(), Slow()
    asking = [threads.submit(cache.get_or_compute, "key", slow) for _ in range(8)]
    assert slow.begun.wait(LIMIT_S)
    slow.go_on.set()
    values = [future.result(LIMIT_S) for future in asking]
    assert all(value is values[0] for value in values)
    assert (slow.times, cache.misses, cache.hits) == (1, 1, 7)


def test_a_computation_that_fails_fails_for_its_own_thread_only(threads: ThreadPoolExecutor) -> None:
    cache, slow = make_cache(), Slow(torch.OutOfMemoryError("CUDA out of memory"))
    failing = threads.submit(cache.get_or_compute, "key", slow)
    assert slow.begun.wait(LIMIT_S)
    waiting: Future[Any] = threads.submit(cache.get_or_compute, "key", lambda: torch.ones(1))
    slow.go_on.set()
    with pytest.raises(torch.OutOfMemoryError):
        failing.result(LIMIT_S)
    assert waiting.result(LIMIT_S).item() == 1
    assert (cache.misses, cache.hits) == (2, 0)


def test_clearing_waits_for_what_is_being_computed(threads: ThreadPoolExecutor) -> None:
    cache, slow = make_cache(), Slow()
    computing = threads.submit(cache.get_or_compute, "key", slow)
    assert slow.begun.wait(LIMIT_S)
    clearing = threads.submit(cache.clear)
    slow.go_on.set()
    computing.result(LIMIT_S)
    clearing.result(LIMIT_S)
    assert cache.used_bytes == 0


class PlayedTensor:
    """A tensor on a card that is not there."""

    is_cuda, device = True, "cuda:0"

    def __init__(self) -> None:
        self.recorded: list[str] = []

    def record_stream(self, stream: str) -> None:
        self.recorded.append(stream)


@pytest.mark.parametrize("side", [True, False])
def test_what_a_side_stream_computed_is_waited_for_and_kept_for_the_default_one(
    monkeypatch: pytest.MonkeyPatch, side: bool
) -> None:
    waits: list[str] = []

    class PlayedStream(str):
        def synchronize(self) -> None:
            waits.append(self)

    default = PlayedStream("default")
    current = PlayedStream("side") if side else default
    monkeypatch.setattr(cache_module.torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(cache_module.torch.cuda, "default_stream", lambda _: default)
    tensor = PlayedTensor()
    hand_over((tensor,))  # type: ignore[arg-type]
    assert (waits, tensor.recorded) == ((["side"], ["default"]) if side else ([], []))
