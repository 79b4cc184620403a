"""What the Hugging Face hub, or a mirror of it, has of a model, and streams of its files.

The endpoint is the hub client's own (HF_ENDPOINT), and so are the places where it finds a token. Files are streamed
here and not by `hf_hub_download`: that one begins again from nothing when its process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from .catalogue import Model
from .errors import AccessNeeded, HubUnreachable, NotOnHub, WeightsError
from .fingerprint import Fingerprint

ANSWER_LIMIT_S = 30.0
"""Longest silence of the hub, before its answer and within it."""

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}

# Otherwise the client tells the hub which torch is installed and which program calls it.
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """path: in the repository. fingerprint: what the hub says of its content."""

    path: str
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class Listing:
    """commit: what the asked revision stands for now."""

    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """start: offset in the file of the first byte, 0 also where another was asked for and the hub cannot do that."""

    start: int
    blocks: Iterator[bytes]


class Hub:
    """Asks with `token`, or with the one that the hub's client finds. Raises WeightsErrors that say what to do."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token or get_token()

    def list(self, model: Model) -> Listing:
        """Every file of the model's revision, with size and hash."""
        with self._translated(model):
            info = HfApi(token=self._token or False).model_info(
                model.repository, revision=model.revision, files_metadata=True, timeout=ANSWER_LIMIT_S
            )
        files = (
            RemoteFile(file.rfilename, Fingerprint(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id))
            for file in info.siblings or ()
        )
        return Listing(info.sha or model.revision, tuple(files))

    def check_access(self, model: Model, commit: str, path: str) -> None:
        """Asks for one file without fetching it, so that a closed gate is found before anything else is done."""
        with self._translated(model):
            get_hf_file_metadata(
                hf_hub_url(model.repository, path, revision=commit), token=self._token or False, timeout=ANSWER_LIMIT_S
            )

    @contextmanager
    def stream(self, model: Model, commit: str, path: str, start: int, block_bytes: int) -> Iterator[Stream]:
        """The file's bytes from `start` on. Raises HubUnreachable also when the connection breaks while they come."""
        headers = {**build_hf_headers(token=self._token or False), "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        url = hf_hub_url(model.repository, path, revision=commit)
        with (
            self._translated(model),
            get_session().stream("GET", url, headers=headers, timeout=ANSWER_LIMIT_S) as response,
        ):
            hf_raise_for_status(response)
            partial = response.status_code == httpx2.codes.PARTIAL_CONTENT
            yield Stream(start if partial else 0, response.iter_bytes(block_bytes))

    @contextmanager
    def _translated(self, model: Model) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise self._refused(model, error) from error
        except (httpx2.TransportError, OfflineModeIsEnabled, LocalTokenNotFoundError) as error:
            raise HubUnreachable(f"{model.repository} at {constants.ENDPOINT}: {_reason(error)}") from error

    def _refused(self, model: Model, error: HfHubHTTPError) -> WeightsError:
        status = error.response.status_code
        if status in TRANSIENT_STATUS:
            return HubUnreachable(f"{model.repository} at {constants.ENDPOINT}: the hub answers {status}")
        if isinstance(error, RevisionNotFoundError):
            return NotOnHub(f"{model.repository} has no revision {model.revision} at {constants.ENDPOINT}")
        if isinstance(error, RemoteEntryNotFoundError):
            return NotOnHub(f"{model.repository} does not have {error.response.request.url.path}")
        if status == 401 and self._token:
            return AccessNeeded(
                f"the hub does not take the token that was sent for {model.repository} (status 401). Make another on "
                f"{TOKENS_PAGE}, and see HF_TOKEN, --token and `hf auth login` for an old one"
            )
        if isinstance(error, GatedRepoError) or status == 403 or (status == 401 and model.gated):
            return AccessNeeded(self._how_to_get_in(model, status))
        if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            return NotOnHub(f"there is no {model.repository} at {constants.ENDPOINT}, or it is private")
        return HubUnreachable(f"{model.repository} at {constants.ENDPOINT}: the hub answers {status}")

    def _how_to_get_in(self, model: Model, status: int) -> str:
        why = "no token was sent"
        if self._token:
            why = "the account of the token that was sent has not accepted them, or the token may not read it"
        return (
            f"{model.repository} is only for those who accepted its terms ({why}, status {status}).\n"
            f"  1. Log in and accept them on {model.page}\n"
            f"  2. Make a token that may read gated repositories on {TOKENS_PAGE}\n"
            f"  3. Run this again with HF_TOKEN=hf_… before it, or with --token hf_…, or after `hf auth login`"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub's client is told to stay offline (HF_HUB_OFFLINE)"
    return str(error) or type(error).__name__
