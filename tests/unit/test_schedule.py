"""The noise schedule: FLUX's published numbers, and to the last bit what diffusers' own pipeline uses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux import pipeline_flux
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.denoise import Denoiser, make_schedule, time_shift
from pipelines.sizes import ASPECT_SIZES, aspect_size, sequence_length
from pipelines.text import EncodedPrompt
from weights.demo.transformer import transformer
from weights.full_size import SCHEDULER

CPU = torch.device("cpu")
LENGTHS = sorted({sequence_length(*aspect_size(ratio, area)) for ratio in ASPECT_SIZES for area in ("1", "0.25")})
FIRST_SIGMAS = [1.0, 0.9884, 0.9762, 0.9634, 0.9499, 0.9356]
LAST_SIGMAS = [0.2748, 0.1955, 0.1047, 0.0]
TIMES_IN_BFLOAT16 = [
    *(1000, 988, 976, 964, 948, 936, 920, 904, 888, 868, 852, 828, 808, 784, 760, 732, 704, 672, 636, 600, 560, 512),
    *(462, 408, 344, 274, 195, 104.5),
]
"""What diffusers' transformer embeds in 28 steps at one megapixel: 1000 σ after rounding 1000 σ, σ and 1000 σ again.
black-forest-labs/flux rounds σ and 1000 σ once each, which in 7 of these 28 steps gives the neighbouring number."""


class TimeRecorder(FluxTransformer2DModel):
    """Does no more than note which timesteps it is called with."""

    def __init__(self) -> None:
        super().__init__(
            num_layers=0, num_single_layers=0, attention_head_dim=8, num_attention_heads=1, guidance_embeds=True
        )
        self.seen: list[torch.Tensor] = []

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.seen.append(timestep)
        return (torch.zeros_like(hidden_states),)


@pytest.fixture
def recorder() -> TimeRecorder:
    return TimeRecorder().to(torch.bfloat16)


def run_diffusers(recorder: TimeRecorder, width: int, height: int, steps: int) -> Any:
    """The scheduler of a FluxPipeline that has drawn one picture."""
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxPipeline(scheduler=scheduler, transformer=recorder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt_embeds=torch.zeros(1, 1, 4096, dtype=torch.bfloat16),
        pooled_prompt_embeds=torch.zeros(1, 768, dtype=torch.bfloat16),
        width=width,
        height=height,
        num_inference_steps=steps,
        output_type="latent",
    )
    return pipeline.scheduler


def run_ours(model: Any, schedule: FlowMatchEulerDiscreteScheduler, width: int) -> torch.Tensor:
    """The latents after a whole run over four tokens of a model with text embeddings of `width` channels."""
    text = EncodedPrompt(
        embeds=torch.zeros(1, 1, width, dtype=torch.bfloat16),
        pooled=torch.zeros(1, width, dtype=torch.bfloat16),
        ids=torch.zeros(1, 3, dtype=torch.bfloat16),
        tokens=1,
    )
    denoiser = Denoiser(
        model,
        schedule,
        latents=torch.ones(1, 4, 64, dtype=torch.bfloat16),
        image_ids=torch.zeros(4, 3, dtype=torch.bfloat16),
        texts=[text],
        guidance=[3.5],
    )
    with torch.inference_mode():
        while not denoiser.done:
            denoiser.step()
    return denoiser.latents


def test_the_published_sigmas_of_28_steps_at_one_megapixel() -> None:
    sigmas = make_schedule(SCHEDULER, 28, 4096, CPU).sigmas
    assert len(sigmas) == 29
    assert [round(value, 4) for value in sigmas[:6].tolist()] == FIRST_SIGMAS
    assert [round(value, 4) for value in sigmas[-4:].tolist()] == LAST_SIGMAS


@settings(deadline=None, max_examples=50)
@given(steps=st.integers(1, 50), tokens=st.integers(1, 8100))
def test_sigmas_follow_the_formula(steps: int, tokens: int) -> None:
    """σ' = e^mu / (e^mu + 1/σ − 1) over evenly spaced σ (black-forest-labs/flux, `sampling.py`)."""
    sigmas = make_schedule(SCHEDULER, steps, tokens, CPU).sigmas.numpy()
    e_mu = np.exp(0.5 + (tokens - 256) * 0.65 / 3840)
    even = np.linspace(1.0, 1 / steps, steps)
    np.testing.assert_allclose(sigmas, [*(e_mu / (e_mu + 1 / even - 1)), 0], rtol=1e-6)


@pytest.mark.parametrize(("tokens", "mu"), [(4, 0.4573), (256, 0.5), (1024, 0.63), (4096, 1.15), (8100, 1.8278)])
def test_mu_is_a_line_beyond_both_ends(tokens: int, mu: float) -> None:
    assert time_shift(tokens, SCHEDULER) == pytest.approx(mu, abs=5e-5)


def test_mu_is_what_diffusers_calculates() -> None:
    for tokens in range(1, 8101):
        assert time_shift(tokens, SCHEDULER) == pipeline_flux.calculate_shift(tokens, 256, 4096, 0.5, 1.15)


@pytest.mark.parametrize("steps", range(1, 51))
def test_every_number_of_steps_goes_strictly_down_from_one_to_zero(steps: int) -> None:
    for tokens in (4, 256, *LENGTHS, 8100):
        schedule = make_schedule(SCHEDULER, steps, tokens, CPU)
        sigmas = schedule.sigmas.tolist()
        assert len(sigmas) == len(schedule.timesteps) + 1 == steps + 1
        assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
        assert all(later < earlier for earlier, later in pairwise(sigmas))
        assert torch.equal(schedule.timesteps, schedule.sigmas[:-1] * 1000)


@pytest.mark.parametrize("steps", range(1, 51))
def test_every_number_of_steps_is_what_diffusers_sets(steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    for tokens in (4, *LENGTHS, 8100):
        mu = pipeline_flux.calculate_shift(tokens)
        pipeline_flux.retrieve_timesteps(theirs, steps, CPU, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        ours = make_schedule(SCHEDULER, steps, tokens, CPU)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize(
    ("width", "height", "steps"), [(1024, 1024, 28), (1344, 768, 25), (512, 512, 1), (1440, 1440, 50), (32, 32, 4)]
)
def test_the_model_is_told_the_times_that_flux_pipeline_tells_it(
    recorder: TimeRecorder, width: int, height: int, steps: int
) -> None:
    theirs = run_diffusers(recorder, width, height, steps)
    told, recorder.seen = recorder.seen, []
    ours = make_schedule(SCHEDULER, steps, sequence_length(width, height), CPU)
    run_ours(recorder, ours, 1)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert len(told) == steps
    assert all(time.dtype == torch.bfloat16 for time in recorder.seen)
    assert torch.equal(torch.cat(recorder.seen), torch.cat(told))


def test_times_reach_the_embedding_rounded_to_bfloat16() -> None:
    seen: list[float] = []
    model = transformer(in_channels=64).to(torch.bfloat16)
    model.time_text_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].item()))
    run_ours(model, make_schedule(SCHEDULER, 28, 4096, CPU), 32)
    assert seen == TIMES_IN_BFLOAT16


def test_each_schedule_is_its_own() -> None:
    alone = [make_schedule(SCHEDULER, steps, tokens, CPU) for steps, tokens in ((3, 4096), (5, 1024))]
    states = [torch.ones(1, 4, 64), torch.ones(1, 4, 64)]
    wanted = [_integrate(schedule, state) for schedule, state in zip(alone, states, strict=True)]
    turns = [make_schedule(SCHEDULER, steps, tokens, CPU) for steps, tokens in ((3, 4096), (5, 1024))]
    for step in range(5):
        for index, schedule in enumerate(turns):
            if step < len(schedule.timesteps):
                states[index] = _step(schedule, step, states[index])
    assert all(torch.equal(state, result) for state, result in zip(states, wanted, strict=True))


def test_an_abandoned_schedule_leaves_nothing_behind() -> None:
    abandoned = make_schedule(SCHEDULER, 4, 4096, CPU)
    _step(abandoned, 0, torch.ones(1, 4, 64))
    again = make_schedule(abandoned.config, 4, 4096, CPU)
    fresh = make_schedule(SCHEDULER, 4, 4096, CPU)
    assert again.step_index is None
    assert torch.equal(_integrate(again, torch.ones(1, 4, 64)), _integrate(fresh, torch.ones(1, 4, 64)))


def _integrate(schedule: FlowMatchEulerDiscreteScheduler, state: torch.Tensor) -> torch.Tensor:
    for step in range(len(schedule.timesteps)):
        state = _step(schedule, step, state)
    return state


def _step(schedule: FlowMatchEulerDiscreteScheduler, step: int, state: torch.Tensor) -> torch.Tensor:
    """One Euler step with a velocity that depends on the state, so that an error in any step shows at the end."""
    return schedule.step(torch.sin(state), schedule.timesteps[step], state, return_dict=False)[0]
