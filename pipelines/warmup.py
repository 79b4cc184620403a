"""What is drawn before the worker says that it is ready: loading alone proves nothing, and compiling takes time.

A size that is not warmed up is drawn all the same, only slower the first time; it never waits for a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from .company import BATCH_PIXELS
from .engine import Engine
from .faults import Flagged
from .models import MODELS
from .order import Asked
from .request import GenerationRequest
from .sizes import ASPECT_SIZES, aspect_size, control_size, sequence_length
from .source import SourceImage

SIDE = 256
STEPS = 2

PHOTO_SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
"""Shapes of photos that people have; a depth picture takes its shape from them."""

PHOTO_SCALE = 1000
"""Their sides in pixels are this many times as long: larger than any output."""


def warm_up(engine: Engine) -> None:
    """Draws a small picture with every loaded model, through depth estimation, control and decode.

    Raises whatever a real request would raise.
    """
    for name in engine.model_names:
        draw_small(engine, name)


def warm_up_sizes(
    engine: Engine,
    *,
    max_pixels: int,
    together: int = 1,
    together_tiers: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Draws with every model in every tier one picture of each declared sequence length that there is memory for.

    Two lengths also with a LoRA slot that is on and empty, where there are slots. Then batches, in the tiers that may
    have them, as `warm_up_together`. tell: hears what is being drawn. Raises as `warm_up`.
    """
    for model in engine.model_names:
        sizes = [size for size in declared_sizes(model) if size[0] * size[1] <= max_pixels]
        for tier in engine.tiers:
            tell(f"warming up {model}, tier {tier}: {len(sizes)} sizes")
            for width, height in sizes:
                draw_small(engine, model, width, height, tier)
        with engine.rehearsing_loras(model) as has_slot:
            for tier in engine.tiers if has_slot else ():
                for width, height in sizes[:2]:
                    draw_small(engine, model, width, height, tier)
        warm_up_together(engine, model, together, together_tiers, tell)


def warm_up_together(
    engine: Engine, model: str, together: int, tiers: Sequence[str], tell: Callable[[str], None] = lambda _: None
) -> None:
    """Draws batches of two and of `together`, each at two small declared sizes, with and without a LoRA slot.

    Compiled blocks take a batch of one for a constant and any other number for one that may change.
    """
    sizes = [size for size in declared_sizes(model) if size[0] * size[1] <= BATCH_PIXELS][:2]
    batches = [(count, size) for count in sorted({2, together}) for size in sizes]
    for tier in tiers if together > 1 else ():
        tell(f"warming up {model}, tier {tier}: batches of 2 and {together}")
        for count, (width, height) in batches:
            draw_small(engine, model, width, height, tier, count)
        with engine.rehearsing_loras(model) as has_slot:
            for count, (width, height) in batches if has_slot else ():
                draw_small(engine, model, width, height, tier, count)


def declared_sizes(model: str) -> list[tuple[int, int]]:
    """One size of each sequence length that the model's usual requests have, large ones first.

    flux-dev's eleven aspect ratios at two areas have ten lengths: width and height can be exchanged.
    """
    by_length = {sequence_length(*size): size for size in _usual_sizes(model)}
    return [by_length[length] for length in sorted(by_length, reverse=True)]


def _usual_sizes(model: str) -> Iterator[tuple[int, int]]:
    if MODELS[model].takes_control:
        for wide, high in PHOTO_SHAPES:
            photo = wide * PHOTO_SCALE, high * PHOTO_SCALE
            yield from (control_size(*photo, "1"), control_size(*photo, "0.25"))
    else:
        for ratio in ASPECT_SIZES:
            yield from (aspect_size(ratio, "1"), aspect_size(ratio, "0.25"))


def draw_small(
    engine: Engine, model: str, width: int = SIDE, height: int = SIDE, tier: str = "", together: int = 1
) -> None:
    """Draws pictures in two steps with one model, `together` of them in one batch.

    Raises whatever real requests would raise.
    """
    request = GenerationRequest(
        model=model,
        prompt="warm-up",
        width=width,
        height=height,
        steps=STEPS,
        guidance=3.5,
        seed=0,
        preprocess=engine.estimates_depth,
        tier=tier,
    )
    gradient = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    control = SourceImage(gradient, key=f"warm-up {width}x{height}") if MODELS[model].takes_control else None
    outcomes = engine.generate_together([Asked(request=request, control_image=control)] * together)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, Flagged):
            raise outcome
