"""The attention kernels that a card has for FLUX.1: no mask, heads of 128, bfloat16.

All of these compute the same numbers up to rounding; kernels that quantise (SageAttention) are not among them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

NATIVE = "native"
"""What torch picks, and what every transformer has from the start."""

HOPPER, BLACKWELL = (9, 0), (10, 0)


def attention_backend(device: torch.device) -> str:
    """diffusers' name of the best kernel for the device: FlashAttention 3 on Hopper where it is installed, cuDNN's from
    Hopper on, what torch picks elsewhere."""
    if device.type != "cuda":
        return NATIVE
    capability = torch.cuda.get_device_capability(device)
    if HOPPER <= capability < BLACKWELL and find_spec("flash_attn_interface"):
        return "_flash_3"
    return "_native_cudnn" if capability >= HOPPER else NATIVE


def use_attention(transformer: Any, backend: str) -> None:
    """Sets the kernel for every attention of the transformer. diffusers also makes it the process's default."""
    transformer.set_attention_backend(backend)
