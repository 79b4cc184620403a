import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.segmind.accept import wants_image

IMAGE = [
    "image/*",
    "image/png",
    "IMAGE/WEBP",
    " image/jpeg ; q=0.9 ",
    "image/png, */*",
    "image/png,",
    "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",  # an <img> in a browser
    "application/json;q=0.5, image/webp",
    "*/*;q=.2, image/png; q=.3",
    "image/png;level=1;q=1.000",
    "image/*;q=0.9, application/json;q=0.9",
]

NOT_IMAGE = [
    None,
    "",
    " , ",
    "*/*",  # requests, curl, the Segmind Python SDK
    "application/json, text/plain, */*",  # axios
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",  # a browser's address bar
    "application/json",
    "application/json, image/png",
    "image/png;q=0.8, application/json",
    "*/*, image/png",
    "image/png;q=0",
    "image/png;q=0.000",
]

MALFORMED = [
    "image",
    "image/",
    "/png",
    "image/png/webp",
    "image png",
    "image/png;q=",
    "image/png;q=.",
    "image/png;q=2",
    "image/png;q=1.5",
    "image/png;q=-1",
    "image/png;q=nan",
    "image/png;q=1e0",
    "image/png;q=١",
    "image/png, nonsense",
    "image/\udcff",
    "\x00",
]


@pytest.mark.parametrize("accept", IMAGE)
def test_an_image_is_wanted_where_it_is_preferred(accept: str) -> None:
    assert wants_image(accept) is True


@pytest.mark.parametrize("accept", NOT_IMAGE)
def test_no_image_is_wanted_where_something_else_is_preferred(accept: str | None) -> None:
    assert wants_image(accept) is False


@pytest.mark.parametrize("accept", MALFORMED)
def test_a_malformed_header_is_no_wish(accept: str) -> None:
    assert wants_image(accept) is False


@settings(deadline=None)
@given(st.text() | st.text(alphabet="image/png*;q=01., \t"))
def test_no_header_breaks_it(accept: str) -> None:
    assert wants_image(accept) in (True, False)
