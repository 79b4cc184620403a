"""FLUX's own scheduler settings; there is nothing small about them."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching with a shift that grows with the picture (FLUX.1-dev, scheduler/scheduler_config.json)."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
