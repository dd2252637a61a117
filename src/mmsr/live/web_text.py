"""Text search over the live web (paper §3.2): six engines behind the interface of the local one.

    outside = Outside("record", Path("calls.sqlite"))
    search = text_search("serper", outside, reader=PageReader(outside))
    search.search("Kenya capital", k=5)     # -> [Hit(id="https://…", title=…, text=…, score=1.0, url="https://…"), …]

An engine is a `TextEngine`: where it is, how it is asked and how its answer is read; nothing else differs between
engines. `base_url` points one elsewhere, at `mmsr serve` say; `WorldHits` then gives its hits the world's identifiers.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from mmsr.live.fetch import Client, Service
from mmsr.live.limits import BadAnswer, Refused
from mmsr.live.page import PageReader, with_pages
from mmsr.live.replay import Call, Outside
from mmsr.tools.base import Hit

Engine = TypeVar("Engine")
Query = TypeVar("Query", contravariant=True)

LEAST = 10  # results asked for at least: engines charge by the call, and a record then serves every smaller k


@dataclass(frozen=True)
class TextEngine:
    """One engine: its service, the version of our dialect (part of every record's key), its request and its answer.

    `request(query, k)` gives method, path and either `params` or `json`; `hits(answer, base_url)` reads the JSON.
    """

    service: Service
    version: int
    request: Callable[[str, int], dict[str, Any]]
    hits: Callable[[Any, str], list[Hit]]


class WebTextSearch:
    """`base.TextSearch` by one web engine; with a reader, hits carry the text of their pages instead of snippets."""

    def __init__(self, engine: TextEngine, outside: Outside, reader: PageReader | None = None) -> None:
        self.engine, self.outside, self.reader = engine, outside, reader
        self._client = Client(engine.service, outside.budget)

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` hits, best first. Raises the errors of `limits`, or ReplayMiss."""
        asked = self.engine.request(query, k)
        call = Call(
            self.engine.service.name,
            self.engine.version,
            f"{asked['method']} {asked['path']}",
            asked.get("json") or asked["params"],
        )
        answer = self.outside.answer(call, lambda: self._client.send(**asked).json_text(self.engine.service.name))
        hits = self.engine.hits(json.loads(answer), self.engine.service.base_url)[:k]
        return with_pages(hits, self.reader) if self.reader else hits


def at(engine: Engine, base_url: str) -> Engine:
    """The same text or picture engine at another address."""
    return replace(engine, service=replace(engine.service, base_url=base_url))


# --- reading answers that nobody promised -----------------------------------------------------------------------------


def plain(text: Any, limit: int = 4000) -> str:
    """A field as plain text: no tags, no entities, single spaces, no half characters; "" where it is no text."""
    if not isinstance(text, str):
        return ""
    text = html.unescape(re.sub(r"<[^<>]{0,200}>", "", text[: 4 * limit]))
    return " ".join(text.encode("utf-8", "replace").decode().split())[:limit]


def rows(answer: Any, *path: str, service: str) -> list[dict[str, Any]]:
    """The list of objects at `path` in an answer; [] where the field is absent. Raises BadAnswer for another shape."""
    for name in path:
        if not isinstance(answer, dict):
            raise BadAnswer(f"{service} answered in another format: no object holds {name!r}.")
        answer = answer.get(name)
        if answer is None:
            return []
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise BadAnswer(f"{service} answered in another format: {'.'.join(path)} is no list of objects.")
    return answer


def web_hits(found: list[dict[str, Any]], title: str, link: str, text: str) -> list[Hit]:
    """Hits from rows with these field names; an engine that gives no scores gets 1, 1/2, 1/3, … by rank."""
    hits = []
    for row in found:
        url = plain(row.get(link))
        if re.match(r"https?://", url):
            hits.append(Hit(url, plain(row.get(title)), plain(row.get(text)), 1 / (len(hits) + 1), url))
    return hits


def refuse_error(answer: Any, service: str) -> None:
    """SerpApi reports errors, and the lack of results, in an `error` field of a success."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, str) and not re.search("returned any results|no results", error, re.IGNORECASE):
        raise Refused(f"{service} refused the search ({plain(error, 200).rstrip('.')}).")


# --- engines ----------------------------------------------------------------------------------------------------------


def _get(path: str, **fixed: str) -> Callable[[str, int], dict[str, Any]]:
    return lambda query, k: {"method": "GET", "path": path, "params": {"q": query, **fixed}}


def _serpapi_hits(answer: Any, base_url: str) -> list[Hit]:
    refuse_error(answer, "serpapi")
    return web_hits(rows(answer, "organic_results", service="serpapi"), "title", "link", "snippet")


def _wikimedia_hits(answer: Any, base_url: str) -> list[Hit]:
    found = [
        {**row, "link": f"{base_url.rstrip('/')}/wiki/{quote(str(row.get('key', '')))}"}
        for row in rows(answer, "pages", service="wikimedia")
    ]
    return web_hits(found, "title", "link", "excerpt")


def _searchr1_hits(answer: Any, base_url: str) -> list[Hit]:
    """Search-R1's server answers a batch; a document's first line is its title in quotation marks."""
    batch = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(batch, list) or len(batch) != 1:
        raise BadAnswer("searchr1 answered in another format: result is no list of one list.")
    hits = []
    for rank, row in enumerate(rows({"documents": batch[0]}, "documents", service="searchr1"), 1):
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


SERPER = TextEngine(
    Service("serper", "https://google.serper.dev", "SERPER_API_KEY", key_header="X-API-KEY", price=0.001),
    1,
    lambda query, k: {"method": "POST", "path": "/search", "json": {"q": query, "num": max(k, LEAST)}},
    lambda answer, base_url: web_hits(rows(answer, "organic", service="serper"), "title", "link", "snippet"),
)
SERPAPI = TextEngine(
    Service("serpapi", "https://serpapi.com", "SERPAPI_API_KEY", key_param="api_key", price=0.015),
    1,
    _get("/search", engine="google", output="json"),
    _serpapi_hits,
)
BRAVE = TextEngine(
    Service("brave", "https://api.search.brave.com", "BRAVE_API_KEY", "X-Subscription-Token", rate=1.0, price=0.005),
    1,
    lambda query, k: {
        "method": "GET",
        "path": "/res/v1/web/search",
        "params": {"q": query, "count": min(max(k, LEAST), 20)},  # Brave refuses more
    },
    lambda answer, base_url: web_hits(rows(answer, "web", "results", service="brave"), "title", "url", "description"),
)
SEARXNG = TextEngine(
    Service("searxng", "http://127.0.0.1:8888", help_403="Add json to search.formats in its settings."),
    1,
    _get("/search", format="json"),
    lambda answer, base_url: web_hits(rows(answer, "results", service="searxng"), "title", "url", "content"),
)
WIKIMEDIA = TextEngine(
    Service("wikimedia", "https://en.wikipedia.org", rate=1.0),
    1,
    lambda query, k: {
        "method": "GET",
        "path": "/w/rest.php/v1/search/page",
        "params": {"q": query, "limit": max(k, LEAST)},
    },
    _wikimedia_hits,
)
SEARCH_R1 = TextEngine(
    Service("searchr1", "http://127.0.0.1:8000", rate=100.0),
    1,
    lambda query, k: {
        "method": "POST",
        "path": "/retrieve",
        "json": {"queries": [query], "topk": k, "return_scores": True},
    },
    _searchr1_hits,
)
TEXT_ENGINES: Mapping[str, TextEngine] = {
    engine.service.name: engine for engine in (SERPER, SERPAPI, BRAVE, SEARXNG, WIKIMEDIA, SEARCH_R1)
}


def text_search(name: str, outside: Outside, base_url: str = "", reader: PageReader | None = None) -> WebTextSearch:
    """The engine of that name, at its public address unless another is given. Raises ValueError for an unknown name."""
    return WebTextSearch(pick(TEXT_ENGINES, name, base_url), outside, reader)


def pick(engines: Mapping[str, Engine], name: str, base_url: str) -> Engine:
    """One of some engines, moved to `base_url` where that is given."""
    if name not in engines:
        raise ValueError(f"There is no engine {name!r}: use one of {', '.join(engines)}.")
    return at(engines[name], base_url) if base_url else engines[name]


class Search(Protocol[Query]):
    """`base.TextSearch` or `base.ImageSearch`."""

    def search(self, query: Query, k: int, /) -> list[Hit]: ...


@dataclass(frozen=True)
class WorldHits(Generic[Query]):
    """A web engine aimed at `mmsr serve`: its hits are named as the local tools name them ("ke/capital", "ke").

    `names` are the world's identifiers; a hit that is none of them, from another server, is left as it is.
    """

    engine: Search[Query]
    names: Container[str]

    def search(self, query: Query, k: int) -> list[Hit]:
        """What the engine finds, with the world's own identifiers in place of addresses."""
        return [self._named(hit) for hit in self.engine.search(query, k)]

    def _named(self, hit: Hit) -> Hit:
        name = unquote(urlsplit(hit.id).path).removeprefix("/page/")
        return replace(hit, id=name) if name in self.names else hit
