"""What an Accept header prefers, as far as a reply has two forms: a picture's bytes or JSON."""

from __future__ import annotations

import re

_NAME = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_RANGE = re.compile(rf"\s*({_NAME})/({_NAME})\s*", re.ASCII | re.IGNORECASE)
_WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.\d*)?|\.\d+)\s*", re.ASCII | re.IGNORECASE)


def wants_image(accept: str | None) -> bool:
    """True when the client's most preferred media range is `image/*` or a type of image.

    Most preferred is the highest q, then the first named (RFC 9110, section 12.5.1, without precedence by
    specificity). An absent or malformed header and `*/*` are False: no preference is not a wish.
    """
    ranges = [part for part in (accept or "").split(",") if part.strip()]
    weighed = [_weigh(media_range) for media_range in ranges]
    if not weighed or None in weighed:
        return False
    quality, kind = max((pair for pair in weighed if pair), key=lambda pair: pair[0])
    return quality > 0 and kind == "image"


def _weigh(media_range: str) -> tuple[float, str] | None:
    """A media range's q in [0, 1] and its main type in lower case, or None where it is malformed."""
    name, *parameters = media_range.split(";")
    matched = _RANGE.fullmatch(name)
    quality = _quality(parameters)
    if matched is None or quality is None or not 0 <= quality <= 1:
        return None
    return quality, matched[1].lower()


def _quality(parameters: list[str]) -> float | None:
    weight = next((text for text in parameters if text.partition("=")[0].strip().lower() == "q"), "q=1")
    matched = _WEIGHT.fullmatch(weight)
    return float(matched[1]) if matched else None
