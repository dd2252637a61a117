"""Pictures from outside, read safely, and the one hash a picture is known by.

picture = read_picture(path.read_bytes())       # its first frame, upright, in RGB
picture_key(picture)                            # SHA-256, the same in every process
"""

from __future__ import annotations

import hashlib
import io

from PIL import Image, ImageOps

MAX_PIXELS = 25_000_000  # Pillow itself only warns below 89 million
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def read_picture(data: bytes) -> Image.Image:
    """A stranger's picture: its first frame, upright, in RGB. Raises ValueError for what is none or is too large."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"the picture has more than {MAX_PIXELS / 1e6:g} million pixels")
        return flat(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a picture in {', '.join(FORMATS)} ({error})") from None


def flat(picture: Image.Image) -> Image.Image:
    """The picture in RGB; what is transparent becomes white, as a browser would show it."""
    if picture.mode == "RGB":
        return picture
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def picture_key(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, whatever file, encoder or library version carries it.

    It is not kept in `picture.info`: Pillow hands that on to crops, which would then bear the whole picture's key.
    """
    return hashlib.sha256(repr(picture.size).encode() + flat(picture).tobytes()).hexdigest()
