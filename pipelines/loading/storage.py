"""How a component's weights are kept between calls: as they are computed with, or smaller."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from weights.sources import Source

from .refusals import UnusableWeights

Storage = Literal["computed", "nf4"]
"""computed: in the dtype that is computed in. nf4: linear layers in 4 bits (bitsandbytes)."""

INSTALL = "pip install 'flux-local-server[nf4]'"


def nf4_options(kind: Any, dtype: torch.dtype) -> dict[str, Any]:
    """`kind`, a class of bitsandbytes' settings in diffusers or transformers, filled in for computing in `dtype`.

    Raises UnusableWeights where bitsandbytes is not installed.
    """
    require_bitsandbytes("storage nf4")
    return {
        "quantization_config": kind(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=False
        )
    }


def quantisation_of(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says of its quantisation; empty for plain weights. Raises OSError, ValueError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("quantization_config") or {})


def is_quantised(source: Source) -> bool:
    """Whether the weights are quantised in their file, so that nothing else can be made of them.

    Raises as `check_quantisation`.
    """
    return source.form == "gguf" or (source.form == "folder" and check_quantisation(source.path))


def check_quantisation(folder: Path) -> bool:
    """Whether the folder's weights are quantised. Raises UnusableWeights where what they need is not here, OSError."""
    quantisation = quantisation_of(folder)
    if not quantisation:
        return False
    method = quantisation.get("quant_method", "unknown")
    if method != "bitsandbytes":
        raise UnusableWeights(f"{folder} is quantised by {method}; folders quantised by bitsandbytes are loaded")
    require_bitsandbytes(str(folder))
    return True


def require_bitsandbytes(what: str) -> None:
    """Raises UnusableWeights, which begins with `what` and says how to install it, where it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UnusableWeights(f"{what} needs bitsandbytes, which is not installed: {INSTALL}")
