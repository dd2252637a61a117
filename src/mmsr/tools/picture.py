"""Pictures from outside, read safely, and the one hash a picture is known by.

picture = read_picture(path.read_bytes())       # its first frame, upright, in RGB
picture_key(picture)                            # SHA-256, the same in every process
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 25_000_000  # Pillow itself only warns below 89 million
THINNEST = 200  # one side to the other: no Qwen2.5-VL takes a thinner picture
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def read_picture(data: bytes) -> Image.Image:
    """A stranger's picture: its first frame, upright, in RGB, padded with white where it is too thin to be seen.

    Raises ValueError for what is not a picture or is too large.
    """
    none = f"not a picture in {', '.join(FORMATS)}"
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = wide_enough(picture.size)
        if width * height <= MAX_PIXELS:
            return padded(flat(ImageOps.exif_transpose(picture)))
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError(none) from None
    except Exception as error:  # Pillow has a dozen kinds for damaged files
        raise ValueError(f"{none} that is whole ({error})") from None
    thin = "" if (width, height) == picture.size else " once its thin side is padded"
    raise ValueError(f"the picture has more than {MAX_PIXELS / 1e6:g} million pixels{thin}")


@dataclass(frozen=True)
class PictureFiles(Sequence[Image.Image]):
    """Pictures in files, each decoded when it is asked for, and not kept."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Image.Image:
        return read_picture(self.paths[place].read_bytes())


def wide_enough(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height, the smaller made as large as a policy needs it. Raises ValueError where there is no pixel."""
    if 0 in size:
        raise ValueError("it has no pixels")
    least = -(-max(size) // THINNEST)
    return max(size[0], least), max(size[1], least)


def padded(picture: Image.Image) -> Image.Image:
    """The picture, with white on its right or below it where it is too thin: boxes keep their places."""
    size = wide_enough(picture.size)
    if size == picture.size:
        return picture
    whole = Image.new("RGB", size, "white")
    whole.paste(picture)
    return whole


def flat(picture: Image.Image) -> Image.Image:
    """The picture in RGB, 16 bits of grey as 8; what is transparent becomes white, as a browser would show it."""
    if picture.mode.startswith("I"):  # 16 bits, which `convert` would cut at 255
        grey = np.asarray(picture)
        seen = np.where(grey == picture.info.get("transparency", -1), 0, 255)
        picture = Image.merge("LA", [Image.fromarray(band.astype(np.uint8)) for band in (grey >> 8, seen)])
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def picture_key(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, whatever file, encoder or library version carries it.

    It is not kept in `picture.info`: Pillow hands that on to crops, which would then bear the whole picture's key.
    """
    return hashlib.sha256(repr(picture.size).encode() + flat(picture).tobytes()).hexdigest()
