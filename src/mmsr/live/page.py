"""Reading the pages that search results name, as carefully as strangers' addresses deserve.

    PageReader(outside).read("https://en.wikipedia.org/wiki/Kenya")     # -> the main text, without menus and markup

The address is resolved, checked and connected to in one step and must be on the public internet; redirects are not
followed; at most 2 MB are read, uncompressed; only HTML and plain text count as pages. What is recorded is the
extracted text, so that a replay does not depend on the version of the extractor (trafilatura).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import trafilatura

from mmsr.live.fetch import Client, Reply, Service
from mmsr.live.limits import BadAnswer, Limits, Refused
from mmsr.live.replay import Call, Outside
from mmsr.tools.base import FatalToolError, Hit, ToolError, keys_used, log_keys

VERSION = 1
OWN_RATE = 100.0  # pages a second of one's own server
MAX_CHARS = 8000  # of one page; a summariser reads five of them
# The rate is by host: nobody's server is asked more often than this.
PAGE = Service("page", "", rate=4.0, limits=Limits(total=20.0, attempt=10.0, tries=2, max_bytes=2_000_000), web=True)

logger = logging.getLogger(__name__)


class PageReader:
    """Reads pages of the public web; `service` holds the limits, and `near=True` in it lets local addresses through.

    `own` is the address of a search server of one's own: its pages are read wherever it lies, as fast as it gives them.
    """

    def __init__(self, outside: Outside, service: Service = PAGE, own: str = "") -> None:
        self.outside, self.service, self.own = outside, service, own.rstrip("/")

    def read(self, url: str) -> str:
        """The main text of a page, at most MAX_CHARS characters.

        Raises Refused for an address that is not the web's, BadAnswer for what is no page, and the errors of `limits`.
        """
        if not url.startswith(("http://", "https://")):
            raise Refused(f"{url[:80]} is no address of a web page: only http and https are read.")
        return self.outside.answer(Call("page", VERSION, "GET", {"url": url}), lambda: self._fetch(url))

    def _fetch(self, url: str) -> str:
        service = replace(self.service, base_url=url)
        if self.own and url.startswith(self.own + "/"):
            service = replace(service, near=True, rate=OWN_RATE)
        return extract(Client(service, self.outside.budget).send("GET", ""))


def extract(reply: Reply) -> str:
    """The main text of a fetched page. Raises BadAnswer where it is neither HTML nor text, or has none."""
    header = reply.headers.get("content-type", "text/html").lower()
    kind = header.partition(";")[0].strip()
    if kind == "text/plain":
        text: str | None = decode(reply.body, header)
    elif kind in ("text/html", "application/xhtml+xml"):
        text = trafilatura.extract(decode(reply.body, header), include_comments=False)
    else:
        raise BadAnswer(f"The page is {kind[:60]}, which is neither HTML nor text: its snippet has to do.")
    if not text or not text.strip():
        raise BadAnswer("The page has no main text: its snippet has to do.")
    return text.strip()[:MAX_CHARS]


def decode(body: bytes, header: str) -> str:
    """The body as text, by the encoding that the header or the page names, else as UTF-8 or what reads without fail.

    The extractor could guess too, but would unpack a compressed body that calls itself HTML.
    """
    names = re.findall(r"charset=[\"']?([\w-]+)", header + " " + body[:2048].decode("latin-1").lower())
    for name in [*names, "utf-8"]:
        try:
            return body.decode(name)
        except (LookupError, UnicodeError):
            continue
    return body.decode("cp1252", "replace")


def with_pages(hits: Sequence[Hit], reader: PageReader) -> list[Hit]:
    """The hits with their pages' text, read side by side; a page that cannot be read leaves its hit the snippet."""

    def read(hit: Hit) -> tuple[Hit, list[str]]:
        with keys_used() as keys:
            try:
                return (replace(hit, text=reader.read(hit.url)) if hit.url else hit), keys
            except FatalToolError:
                raise
            except ToolError as error:
                logger.info("page of %s not read: %s", hit.id, error)
                return hit, keys

    if not hits:
        return []
    with ThreadPoolExecutor(len(hits)) as pool:
        done = list(pool.map(read, hits))
    for _, keys in done:  # in the order of the hits, so that a replayed trajectory logs the same
        log_keys(keys)
    return [hit for hit, _ in done]
