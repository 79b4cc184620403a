"""What the worker reports of itself with each picture."""

from __future__ import annotations

from typing import Any

import torch

from .engine import Engine
from .speed.blocks import graphs_compiled


class Figures:
    """Counts since the last time that they were taken. To be made when the engine is warm."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._graphs = graphs_compiled()
        self._seen = engine.cache_counts()

    def take(self) -> dict[str, Any]:
        """As fields of the worker's Done.

        plan: that holds now. recompiles: graphs since the warm-up. memory_bytes: of the device, by kind. hits, misses:
        of the caches, by name, since the last time.
        """
        counts = self._engine.cache_counts()
        hits = {name: hit - self._seen[name][0] for name, (hit, _) in counts.items()}
        misses = {name: miss - self._seen[name][1] for name, (_, miss) in counts.items()}
        self._seen = counts
        return {
            "plan": self._engine.plan_name,
            "recompiles": graphs_compiled() - self._graphs,
            "memory_bytes": _device_memory(),
            "hits": hits,
            "misses": misses,
        }


def _device_memory() -> dict[str, int]:
    """Empty where there is no card. The peak is the one since the last call."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    memory = {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "peak": torch.cuda.max_memory_allocated(),
    }
    torch.cuda.reset_peak_memory_stats()
    return memory
