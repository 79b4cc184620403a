"""Reads a request's body into one dict, whichever of the three content types it came in.

JSON and multipart are Segmind's documented types. Urlencoded is what the flux-depth-pro page's own sample sends when
its picture is a URL (`requests.post(data=…, files={})`).
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from server.errors import InvalidInput, PayloadTooLarge

JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

MAX_FILES = 8
"""File parts in one multipart body."""

MAX_FIELDS = 200
"""Text parts in one multipart body, and pairs in one urlencoded body."""


MAX_JSON_MARKS = 100_000
"""Commas and opening brackets in a JSON body. Parsing a body that is made of little else holds the event loop for many
seconds and takes a hundred times its size."""

MAX_PERCENT_CODES = 2_000_000
"""Percent codes in an urlencoded body. Base64 of the largest picture has some 900,000; each costs 150 bytes to undo."""


async def read_body(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The request's parameters: JSON values, or text for a form's fields and bytes for its files.

    Where a name comes twice the last value wins, but two files, or a file and a text, for one name are refused. An
    empty body is an empty dict, whatever its type. A body in braces under an urlencoded header is read as JSON, for
    that is what `curl -d '{…}'` sends.

    Raises PayloadTooLarge as soon as more than `max_bytes` are announced or arrive, InvalidInput for another content
    type and for a body that cannot be read, and Starlette's ClientDisconnect when the client hangs up midway.
    """
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    async with aclosing(_limited(request, max_bytes)) as chunks:
        if kind == MULTIPART:
            return await _multipart(header, chunks, max_bytes)
        raw = b"".join([chunk async for chunk in chunks])
    return _decoded(kind, raw) if raw else {}


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    too_large = PayloadTooLarge(f"The request's body is larger than the limit of {max_bytes} bytes.")
    if re.fullmatch(r"\d{1,18}", declared, re.ASCII) and int(declared) > max_bytes:
        raise too_large
    received = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk


def _decoded(kind: str, raw: bytes) -> dict[str, Any]:
    if kind not in (JSON, URLENCODED):
        got = ascii(kind[:60]) if kind else "none"
        raise InvalidInput(f"Invalid content type: send {JSON}, {MULTIPART} or {URLENCODED}; got {got}")
    text = _utf8(raw)
    is_json = kind == JSON or text.lstrip().startswith("{")
    return _json(text) if is_json else _urlencoded(text)


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput("The request's body is not valid UTF-8.") from None


def _json(text: str) -> dict[str, Any]:
    if sum(map(text.count, ",[{")) > MAX_JSON_MARKS:
        raise InvalidInput("The JSON body holds too many values.")
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidInput("The JSON body is nested too deeply.") from None
    except ValueError as error:
        raise InvalidInput(f"The JSON body cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise InvalidInput("The JSON body should be an object with the parameters as its keys.")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _urlencoded(text: str) -> dict[str, Any]:
    if text.count("%") > MAX_PERCENT_CODES:
        raise InvalidInput("The form holds too many percent codes; send a large picture as JSON or multipart.")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS))
    except UnicodeDecodeError:
        raise InvalidInput("The form's text is not valid UTF-8.") from None
    except ValueError:
        raise InvalidInput(f"The form has more than {MAX_FIELDS} fields.") from None


class _Parser(MultiPartParser):
    """Starlette's parser, which also knows whether the closing boundary came: a body cut short has none."""

    complete = False

    def on_end(self) -> None:
        self.complete = True


async def _multipart(header: str, chunks: AsyncGenerator[bytes, None], max_bytes: int) -> dict[str, Any]:
    # Starlette silently takes text that is not UTF-8 for Latin-1. Latin-1 throughout loses nothing and lets
    # `_part_text` tell the two apart.
    headers = Headers({"content-type": f"{header}; charset=latin-1"})
    limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": max_bytes}
    parser = _Parser(headers, chunks, **limits)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"The multipart body cannot be read: {error.message}") from None
    try:
        if not parser.complete:
            raise InvalidInput("The multipart body ends before its closing boundary.")
        return await _merged(form)
    finally:
        await form.close()


async def _merged(form: FormData) -> dict[str, Any]:
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for key, part in form.multi_items():
        name = _part_text(key)
        if isinstance(part, str):
            texts[name] = _part_text(part)
        elif not _is_unchosen(part):
            _refuse_second(name, "two files", already=name in files)
            files[name] = await part.read()
    for name in files:
        _refuse_second(name, "a file and a text", already=bool(texts.get(name, "").strip()))
    return texts | files


def _is_unchosen(part: UploadFile) -> bool:
    """Browsers send a nameless empty part for a file input that was left alone."""
    return not part.filename and not part.size


def _refuse_second(name: str, got: str, *, already: bool) -> None:
    if already:
        raise InvalidInput(f"{name[:60]} should be exactly one picture; got {got}", parameter=name)


def _part_text(latin: str) -> str:
    try:
        return _utf8(latin.encode("latin-1"))
    except UnicodeEncodeError:
        raise InvalidInput("The multipart body's text is not valid UTF-8.") from None
