"""The one way in which a client's picture becomes pixels: bounded, upright and RGB.

The server calls `inspect` for the size and `decode` to be sure that the pixels are whole; the worker decodes the same
bytes again. Both see one size, because the turn is read from what stands before the pixels and from nothing else.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Literal

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

PictureFormat = Literal["png", "jpg", "webp"]

MAX_READS = 200_000
"""Reads of a file before it is given up. A 20 MiB picture in the usual 8 KiB chunks needs about 10,000."""

MAX_SCANS = 200
"""Scans of a JPEG file. Progressive files have about ten; each costs a pass over all pixels but only a few bytes."""

_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""A JPEG scan header (ITU-T T.81, B.2.3), long enough not to turn up by chance in a video that a phone appended."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation (Exif 2.32, tag 0x0112). 1 is upright."""

# Pillow warns about odd files through the process-wide warning filters, which two threads must not swap at one time.
_pillow = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLimits:
    """max_pixels: width × height. max_side: longest side in pixels. Both are inclusive."""

    max_pixels: int = 16_777_216
    max_side: int = 8192


DEFAULT_LIMITS = PictureLimits()


class UnusablePicture(ValueError):
    """A picture that cannot be used. The text follows the name of the parameter: "control_image " + text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInfo:
    """A picture's file format, and its size in pixels after the EXIF turn."""

    format: PictureFormat
    width: int
    height: int


def inspect(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> PictureInfo:
    """Format and size of a PNG, JPEG or WebP file, from its header: no pixel is decoded.

    Raises UnusablePicture for other formats, for pictures beyond the limits, for animations and for broken headers.
    """
    with _reading():
        return _open(data, limits)[0]


def decode(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """The picture in RGB, turned as its EXIF orientation says. Transparent parts are laid over white.

    16-bit channels keep their upper 8 bits; colour profiles are not applied. Of a multi-picture JPEG (phones append
    gain maps) the first picture counts. Raises UnusablePicture as `inspect` does, and for missing or broken pixels.
    """
    with _reading():
        _, image, turn = _open(data, limits)
        picture = _rgb(image)
        picture.info.clear()  # the EXIF data among it would turn the picture a second time
        return picture if turn is None else picture.transpose(turn)


def decode_file(path: Path, limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """`decode` of a file's content. Raises OSError when the file cannot be read."""
    return decode(path.read_bytes(), limits)


@contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever Pillow raises into UnusablePicture, and keeps its warnings about a client's file to itself."""
    with _pillow, warnings.catch_warnings(action="ignore"):
        try:
            yield
        except (UnusablePicture, MemoryError):
            raise
        except Exception as error:
            raise UnusablePicture(f"is truncated or damaged: {str(error)[:200]}") from error


class _BoundedReads(BytesIO):
    """Bytes that are not read in crumbs: millions of empty chunks or stray bytes would hold a core for many seconds."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise OSError("it is made of too many small parts")
        return super().read(size)


def _open(data: bytes, limits: PictureLimits) -> tuple[PictureInfo, ImageFile, Image.Transpose | None]:
    # The readers are called by name: Image.open would only warn up to twice its own limit, and try more formats.
    kind, reader = _reader(data)
    _check_before_opening(kind, data, limits)
    image = reader(_BoundedReads(data))
    _check_size(image.size, limits)
    _check_frames(image)
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    return PictureInfo(format=kind, width=width, height=height), image, _TURNS.get(orientation)


def _reader(data: bytes) -> tuple[PictureFormat, type[ImageFile]]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg", JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp", WebPImageFile
    raise UnusablePicture("is not a PNG, JPEG or WebP picture")


def _check_before_opening(kind: PictureFormat, data: bytes, limits: PictureLimits) -> None:
    if kind == "webp":  # its reader allocates the whole canvas
        _check_size(_webp_canvas(data), limits)
    if kind == "jpg" and next(islice(_SCAN.finditer(data), MAX_SCANS, None), None):
        raise UnusablePicture(f"has more than {MAX_SCANS} scans; save it as a baseline JPEG")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP header declares (RFC 9649, sections 2.5–2.7); meaningless for a broken header."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels or max(size) > limits.max_side:
        raise UnusablePicture(
            f"is {width}×{height} pixels; at most {limits.max_pixels / 1e6:.3g} megapixels "
            f"and {limits.max_side} a side are accepted"
        )


def _check_frames(image: ImageFile) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnusablePicture(f"has {frames} frames; one picture is expected")


def _orientation(image: ImageFile) -> int:
    try:
        # Not image.getexif(): the PNG reader's own would decode all pixels to look for EXIF data behind them.
        orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data raises almost anything; the picture itself can still be good
        return 1
    return orientation if orientation in _TURNS else 1


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
        image.info.pop("transparency", None)  # a 16-bit value, meaningless now
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layers, mask=layers.getchannel("A"))
    return white
