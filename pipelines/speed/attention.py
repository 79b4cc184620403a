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


def attention_backend(device: torch.device, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> str:
    """diffusers' name of the best kernel for the device: FlashAttention 3 on Hopper where it is installed, cuDNN's from
    Hopper on, what torch picks elsewhere, in float32, and for heads that those kernels do not take."""
    if device.type != "cuda" or dtype != torch.bfloat16 or head_dim % 16 or head_dim > 128:
        return NATIVE
    capability = torch.cuda.get_device_capability(device)
    # diffusers asks for both: `flash_attn_3` is the package, `flash_attn_interface` the module that it imports.
    if HOPPER <= capability < BLACKWELL and find_spec("flash_attn_3") and find_spec("flash_attn_interface"):
        return "_flash_3"
    return "_native_cudnn" if capability >= HOPPER else NATIVE


def use_attention(transformer: Any, backend: str) -> None:
    """Sets the kernel for every attention of the transformer. diffusers also makes it the process's default."""
    transformer.set_attention_backend(backend)
