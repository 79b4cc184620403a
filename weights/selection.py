"""Which files of a repository are fetched: what is loaded and nothing else, and no pickle of unknown content."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .catalogue import Model
from .completeness import PICKLE_SUFFIXES
from .errors import NotPullable, WrongContent
from .fingerprint import Fingerprint
from .hub import Listing, RemoteFile

_FOLDERS = "scheduler|text_encoder|text_encoder_2|tokenizer|tokenizer_2|transformer|vae"
_WEIGHTS = r"(?:diffusion_pytorch_model|model)(?:-\d{5}-of-\d{5})?\.safetensors"
_SMALL = r"[^/\\:.][^/\\:]*\.(?:json|txt|model)"
_FLUX = re.compile(rf"model_index\.json|(?:{_FOLDERS})/(?:{_WEIGHTS}|{_SMALL})")
_TRANSFORMERS = re.compile(rf"{_WEIGHTS}|{_SMALL}")


def belongs(model: Model, path: str) -> bool:
    """Whether the file at `path` of the model's repository is one that the model is loaded from."""
    if model.layout == "files":
        return any(path == file.path for file in model.files)
    pattern = _FLUX if model.layout == "flux" else _TRANSFORMERS
    return pattern.fullmatch(path) is not None


def select(model: Model, listing: Listing) -> list[RemoteFile]:
    """The files to have, with everything that is known of their content.

    Raises NotPullable where there is nothing to load, or only a pickle whose content nobody vouches for, and
    WrongContent where the hub offers another content than the one that is known.
    """
    chosen = [_checked(model, file) for file in listing.files if belongs(model, file.path)]
    if model.layout == "files":
        missing = {file.path for file in model.files} - {file.path for file in chosen}
        if missing:
            raise NotPullable(f"{model.repository} does not have {', '.join(sorted(missing))}")
    elif not any(file.path.endswith(".safetensors") for file in chosen):
        raise NotPullable(_without_safetensors(model, listing.files))
    return chosen


def _checked(model: Model, file: RemoteFile) -> RemoteFile:
    known = model.known_file(file.path)
    sha256 = known.sha256 if known else None
    if file.path.endswith(PICKLE_SUFFIXES) and sha256 is None:
        raise NotPullable(
            f"{file.path} of {model.repository} is a pickle, which can run code, and its content is not known here; "
            f"fetch it yourself if you trust it: hf download {model.repository} {file.path}"
        )
    offered = file.fingerprint
    if sha256 and offered.sha256 and sha256 != offered.sha256:
        raise WrongContent(
            f"{file.path} of {model.repository}: the hub offers sha256 {offered.sha256}, published was {sha256}"
        )
    size = offered.size if offered.size is not None else (known.size if known and known.exact else None)
    return RemoteFile(file.path, Fingerprint(size, offered.sha256 or sha256, offered.git_sha1))


def _without_safetensors(model: Model, files: Sequence[RemoteFile]) -> str:
    pickles = [file.path for file in files if file.path.endswith(PICKLE_SUFFIXES)]
    has = f"; it has {', '.join(pickles)}, and pickles are not loaded" if pickles else ""
    return f"{model.repository} at {model.revision} has no safetensors to load{has}"
