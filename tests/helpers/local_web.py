"""A web server on loopback that plays a script: each request gets the next part, the last part for ever."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mmsr.live.limits import Limits
from mmsr.tools.base import ToolError

Part = Callable[["Handler"], None]
FAST = Limits(total=5.0, attempt=2.0, tries=3, first_wait=0.01, max_bytes=1_000_000)
QUICK = Limits(total=0.5, attempt=0.2, tries=2, first_wait=0.01, max_bytes=1_000_000)  # where nothing will come


SECRET = "sk-Very/Secret+Key=123"


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class LocalWeb:
    """The server's address, the script to play and the requests so far."""

    url: str
    script: list[Part] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def play(self, *parts: Part) -> None:
        with self.lock:
            self.script, self.seen = list(parts), []

    def next(self, seen: Seen) -> Part:
        with self.lock:
            self.seen.append(seen)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write: two would wait 40 ms for each other (Nagle)
    web: LocalWeb
    seen: Seen  # the request, for a part that answers by what was asked

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Seen(self.command, self.path, headers, self.rfile.read(length))
        self.web.next(self.seen)(self)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has heard enough hangs up
            super().handle_error(request, client_address)


@contextlib.contextmanager
def local_web() -> Iterator[LocalWeb]:
    """The server in a thread."""
    handler = type("BoundHandler", (Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
    handler.web = web = LocalWeb(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def says(status: int, body: Any, **headers: str) -> Part:
    """Answer with JSON, or with text or bytes as they are."""
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()

    def part(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return part


def hangs(handler: Handler) -> None:
    handler.web.over.wait(3)


def drips(handler: Handler) -> None:
    """A header byte now and then: each read succeeds, the answer never comes."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(60):
        handler.wfile.write(b"a")
        handler.wfile.flush()
        if handler.web.over.wait(0.05):
            return


def fifty_megabytes(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "50000000")
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" " * 1_000_000)


def fifty_megabytes_unannounced(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")


def gzip_bomb(handler: Handler) -> None:
    says(200, _BOMB, Content_Encoding="gzip")(handler)


_BOMB = gzip.compress(b"0" * 20_000_000)


def failing(action: Callable[[], Any], kind: type[ToolError], seconds: float = 3.0) -> ToolError:
    """The error of `action`, which is of exactly this kind, one clear line, and there in time."""
    started = time.monotonic()
    with pytest.raises(ToolError) as caught:
        action()
    assert time.monotonic() - started < seconds
    assert type(caught.value) is kind, repr(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and SECRET not in str(caught.value)
    return caught.value
