"""Picture search over the live web (paper §3.2) by upload, so that a local crop needs no hosting.

    search = image_search("serpapi_lens", outside, reader=PageReader(outside))
    search.search(crop, k=5)        # -> [Hit(id="https://…", title="Flag of Kenya", text=…, score=1.0, url=…), …]

SerpApi's Google Lens takes the picture at /image and searches by the identifier it gives; Google Vision takes it inside
the request. Both are one call in the record, known by the hash of the picture's pixels.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmsr.live.fetch import Client, Service
from mmsr.live.limits import BadAnswer, Refused
from mmsr.live.page import PageReader, with_pages
from mmsr.live.replay import Call, Outside
from mmsr.live.web_text import pick, plain, refuse_error, rows, web_hits
from mmsr.tools.base import Hit
from mmsr.tools.picture import flat, picture_key

LENS_BYTES = 500_000  # SerpApi refuses larger uploads
VISION_BYTES = 4_000_000  # Google refuses requests over 10 MB, and base64 makes a third more of a picture


@dataclass(frozen=True)
class ImageEngine:
    """One engine: its service, the version of our dialect, what it is asked, how, and how its answer is read.

    `body` is the call as the record knows it (without the picture); `ask(client, picture)` gives the JSON text.
    """

    service: Service
    version: int
    path: str
    body: Mapping[str, Any]
    ask: Callable[[Client, Image.Image], str]
    hits: Callable[[Any], list[Hit]]


class WebImageSearch:
    """`base.ImageSearch` by one web engine; with a reader, hits carry their pages' text (the paper's descriptions)."""

    def __init__(self, engine: ImageEngine, outside: Outside, reader: PageReader | None = None) -> None:
        self.engine, self.outside, self.reader = engine, outside, reader
        self._client = Client(engine.service, outside.budget)

    def search(self, picture: Image.Image, k: int) -> list[Hit]:
        """At most `k` hits, best first. Raises the errors of `limits`, or ReplayMiss."""
        engine = self.engine
        picture = flat(picture)
        call = Call(engine.service.name, engine.version, engine.path, dict(engine.body), (picture_key(picture),))
        answer = self.outside.answer(call, lambda: engine.ask(self._client, picture))
        hits = engine.hits(json.loads(answer))[:k]
        return with_pages(hits, self.reader) if self.reader else hits


# --- pictures ---------------------------------------------------------------------------------------------------------


def jpeg(picture: Image.Image, max_bytes: int) -> bytes:
    """The picture as JPEG of at most `max_bytes`: as good as fits, then smaller. Raises Refused where nothing fits."""
    picture = flat(picture)
    while min(picture.size) >= 1 and max(picture.size) >= 16:
        for quality in (92, 80, 65):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        picture = picture.reduce(2)
    raise Refused(
        f"A picture of {picture.width}×{picture.height} pixels cannot be sent: make it larger than 16 pixels."
    )


def base64_jpeg(picture: Image.Image, max_bytes: int = VISION_BYTES) -> str:
    """The picture as JPEG in base64, for JSON bodies and data addresses."""
    return base64.b64encode(jpeg(picture, max_bytes)).decode("ascii")


# --- engines ----------------------------------------------------------------------------------------------------------


def _ask_lens(client: Client, picture: Image.Image) -> str:
    files = {"image": ("picture.jpg", jpeg(picture, LENS_BYTES), "image/jpeg")}
    upload = json.loads(client.send("POST", "/image", files=files).json_text("serpapi_lens"))
    name = upload.get("image_id") if isinstance(upload, dict) else None
    if not isinstance(name, str):
        refuse_error(upload, "serpapi_lens")
        raise BadAnswer("serpapi_lens answered in another format: the upload has no image_id.")
    params = {"engine": "google_lens", "type": "visual_matches", "image_id": name, "output": "json"}
    return client.send("GET", "/search", params=params).json_text("serpapi_lens")


def _lens_hits(answer: Any) -> list[Hit]:
    refuse_error(answer, "serpapi_lens")
    return web_hits(rows(answer, "visual_matches", service="serpapi_lens"), "title", "link", "source")


def _ask_vision(client: Client, picture: Image.Image) -> str:
    request = {"image": {"content": base64_jpeg(picture)}, "features": [_WEB_DETECTION]}
    return client.send("POST", "/v1/images:annotate", json={"requests": [request]}).json_text("google_vision")


def _vision_hits(answer: Any) -> list[Hit]:
    """Pages with the picture first; then, for a picture no page has, what the web calls such pictures."""
    first = (rows(answer, "responses", service="google_vision") or [{}])[0]
    if isinstance(error := first.get("error"), dict):
        raise Refused(f"google_vision refused the picture ({plain(error.get('message'), 200).rstrip('.')}).")
    labels = rows(first, "webDetection", "bestGuessLabels", service="google_vision")
    entities = rows(first, "webDetection", "webEntities", service="google_vision")
    names = [plain(row.get("label")) for row in labels] + [plain(row.get("description")) for row in entities]
    about = ", ".join(dict.fromkeys(name for name in names if name))
    pages = [
        {**row, "about": about}
        for row in rows(first, "webDetection", "pagesWithMatchingImages", service="google_vision")
    ]
    hits = web_hits(pages, "pageTitle", "url", "about")
    for row in entities:
        if name := plain(row.get("description")):
            hits.append(Hit(plain(row.get("entityId")) or name, name, about, 1 / (len(hits) + 1)))
    return hits


_WEB_DETECTION = {"type": "WEB_DETECTION", "maxResults": 10}
SERPAPI_LENS = ImageEngine(
    Service(
        "serpapi_lens", "https://serpapi.com", "SERPAPI_API_KEY", key_param="api_key", rate=2.0, price=0.0075
    ),  # two calls
    1,
    "GET /search",
    {"engine": "google_lens", "type": "visual_matches"},
    _ask_lens,
    _lens_hits,
)
GOOGLE_VISION = ImageEngine(
    Service(
        "google_vision",
        "https://vision.googleapis.com",
        "GOOGLE_API_KEY",
        key_header="X-Goog-Api-Key",  # Google takes it in the address too, where logs and proxies would see it
        price=0.0035,
        quota="per day|billing",  # its limits per minute speak of a quota as well
    ),
    1,
    "POST /v1/images:annotate",
    {"features": [_WEB_DETECTION]},
    _ask_vision,
    _vision_hits,
)
IMAGE_ENGINES: Mapping[str, ImageEngine] = {engine.service.name: engine for engine in (SERPAPI_LENS, GOOGLE_VISION)}


def image_search(name: str, outside: Outside, base_url: str = "", reader: PageReader | None = None) -> WebImageSearch:
    """The engine of that name, at its public address unless another is given. Raises ValueError for an unknown name."""
    return WebImageSearch(pick(IMAGE_ENGINES, name, base_url), outside, reader)
