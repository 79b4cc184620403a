import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from server.api.segmind.body import MAX_FIELDS, read_body
from server.errors import InvalidInput, PayloadTooLarge

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def request_of(headers: dict[str, str], *messages: Message) -> Request:
    """A request whose body arrives in these messages; reading beyond them is an error."""
    arriving = iter(messages)

    async def receive() -> Message:
        return next(arriving)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(
    content_type: str | None, *chunks: bytes, max_bytes: int = 10_000_000, length: str | None = None
) -> dict[str, Any]:
    """What read_body makes of a body in these chunks, without Content-Length unless given."""
    headers = {"content-type": content_type, "content-length": length}
    arriving: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    named = {name: value for name, value in headers.items() if value is not None}
    request = request_of(named, *arriving, {"type": "http.request"})
    return asyncio.run(read_body(request, max_bytes=max_bytes))


def refusal(content_type: str | None, *chunks: bytes) -> str:
    with pytest.raises(InvalidInput) as refused:
        read(content_type, *chunks)
    return refused.value.message


def prepared(**arguments: Any) -> tuple[str, bytes]:
    """Content type and body that the requests library makes of `data=`, `files=` or `json=`."""
    request = requests.Request("POST", "http://host/", **arguments).prepare()
    body = request.body or b""
    return request.headers["Content-Type"], body if isinstance(body, bytes) else body.encode()


@pytest.mark.parametrize(
    "content_type",
    [JSON, "Application/JSON", "application/json; charset=utf-8", "application/json;charset=ISO-8859-1", f" {JSON} "],
)
def test_json_objects(content_type: str) -> None:
    body = {"prompt": "“FLUX dev” 🙂", "steps": 25, "guidance": 3.5, "flag": True, "seed": None, "list": [1]}
    assert read(content_type, json.dumps(body, ensure_ascii=False).encode()) == body


def test_json_in_chunks_with_a_byte_order_mark_and_a_key_twice() -> None:
    assert read(JSON, b'\xef\xbb\xbf{"seed": 1,', b' "seed"', b": 2}") == {"seed": 2}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b" ",
        b"prompt=a",
        b'{"prompt": "a",}',
        b'{"guidance": NaN}',
        b'{"guidance": Infinity}',
        b'{"guidance": -Infinity}',
        b'{"prompt": "a\nb"}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_broken_json_is_refused(body: bytes) -> None:
    assert refusal(JSON, body).startswith("The JSON body cannot be read: ")


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true", b'[{"prompt": "a"}]'])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(JSON, body).startswith("The JSON body should be an object")


@pytest.mark.parametrize("body", [b"[" * 90_000, b'{"a":' * 90_000, b'{"prompt": ' + b"[" * 90_000])
def test_deeply_nested_json_is_refused(body: bytes) -> None:
    assert refusal(JSON, body) == "The JSON body is nested too deeply."


@pytest.mark.parametrize("body", [b"[" * 100_001, b'{"a": [' + b"[]," * 60_000 + b"0]}"])
def test_json_of_very_many_values_is_refused_unread(body: bytes) -> None:
    assert refusal(JSON, body) == "The JSON body holds too many values."


def test_a_number_beyond_floats_is_left_to_the_parameter() -> None:
    assert read(JSON, b'{"guidance": 1e999, "unknown": 1e999}')["guidance"] == float("inf")


@pytest.mark.parametrize("content_type", [JSON, FORM])
@pytest.mark.parametrize("body", [b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b"\xff\xfe{\x00}\x00"])
def test_text_that_is_not_utf8_is_refused(content_type: str, body: bytes) -> None:
    assert refusal(content_type, body) == "The request's body is not valid UTF-8."


@pytest.mark.parametrize("content_type", [None, JSON, FORM, "text/plain"])
def test_an_empty_body_has_no_parameters(content_type: str | None) -> None:
    assert read(content_type) == {}
    assert read(content_type, b"", length="0") == {}


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/octet-stream", "image/png", "application/xml", "nonsense", ";", "\xff\n"],
)
def test_other_content_types_are_refused(content_type: str | None) -> None:
    assert refusal(content_type, b'{"prompt": "\xff"}').startswith("Invalid content type: send application/json, ")


def test_the_content_type_is_shown_briefly() -> None:
    assert len(refusal("x" * 10_000, b"a")) < 250


def test_urlencoded_as_the_requests_library_sends_it() -> None:
    data = {
        "seed": 96522,
        "guidance": 7,
        "prompt_upsampling": False,
        "prompt": "a & b = ü+🙂%",
        "control_image": "https://h/a?b=c&d=e",
    }
    content_type, body = prepared(data=data, files={})
    assert content_type == FORM
    assert read(content_type, body) == {name: str(value) for name, value in data.items()}


def test_urlencoded_details() -> None:
    assert read(f"{FORM}; charset=UTF-8", b"a=1&a=2&b=&c&d=x%20y+z&=e") == {
        "a": "2",
        "b": "",
        "c": "",
        "d": "x y z",
        "": "e",
    }


def test_urlencoded_refusals() -> None:
    assert refusal(FORM, b"prompt=%FF") == "The form's text is not valid UTF-8."
    assert refusal(FORM, b"&".join([b"a=1"] * (MAX_FIELDS + 1))) == f"The form has more than {MAX_FIELDS} fields."
    assert read(FORM, b"&".join([b"a=1"] * MAX_FIELDS)) == {"a": "1"}


def test_json_under_the_header_that_curl_sends_by_itself() -> None:
    assert read(FORM, b' {"prompt": "a & b", "steps": 7}') == {"prompt": "a & b", "steps": 7}
    assert refusal(FORM, b"{broken").startswith("The JSON body cannot be read: ")


MULTIPART_HEAD = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
BODIES = {
    JSON: json.dumps({"prompt": "a" * 5000}).encode(),
    FORM: urlencode({"prompt": "a" * 5000}).encode(),
    "text/plain": b"a" * 5000,
    "multipart/form-data; boundary=b": MULTIPART_HEAD + b"a" * 5000 + b"\r\n--b--\r\n",
}


@pytest.mark.parametrize("content_type", BODIES)
def test_a_body_over_the_limit_is_refused_without_its_length(content_type: str) -> None:
    body = BODIES[content_type]
    with pytest.raises(PayloadTooLarge, match=f"{len(body) - 1} bytes"):
        read(content_type, body, max_bytes=len(body) - 1)
    with pytest.raises(PayloadTooLarge):
        read(content_type, *(body[i : i + 100] for i in range(0, len(body), 100)), max_bytes=1000)


@pytest.mark.parametrize("content_type", [JSON, FORM, "multipart/form-data; boundary=b"])
def test_a_body_at_the_limit_is_read(content_type: str) -> None:
    body = BODIES[content_type]
    assert read(content_type, body, max_bytes=len(body), length=str(len(body)))["prompt"] == "a" * 5000


@pytest.mark.parametrize("content_type", [JSON, FORM, "multipart/form-data; boundary=b", "text/plain", ""])
def test_an_announced_length_over_the_limit_is_refused_before_reading(content_type: str) -> None:
    request = request_of({"content-length": "1001", "content-type": content_type})
    with pytest.raises(PayloadTooLarge):
        asyncio.run(read_body(request, max_bytes=1000))


@pytest.mark.parametrize("length", ["nonsense", "-1", "", "²", "9" * 5000, "1e9"])
def test_an_unreadable_length_is_not_believed(length: str) -> None:
    assert read(JSON, b'{"a": 1}', length=length) == {"a": 1}


def test_a_client_that_hangs_up_is_not_an_invalid_request() -> None:
    part: Message = {"type": "http.request", "body": b"{", "more_body": True}
    request = request_of({"content-type": JSON}, part, {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        asyncio.run(read_body(request, max_bytes=1000))


def outcome(content_type: str, body: bytes) -> object:
    try:
        return read(content_type, body)
    except InvalidInput as refused:
        return refused


@settings(deadline=None)
@given(
    content_type=st.sampled_from([JSON, FORM, "text/plain"]),
    body=st.binary() | st.text().map(str.encode) | st.from_regex(r"\A[{\[\]}:,\"0-9a-z%&=]*\Z").map(str.encode),
)
def test_any_body_is_read_or_refused(content_type: str, body: bytes) -> None:
    assert isinstance(outcome(content_type, body), dict | InvalidInput)
