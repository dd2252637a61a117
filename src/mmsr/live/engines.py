"""Search over the live web (paper §3.2): six engines for text and two for pictures, behind the local tools' interface.

    door = Door("record", Path("calls.sqlite"))
    search = WebSearch(TEXT_ENGINES["serper"], door, reader=PageReader(door))
    search.search("Kenya capital", k=5)     # -> [Hit(id="https://…", title=…, text=…, score=1.0, url="https://…"), …]
    WebSearch(IMAGE_ENGINES["serpapi_lens"], door).search(crop, k=5)      # the crop is uploaded: no hosting is needed

An engine is where it is, what it is asked and how its answer is read; nothing else differs between engines. `moved`
points one elsewhere, at `mmsr serve` say, whose hits then get the world's own identifiers.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from PIL import Image

from mmsr.live.door import Door, Service, json_text
from mmsr.live.limits import BadAnswer, Refused
from mmsr.live.pages import OWN_RATE, PageReader, with_pages
from mmsr.live.record import Call
from mmsr.tools.base import Hit
from mmsr.tools.picture import flat, picture_key

LEAST = 10  # results asked for at least: engines charge by the call, and a record then serves every smaller k
LENS_BYTES = 500_000  # SerpApi refuses larger uploads
VISION_BYTES = 4_000_000  # Google refuses requests over 10 MB, and base64 makes a third more of a picture

Query = str | Image.Image
Ask = Callable[[Door, "Engine", Query, dict[str, Any]], str]
Read = Callable[[Any, Service], list[Hit]]


def _ask(door: Door, engine: Engine, query: Query, body: dict[str, Any]) -> str:
    method, path = engine.path.split()
    reply = door.open(engine.service).request(method, path, **{"params" if method == "GET" else "json": body})
    return json_text(reply, engine.service.name)


@dataclass(frozen=True)
class Engine:
    """One engine: its service, what it is asked, and how its answer is read.

    Method and path, `body(query, k)` and `version`, that of our dialect, are the call as the record knows it, without
    key and picture. `hits(answer, service)` reads the JSON. `ask` sends a call in another way than its body alone.
    """

    service: Service
    path: str
    body: Callable[[Query, int], dict[str, Any]]
    hits: Read
    ask: Ask = _ask
    version: int = 1


def moved(engine: Engine, url: str) -> Engine:
    """An engine at another address, at its own where `url` is empty.

    At its own its key must be set; at another it is sent if it is set, and a server that needs none is taken for one's
    own: it costs nothing and is asked as fast as it answers.
    """
    if not url:
        return engine
    service = replace(engine.service, base_url=url, key_env=set_key(engine.service.key_env))
    return replace(engine, service=service if service.key_env else replace(service, price=0.0, rate=OWN_RATE))


def set_key(key_env: str) -> str:
    """The variable of a key that is sent to another address than its service's own: "" unless it is set."""
    return key_env if os.environ.get(key_env) else ""


@dataclass(frozen=True)
class WebSearch:
    """`base.TextSearch` or `base.ImageSearch` by one web engine.

    With a reader, hits carry the text of their pages instead of snippets. `names` are the identifiers of the world
    behind `mmsr serve`: its hits are named as the local tools name them ("ke/capital", "ke"), all others as they are.
    """

    engine: Engine
    door: Door
    reader: PageReader | None = None
    names: Container[str] = ()

    def search(self, query: Query, k: int) -> list[Hit]:
        """At most `k` hits, best first. Raises the errors of `limits`, or ReplayMiss."""
        engine, service = self.engine, self.engine.service
        body = engine.body(query, k)
        pictures = () if isinstance(query, str) else (picture_key(query),)
        call = Call(service.name, engine.version, engine.path, body, pictures)
        answer = self.door.answer(call, lambda: engine.ask(self.door, engine, query, body))
        hits = [self._named(hit) for hit in engine.hits(json.loads(answer), service)[:k]]
        return with_pages(hits, self.reader) if self.reader else hits

    def _named(self, hit: Hit) -> Hit:
        name = unquote(urlsplit(hit.id).path).removeprefix("/page/")
        return replace(hit, id=name) if name in self.names else hit


# --- reading answers that nobody promised -----------------------------------------------------------------------------


def plain(text: Any, limit: int = 4000) -> str:
    """A field as plain text: no tags, no entities, single spaces, no half characters; "" where it is no text."""
    if not isinstance(text, str):
        return ""
    text = html.unescape(re.sub(r"<[^<>]{0,200}>", "", text[: 4 * limit]))
    return " ".join(text.encode("utf-8", "replace").decode().split())[:limit]


def rows(answer: Any, service: Service, *path: str) -> list[dict[str, Any]]:
    """The list of objects at `path` in an answer; [] where the field is absent. Raises BadAnswer for another shape."""
    for name in path:
        if not isinstance(answer, dict):
            raise BadAnswer(f"{service.name} answered in another format: no object holds {name!r}.")
        answer = answer.get(name)
        if answer is None:
            return []
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise BadAnswer(f"{service.name} answered in another format: {'.'.join(path)} is no list of objects.")
    return answer


def web_hits(found: list[dict[str, Any]], title: str, link: str, text: str) -> list[Hit]:
    """Hits from rows with these field names; an engine that gives no scores gets 1, 1/2, 1/3, … by rank."""
    hits = []
    for row in found:
        url = plain(row.get(link))
        if re.match(r"https?://", url):
            hits.append(Hit(url, plain(row.get(title)), plain(row.get(text)), 1 / (len(hits) + 1), url))
    return hits


def _at(*path: str, link: str = "link", text: str = "snippet") -> Read:
    """Reads the hits at `path`, whose titles all engines call `title`."""
    return lambda answer, service: web_hits(rows(_no_error(answer, service), service, *path), "title", link, text)


def _no_error(answer: Any, service: Service) -> Any:
    """The answer. SerpApi tells errors, and that nothing was found, in the `error` of a success. Raises Refused."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, str) and not re.search("returned any results|no results", error, re.IGNORECASE):
        raise Refused(f"{service.name} refused the search ({plain(error, 200).rstrip('.')}).")
    return answer


def _wikimedia(answer: Any, service: Service) -> list[Hit]:
    wiki = service.base_url.rstrip("/") + "/wiki/"
    pages = [row | {"link": wiki + quote(str(row.get("key", "")))} for row in rows(answer, service, "pages")]
    return web_hits(pages, "title", "link", "excerpt")


def _searchr1(answer: Any, service: Service) -> list[Hit]:
    """Search-R1's server answers a batch; a document's first line is its title in quotation marks."""
    batch = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(batch, list) or len(batch) != 1:
        raise BadAnswer("searchr1 answered in another format: result is no list of one list.")
    hits = []
    for rank, row in enumerate(rows({"documents": batch[0]}, service, "documents"), 1):
        document = row.get("document", row)
        contents = document.get("contents") if isinstance(document, dict) else None
        if not isinstance(contents, str):
            raise BadAnswer("searchr1 answered in another format: a document has no contents.")
        title, _, text = contents.partition("\n")
        score = row.get("score")
        score = float(score) if isinstance(score, int | float) else 1 / rank
        name = plain(str(document.get("id") or title.strip('"')))
        hits.append(Hit(name, plain(title).strip('"'), plain(text), score, plain(document.get("url"))))
    return hits


def _vision(answer: Any, service: Service) -> list[Hit]:
    """Pages with the picture first; then, for a picture no page has, what the web calls such pictures."""
    first = (rows(answer, service, "responses") or [{}])[0]
    if isinstance(error := first.get("error"), dict):
        raise Refused(f"google_vision refused the picture ({plain(error.get('message'), 200).rstrip('.')}).")
    kinds = ("bestGuessLabels", "webEntities", "pagesWithMatchingImages")
    labels, entities, pages = (rows(first, service, "webDetection", kind) for kind in kinds)
    names = [plain(row.get("label")) for row in labels] + [plain(row.get("description")) for row in entities]
    about = ", ".join(dict.fromkeys(name for name in names if name))
    hits = web_hits([row | {"about": about} for row in pages], "pageTitle", "url", "about")
    for row in entities:
        if name := plain(row.get("description")):
            hits.append(Hit(plain(row.get("entityId")) or name, name, about, 1 / (len(hits) + 1)))
    return hits


# --- sending pictures -------------------------------------------------------------------------------------------------


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
    raise Refused(f"A picture of {picture.size} pixels cannot be sent: make it larger than 16 pixels.")


def base64_jpeg(picture: Image.Image, max_bytes: int = VISION_BYTES) -> str:
    """The picture as JPEG in base64, for JSON bodies and data addresses."""
    return base64.b64encode(jpeg(picture, max_bytes)).decode("ascii")


def _ask_lens(door: Door, engine: Engine, picture: Image.Image, body: dict[str, Any]) -> str:
    """SerpApi's Lens takes the picture first and searches by the identifier it gives: two requests, one call."""
    service, key = engine.service, {engine.service.key_param: engine.service.key()}
    files = {"image": ("picture.jpg", jpeg(picture, LENS_BYTES), "image/jpeg")}
    upload = json.loads(json_text(door.open(service).post("/image", data=key, files=files), service.name))
    name = upload.get("image_id") if isinstance(upload, dict) else None
    if not isinstance(name, str):
        _no_error(upload, service)
        raise BadAnswer("serpapi_lens answered in another format: the upload has no image_id.")
    return _ask(door, engine, picture, body | {"image_id": name, "output": "json"})


def _ask_vision(door: Door, engine: Engine, picture: Image.Image, body: dict[str, Any]) -> str:
    return _ask(door, engine, picture, {"requests": [{"image": {"content": base64_jpeg(picture)}, **body}]})


# --- the engines ------------------------------------------------------------------------------------------------------

SERPER = Engine(
    Service("serper", "https://google.serper.dev", "SERPER_API_KEY", key_header="X-API-KEY", price=0.001),
    "POST /search",
    lambda query, k: {"q": query, "num": max(k, LEAST)},
    _at("organic"),
)
SERPAPI = Engine(
    Service("serpapi", "https://serpapi.com", "SERPAPI_API_KEY", key_param="api_key", price=0.015),
    "GET /search",
    lambda query, k: {"q": query, "engine": "google", "output": "json"},
    _at("organic_results"),
)
BRAVE = Engine(
    Service("brave", "https://api.search.brave.com", "BRAVE_API_KEY", "X-Subscription-Token", rate=1.0, price=0.005),
    "GET /res/v1/web/search",
    lambda query, k: {"q": query, "count": min(max(k, LEAST), 20)},  # Brave refuses more
    _at("web", "results", link="url", text="description"),
)
SEARXNG = Engine(
    Service("searxng", "http://127.0.0.1:8888", help_403="Add json to search.formats in its settings."),
    "GET /search",
    lambda query, k: {"q": query, "format": "json"},
    _at("results", link="url", text="content"),
)
WIKIMEDIA = Engine(
    Service("wikimedia", "https://en.wikipedia.org", rate=1.0),
    "GET /w/rest.php/v1/search/page",
    lambda query, k: {"q": query, "limit": max(k, LEAST)},
    _wikimedia,
)
SEARCH_R1 = Engine(
    Service("searchr1", "http://127.0.0.1:8000", rate=100.0),
    "POST /retrieve",
    lambda query, k: {"queries": [query], "topk": k, "return_scores": True},
    _searchr1,
)
SERPAPI_LENS = Engine(  # its price is that of each of two requests
    Service("serpapi_lens", "https://serpapi.com", "SERPAPI_API_KEY", key_param="api_key", rate=2.0, price=0.0075),
    "GET /search",
    lambda picture, k: {"engine": "google_lens", "type": "visual_matches"},
    _at("visual_matches", text="source"),
    _ask_lens,
)
GOOGLE_VISION = Engine(
    Service(
        "google_vision",
        "https://vision.googleapis.com",
        "GOOGLE_API_KEY",
        "X-Goog-Api-Key",  # Google takes it in the address too, where logs and proxies would see it
        price=0.0035,
        quota="per day|billing",  # its limits per minute speak of a quota as well
    ),
    "POST /v1/images:annotate",
    lambda picture, k: {"features": [{"type": "WEB_DETECTION", "maxResults": 10}]},
    _vision,
    _ask_vision,
)
TEXT_ENGINES = {e.service.name: e for e in (SERPER, SERPAPI, BRAVE, SEARXNG, WIKIMEDIA, SEARCH_R1)}
IMAGE_ENGINES = {e.service.name: e for e in (SERPAPI_LENS, GOOGLE_VISION)}
