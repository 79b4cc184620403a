import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.segmind.values import ABSENT, MAX_SHOWN, as_integer, as_number, is_blank, is_encodable, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (11, "11"),
        (11.5, "11.5"),
        (math.nan, "nan"),
        (None, "null"),
        (ABSENT, "null"),
        (True, "true"),
        ("gif", "'gif'"),
        ([1], "a list"),
        ({}, "an object"),
        (b"\x89PNG\x00", "a file"),
        pytest.param(10**5000, "a very large number", id="huge"),
        ("\x00\ud800\n", "'\\x00\\ud800\\n'"),
    ],
)
def test_received_values_are_shown_briefly(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_shortened() -> None:
    text = shown("x" * 10_000_000)
    assert len(text) == MAX_SHOWN
    assert text == f"'{'x' * 58}…"


@pytest.mark.parametrize("value", [ABSENT, None, "", " ", "\u00a0\n"])
def test_blanks(value: object) -> None:
    assert is_blank(value) is True


@pytest.mark.parametrize("value", [0, False, [], {}, b"", "null", "0", math.nan])
def test_what_looks_blank_and_is_a_value(value: object) -> None:
    assert is_blank(value) is False


def test_lone_surrogates_cannot_be_encoded() -> None:
    assert is_encodable("ü🙂\x00") is True
    assert is_encodable("a\udc00") is False


@pytest.mark.parametrize("value", [2**63 - 1, str(2**63 - 1), -(10**99)])
def test_integers_keep_every_digit(value: object) -> None:
    assert as_integer(value) == as_number(value) == int(str(value))


@settings(deadline=None)
@given(st.integers(-(10**90), 10**90) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_and_its_text_are_the_same(number: float) -> None:
    assert as_number(number) == as_number(str(number)) == number
