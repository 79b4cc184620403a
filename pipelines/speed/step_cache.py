"""Taking steps short: where the first block changes little from one step to the next, the others are not computed and
their last change is added again (First Block Cache, by ParaAttention's author; diffusers' implementation).

It decides by the picture at hand, so it needs no calibration for depth. It is lossy; `THRESHOLD` says how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig

THRESHOLD = 0.08
"""Relative change of the first block's residual below which a step is taken short: its author's for FLUX.1-dev."""


@contextmanager
def step_cache(transformer: Any, threshold: float = THRESHOLD) -> Iterator[None]:
    """One image is drawn with a cache of its own in this block. Afterwards nothing of it is left, whatever happened."""
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        with transformer.cache_context("image"):
            yield
    finally:
        transformer.disable_cache()
