"""Which requests may be drawn together in one batch, and where. Torch-free.

A small picture leaves most of a card idle, so several of one size take little longer than one. A large one fills it by
itself: at 1024×1024 a batch would bring next to nothing and delay the first of its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .memory.activations import TEXT_TOKENS, TOKEN_PIXELS, decode_bytes, denoise_bytes
from .request import GenerationRequest, Lora
from .speed.tiers import FAST, TIERS, TURBO

BATCH_PIXELS = 512 * 512
"""Most pixels of a picture that is drawn in company: every size that a quarter of a megapixel gives."""

MAX_TOGETHER = 4

Switch = Literal["auto", "on", "off"]

Company = tuple[str, int, int, int, int, tuple[Lora, ...], str, bool]


def company(request: GenerationRequest) -> Company | None:
    """Requests for which this is equal may be drawn together; None for one that is always drawn alone.

    Prompt, seed, guidance, pictures, safety and output format may differ within a company. A step cache decides for a
    whole batch, so that in `turbo` a picture would depend on the others.
    """
    small = request.width * request.height <= BATCH_PIXELS and request.num_outputs == 1
    if not small or request.upsample_prompt or request.tier == TURBO.name:
        return None
    return (
        request.model,
        request.width,
        request.height,
        request.steps,
        request.first_step,
        tuple(sorted(request.loras, key=lambda lora: lora.name)),
        request.tier,
        request.prefer_fast,
    )


def batching_tiers(switch: Switch, offered: Sequence[str], *, on_card: bool) -> tuple[str, ...]:
    """The tiers in which pictures are drawn together.

    auto: `fast` on a card, whose pictures are no promise to the bit; on: all but those with a step cache.
    """
    if switch == "off" or (switch == "auto" and not on_card):
        return ()
    able = tuple(name for name in offered if not TIERS[name].step_cache)
    return able if switch == "on" else tuple(name for name in able if name == FAST.name)


def most_together(max_pixels: int) -> int:
    """How many small pictures have room at once where one of `max_pixels` has: 1 to MAX_TOGETHER.

    A batch is denoised together and decoded one by one, and each brings its own text: four of 512×512 take a third more
    memory in denoising than one of 1024×1024, and far less than that one's decoding. In bytes per byte of a value.
    """
    room_bytes = max(denoise_bytes(max_pixels, 1), decode_bytes(max_pixels, 1))
    return max(min(room_bytes // denoise_bytes(BATCH_PIXELS, 1), MAX_TOGETHER), 1)


def pixels_as_one(requests: Sequence[GenerationRequest]) -> int:
    """Pixels of the single picture that takes as many tokens as these requests in one batch, or as one alone."""
    texts = max(len(requests) - 1, 0) * TEXT_TOKENS * TOKEN_PIXELS
    return sum(request.width * request.height for request in requests) + texts
