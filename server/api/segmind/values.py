"""What one received value is or spells, and how an error may repeat it.

Received is what JSON or a form can hold: text, a number, a boolean, null, a list, an object, or a file's bytes.
"""

from __future__ import annotations

import enum
import math
import re
from typing import Final


class _Absent(enum.Enum):
    ABSENT = enum.auto()


ABSENT: Final = _Absent.ABSENT
"""Stands for a parameter that the body does not have, where None stands for an explicit null."""

MAX_SHOWN = 60
"""Longest part of a received value, in characters, that an error repeats."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_MAX_DIGITS = 100
_PRINTABLE_BITS = 256


def shown(value: object) -> str:
    """A received value as an error may repeat it: at most 60 characters, printable, and never a file's bytes."""
    match value:
        case None | _Absent.ABSENT:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return _shorten(repr(value[: MAX_SHOWN + 1]))
        case int() | float():
            return _shorten(_digits(value))
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "a file"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _digits(number: float) -> str:
    # Python refuses to print integers beyond a few thousand digits.
    return "a very large number" if isinstance(number, int) and number.bit_length() > _PRINTABLE_BITS else str(number)


def is_blank(value: object) -> bool:
    """True for what means "take the default": absent, null and text without a visible character."""
    return value is ABSENT or value is None or (isinstance(value, str) and not value.strip())


def is_encodable(text: str) -> bool:
    """False for lone surrogates, which JSON's escapes can smuggle in and no UTF-8 reply or database can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_number(value: object) -> int | float | None:
    """The finite number that a value is or spells, else None. Booleans are no numbers."""
    if isinstance(value, str):
        value = _spelled_number(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _spelled_number(text: str) -> int | float | None:
    if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    return int(text) if _INTEGER.fullmatch(text) else float(text)


def as_integer(value: object) -> int | None:
    """The integer that a value is or spells (7, 7.0, "7", " 7.0 ", "7e0"), else None."""
    number = as_number(value)
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number
