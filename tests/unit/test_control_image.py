"""Every form in which clients pass a picture becomes the same bytes; everything else is refused by name."""

import asyncio
import base64
import io
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from pipelines.picture import PictureInfo, PictureLimits
from server.errors import InvalidInput, Unavailable
from server.media.control_image import read_picture
from server.media.fetch import Fetcher, FetchPolicy, FetchRefused

URL = "https://pictures.test/room.png?signature=abc"
FORMS = "control_image must be an http(s) URL, a data URI (data:image/png;base64,…), base64 text or an uploaded file"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PNG = encoded(Image.effect_noise((40, 30), 80))
INFO = PictureInfo(format="png", width=40, height=30)
TEXT = base64.b64encode(PNG).decode()


class Answers(Fetcher):
    """A fetcher that has the answers already and says what it was asked."""

    def __init__(self, answers: dict[str, bytes | Exception], max_bytes: int) -> None:
        self.policy = FetchPolicy(max_bytes=max_bytes)
        self.answers = answers
        self.asked: list[str] = []

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        answer = self.answers[url]
        if isinstance(answer, Exception):
            raise answer
        return answer


def read(
    value: str | bytes,
    *,
    answers: dict[str, bytes | Exception] | None = None,
    own: dict[str, Path] | None = None,
    max_bytes: int = 1 << 20,
    **options: Any,
) -> tuple[bytes, PictureInfo]:
    fetcher = Answers(answers or {}, max_bytes)
    options.setdefault("limits", PictureLimits())
    return asyncio.run(read_picture(value, fetcher=fetcher, own_file=(own or {}).get, **options))


def refused(value: str | bytes, **options: Any) -> str:
    """The text of the refusal; it always names the parameter."""
    parameter = options.get("parameter", "control_image")
    with pytest.raises(InvalidInput) as caught:
        read(value, **options)
    assert caught.value.parameter == parameter
    assert caught.value.http_status == 400
    return caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        TEXT,
        f"  {TEXT}\n",
        TEXT.rstrip("="),
        textwrap.fill(TEXT, 76),
        textwrap.fill(TEXT, 76).replace("\n", "\r\n"),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        quote(TEXT, safe=""),
        quote(textwrap.fill(TEXT, 76), safe=""),
        quote(TEXT, safe="").replace("%2B", "%2b").replace("%2F", "%2f"),
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"data:image/jpg;base64,{TEXT}",
        f"data:image/png;name=a.png;base64,{TEXT}",
        f"data:application/octet-stream;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;base64, {textwrap.fill(TEXT, 64)}",
        f"data:image/png;base64,{quote(TEXT)}",
        f"data:image/png;base64,{TEXT[:60]}%0A{TEXT[60:90]}%20%0D%0a{TEXT[90:]}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode().rstrip('=')}",
    ],
    ids=lambda value: repr(value[:45]),
)
def test_bytes_and_base64(value: str | bytes) -> None:
    assert read(value) == (PNG, INFO)


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_padding_may_be_missing_whatever_the_length(rest: int) -> None:
    data = encoded(Image.new("RGB", (9, 9)), "JPEG")
    data += bytes(-len(data) % 3 + rest)
    assert read(base64.b64encode(data).decode().rstrip("="))[0] == data


@pytest.mark.parametrize("url", [URL, URL.replace("https", "HTTP"), f" {URL}\n"])
def test_urls_are_fetched(url: str) -> None:
    assert read(url, answers={url.strip(): PNG}) == (PNG, INFO)


def test_own_files_are_read_without_a_fetch(tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(PNG)
    assert read(URL, own={URL: tmp_path / "own.png"}) == (PNG, INFO)


def test_own_files_that_are_gone(tmp_path: Path) -> None:
    text = refused(URL, own={URL: tmp_path / "own.png"})
    assert text == "control_image names a file that this server no longer has. Upload the picture again."


def test_refusals_of_the_fetcher_get_the_parameter() -> None:
    text = refused(URL, answers={URL: FetchRefused("it is bad. Use another.")}, parameter="image")
    assert text == "Invalid image URL: it is bad. Use another."
    with pytest.raises(Unavailable):
        read(URL, answers={URL: Unavailable()})


@pytest.mark.parametrize(
    "value",
    [
        "room.png",
        "C:\\pictures\\room.png",
        "../etc/passwd",
        "file:///etc/passwd",
        "ftp://pictures.test/room.png",
        "pictures.test/room.png?size=large",
        "data:image/png,abc",
        "data:image/svg+xml;utf8,<svg/>",
        "data:image/png;base64",
        f"{TEXT}=AAAA",
        f"{TEXT}!",
        f"data:image/png;base64,{TEXT[:-3]}ö",
        "%41%42%43%44",
        "A",
        "{}",
        "bild ä",
    ],
)
def test_anything_else_is_told_the_accepted_forms(value: str) -> None:
    assert refused(value) == FORMS


@pytest.mark.parametrize("value", [b"", "", "  \n", "=", "data:image/png;base64,", "data:;base64,%0A"])
def test_empty(value: str | bytes) -> None:
    assert refused(value, parameter="image") == "image is empty"


def test_empty_answers_and_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert refused(URL, answers={URL: b""}) == "control_image is empty"
    assert refused(URL, own={URL: tmp_path / "empty"}) == "control_image is empty"


def test_size_at_the_limit_and_one_byte_beyond(tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(PNG)
    cases: tuple[tuple[str | bytes, Any], ...] = (
        (PNG, {}),
        (TEXT, {}),
        (f"data:;base64,{TEXT}", {}),
        (URL, {"own": {URL: tmp_path / "own.png"}}),
    )
    for value, options in cases:
        assert read(value, max_bytes=len(PNG), **options)[0] == PNG
        text = refused(value, max_bytes=len(PNG) - 1, **options)
        assert text == f"control_image is larger than {(len(PNG) - 1) / 2**20:.3g} MiB"


def test_long_texts_are_refused_before_they_are_decoded() -> None:
    assert refused("!" * 2001, max_bytes=1000).startswith("control_image is larger than")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (base64.b64decode("/etc/passwd/"), "is not a PNG, JPEG or WebP picture"),
        (b"<html><body>not found</body></html>", "is not a PNG, JPEG or WebP picture"),
        (encoded(Image.new("L", (9, 9)), "GIF"), "is not a PNG, JPEG or WebP picture"),
        (PNG[:-400], "is truncated or damaged: "),
        (encoded(Image.new("1", (9000, 10))), "is 9000×10 pixels; at most 16.8 megapixels and 8192 a side"),
    ],
)
def test_unusable_pictures_in_every_form(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(data)
    assert refused(data).startswith(f"control_image {text}")
    assert refused(base64.b64encode(data).decode(), parameter="image").startswith(f"image {text}")
    assert refused(URL, answers={URL: data}).startswith(f"control_image {text}")
    assert refused(URL, own={URL: tmp_path / "own"}).startswith(f"control_image {text}")


def test_the_limits_of_the_caller_count() -> None:
    limits = PictureLimits(max_pixels=1199, max_side=100)
    assert refused(PNG, limits=limits) == (
        "control_image is 40×30 pixels; at most 0.0012 megapixels and 100 a side are accepted"
    )


def test_a_known_picture_is_not_decoded_again_but_its_limits_count() -> None:
    torn = PNG[: len(PNG) // 2]
    asked = []

    def known(data: bytes, info: PictureInfo) -> bool:
        asked.append((data, info))
        return True

    assert "truncated" in refused(torn)
    assert read(torn, known=known) == (torn, INFO)
    assert asked == [(torn, INFO)]
    assert "0.0012 megapixels" in refused(PNG, known=known, limits=PictureLimits(max_pixels=1199))


def test_the_size_is_the_one_after_the_turn() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    assert read(encoded(Image.new("L", (40, 30)), "JPEG", exif=tags))[1] == PictureInfo(
        format="jpg", width=30, height=40
    )


def test_many_at_once() -> None:
    async def run() -> None:
        fetcher = Answers({}, 1 << 20)
        reads = (
            read_picture(TEXT, fetcher=fetcher, own_file=lambda _: None, limits=PictureLimits()) for _ in range(20)
        )
        assert await asyncio.gather(*reads) == [(PNG, INFO)] * 20

    asyncio.run(run())
    asyncio.run(run())
