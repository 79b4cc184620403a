"""What the device is like and which plan it would get: read from stdin as JSON, answered on stdout as JSON.

    python -P -m pipelines.probe < load.json

A process of its own, because whoever asks must not import torch, and because asking a card makes a CUDA context.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import psutil
import torch

from .components import Folders, measure_folders, pick_device
from .memory.footprint import FULL_SIZE, Footprint
from .memory.planning import plan_here
from .memory.plans import NoPlan

STEP_TFLOP = 74.4
"""Of one step at 1024×1024 (2·12·3072²·57·4608 for the layers and 4·57·4608²·3072 for attention)."""

ATTENTION_PACKAGES = {
    "FlashAttention 3": "flash_attn_interface",
    "FlashAttention 2": "flash_attn",
    "SageAttention": "sageattention",
    "xFormers": "xformers",
}
MATRIX_SIDE = 1536


def main() -> None:
    wanted = json.load(sys.stdin)
    device = pick_device(wanted["device"])
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": str(device),
        "host_bytes": psutil.virtual_memory().total,
        **(_card(device) if device.type == "cuda" else _processor(device)),
        **_plan(wanted, device),
    }
    print(json.dumps(found))  # noqa: T201


def _card(device: torch.device) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info(device)
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "free_bytes": free,
        "total_bytes": total,
        "attention": [*_built_in_attention(), *_installed_attention()],
    }


def _built_in_attention() -> list[str]:
    backends: Any = torch.backends.cuda
    kinds = {
        "cuDNN": backends.cudnn_sdp_enabled(),
        "flash": backends.flash_sdp_enabled() and backends.is_flash_attention_available(),
        "memory-efficient": backends.mem_efficient_sdp_enabled(),
    }
    return [f"torch's {name}" for name, there in kinds.items() if there]


def _installed_attention() -> list[str]:
    return [name for name, package in ATTENTION_PACKAGES.items() if find_spec(package)]


def _processor(device: torch.device) -> dict[str, Any]:
    """What a matrix product reaches here, and what that makes of a step at best."""
    tflops = _matrix_tflops(device)
    return {
        "card": None,
        "attention": ["torch's own"],
        "matrix_tflops": round(tflops, 3),
        "least_step_s": round(STEP_TFLOP / tflops, 1),
    }


def _matrix_tflops(device: torch.device) -> float:
    left = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX_SIDE**3 / best / 1e12


def _plan(wanted: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The plan for the weights that are there, or for the published ones where none are."""
    folders = Folders.from_json(wanted)

    try:
        plan, dtype = plan_here(
            partial(measure_folders, folders) if folders.models else _published,
            device,
            wanted["dtype"],
            wanted=wanted["memory_plan"],
            limit_bytes=wanted["memory_limit_bytes"],
            fast=wanted["fast_tiers"],
        )
    except (NoPlan, ValueError, OSError) as error:
        return {"plan": None, "plan_for": _whose(folders), "plan_line": str(error)}
    return {
        "plan": plan.name,
        "plan_for": _whose(folders),
        "plan_line": plan.line(),
        "dtype": str(dtype).removeprefix("torch."),
        "plan_bytes": {key: value for key, value in asdict(plan).items() if key in ("device", "peaks", "host_bytes")},
    }


def _whose(folders: Folders) -> str:
    return "the weights that are here" if folders.models else "both models as published"


def _published(value_bytes: int) -> Footprint:
    return replace(FULL_SIZE, value_bytes=value_bytes)


if __name__ == "__main__":
    main()
