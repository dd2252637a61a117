"""Local picture search: cosine over small colour thumbnails of pictures (paper §3.2: top-5 similar pictures).

    LocalImageSearch(world).search(crop, k=5)[0].title == "Flag of Kenya"

A tight crop finds its country, a whole scene finds nothing: cropping decides, as in the paper. Territories' flags
are in the index too, as distractors: they look like an answer and never are one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from mmsr.tools.base import Corpus, FatalToolError, Hit
from mmsr.tools.picture import flat

THUMBNAIL = (24, 16)
TRIM = 0.06  # share of each side that is cut: the corners of a tilted crop show its surroundings
SIGLIP = "google/siglip-base-patch16-224@7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed"
Embed = Callable[[Image.Image], np.ndarray]


def thumbnail(picture: Image.Image) -> Image.Image:
    """The picture at 24×16 in RGB, its edges trimmed: what the search sees of it."""
    picture = flat(picture)
    dx, dy = picture.width * TRIM, picture.height * TRIM
    box = (dx, dy, picture.width - dx, picture.height - dy)
    return picture.resize(THUMBNAIL, Image.Resampling.BILINEAR, box=box)


def embed(picture: Image.Image) -> np.ndarray:
    """A unit vector of 1,152 numbers: the thumbnail, less its mean."""
    vector = np.asarray(thumbnail(picture), dtype=np.float32).ravel()
    vector = vector - vector.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def embedder(model: str) -> Embed:
    """`embed`, or the unit vectors of a vision model of transformers, if named: a folder, or NAME@COMMIT on the hub.

    It is SigLIP, CLIP or another that gives a picture one vector. Raises FatalToolError where it cannot be loaded.
    """
    if not model:
        return embed
    import torch  # like transformers, it takes seconds to load
    from transformers import AutoImageProcessor, AutoModel

    name, commit = f"{model}@none".split("@")[:2]  # so that a hub model without its commit is refused
    try:
        network = AutoModel.from_pretrained(name, revision=commit, dtype=torch.float32).eval()
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        processor = AutoImageProcessor.from_pretrained(name, revision=commit, backend="pil")  # never torchvision's
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        said, remedy = str(error).partition("\n")[0], f"give a folder, or, once online, NAME@COMMIT such as {SIGLIP}"
        raise FatalToolError(f"The vision model {model} cannot be loaded ({said}): {remedy}.") from None

    @torch.no_grad()
    def seen(picture: Image.Image) -> np.ndarray:
        inputs = processor(images=flat(picture), return_tensors="pt").to(network.device)
        found = getattr(network, "get_image_features", network)(**inputs)  # SigLIP and CLIP read texts too
        vector = found.pooler_output[0].cpu().numpy()
        return vector / max(float(np.linalg.norm(vector)), 1e-6)

    return seen


class LocalImageSearch:
    """Exact nearest neighbours among the pictures of a world, by their vectors where there are any."""

    def __init__(self, world: Corpus, vectors: np.ndarray | None = None, embed: Embed = embed):
        self.flags, self.embed = world.flags, embed
        self.vectors = vectors if vectors is not None else np.stack([embed(world.flag(f.iso)) for f in self.flags])

    def search(self, picture: Image.Image, k: int) -> list[Hit]:
        """The `k` most similar pictures, best first; the score is the cosine."""
        scores = self.vectors @ self.embed(picture)
        best = np.lexsort((np.arange(len(scores)), -scores))[:k]
        return [Hit(f.iso, f.title, "", round(float(scores[i]), 4), f.url) for i in best for f in [self.flags[i]]]
