"""Pictures of strangers: 16 bits are scaled, what is too thin is padded, what cannot be read is told in plain words."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from small_policy import tiny

from mmsr.tools.picture import flat, picture_key, read_picture


def saved(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def deep(values: list[int]) -> Image.Image:
    """A row of 16-bit grey."""
    return Image.fromarray(np.array([values], dtype=np.uint16))


def test_sixteen_bits_of_grey_are_scaled() -> None:
    seen = read_picture(saved(deep([0, 255, 4660, 32768, 65535])))
    assert [seen.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 0, 18, 128, 255)]
    assert picture_key(deep([32768])) == picture_key(Image.new("RGB", (1, 1), (128, 128, 128)))


def test_what_is_see_through_is_white_in_every_mode() -> None:
    for picture, colour in (
        (deep([4660]), 4660),
        (Image.new("L", (1, 1), 7), 7),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("P", (1, 1), 0), 0),
    ):
        assert read_picture(saved(picture, transparency=colour)).getpixel((0, 0)) == (255, 255, 255), picture.mode
    other = read_picture(saved(deep([4661, 4660]), transparency=4660))
    assert [other.getpixel((x, 0)) for x in range(2)] == [(18, 18, 18), (255, 255, 255)]
    plain = Image.new("RGB", (2, 2), "red")
    assert flat(plain) is plain


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((4100, 20), (4100, 21)),
        ((20, 4100), (21, 4100)),
        ((4000, 20), (4000, 20)),
        ((4001, 20), (4001, 21)),
        ((999, 1), (999, 5)),
        ((1, 1), (1, 1)),
    ],
)
def test_a_picture_that_is_too_thin_for_a_policy_is_padded(size: tuple[int, int], seen: tuple[int, int]) -> None:
    picture = read_picture(saved(Image.new("RGB", size, "red")))
    assert picture.size == seen and picture.getpixel((size[0] - 1, size[1] - 1)) == (255, 0, 0)
    assert size == seen or picture.getpixel((seen[0] - 1, seen[1] - 1)) == (255, 255, 255)
    tiny().frame(picture)


def test_a_thin_picture_is_padded_as_it_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(saved(Image.new("RGB", (4100, 20)), "JPEG", exif=exif)).size == (21, 4100)


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_picture_is_told_by_what_is_wanted(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a picture in JPEG, PNG, WEBP, GIF") as refused:
        read_picture(data)
    assert " at 0x" not in str(refused.value) and "BytesIO" not in str(refused.value)


def test_half_a_picture_is_told_as_one() -> None:
    whole = saved(Image.effect_noise((64, 64), 60))
    with pytest.raises(ValueError, match=r"that is whole \(.+\)$"):
        read_picture(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("size", "said"), [((6000, 5000), "25 million pixels$"), ((80_000, 1), "thin side is padded$")]
)
def test_what_is_too_large_is_refused_also_where_padding_makes_it_so(size: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_picture(saved(Image.new("1", size)))
