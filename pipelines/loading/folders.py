"""A component from its folder, as diffusers and transformers save it: config.json and safetensors, sharded or not.

Both libraries read shards in parallel: transformers always, diffusers where HF_ENABLE_PARALLEL_LOADING is set before
its import, as the worker does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .headers import check_names_and_shapes, read_headers, refuse_unknown
from .refusals import UnusableWeights, listed, refuse_missing
from .storage import quantisation_of


def load_folder(kind: Any, folder: Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """The component of class `kind`, in eval mode, without gradients, read straight to `device` and free to move.

    options: more of `from_pretrained`'s. Raises UnusableWeights where a file is damaged or tensors are missing or of
    another shape, OSError where files are missing.
    """
    tensors = read_headers(folder)
    if issubclass(kind, ModelMixin) and not quantisation_of(folder):
        # diffusers itself reports a missing tensor only as one that cannot be moved.
        check_names_and_shapes(folder, tensors, _empty(kind, folder).state_dict())
    return pretrained(kind, folder, folder, device=device, dtype=dtype, use_safetensors=True, **options)


def pretrained(
    kind: Any, path: Path, place: Path | None, *, device: torch.device, dtype: torch.dtype, **options: Any
) -> Any:
    """What `kind.from_pretrained(place)` gives, strictly. path: what a refusal names. Raises as `load_folder`."""
    with quietly():
        model, report = kind.from_pretrained(
            place,
            local_files_only=True,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            # Refused below, in words. diffusers' shapes were checked before, and quantised ones look mismatched to it.
            ignore_mismatched_sizes=not issubclass(kind, ModelMixin),
            **options,
        )
    refuse_missing(path, report["missing_keys"])
    if mismatched := [str(name) for name, *_ in report["mismatched_keys"]]:
        raise UnusableWeights(
            f"{path} is another model's: {listed(mismatched)} have another shape than its config says"
        )
    refuse_unknown(path, report["unexpected_keys"])
    return at_rest(model)


def _empty(kind: Any, folder: Path) -> Any:
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def at_rest(model: Any) -> Any:
    """The model ready to compute. diffusers notes the device map, and offloading refuses a model that has one."""
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    return model.eval().requires_grad_(False)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' bars, which have no place in a log, and reports, which become refusals here."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
