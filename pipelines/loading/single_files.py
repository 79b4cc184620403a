"""A diffusers component from one safetensors file, in the original authors' names or in diffusers' own.

diffusers does the conversion (`from_single_file`). It leaves tensors that are missing without values and passes over
ones that it does not know; here both are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open

from weights.headers import Tensor
from weights.sources import Source

from .architecture import Architecture, as_folder
from .folders import at_rest, quietly
from .headers import read_header, refuse_unknown
from .placing import Placed
from .refusals import UnusableWeights, refuse_missing
from .scaled_fp8 import split_scales

ORIGINAL = ("double_blocks.", "single_blocks.", "encoder.down.", "decoder.up.")
"""What names begin with in the original authors' files and in no file of diffusers'."""


def header_of(source: Source) -> dict[str, Tensor]:
    """The component's tensors by name, without the prefix. Raises UnusableWeights, OSError."""
    tensors = read_header(source.path).tensors
    found = {
        name.removeprefix(source.prefix): value for name, value in tensors.items() if name.startswith(source.prefix)
    }
    if not found:
        raise UnusableWeights(f"{source.path} holds no tensors whose names begin with {source.prefix}")
    return found


def read_tensors(source: Source, *, device: torch.device, dtype: torch.dtype) -> Placed:
    """The component's tensors, mapped from the file rather than read, and placed as they are taken.

    Raises UnusableWeights, OSError.
    """
    names = header_of(source)
    with safe_open(source.path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(source.prefix + name) for name in names}
    kept, scales = split_scales(source.path, tensors)
    return Placed(kept, scales, device=device, dtype=dtype)


def convert(
    kind: Any,
    source: Source,
    tensors: dict[str, torch.Tensor],
    architecture: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: Any = None,
) -> Any:
    """A component of class `kind` with these tensors, on `device` in `dtype`, ready to compute and free to move.

    Takes the tensors that it uses out of `tensors`, where the names are the original authors'. Raises UnusableWeights.
    """
    if not any(name.startswith(ORIGINAL) for name in tensors):
        _check_names(kind, source, tensors, architecture)
    try:
        with as_folder(kind.__name__, architecture) as folder, quietly():
            model = kind.from_single_file(
                tensors,
                config=folder,
                local_files_only=True,
                dtype=dtype,
                device=device,
                quantization_config=quantisation,
            )
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError) as error:
        raise UnusableWeights(f"{source.path} lacks tensors of this component: {error}") from error
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UnusableWeights(f"{source.path} is damaged or another model's: {error}") from error
    refuse_missing(source.path, [name for name, value in model.state_dict().items() if value.is_meta])
    return at_rest(model)


def _check_names(kind: Any, source: Source, tensors: dict[str, torch.Tensor], architecture: Architecture) -> None:
    """A file in diffusers' names must have exactly the component's, or diffusers would try to convert it."""
    with torch.device("meta"):
        wanted = kind.from_config(dict(architecture)).state_dict().keys()
    refuse_missing(source.path, wanted - tensors.keys())
    refuse_unknown(source.path, tensors.keys() - wanted)
