"""One small generation per model before the worker says that it is ready: loading alone proves nothing."""

from __future__ import annotations

from contextlib import suppress

from PIL import Image

from .engine import Engine, SourceImage
from .faults import Flagged
from .models import MODELS
from .request import GenerationRequest

SIDE = 256
STEPS = 2


def warm_up(engine: Engine) -> None:
    """Draws a small picture with every loaded model, through depth estimation, control and decode.

    Raises whatever a real request would raise.
    """
    for name in engine.model_names:
        draw_small(engine, name)


def draw_small(engine: Engine, model: str) -> None:
    """Draws a small picture with one model. Raises whatever a real request would raise."""
    request = GenerationRequest(
        model=model,
        prompt="warm-up",
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        guidance=3.5,
        seed=0,
        preprocess=engine.estimates_depth,
    )
    gradient = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    control = SourceImage(gradient, key="warm-up") if MODELS[model].takes_control else None
    with suppress(Flagged):
        engine.generate(request, control_image=control)
