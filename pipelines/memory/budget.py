"""How much memory this process may take, on its device and on the host."""

from __future__ import annotations

import psutil
import torch

HOST_RESERVE_BYTES = 2 * 1024**3
"""Of the host's free memory, left to the rest of the machine."""


def device_budget_bytes(device: torch.device, limit_bytes: int | None = None) -> int:
    """Free memory of the device, or `limit_bytes` where that is less. The CPU's is the host's.

    On a card, what this process holds already counts as taken; call it before anything is loaded. A limit is also set
    as the allocator's own, so that what exceeds it is an out of memory here and not a loss to other programs.
    """
    if device.type != "cuda":
        return min(host_budget_bytes(), limit_bytes or host_budget_bytes())
    free, total = torch.cuda.mem_get_info(device)
    if limit_bytes is None or limit_bytes >= free:
        return int(free)
    torch.cuda.set_per_process_memory_fraction(limit_bytes / total, device)
    return limit_bytes


def host_budget_bytes() -> int:
    """Free memory of the host, without a reserve for others."""
    return max(int(psutil.virtual_memory().available) - HOST_RESERVE_BYTES, 0)
