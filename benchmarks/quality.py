"""What a tier costs in likeness: its pictures against the exact ones, same weights, prompts and seeds.

    python -m benchmarks.quality --weights DIR --tiers exact,fast,turbo [--save]
    python -m benchmarks.quality --weights demo

The reference is the exact tier computed with eager modules in the model's own precision; `--reference float32` takes
float32 instead (on a card with room for it). Pictures are compared as floats, before they are rounded to 8 bits. Random
weights are refused: likeness of noise to noise says nothing. Demo weights run, to see that the tool does; their figures
are no statement about FLUX. LPIPS needs the `lpips` package and its weights on this machine; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks import report, tiers
from benchmarks.calls import photo
from benchmarks.families import load_family
from benchmarks.likeness import floats_of, lpips_or_none, psnr_db, ssim
from benchmarks.places import kind_of
from benchmarks.rows import QualityRow
from pipelines.components import Components, pick_device
from pipelines.engine import Engine
from pipelines.models import MODELS
from pipelines.picture import decode
from pipelines.source import SourceImage

PROMPTS = (
    "a red fox in snow",
    "an old harbour at dawn, fishing boats, mist, oil painting",
    'a shop sign that reads "OPEN UNTIL LATE", neon, rain',
    "portrait of an elderly woman laughing, window light, 85 mm",
    "isometric drawing of a small library with tiny people",
    "two white cups and one blue cup on a wooden table",
    "a glass chess set, macro, shallow depth of field",
    "city street at night from above, long exposure",
)
"""Animals, style, lettering, a face, fine structure, counting, glass, lights: what approximations break first."""

SEEDS = (1, 46588)
REFUSED = 2
DEMO_NOTE = "demo weights: shows that the tool works, says nothing about FLUX"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is drawn with every tier."""

    model: str
    side: int
    steps: int
    prompts: Sequence[str]
    seeds: Sequence[int]


def main() -> None:
    given = parse()
    if given.weights == "random":
        print("refused: with random weights every picture is noise, so likeness says nothing", file=sys.stderr)
        raise SystemExit(REFUSED)
    run = report.Run(given)
    device = pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = [row for model in MODELS for row in measure_model(given, model, device, dtype)]
    run.finish(report.QualityReport, rows, weights=kind_of(given.weights), device=str(device))


def parse() -> argparse.Namespace:
    options = report.arguments(__doc__)
    options.add_argument("--weights", required=True, help="demo, or a folder of real models")
    options.add_argument("--tiers", type=tiers.names, default=tiers.KNOWN)
    options.add_argument("--reference", choices=("own", "float32"), default="own", help="precision of the reference")
    options.add_argument("--side", type=int, default=1024)
    options.add_argument("--steps", type=int, default=28)
    options.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the set")
    given = options.parse_args()
    if given.quick:
        given.side, given.steps, given.prompts = 256, 2, 1
    return given


def measure_model(given: argparse.Namespace, model: str, device: torch.device, dtype: torch.dtype) -> list[QualityRow]:
    wanted = Wanted(model, given.side, given.steps, PROMPTS[: given.prompts], SEEDS)
    precision = torch.float32 if given.reference == "float32" else dtype
    reference_name = f"exact, eager, {str(precision).removeprefix('torch.')}"
    reference = draw_all(given.weights, tiers.EXACT, wanted, device, precision)
    assert reference is not None, "exact is always offered"
    rows = []
    for tier in given.tiers:
        drawn = draw_all(given.weights, tier, wanted, device, dtype)
        if drawn is None:
            rows.append(QualityRow(model=model, tier=tier, reference=reference_name, offered=False))
            continue
        note = DEMO_NOTE if kind_of(given.weights) == "demo" else None
        rows.append(row(model, tier, reference_name, reference, drawn, note))
    return rows


def draw_all(
    weights: str, tier: str, wanted: Wanted, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor] | None:
    """Every prompt with every seed: float32 [3, H, W] in 0–1 on the CPU, before rounding to 8 bits.

    None where the tier is not offered.
    """
    with tempfile.TemporaryDirectory() as scratch:
        parts = load_family(weights, Path(scratch), device, dtype, fast=tier != tiers.EXACT)
        if tier not in parts.tiers:
            return None
        return [draw(parts, tier, wanted, prompt, seed) for prompt in wanted.prompts for seed in wanted.seeds]


def draw(parts: Components, tier: str, wanted: Wanted, prompt: str, seed: int) -> torch.Tensor:
    request = tiers.request_for(
        tier,
        model=wanted.model,
        prompt=prompt,
        width=wanted.side,
        height=wanted.side,
        steps=wanted.steps,
        guidance=3.5,
        seed=seed,
        check_safety=False,
    )
    control = control_photo() if MODELS[wanted.model].takes_control else None
    with floats_of(parts.vae) as pictures:
        Engine(parts).generate(request, control_image=control)
    return pictures[-1]


def control_photo() -> SourceImage:
    return SourceImage(decode(photo()), key="photo")


def row(
    model: str,
    tier: str,
    reference_name: str,
    reference: Sequence[torch.Tensor],
    drawn: Sequence[torch.Tensor],
    note: str | None,
) -> QualityRow:
    pairs = list(zip(reference, drawn, strict=True))
    differing = [pair for pair in pairs if not torch.equal(*pair)]
    psnr = [psnr_db(*pair) for pair in differing]
    likeness = [ssim(*pair) for pair in pairs]
    learned = lpips_or_none()
    distances = [learned(*pair) for pair in pairs] if learned else []
    return QualityRow(
        model=model,
        tier=tier,
        reference=reference_name,
        offered=True,
        pictures=len(pairs),
        identical=len(pairs) - len(differing),
        psnr_db_median=rounded(statistics.median, psnr),
        psnr_db_worst=rounded(min, psnr),
        ssim_median=rounded(statistics.median, likeness),
        ssim_worst=rounded(min, likeness),
        lpips_median=rounded(statistics.median, distances),
        lpips_worst=rounded(max, distances),
        note=note,
    )


def rounded(choose: Callable[[Sequence[float]], float], values: Sequence[float]) -> float | None:
    return round(choose(values), 4) if values else None


if __name__ == "__main__":
    main()
