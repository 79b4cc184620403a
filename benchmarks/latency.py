"""One picture at a time: the engine by model, tier and stage, beside stock diffusers eager and compiled, in one run.

    python -m benchmarks.latency --weights random --save                    # full size, random values, a CUDA card
    python -m benchmarks.latency --weights models --tiers exact,fast,turbo --save
    python -m benchmarks.latency --weights demo --side 256 --steps 4         # the built-in family, anywhere

All sides compute with the same modules in one process and take turns. A request of the engine runs from the prompt to
the encoded file on disk; diffusers gets the embeddings and control latents and ends at a picture in memory, so what is
left to the engine (encoding text and picture, checking safety) counts against the engine. The engine's blocks run eager
and compiled as the server compiles them, diffusers' with torch's own choice of attention kernel.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from PIL import Image

from benchmarks import report, tiers
from benchmarks.calls import PROMPT, SEED
from benchmarks.ceiling import measure_tflops
from benchmarks.compiled import OurCompiled, StockAttention, StockCompiled, Turns
from benchmarks.families import load_family
from benchmarks.flops import Shape, step_tflop
from benchmarks.places import HELP, kind_of
from benchmarks.rows import LatencyRow
from benchmarks.stock import stock_pipeline
from pipelines.components import Components, pick_device
from pipelines.encode import describe, encode_image
from pipelines.engine import Engine
from pipelines.models import MODELS
from pipelines.request import GenerationRequest
from pipelines.source import SourceImage
from pipelines.speed.attention import attention_backend

HOSTED_S = {("flux-dev", 1024, 28): 16.20, ("flux-depth-dev", 1024, 28): 20.36}
"""What the hosted service's pages showed as the average of a call, network and queue included: the figures to beat."""

STOCK = ("eager", "compiled")


@dataclass(frozen=True, slots=True)
class Size:
    side: int
    steps: int


def main() -> None:
    given = parse()
    run = report.Run(given)
    device = pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        parts = load_family(given.weights, Path(scratch), device, dtype, fast=given.tiers != (tiers.EXACT,))
        rows = [
            row
            for model in parts.transformers
            for tier in given.tiers
            for row in measure_tier(parts, model, tier, given, Path(scratch))
        ]
    run.finish(report.LatencyReport, rows, weights=kind_of(given.weights), device=str(device))


def parse() -> argparse.Namespace:
    options = report.arguments(__doc__)
    options.add_argument("--weights", required=True, help=HELP)
    options.add_argument("--tiers", type=tiers.names, default=(tiers.EXACT,), help="of exact, fast, turbo")
    options.add_argument("--side", type=_numbers, default=(1024,), help="sides of square pictures")
    options.add_argument("--steps", type=_numbers, default=(28,))
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--stock", type=_stock, default=STOCK, help="what stands beside: of eager, compiled; or none")
    options.add_argument("--modes", type=_stock, default=STOCK, help="of the engine's blocks: of eager, compiled")
    given = options.parse_args()
    if given.quick:
        given.repeats, given.side, given.steps, given.stock, given.modes = 1, (256,), (2,), ("eager",), ("eager",)
    given.sizes = [Size(side, steps) for side in given.side for steps in given.steps]
    return given


def measure_tier(
    parts: Components, model: str, tier: str, given: argparse.Namespace, scratch: Path
) -> list[LatencyRow]:
    """A row per size and mode: the engine's blocks eager and compiled."""
    if tier not in parts.tiers:
        return [not_offered(model, tier, size) for size in given.sizes]
    network = tiers.network_of(parts, model, tier)
    modes = {name: OurCompiled(network, parts.vae) if name == "compiled" else None for name in given.modes}
    stock = given.stock if tier == tiers.EXACT else ()
    compiled = StockCompiled(network) if "compiled" in stock else None
    return [
        measure(parts, request_of(model, tier, size), given.repeats, mode, stock, compiled, scratch)
        for size in given.sizes
        for mode in modes.values()
    ]


def measure(
    parts: Components,
    request: GenerationRequest,
    repeats: int,
    mode: OurCompiled | None,
    stock: tuple[str, ...],
    compiled: StockCompiled | None,
    scratch: Path,
) -> LatencyRow:
    """One row: the first request with empty caches, then all sides in turns, then the ceiling."""
    parts.text.cache.clear()
    parts.control.cache.clear()
    ours = OurSide(parts, request, mode, scratch / "picture.webp")
    first_s = ours.draw()
    first_stages_s = ours.median_stages_s()
    sides: dict[str, Side] = {"ours": ours}
    if "eager" in stock:
        sides["eager"] = StockSide(parts, request, None)
    if compiled is not None:
        sides["compiled"] = StockSide(parts, request, compiled)
    compile_s, trouble = prepare(sides)
    for _ in range(repeats):
        for side in sides.values():
            side.draw()
    return LatencyRow(
        model=request.model,
        tier=request.tier,
        compiled=mode is not None,
        offered=True,
        width=request.width,
        height=request.height,
        steps=request.steps,
        repeats=repeats,
        first_s=seconds(first_s),
        first_stages_s=first_stages_s,
        warm_stages_s=ours.median_stages_s(),
        stock_compile_s=compile_s,
        stock_compiled_note=trouble,
        peak_memory_bytes=ours.peak_bytes,
        hosted_s=HOSTED_S.get((request.model, request.width, request.steps)),
        **beside(ours, sides),
        **limit(parts, request, ours.median_s),
    )


def request_of(model: str, tier: str, size: Size) -> GenerationRequest:
    return tiers.request_for(
        tier,
        model=model,
        prompt=PROMPT,
        width=size.side,
        height=size.side,
        steps=size.steps,
        guidance=3.5,
        seed=SEED,
        output_format="webp",
    )


def beside(ours: OurSide, sides: dict[str, Side]) -> dict[str, Any]:
    """Our median and theirs."""
    figures: dict[str, Any] = {"warm_s": seconds(ours.median_s)}
    theirs = {name: side for name, side in sides.items() if name in STOCK}
    for name, side in theirs.items():
        figures[f"stock_{name}_s"] = seconds(side.median_s)
        figures[f"ratio_to_{name}"] = seconds(ours.median_s / side.median_s)
    peaks = [side.peak_bytes for side in theirs.values() if side.peak_bytes is not None]
    return {**figures, "stock_peak_memory_bytes": max(peaks) if peaks else None}


def limit(parts: Components, request: GenerationRequest, warm_s: float) -> dict[str, Any]:
    """The transformer's work, what the device makes of such products, and how near to that the request came."""
    shape = Shape.of(parts.transformers[request.model])
    work = step_tflop(shape, request.width, request.height) * request.steps
    ceiling = measure_tflops(shape, request.width, request.height, parts.device, parts.dtype)
    return {
        "work_tflop": round(work, 4),
        "ceiling_tflops": round(ceiling, 3),
        "limit_s": seconds(work / ceiling),
        "limit_share": seconds(work / ceiling / warm_s),
    }


class Side:
    """Something that draws the request. Its times are medians of the draws since it was made or forgot."""

    def __init__(self, device: torch.device, conditions: Sequence[Turns]) -> None:
        """conditions: what is on while it draws."""
        self._device, self._conditions = device, conditions
        self.times_s: list[float] = []
        self.peak_bytes: int | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    def draw(self) -> float:
        """Draws once; returns its seconds, the device's work included."""
        with ExitStack() as stack:
            for condition in self._conditions:
                stack.enter_context(condition.on())
            return self._draw_timed(on_card=self._device.type == "cuda")

    def _draw_timed(self, *, on_card: bool) -> float:
        if on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        self._compute()
        if on_card:
            torch.cuda.synchronize()
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated())
        self.times_s.append(time.perf_counter() - start)
        return self.times_s[-1]

    def forget(self) -> None:
        self.times_s.clear()

    def _compute(self) -> None:
        raise NotImplementedError


class OurSide(Side):
    """The engine, to an encoded file."""

    def __init__(self, parts: Components, request: GenerationRequest, mode: Turns | None, path: Path) -> None:
        super().__init__(parts.device, [mode] if mode else [])
        self._engine, self._request, self._path = Engine(parts), request, path
        self._sources: dict[str, Any] = {}
        if MODELS[request.model].takes_control:
            gradient = Image.linear_gradient("L").resize((request.width, request.height)).convert("RGB")
            self._sources["control_image"] = SourceImage(gradient, "gradient")
        self.stages: list[dict[str, float]] = []

    def forget(self) -> None:
        super().forget()
        self.stages.clear()

    def median_stages_s(self) -> dict[str, float]:
        names = list(dict.fromkeys(name for stages in self.stages for name in stages))
        return {name: seconds(statistics.median(stages.get(name, 0.0) for stages in self.stages)) for name in names}

    def _compute(self) -> None:
        request = self._request
        generated = self._engine.generate(request, **self._sources)
        start = time.perf_counter()
        parameters = describe(request, generated.prompt, request.seed)
        data = encode_image(generated.images[0].pixels, request.output_format, request.output_quality, parameters)
        self._path.write_bytes(data)
        self.stages.append({**generated.timings_s, "encode": time.perf_counter() - start})


class StockSide(Side):
    """diffusers' pipeline, to a picture in memory; with its blocks compiled where `compiled` is given."""

    def __init__(self, parts: Components, request: GenerationRequest, compiled: StockCompiled | None) -> None:
        attention = StockAttention(parts.transformers[request.model], attention_backend(parts.device))
        super().__init__(parts.device, [attention, *([compiled] if compiled else [])])
        self._draw: Callable[[], Any] = stock_pipeline(parts, request)

    def _compute(self) -> None:
        self._draw()


def prepare(sides: dict[str, Side]) -> tuple[float | None, str | None]:
    """Draws once with every side and forgets it. A compiled side that cannot compile here leaves the sides.

    Returns what compiling took (the first draw beyond a later one), and why there is no compiled side.
    """
    compile_s, trouble = None, None
    for name, side in list(sides.items()):
        try:
            first_s = side.draw()
            if name == "compiled":
                compile_s = seconds(max(first_s - side.draw(), 0.0))
        except Exception as error:
            if name != "compiled":
                raise
            trouble = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            del sides[name]
        side.forget()
    return compile_s, trouble


def not_offered(model: str, tier: str, size: Size) -> LatencyRow:
    return LatencyRow(model=model, tier=tier, offered=False, width=size.side, height=size.side, steps=size.steps)


def seconds(value: float) -> float:
    return round(value, 4)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _stock(text: str) -> tuple[str, ...]:
    names = tuple(part for part in text.split(",") if part != "none")
    if unknown := [name for name in names if name not in STOCK]:
        raise ValueError(unknown[0])
    return names


if __name__ == "__main__":
    main()
