"""What this device reaches on the transformer's own matrix products, and nothing else: the ceiling for a step.

The products of one block on the tokens of one picture (query, key, value and output D→D, the MLP D→4D→D), in the
precision of the model, back to back. Peak figures of data sheets are not used: a card does not reach them at its power
limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.flops import Shape, tokens

LEAST_S = 1.0
"""Long enough for a card to settle at the clocks that its power limit allows."""


def measure_tflops(
    shape: Shape, width: int, height: int, device: torch.device, dtype: torch.dtype, least_s: float = LEAST_S
) -> float:
    """10¹² operations a second on the products of one block, from at least `least_s` seconds of them."""
    length, wide = tokens(width, height), shape.width
    states = torch.randn(length, wide, device=device, dtype=dtype)
    inner = torch.randn(length, 4 * wide, device=device, dtype=dtype)
    square = torch.randn(wide, wide, device=device, dtype=dtype)
    up = torch.randn(wide, 4 * wide, device=device, dtype=dtype)
    down = torch.randn(4 * wide, wide, device=device, dtype=dtype)

    def block() -> None:
        for _ in range(4):
            states @ square
        states @ up
        inner @ down

    with torch.inference_mode():
        block()
        blocks, took_s = _repeat(block, device, least_s)
    return blocks * 2 * 12 * wide**2 * length / took_s / 1e12


def _repeat(block: Callable[[], None], device: torch.device, least_s: float) -> tuple[int, float]:
    """How many blocks ran and in how many seconds, at least `least_s`. The device works through each batch of calls."""
    done, batch, start = 0, 1, time.perf_counter()
    while True:
        for _ in range(batch):
            block()
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += batch
        took_s = time.perf_counter() - start
        if took_s >= least_s:
            return done, took_s
        batch = min(2 * batch, 64)
