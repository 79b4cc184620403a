"""diffusers' own pipelines on the engine's very modules: text and control already encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipelines.components import Components
from pipelines.models import MODELS
from pipelines.request import GenerationRequest


def stock_pipeline(parts: Components, request: GenerationRequest) -> Callable[[], Any]:
    """A call that draws the request with FluxPipeline or FluxControlPipeline, text and control already encoded."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline, FluxPipeline

    takes_control = MODELS[request.model].takes_control
    pipeline = (FluxControlPipeline if takes_control else FluxPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config),
        vae=parts.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=parts.transformers[request.model],
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        text = parts.text.encode(request.prompt)
    inputs: dict[str, Any] = {"prompt_embeds": text.embeds, "pooled_prompt_embeds": text.pooled}
    if takes_control:
        length = (request.width // 16) * (request.height // 16)
        inputs["control_image"] = torch.randn(1, length, 64, device=parts.device, dtype=parts.dtype)

    def draw() -> Any:
        return pipeline(
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **inputs,
        )

    return draw
