"""Pictures from clients: every mode and turn becomes upright RGB, and nothing hostile costs more than its header."""

import io
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from pipelines.picture import PictureInfo, PictureLimits, UnusablePicture, decode, decode_file, inspect

ORIENTATION = 0x0112
CORNERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""Where the stored row 0 and column 0 are seen, by orientation (Exif 2.32, 4.6.4)."""


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + after + chunk(b"IEND", b"")


def corners() -> Image.Image:
    """48×32 pixels, one colour a quarter, clockwise from the top left."""
    image = Image.new("RGB", (48, 32))
    for colour, place in zip(CORNERS, ((0, 0), (24, 0), (24, 16), (0, 16)), strict=True):
        image.paste(colour, (*place, place[0] + 24, place[1] + 16))
    return image


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def stored_for(orientation: int) -> Image.Image:
    """What a camera stores so that a viewer who obeys `orientation` sees `corners`."""
    seen, (row_0, column_0) = corners(), SIDES[orientation]
    turned = row_0 in ("left", "right")
    stored = Image.new("RGB", seen.size[::-1] if turned else seen.size)
    for x in range(48):
        for y in range(32):
            across = 47 - x if "right" in (row_0, column_0) else x
            down = 31 - y if "bottom" in (row_0, column_0) else y
            colour = seen.crop((x, y, x + 1, y + 1))
            stored.paste(colour, (down, across) if turned else (across, down))
    return stored


def pixel(data: bytes) -> tuple[int, ...]:
    image = decode(data)
    assert image.mode == "RGB"
    assert type(image) is Image.Image
    colour = image.getpixel((0, 0))
    assert isinstance(colour, tuple)
    return colour


@pytest.mark.parametrize(("format", "name"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_the_three_formats(format: str, name: str) -> None:
    data = encoded(corners(), format)
    assert inspect(data) == PictureInfo(format=name, width=48, height=32)  # type: ignore[arg-type]
    assert decode(data).size == (48, 32)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.new("P", (4, 4), 0), (0, 0, 0)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), (255, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_png_modes(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixel(encoded(image)) == expected


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (256, 1), (0x8000, 128), (0xFFFF, 255)])
def test_16_bit_greyscale_is_scaled_and_not_clipped(value: int, expected: int) -> None:
    row = b"\0" + struct.pack(">H", value)
    assert pixel(png(1, 1, 16, 0, row)) == (expected,) * 3
    assert pixel(png(1, 1, 16, 0, row, chunk(b"tRNS", struct.pack(">H", 1)))) == (expected,) * 3


def test_16_bit_colour_keeps_its_upper_bits() -> None:
    assert pixel(png(1, 1, 16, 2, b"\0" + bytes((200, 9, 100, 9, 50, 9)))) == (200, 100, 50)
    assert pixel(png(1, 1, 16, 6, b"\0" + bytes((200, 9, 100, 9, 50, 9, 255, 255)))) == (200, 100, 50)


def test_transparent_palette_entries_and_colour_keys_become_white() -> None:
    palette = chunk(b"PLTE", bytes((9, 9, 9, 200, 0, 0)))
    assert pixel(png(1, 1, 8, 3, b"\0\0", palette, chunk(b"tRNS", b"\0"))) == (255, 255, 255)
    assert pixel(png(1, 1, 8, 3, b"\0\1", palette, chunk(b"tRNS", b"\x00\xff"))) == (200, 0, 0)
    assert pixel(png(1, 1, 8, 3, b"\0\0", palette, chunk(b"tRNS", b"\x80\x10"))) == (132, 132, 132)
    assert pixel(png(1, 1, 8, 2, b"\0\5\6\7", chunk(b"tRNS", b"\0\5\0\6\0\7"))) == (255, 255, 255)


def test_cmyk_and_grey_jpeg() -> None:
    red = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert max(abs(a - b) for a, b in zip(red, (255, 0, 0), strict=True)) <= 4
    assert pixel(encoded(Image.new("L", (16, 16), 90), "JPEG")) == (90, 90, 90)


def test_transparent_webp() -> None:
    assert pixel(encoded(Image.new("RGBA", (4, 4), (0, 0, 255, 0)), "WEBP", lossless=True)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turn(orientation: int, format: str) -> None:
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True, "quality": 0}
    data = encoded(stored_for(orientation), format, exif=exif(orientation), **options)
    info, image = inspect(data), decode(data)
    assert (info.width, info.height) == image.size == (48, 32)
    assert max(ImageChops.difference(image, corners()).tobytes()) <= 8
    assert not image.getexif()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientations_count_as_upright(orientation: int) -> None:
    data = encoded(corners(), "JPEG", exif=exif(orientation))
    assert inspect(data).width == 48
    assert decode(data).size == (48, 32)


def test_size_and_pixels_agree_on_a_turn_that_stands_behind_the_pixels() -> None:
    late = chunk(b"eXIf", exif(6).tobytes()[6:])
    data = png(2, 1, 8, 0, b"\0\1\2", after=late)
    assert (inspect(data).width, inspect(data).height) == decode(data).size == (2, 1)


def test_damaged_metadata_costs_neither_the_picture_nor_a_warning() -> None:
    good = encoded(corners(), "JPEG", exif=exif(1))
    for tags in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish"):
        with warnings.catch_warnings(record=True) as seen:
            assert decode(encoded(corners(), "JPEG", exif=tags)).size == decode(good).size
        assert not seen
    twice = chunk(b"acTL", struct.pack(">II", 0, 0)) + chunk(b"acTL", struct.pack(">II", 0, 0))
    assert decode(png(1, 1, 8, 0, b"\0\1", twice)).size == (1, 1)


def test_multi_picture_jpeg_of_a_phone_counts_as_its_first_picture() -> None:
    second = Image.new("RGB", (12, 8))
    data = encoded(corners(), "MPO", save_all=True, append_images=[second])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert inspect(data) == PictureInfo(format="jpg", width=48, height=32)
    assert decode(data).size == (48, 32)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_are_refused(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 240, 20)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40)
    for read in (inspect, decode):
        with pytest.raises(UnusablePicture, match=r"^has 12 frames; one picture is expected$"):
            read(data)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000", "PDF"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(UnusablePicture, match=r"^is not a PNG, JPEG or WebP picture$"):
        inspect(encoded(corners(), format))


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"<html>", b"SIMPLE  =                    T", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UnusablePicture, match=r"^is not a PNG, JPEG or WebP picture$"):
        decode(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(format: str) -> None:
    data = encoded(Image.effect_noise((64, 64), 60).convert("RGB"), format)
    for part in (16, 30, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(UnusablePicture, match=r"^is (truncated or damaged: .|not a PNG)"):
            decode(data[:part])


def test_damaged_pixels_are_refused() -> None:
    data = bytearray(encoded(Image.effect_noise((64, 64), 60)))
    data[100:200] = bytes(100)
    with pytest.raises(UnusablePicture, match=r"^is truncated or damaged: "):
        decode(bytes(data))


def test_limits_are_inclusive() -> None:
    data = encoded(Image.new("L", (50, 20)))
    assert inspect(data, PictureLimits(max_pixels=1000, max_side=50)).width == 50
    for limits in (PictureLimits(max_pixels=999), PictureLimits(max_side=49)):
        for read in (inspect, decode):
            with pytest.raises(UnusablePicture, match=r"^is 50×20 pixels; at most .* a side are accepted$"):
                read(data, limits)


def test_default_limits_at_the_limit_and_one_beyond() -> None:
    assert decode(encoded(Image.new("1", (4096, 4096)))).size == (4096, 4096)
    assert inspect(encoded(Image.new("1", (8192, 1)))).width == 8192
    for size in ((4097, 4096), (8193, 1), (1, 8193)):
        with pytest.raises(UnusablePicture, match=rf"^is {size[0]}×{size[1]} pixels; at most 16.8 megapixels and 8192"):
            inspect(encoded(Image.new("1", size)))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_wide_jpeg_and_webp_are_refused_too(format: str) -> None:
    with pytest.raises(UnusablePicture, match=r"^is 9000×2000 pixels"):
        decode(encoded(Image.new("RGB", (9000, 2000)), format))
    with pytest.raises(UnusablePicture, match=r"^is 9000×20 pixels"):
        decode(encoded(Image.new("RGB", (9000, 20)), format, **({"lossless": True} if format == "WEBP" else {})))


def test_the_last_of_two_png_headers_is_the_one_that_is_checked() -> None:
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0))
    with pytest.raises(UnusablePicture, match=r"^is 13000×13000 pixels"):
        decode(png(4, 4, 8, 2, bytes(52), second))


def test_a_webp_canvas_is_checked_before_it_is_allocated() -> None:
    header = b"VP8X" + struct.pack("<II", 10, 0) + (16382).to_bytes(3, "little") * 2
    with pytest.raises(UnusablePicture, match=r"^is 16383×16383 pixels"):
        inspect(b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xe0\x00\x02" + bytes(2_000_000),
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 500_000,
        encoded(corners())[:33] + chunk(b"abCd", b"") * 150_000,
    ],
    ids=["stray bytes", "empty segments", "empty chunks"],
)
def test_headers_in_crumbs_are_given_up(data: bytes) -> None:
    with pytest.raises(UnusablePicture, match=r"too many small parts$"):
        inspect(data)


def test_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(corners(), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    more = 200 - data.count(b"\xff\xda")
    assert decode(data[:-2] + scan * more + b"\xff\xd9").size == (48, 32)
    with pytest.raises(UnusablePicture, match=r"^has more than 200 scans"):
        decode(data[:-2] + scan * (more + 1) + b"\xff\xd9")


def test_a_video_behind_a_photo_does_not_count_as_scans() -> None:
    assert decode(encoded(corners(), "JPEG") + b"\xff\xda" * 1000).size == (48, 32)


def test_threads_do_not_leave_a_warning_filter_behind() -> None:
    data, before = encoded(corners()), warnings.filters[:]
    threads = [threading.Thread(target=lambda: [decode(data) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_decode_file(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(encoded(corners()))
    assert decode_file(tmp_path / "picture", PictureLimits()).getpixel((0, 0)) == CORNERS[0]
    with pytest.raises(OSError, match=r"missing"):
        decode_file(tmp_path / "missing")


MEASURE = """
import json, sys, time
from pathlib import Path
import psutil
from pipelines.picture import PictureLimits, UnusablePicture, decode, inspect
small, bomb = (Path(path).read_bytes() for path in sys.argv[1:])
decode(small)
before = psutil.Process().memory_info().rss
start = time.perf_counter()
for read in (inspect, decode):
    try:
        read(bomb, PictureLimits())
    except UnusablePicture as error:
        text = str(error)
taken_s = time.perf_counter() - start
status = Path("/proc/self/status")
if status.exists():
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = psutil.Process().memory_info().rss
print(json.dumps({"text": text, "ms": taken_s * 1000, "mib": (peak - before) / 2**20}))
"""


def test_a_png_bomb_costs_no_more_than_its_header(tmp_path: Path) -> None:
    packer, row = zlib.compressobj(9), bytes(1 + 3 * 13000)
    rows = b"".join(packer.compress(row) for _ in range(13000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    (tmp_path / "small").write_bytes(encoded(corners()))
    assert (tmp_path / "bomb").stat().st_size < 500_000
    files = [str(tmp_path / "small"), str(tmp_path / "bomb")]
    command = [sys.executable, "-W", "error", "-c", MEASURE, *files]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures["text"].startswith("is 13000×13000 pixels; at most 16.8 megapixels and 8192 a side")
    assert figures["ms"] <= 100
    assert figures["mib"] <= 20
    assert not run.stderr
