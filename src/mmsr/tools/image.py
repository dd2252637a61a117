"""Local picture search: cosine over small colour thumbnails of the flags (paper §3.2: top-5 similar pictures).

    LocalImageSearch(world).search(crop, k=5)[0].title == "Flag of Kenya"

A tight crop finds its country, a whole scene finds nothing: cropping decides, as in the paper. Territories' flags
are in the index too, as pictures that are like an answer and are none.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmsr.tools.base import Corpus, Hit
from mmsr.tools.picture import flat

THUMBNAIL = (24, 16)
TRIM = 0.06  # share of each side that is cut: the corners of a tilted crop show its surroundings


def thumbnail(picture: Image.Image) -> Image.Image:
    """The picture at 24×16 in RGB, its edges trimmed: what the search sees of it."""
    picture = flat(picture)
    dx, dy = picture.width * TRIM, picture.height * TRIM
    box = (dx, dy, picture.width - dx, picture.height - dy)
    return picture.resize(THUMBNAIL, Image.Resampling.BILINEAR, box=box)


def embed(picture: Image.Image) -> np.ndarray:
    """A unit vector of 1,152 numbers: the thumbnail, its mean taken off."""
    vector = np.asarray(thumbnail(picture), dtype=np.float32).ravel()
    vector = vector - vector.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


class LocalImageSearch:
    """Exact nearest neighbours among the flags of the world."""

    def __init__(self, world: Corpus):
        self.flags = world.flags
        self.vectors = flag_vectors(world)

    def search(self, picture: Image.Image, k: int) -> list[Hit]:
        """The `k` most similar flags, best first; the score is the cosine."""
        scores = self.vectors @ embed(picture)
        best = np.lexsort((np.arange(len(scores)), -scores))[:k]
        return [Hit(self.flags[i].iso, self.flags[i].title, "", round(float(scores[i]), 4)) for i in best]


def flag_vectors(world: Corpus) -> np.ndarray:
    """The vectors of all flags, in the order of the picture index: (flags, 1152), float32."""
    return np.stack([embed(flat(world.flag(flag.iso))) for flag in world.flags])
