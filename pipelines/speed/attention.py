"""The attention kernels that a card has for FLUX.1: no mask, heads of 128, bfloat16.

All of these compute the same numbers up to rounding; kernels that quantise (SageAttention) are not among them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

NATIVE = "native"
"""What torch picks, and what every transformer has from the start."""

CUDNN = "_native_cudnn"

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
    return CUDNN if capability >= HOPPER else NATIVE


def use_attention(transformer: Any, backend: str) -> None:
    """Sets the kernel for every attention of the transformer. diffusers also makes it the process's default."""
    transformer.set_attention_backend(backend)


def switches_for_all(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether choosing the transformers' kernel would disturb another thread that computes on this device.

    diffusers picks cuDNN by turning all other kernels off while it runs (torch.nn.attention.sdpa_kernel), for every
    thread of the process: one that computes another attention meanwhile would find no kernel or another than usual.
    Where cuDNN's can be called by its name, this makes diffusers do so from now on, and nobody is disturbed.
    """
    return attention_backend(device, dtype) == CUDNN and not _calls_cudnn_by_name(device)


def _calls_cudnn_by_name(device: torch.device) -> bool:
    """False, and nothing is changed, where this torch, this diffusers or this card cannot."""
    trial = torch.ones(1, 64, 2, 128, device=device, dtype=torch.bfloat16)
    try:
        from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

        with torch.inference_mode():
            cudnn_attention(trial, trial, trial)
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, TypeError):
        return False
    _AttentionBackendRegistry.register(AttentionBackendName(CUDNN))(cudnn_attention)
    return True


def cudnn_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """[B, L, heads, channels] of each → the same; what diffusers' `_native_cudnn` computes."""
    q, k, v = (x.permute(0, 2, 1, 3).contiguous() for x in (query, key, value))
    # The operator that torch's scaled_dot_product_attention takes when cuDNN is its choice, by position: mask, log-sum,
    # dropout, causal, debug mask.
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out: torch.Tensor = attend(q, k, v, attn_mask, False, dropout_p, is_causal, False, scale=scale)[0]
    return out.permute(0, 2, 1, 3)
