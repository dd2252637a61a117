"""Reading the pages that search results name: PageReader(door).read("https://…") is a page's text without its menus.

The address must be on the public internet (see `wire`); redirects are not followed; at most 2 MB of HTML or plain text
are read. The extracted text is recorded, so that a replay does not depend on the extractor's version (trafilatura).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import httpx
import trafilatura

from mmsr.live.door import Door, Service
from mmsr.live.limits import BadAnswer, Limits, Refused
from mmsr.live.record import Call
from mmsr.tools.base import FatalToolError, Hit, ToolError, in_parallel, keys_used, log_keys

VERSION = 1
OWN_RATE = 100.0  # calls a second to a server of one's own
MAX_CHARS = 8000  # of one page; a summariser reads five of them
# The rate is by host: nobody's server is asked more often than this.
PAGE = Service("page", "", rate=4.0, limits=Limits(total=20.0, attempt=10.0, tries=2, max_bytes=2_000_000), web=True)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageReader:
    """Reads pages of the public web, and of a search server at the address `own`: wherever it lies, and fast."""

    door: Door
    service: Service = PAGE
    own: str = ""

    def read(self, url: str) -> str:
        """Its main text, at most MAX_CHARS characters. Raises Refused for what is no address of the web, and more."""
        if not url.startswith(("http://", "https://")):
            raise Refused(f"{url[:80]} is no address of a web page: only http and https are read.")
        own = self.own and url.startswith(self.own.rstrip("/") + "/")
        service = replace(self.service, near=True, rate=OWN_RATE) if own else self.service
        call = Call("page", VERSION, "GET", {"url": url})
        return self.door.answer(call, lambda: main_text(self.door.open(service).get(url)))


def main_text(reply: httpx.Response) -> str:
    """The main text of a fetched page. Raises BadAnswer where it is neither HTML nor text, or has none."""
    header = reply.headers.get("content-type", "text/html").lower()
    kind = header.partition(";")[0].strip()
    if kind not in ("text/plain", "text/html", "application/xhtml+xml"):
        raise BadAnswer(f"The page is {kind[:60]}, which is neither HTML nor text: its snippet has to do.")
    text = decode(reply.content, header)
    found = text if kind == "text/plain" else trafilatura.extract(text, include_comments=False) or ""
    if not found.strip():
        raise BadAnswer("The page has no main text: its snippet has to do.")
    return found.strip()[:MAX_CHARS]


def decode(body: bytes, header: str) -> str:
    """The body as text, by the encoding that the header or the page names, else as UTF-8 or what reads without fail."""
    names = re.findall(r"charset=[\"']?([\w-]+)", header + " " + body[:2048].decode("latin-1").lower())
    for name in [*names, "utf-8"]:
        with contextlib.suppress(LookupError, UnicodeError):
            return body.decode(name)
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

    done = in_parallel(read, hits, len(hits))
    log_keys(key for _, keys in done for key in keys)  # in the hits' order: a replayed trajectory logs the same
    return [hit for hit, _ in done]
