import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from server.api.segmind.body import MAX_FIELDS, MAX_FILES, read_body
from server.errors import InvalidInput

PNG = b"\x89PNG\r\n\x1a\n\x00\xff--boundary"


def read(content_type: str, *chunks: bytes) -> dict[str, Any]:
    """What read_body makes of a request whose body arrives in these chunks."""
    arriving: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages = iter([*arriving, {"type": "http.request"}])

    async def receive() -> Message:
        return next(messages)

    headers = [(b"content-type", content_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    return asyncio.run(read_body(request, max_bytes=10_000_000))


def refusal(content_type: str, *chunks: bytes) -> str:
    with pytest.raises(InvalidInput) as refused:
        read(content_type, *chunks)
    return refused.value.message


def prepared(**arguments: Any) -> tuple[str, bytes]:
    """Content type and body that the requests library makes of `data=`, `files=` or `json=`."""
    request = requests.Request("POST", "http://host/", **arguments).prepare()
    body = request.body or b""
    return request.headers["Content-Type"], body if isinstance(body, bytes) else body.encode()


def multipart(parts: Iterable[tuple[str, bytes]], end: bytes = b"--b--\r\n") -> tuple[str, bytes]:
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return "multipart/form-data; boundary=b", body + end


def test_multipart_as_the_requests_library_sends_it() -> None:
    data = {"seed": 96522, "prompt": "zwölf “🙂”", "prompt_upsampling": False}
    content_type, body = prepared(data=data, files={"control_image": ("room.png", PNG, "image/png")})
    assert content_type.startswith("multipart/form-data; boundary=")
    assert read(content_type, body) == {
        "seed": "96522",
        "prompt": "zwölf “🙂”",
        "prompt_upsampling": "False",
        "control_image": PNG,
    }


def test_multipart_arrives_byte_by_byte_and_beyond_the_spool() -> None:
    content_type, body = prepared(data={"prompt": "ü"}, files={"control_image": ("a.png", PNG)})
    assert read(content_type, *(body[i : i + 1] for i in range(len(body)))) == {"prompt": "ü", "control_image": PNG}
    large = PNG * 100_000
    content_type, body = prepared(data={"text": "x" * 2_000_000}, files={"control_image": ("a.png", large)})
    assert read(content_type, body) == {"text": "x" * 2_000_000, "control_image": large}


def test_multipart_keeps_the_last_text_of_a_name() -> None:
    assert read(*multipart([('name="seed"', b"1"), ('name="seed"', b"2")])) == {"seed": "2"}


def test_multipart_takes_one_file_for_a_name() -> None:
    file = ('name="control_image"; filename="a.png"', PNG)
    text = ('name="control_image"', b"https://h/a.png")
    assert refusal(*multipart([file, file])) == "control_image should be exactly one picture; got two files"
    for parts in ([file, text], [text, file]):
        assert refusal(*multipart(parts)) == "control_image should be exactly one picture; got a file and a text"


def test_a_file_input_left_alone_is_absent() -> None:
    unchosen = ('name="control_image"; filename=""', b"")
    assert read(*multipart([unchosen, ('name="control_image"', b"https://h/a.png")])) == {
        "control_image": "https://h/a.png"
    }
    assert read(*multipart([unchosen, ('name="control_image"; filename="a"', PNG)])) == {"control_image": PNG}
    assert read(*multipart([('name="control_image"', b""), ('name="control_image"; filename="a"', PNG)])) == {
        "control_image": PNG
    }
    assert read(*multipart([('name="control_image"; filename="a.png"', b"")])) == {"control_image": b""}


def test_multipart_limits() -> None:
    files = [(f'name="f{i}"; filename="a"', b"x") for i in range(MAX_FILES + 1)]
    fields = [(f'name="f{i}"', b"x") for i in range(MAX_FIELDS + 1)]
    assert len(read(*multipart(files[1:]))) == MAX_FILES
    assert len(read(*multipart(fields[1:]))) == MAX_FIELDS
    assert "Too many files" in refusal(*multipart(files))
    assert "Too many fields" in refusal(*multipart(fields))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"prompt=a"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\na\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\na\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken header\r\n\r\na\r\n--b--\r\n"),
        multipart([('name="prompt"', b"a"), ('name="seed"', b"7")], end=b""),
        multipart([('name="prompt"', b"a")], end=b"--b\r\nContent-Disp"),
    ],
)
def test_broken_multipart_is_refused(content_type: str, body: bytes) -> None:
    assert refusal(content_type, body).startswith("The multipart body ")


@pytest.mark.parametrize(("name", "value"), [(b"prompt", b"\xff"), (b"\xe4", b"a"), (b"prompt", b"\xed\xa0\x80")])
def test_multipart_text_that_is_not_utf8_is_refused(name: bytes, value: bytes) -> None:
    content_type, body = multipart([('name="NAME"', value)])
    assert refusal(content_type, body.replace(b"NAME", name)) == "The request's body is not valid UTF-8."


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "utf-16", "base64", "nonsense"])
def test_multipart_is_utf8_whatever_the_header_claims(charset: str) -> None:
    content_type, body = multipart([('name="prompt"', "ü".encode())])
    assert read(f"{content_type}; charset={charset}", body) == {"prompt": "ü"}


def outcome(content_type: str, body: bytes) -> object:
    try:
        return read(content_type, body)
    except InvalidInput as refused:
        return refused


PIECES = st.sampled_from(
    [b"--b", b"--b--", b"\r\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="a"', b'; filename="f"', b"x", b"="]
)


@settings(deadline=None)
@given(
    content_type=st.just("multipart/form-data; boundary=b")
    | st.text(st.characters(codec="latin-1")).map(lambda text: f"multipart/form-data; {text}"),
    body=st.binary() | st.lists(PIECES | st.binary(max_size=5), max_size=20).map(b"".join),
)
def test_any_multipart_body_is_read_or_refused(content_type: str, body: bytes) -> None:
    assert isinstance(outcome(content_type, body), dict | InvalidInput)
