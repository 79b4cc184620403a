"""The FLUX.1 transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel

from weights.sources import Source

from .architecture import Architecture, transformer_architecture
from .folders import load_folder
from .gguf_files import load_gguf
from .headers import refuse_unknown
from .nf4 import hold_in_nf4
from .refusals import UnusableWeights
from .single_files import convert, header_of, read_tensors
from .storage import Storage, is_quantised, nf4_options, require_bitsandbytes

CPU = torch.device("cpu")


def load_transformer(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype,
    storage: Storage = "computed",
    architecture: Architecture | None = None,
) -> Any:
    """A FluxTransformer2DModel on `device` that computes in `dtype`.

    storage: how its weights are kept; only "computed" for a source that is quantised itself, which stays as it is.
    architecture: of a file; None for the published one that its tensors tell. Raises UnusableWeights, OSError.
    """
    _check_storage(source, storage)
    if source.form == "folder":
        options = nf4_options(BitsAndBytesConfig, dtype) if storage == "nf4" else {}
        return load_folder(FluxTransformer2DModel, source.path, device=device, dtype=dtype, **options)
    if storage == "nf4":
        mapped = _load_file(source, architecture, device=CPU, dtype=dtype)
        return hold_in_nf4(mapped, device=device, dtype=dtype)
    return _load_file(source, architecture, device=device, dtype=dtype)


def _check_storage(source: Source, storage: Storage) -> None:
    quantised = is_quantised(source)
    if quantised and storage != "computed":
        raise UnusableWeights(f"{source.path} is quantised already and cannot be kept as {storage}")
    if storage == "nf4":
        require_bitsandbytes("storage nf4")
    if source.form == "folder" and (quantised or storage == "nf4") and not torch.cuda.is_available():
        raise UnusableWeights(f"{source.path} in 4 or 8 bits by bitsandbytes needs a CUDA card")


def _load_file(
    source: Source,
    architecture: Architecture | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    header = header_of(source)
    architecture = architecture or transformer_architecture(source.path, header)
    if source.form == "gguf":
        return load_gguf(source, header, architecture, device=device, dtype=dtype)
    tensors = read_tensors(source, device=device, dtype=dtype)
    model = convert(
        FluxTransformer2DModel,
        source,
        tensors,
        architecture,
        device=device,
        dtype=dtype,
    )
    # The converter takes out what it uses; a file in diffusers' names is used as it is.
    refuse_unknown(source.path, tensors.keys() - model.state_dict().keys())
    return model
