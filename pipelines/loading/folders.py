"""A component from its folder, as diffusers and transformers save it: config.json and safetensors, sharded or not.

Both libraries read shards in parallel: transformers always, diffusers where HF_ENABLE_PARALLEL_LOADING is set before
its import, as the worker does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .headers import check_names_and_shapes, read_headers
from .refusals import UnusableWeights, listed, refuse_missing


def load_folder(kind: Any, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The component of class `kind`, in eval mode, without gradients, read straight to `device` and free to move.

    Raises UnusableWeights where a file is damaged or tensors are missing or of another shape, OSError where files are
    missing.
    """
    without_progress_bars()
    tensors = read_headers(folder)
    if issubclass(kind, ModelMixin):
        # diffusers itself reports a missing tensor only as one that cannot be moved.
        check_names_and_shapes(folder, tensors, _empty(kind, folder).state_dict())
    model, report = kind.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # and refused below, in words
    )
    refuse_missing(folder, report["missing_keys"])
    if mismatched := [str(name) for name, *_ in report["mismatched_keys"]]:
        raise UnusableWeights(
            f"{folder} is another model's: {listed(mismatched)} have another shape than its config says"
        )
    return at_rest(model)


def _empty(kind: Any, folder: Path) -> Any:
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def at_rest(model: Any) -> Any:
    """The model ready to compute. diffusers notes the device map, and offloading refuses a model that has one."""
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    return model.eval().requires_grad_(False)


def without_progress_bars() -> None:
    """Both libraries draw a bar for each model, which has no place in a log."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
