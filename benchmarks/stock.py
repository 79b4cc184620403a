"""diffusers' own pipelines on the engine's very modules: eager, and compiled by regions as diffusers' pages advise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class CompiledBlocks:
    """A transformer whose repeated blocks can be compiled and eager in turns, so that both are measured in one run.

    Relies on torch.nn.Module.compile keeping the compiled call beside the eager one in `_compiled_call_impl`.
    """

    def __init__(self, transformer: Any) -> None:
        transformer.compile_repeated_blocks(fullgraph=True)
        self._calls = [
            (module, module._compiled_call_impl)
            for module in transformer.modules()
            if module._compiled_call_impl is not None
        ]
        self._switch(on=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        for module, compiled in self._calls:
            module._compiled_call_impl = compiled if on else None
