"""Search over the live web (paper §3.2): six engines for text, two for pictures, and the pages that they name.

    door = Door("record", Path("calls.sqlite"))
    search = WebSearch(TEXT_ENGINES["serper"], door, reader=PageReader(door))
    search.search("Kenya capital", k=5)     # -> [Hit(id="https://…", title=…, text=…, score=1.0, url="https://…"), …]
    WebSearch(IMAGE_ENGINES["serpapi_lens"], door).search(crop, k=5)      # the crop is uploaded: no hosting is needed
    PageReader(door).read("https://…")      # -> the page's text without its menus

The engines are tables of `assets/live/engines.toml`; here is what one of them does in a way of its own. A page's
extracted text is recorded, so that a replay does not depend on the extractor's version (trafilatura); its address must
be on the public internet (see `wire`), and redirects are not followed.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import logging
import os
import re
import tomllib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from string import Template
from typing import Any
from urllib.parse import quote, unquote

import httpx
import trafilatura
from PIL import Image

from mmsr.live.door import Door, Service, json_text, short, understood
from mmsr.live.limits import BadAnswer, Limits, Refused, Unavailable
from mmsr.live.record import Call
from mmsr.live.wire import bounded, is_address
from mmsr.presets import ASSETS
from mmsr.tools.base import Hit, ToolError, in_parallel
from mmsr.tools.picture import flat, picture_key

LEAST = 10  # the fewest results asked for: engines charge by the call, and a record then serves every smaller k
LENS_BYTES = 500_000  # SerpApi refuses larger uploads
VISION_BYTES = 4_000_000  # Google refuses requests over 10 MB, and base64 makes a picture a third larger
PASSING = (4, 8, 13, 14)  # Google's codes: deadline exceeded, resource exhausted, internal error, unavailable
OWN_RATE = 100.0  # calls a second to a server of one's own
MAX_CHARS = 8000  # of one page; a summariser reads five of them
MAX_TAGS = 10_000  # of one page, enough for its first MAX_CHARS: extraction time is not linear in their number
# The rate is by host: nobody's server is asked more often than this.
PAGE = Service("page", "", rate=4.0, limits=Limits(total=20.0, attempt=10.0, tries=2, max_bytes=2_000_000), web=True)

logger = logging.getLogger(__name__)
Query = str | Image.Image
Row = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """One engine: its service, what it is asked, and where its answer holds what (see `assets/live/engines.toml`)."""

    service: Service
    call: str
    body: str
    found: tuple[str, ...] = ()
    title: str = "title"
    link: str = "link"
    text: str = "snippet"
    page: str = ""
    most: int = 100
    version: int = 1  # of our dialect: with call and filled body, what the record knows a search by

    def hits(self, rows: list[Row]) -> list[Hit]:
        """Hits from rows with this engine's names; an engine that gives no scores gets 1, 1/2, 1/3, … by rank."""
        hits = []
        for row in rows:
            link = plain(row.get(self.link))
            url = self.service.base_url.rstrip("/") + self.page + quote(link) if self.page else link
            if _of_web(url):
                title, text = plain(row.get(self.title)), plain(row.get(self.text))
                hits.append(Hit(url, title, text, 1 / (len(hits) + 1), url))
        return hits


def moved(engine: Engine, url: str) -> Engine:
    """An engine at another address, or at its own where `url` is empty.

    There its key is sent only if it is set; without one it costs nothing and is asked as fast as it answers.
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
    """`base.TextRetriever` or `base.ImageRetriever` by one web engine; a reader gives hits the text of their pages.

    `names` are the identifiers of the world behind `mmsr serve`: its hits are named as the local tools name them
    ("ke/capital", "ke"), all others as they are.
    """

    engine: Engine
    door: Door
    reader: PageReader | None = None
    names: Container[str] = ()

    def search(self, query: Query, k: int) -> list[Hit]:
        """At most `k` hits, best first. Raises the errors of `limits`, or ReplayMiss."""
        engine, name = self.engine, self.engine.service.name
        words = {"k": k, "count": min(max(k, LEAST), engine.most), "query": json.dumps(str(query))}
        body = json.loads(Template(engine.body).substitute(words))
        pictures = () if isinstance(query, str) else (picture_key(query),)

        def ask() -> str:
            method, path = engine.call.split()
            sent = SENDERS[name](engine, self.door, query, body) if pictures else body
            given = {"params" if method == "GET" else "json": sent}
            client = self.door.open(engine.service, lambda reply: self._hits(json_text(reply, name)))
            return json_text(client.request(method, path, **given), name)

        hits = self._hits(self.door.answer(Call(name, engine.version, engine.call, body, pictures), ask))[:k]
        return with_pages(hits, self.reader) if self.reader else hits

    def _hits(self, text: str) -> list[Hit]:
        """All hits of an answer. Raises BadAnswer, and Refused or Unavailable where it says that the search failed."""
        name = self.engine.service.name
        with understood(name):
            return [self._named(hit) for hit in READERS.get(name, _listed)(self.engine, json.loads(text))]

    def _named(self, hit: Hit) -> Hit:
        name = unquote(re.sub(r"^https?://[^/]*/page/", "", hit.id))
        return replace(hit, id=name) if name in self.names else hit


@dataclass(frozen=True)
class PageReader:
    """Reads pages of the public web, and of a search server at the address `own`: wherever it lies, and fast."""

    door: Door
    service: Service = PAGE
    own: str = ""

    def read(self, url: str) -> str:
        """Its main text, at most MAX_CHARS characters. Raises Refused for what is not a web address, and more."""
        own = self.own and url.startswith(self.own.rstrip("/") + "/")
        service = replace(self.service, near=True, rate=OWN_RATE) if own else self.service

        def ask() -> str:
            if not is_address(url):
                raise Refused(f"{plain(url, 80)} is not the address of a web page: only http and https are read.")
            reply, seconds = self.door.open(service).get(url), service.limits.attempt
            try:
                return bounded(lambda: main_text(reply), seconds)
            except TimeoutError:
                raise BadAnswer(f"The page takes more than {seconds:g} s to read: its snippet must do.") from None

        return self.door.answer(Call("page", 1, "GET", {"url": url}), ask)


def main_text(reply: httpx.Response) -> str:
    """The main text of a fetched page. Raises BadAnswer where it is neither HTML nor text, or has none."""
    header = reply.headers.get("content-type", "text/html").lower()
    kind = header.partition(";")[0].strip()
    if kind not in ("text/plain", "text/html", "application/xhtml+xml"):
        raise BadAnswer(f"The page is {kind[:60]}, which is neither HTML nor text: its snippet must do.")
    found = decode(reply.content, header)
    if kind != "text/plain":
        try:
            shortened = "<".join(found.split("<", MAX_TAGS)[:MAX_TAGS])
            found = trafilatura.extract(shortened, include_comments=False) or ""
        except Exception as error:  # whatever a parser makes of a stranger's page is the page's fault
            raise BadAnswer(f"The page is broken ({type(error).__name__}): its snippet must do.") from error
    if not found.strip():
        raise BadAnswer("The page has no main text: its snippet must do.")
    return found.strip()[:MAX_CHARS]


def decode(body: bytes, header: str) -> str:
    """The body as text, by the encoding that the header or the page names, else UTF-8, else cp1252, which never fails.

    Lone surrogates, which some encodings can spell, are dropped. Punycode and IDNA are not encodings of pages.
    """
    names = re.findall(r"charset=[\"']?(?!puny|idna)([\w-]+)", header + " " + body[:2048].decode("latin-1").lower())
    for name in [*names, "utf-8"]:
        with contextlib.suppress(LookupError, UnicodeError):
            return body.decode(name).encode("utf-8", "ignore").decode()
    return body.decode("cp1252", "replace")


def with_pages(hits: Sequence[Hit], reader: PageReader) -> list[Hit]:
    """The hits with their pages' text, read side by side; a page that cannot be read leaves its hit the snippet.

    A heading that repeats a hit's title is left out, for what is read of a hit begins with its title.
    """
    texts = in_parallel(lambda hit: reader.read(hit.url) if hit.url else hit.text, hits, len(hits))
    for hit, text in zip(hits, texts):
        if isinstance(text, ToolError):
            logger.info("page of %s not read: %s", hit.id, text)
    read = [(hit, hit.text if isinstance(text, ToolError) else text) for hit, text in zip(hits, texts)]
    return [replace(hit, text=text.removeprefix(f"{hit.title}\n").lstrip() or text) for hit, text in read]


# --- reading answers: what has another shape raises, and `understood` says so -----------------------------------------


def plain(text: Any, limit: int = 4000) -> str:
    """A field as plain text: no tags, no entities, single spaces, no lone surrogates; "" where it is not text."""
    if not isinstance(text, str):
        return ""
    text = html.unescape(re.sub(r"<[^<>]{0,200}>", "", text[: 4 * limit]))
    return " ".join(text.encode("utf-8", "replace").decode().split())[:limit]


def _of_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _rows(answer: Row, *path: str) -> list[Row]:
    """The list at `path` in an answer; [] where a field is absent."""
    for name in path:
        answer = answer.get(name)
        if answer is None:
            return []
    return list(answer)


def _listed(engine: Engine, answer: Row) -> list[Hit]:
    return engine.hits(_rows(_without_error(engine, answer), *engine.found))


def _without_error(engine: Engine, answer: Row) -> Row:
    """The answer. SerpApi reports errors, and that nothing was found, in the `error` of a success.

    Raises Refused, or Unavailable where trying again helps.
    """
    error = answer.get("error")
    if isinstance(error, str) and not re.search("returned any results|no results", error, re.IGNORECASE):
        kind = Unavailable if "try again" in error.lower() else Refused
        raise kind(f"{engine.service.name} refused the search ({plain(error, 200).rstrip('.')}).")
    return answer


def _searxng(engine: Engine, answer: Row) -> list[Hit]:
    """SearXNG asks many engines. Raises Unavailable where nothing is found and some did not answer."""
    hits, silent = _listed(engine, answer), answer.get("unresponsive_engines")
    if silent and not hits:
        raise Unavailable(f"searxng found nothing: engines did not answer it ({short(json.dumps(silent))}).")
    return hits


def _searchr1(engine: Engine, answer: Row) -> list[Hit]:
    """Search-R1's server answers a batch; a document's first line is its title in quotation marks."""
    hits = []
    [batch] = answer["result"]
    for rank, row in enumerate(batch, 1):
        document = row.get("document", row)
        title, _, text = document["contents"].partition("\n")
        score = float(row.get("score", 1 / rank))
        name = plain(str(document.get("id") or title.strip('"')))
        url = plain(document.get("url"))
        hits.append(Hit(name, plain(title).strip('"'), plain(text), score, url if _of_web(url) else ""))
    return hits


def _vision(engine: Engine, answer: Row) -> list[Hit]:
    """Pages with the picture first; then, for a picture no page has, what the web calls such pictures."""
    first = (_rows(answer, "responses") or [{}])[0]
    if error := first.get("error"):
        kind = Unavailable if error.get("code") in PASSING else Refused
        raise kind(f"google_vision refused the picture ({plain(error.get('message'), 200).rstrip('.')}).")
    kinds = ("bestGuessLabels", "webEntities", "pagesWithMatchingImages")
    labels, entities, pages = (_rows(first, "webDetection", kind) for kind in kinds)
    names = [plain(row.get("label")) for row in labels] + [plain(row.get("description")) for row in entities]
    about = ", ".join(dict.fromkeys(name for name in names if name))
    hits = engine.hits([row | {"about": about} for row in pages])
    for row in entities:
        if name := plain(row.get("description")):
            hits.append(Hit(plain(row.get("entityId")) or name, name, about, 1 / (len(hits) + 1)))
    return hits


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


def base64_jpeg(picture: Image.Image) -> str:
    """The picture as JPEG in base64, for JSON bodies and data URLs."""
    return base64.b64encode(jpeg(picture, VISION_BYTES)).decode("ascii")


def _uploaded(engine: Engine, door: Door, picture: Image.Image, body: Row) -> Row:
    """SerpApi's Lens takes the picture first and searches by the identifier it gives: two requests, one call."""
    service, key = engine.service, {engine.service.key_param: engine.service.key()}
    files = {"image": ("picture.jpg", jpeg(picture, LENS_BYTES), "image/jpeg")}
    upload = json_text(door.open(service).post("/image", data=key, files=files), service.name)
    with understood(service.name):
        return body | {"image_id": _without_error(engine, json.loads(upload))["image_id"], "output": "json"}


def _enclosed(engine: Engine, door: Door, picture: Image.Image, body: Row) -> Row:
    return {"requests": [{"image": {"content": base64_jpeg(picture)}, **body}]}


READERS = {"searxng": _searxng, "searchr1": _searchr1, "google_vision": _vision}  # of answers; others are `_listed`
SENDERS = {"serpapi_lens": _uploaded, "google_vision": _enclosed}  # what is sent of a picture besides the body


TABLES = tomllib.loads((ASSETS / "live" / "engines.toml").read_text(encoding="utf-8"))
TEXT_ENGINES, IMAGE_ENGINES = (
    {name: Engine(**table | {"service": Service(name, **table["service"])}) for name, table in TABLES[kind].items()}
    for kind in ("text", "picture")
)
