"""The forms in which clients pass a picture, made into bytes: a file part, a URL, a data URI or plain base64."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipelines.picture import PictureInfo, PictureLimits, UnusablePicture, decode, inspect

from ..errors import InvalidInput
from .fetch import Fetcher, FetchRefused

# Two at a time: decoding the largest picture takes some hundred MiB.
_examiners = ThreadPoolExecutor(2, thread_name_prefix="picture")

_BLANKS = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# These only: undoing every possible percent code would take gigabytes for a text that is made of nothing else.
_PERCENT_CODES = tuple((f"%{code:02X}".encode(), bytes([code])) for code in b"+/-_= \t\r\n")


async def read_picture(
    value: str | bytes,
    *,
    fetcher: Fetcher,
    own_file: Callable[[str], Path | None],
    parameter: str = "control_image",
    limits: PictureLimits,
    known: Callable[[bytes, PictureInfo], bool] = lambda _data, _info: False,
) -> tuple[bytes, PictureInfo]:
    """The file that a client passed, and what it is. Its pixels have been decoded once, so they are whole.

    value: the bytes of an upload, or text: an http(s) URL, a data URI, or base64 without a prefix. Base64 may be
        URL-safe, unpadded, percent-encoded and broken into lines.
    own_file: the file of this server that a URL names, which is then read from disk; None for every other URL.
    parameter: what error texts call the picture.
    known: whether this very file was found whole before, so that its pixels need not be decoded again.
    The file may have up to `fetcher.policy.max_bytes` bytes. Raises InvalidInput, and Unavailable as the fetcher does.
    """
    if isinstance(value, str) and (url := value.strip())[:8].lower().startswith(("http://", "https://")):
        value = await _from_url(url, fetcher, own_file, parameter)
    examine = partial(_examine, value, fetcher.policy.max_bytes, parameter, limits, known)
    return await asyncio.get_running_loop().run_in_executor(_examiners, examine)


def _examine(
    value: str | bytes,
    max_bytes: int,
    parameter: str,
    limits: PictureLimits,
    known: Callable[[bytes, PictureInfo], bool],
) -> tuple[bytes, PictureInfo]:
    """All of it in one thread: each change of threads would cost as much as looking a small picture's header up."""
    data = value if isinstance(value, bytes) else _from_base64(value.strip(), max_bytes, parameter)
    if not data:
        raise InvalidInput(f"{parameter} is empty", parameter=parameter)
    if len(data) > max_bytes:
        raise _too_large(max_bytes, parameter)
    try:
        info = inspect(data, limits)
        if not known(data, info):
            decode(data, limits)
    except UnusablePicture as error:
        raise InvalidInput(f"{parameter} {error}", parameter=parameter) from error
    return data, info


async def _from_url(url: str, fetcher: Fetcher, own_file: Callable[[str], Path | None], parameter: str) -> bytes:
    if path := own_file(url):
        return await asyncio.to_thread(_from_disk, path, fetcher.policy.max_bytes, parameter)
    try:
        return await fetcher.fetch(url)
    except FetchRefused as error:
        error.parameter = parameter
        raise


def _from_disk(path: Path, max_bytes: int, parameter: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        text = f"{parameter} names a file that this server no longer has. Upload the picture again."
        raise InvalidInput(text, parameter=parameter) from None


def _from_base64(text: str, max_bytes: int, parameter: str) -> bytes:
    if len(text) > 2 * max_bytes:  # four characters for three bytes, and some for line breaks and percent codes
        raise _too_large(max_bytes, parameter)
    try:
        return _base64_bytes(_payload(text))
    except ValueError:
        forms = "an http(s) URL, a data URI (data:image/png;base64,…), base64 text or an uploaded file"
        raise InvalidInput(f"{parameter} must be {forms}", parameter=parameter) from None


def _payload(text: str) -> str:
    """The base64 part of a data URI (RFC 2397), or all of any other text. Raises ValueError for a URI not in base64."""
    head, comma, payload = text.partition(",")
    if not head.lower().startswith("data:"):
        return text
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise ValueError("a data URI without base64")
    return payload


def _base64_bytes(text: str) -> bytes:
    raw = text.encode("ascii")
    if b"%" in raw:
        for code, byte in _PERCENT_CODES:
            raw = raw.replace(code, byte).replace(code.lower(), byte)
    plain = raw.translate(_URL_SAFE, delete=_BLANKS).rstrip(b"=")
    return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)


def _too_large(max_bytes: int, parameter: str) -> InvalidInput:
    return InvalidInput(f"{parameter} is larger than {max_bytes / 2**20:.3g} MiB", parameter=parameter)
