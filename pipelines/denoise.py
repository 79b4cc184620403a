"""The denoising loop, one step at a time, over diffusers' transformer and scheduler.

Reference: black-forest-labs/flux `sampling.py` and diffusers' `FluxPipeline.__call__`, `FluxControlPipeline.__call__`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .text import EncodedPrompt


def time_shift(sequence_length: int, config: Any) -> float:
    """mu, the schedule's shift, a line through (256 tokens, 0.5) and (4096, 1.15) that is not clamped beyond them."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (top - base) / (high - low)
    return float(sequence_length * slope + (base - slope * low))


def make_schedule(
    config: Any, steps: int, sequence_length: int, device: torch.device, *, first_step: int = 0
) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler of its own for one image or batch, set to `steps` steps from sigma 1 to 0 with its size's shift.

    first_step: where an init image enters; the steps before it are not taken.

    A fresh one each time: schedulers carry state, and a cancelled image must not leave any behind.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps),
        mu=time_shift(sequence_length, scheduler.config),
        device=device,
    )
    # Known from the start, so that the first step need not search for it on the device and wait for the answer.
    scheduler.set_begin_index(first_step)
    return scheduler


def add_noise(scheduler: FlowMatchEulerDiscreteScheduler, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The state that an init image enters with: sigma · noise + (1 − sigma) · latents, sigma of its first step."""
    sigma: torch.Tensor = scheduler.sigmas[scheduler.begin_index].to(latents.dtype)
    return sigma * noise + (1.0 - sigma) * latents


class Denoiser:
    """Images of one size and one schedule on their way from noise to latents.

    latents: [B, L, 64], the current state. texts, guidance: one for each image. control: [B, L, 64] or None, appended
    to the channels at every step.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        *,
        latents: torch.Tensor,
        image_ids: torch.Tensor,
        texts: Sequence[EncodedPrompt],
        guidance: Sequence[float],
        control: torch.Tensor | None = None,
    ) -> None:
        self._transformer, self._scheduler = transformer, scheduler
        self._image_ids, self._text_ids, self._control = image_ids, texts[0].ids, control
        self._embeds = torch.cat([text.embeds for text in texts])
        self._pooled = torch.cat([text.pooled for text in texts])
        self._guidance = torch.tensor(guidance, device=latents.device, dtype=torch.float32)
        self._timesteps = scheduler.timesteps[scheduler.begin_index :]
        self.latents = latents
        self.steps = len(self._timesteps)
        self.steps_done = 0

    @property
    def done(self) -> bool:
        return self.steps_done == self.steps

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with the images at these places only."""
        if len(places) == len(self.latents):
            return
        rows = torch.tensor(places, device=self.latents.device)
        self.latents, self._guidance = self.latents[rows], self._guidance[rows]
        self._embeds, self._pooled = self._embeds[rows], self._pooled[rows]
        self._control = None if self._control is None else self._control[rows]

    def step(self) -> None:
        """Takes one step: one call of the transformer and one Euler update in float32."""
        t = self._timesteps[self.steps_done]
        velocity = self._transformer(
            hidden_states=self._model_input(),
            timestep=t.expand(len(self.latents)).to(self.latents.dtype) / 1000,
            guidance=self._guidance,
            pooled_projections=self._pooled,
            encoder_hidden_states=self._embeds,
            txt_ids=self._text_ids,
            img_ids=self._image_ids,
            return_dict=False,
        )[0]
        self.latents = self._scheduler.step(velocity, t, self.latents, return_dict=False)[0]
        self.steps_done += 1

    def _model_input(self) -> torch.Tensor:
        return self.latents if self._control is None else torch.cat([self.latents, self._control], dim=2)
