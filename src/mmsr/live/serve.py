"""The offline world as a web engine on loopback: our web tools are tested over it, others' agents can train on it.

    with running(world, text_search, image_search) as address:     # "http://127.0.0.1:43215"
        httpx.post(address + "/search", json={"q": "Kenya capital"}).json()["organic"][0]["link"]

| request | dialect |
|---|---|
| POST /retrieve {"queries": […], "topk": 3} | Search-R1 |
| POST /search {"q"}, POST /lens {"url"} | Serper |
| GET /search?engine=google&q=, GET /search?engine=google_lens&image_id=, POST /image | SerpApi |
| GET /search?q=&format=json | SearXNG |
| GET /page/{id}, GET /picture/{id}.png | the pages and pictures that results name |

No key is asked for, and nothing outside is fetched: /lens takes a `data:` URL, or that of a picture sent to /image
(GET /image/{image_id}) or served here.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import quote, unquote

import jinja2
import uvicorn
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mmsr.presets import ASSETS
from mmsr.tools.base import Corpus, Hit, ImageRetriever, TextRetriever, ToolError
from mmsr.tools.picture import read_picture

MAX_BODY = 2_000_000  # bytes of a request
MAX_UPLOAD = 500_000  # bytes of a picture, as at SerpApi
KEPT_UPLOADS, KEPT_SECONDS = 256, 600.0  # SerpApi keeps an upload for ten minutes
DECODING = threading.Lock()  # one picture at a time: half a megabyte may unpack to more than half a gigabyte

HTML = jinja2.Template((ASSETS / "live" / "page.html").read_text(encoding="utf-8"), autoescape=True)
PICTURES = ("image", "thumbnail", "imageUrl", "thumbnailUrl")  # the fields of a hit for its picture


class Query(BaseModel):
    """What Serper, SerpApi and SearXNG are asked, in a body or an address; `type` is Serper's name for the search."""

    type: ClassVar = "search"
    q: Annotated[str, Field(pattern=r"\S")]
    num: int = Field(10, ge=1, le=100)


class Lens(BaseModel):
    """What is asked about a picture: by its address, or by the name of an upload."""

    type: ClassVar = "lens"
    url: str = ""
    image_id: str = ""


class Queries(BaseModel):
    """What Search-R1 is asked."""

    queries: Annotated[list[str], Field(max_length=512)]
    topk: Annotated[int, Field(ge=1, le=100)] | None = None
    return_scores: bool = False


T = TypeVar("T")
SERPAPI = {"google": (Query, "organic_results"), "google_lens": (Lens, "visual_matches")}  # asked; the answer's field


class WorldServer(Starlette):
    """The application. What searches runs in worker threads, so that a slow search does not hold the others up."""

    def __init__(self, world: Corpus, text_search: TextRetriever, image_search: ImageRetriever) -> None:
        self.world, self.text_search, self.image_search = world, text_search, image_search
        self.titles = {flag.iso: flag.title for flag in world.flags}
        self._uploads: dict[str, tuple[float, bytes]] = {}  # when and what, by a name that cannot be guessed
        routes = [
            Route("/retrieve", _posted(Queries, self.searchr1), methods=["POST"]),
            Route("/search", _posted(Query, self.serper), methods=["POST"]),
            Route("/lens", _posted(Lens, self.serper), methods=["POST"]),
            Route("/search", self.get_search),
            Route("/search.json", self.get_search),
            Route("/image", self.upload, methods=["POST"]),
            Route("/image/{name}", self.picture),
            Route("/page/{id:path}", self.page),
            Route("/picture/{id:path}.png", self.picture),
        ]
        errors = dict.fromkeys((HTTPException, ValidationError, ToolError, ClientDisconnect), _told)
        super().__init__(routes=routes, exception_handlers=errors)

    def searchr1(self, request: Request, asked: Queries) -> dict[str, Any]:
        def shown(hit: Hit) -> dict[str, Any]:
            document = {"id": hit.id, "contents": f'"{hit.title}"\n{hit.text}', "url": _url(request, hit.id)}
            return {"document": document, "score": hit.score} if asked.return_scores else document

        found = (self.text_search.search(q, asked.topk or 3) if q.strip() else [] for q in asked.queries)
        return {"result": [[shown(hit) for hit in hits] for hits in found]}

    def serper(self, request: Request, asked: Query | Lens) -> dict[str, Any]:
        parameters = asked.model_dump(include={"q"}) | {"type": asked.type, "engine": "google"}
        return {"searchParameters": parameters, "organic": self._found(request, asked), "credits": 1}

    def get_search(self, request: Request) -> JSONResponse:
        """SerpApi and SearXNG share a path and a method; `engine` or `format` tells which is meant."""
        given = dict(request.query_params)
        engine = given.get("engine")
        if engine is None and given.get("format") == "json":
            return JSONResponse(self._searxng(request, Query.model_validate(given).q))
        if engine not in SERPAPI:
            raise HTTPException(400, "say engine=google or engine=google_lens (SerpApi), or format=json (SearXNG)")
        kind, field = SERPAPI[engine]
        asked = kind.model_validate(given)
        found = self._found(request, asked)
        result = {field: found} if found else {"error": "Google hasn't returned any results for this query."}
        parameters = {"engine": engine} | asked.model_dump(include={"q"})
        return JSONResponse({"search_metadata": {"status": "Success"}, "search_parameters": parameters} | result)

    def _searxng(self, request: Request, query: str) -> dict[str, Any]:
        results = [
            {"url": _url(request, h.id), "title": h.title, "content": h.text, "score": h.score, "engine": "mmsr"}
            for h in self.text_search.search(query, 10)
        ]
        return {"query": query, "number_of_results": len(results), "results": results, "answers": []}

    def _found(self, request: Request, asked: Query | Lens) -> list[dict[str, Any]]:
        """Hits with the field names of Serper and SerpApi; those of a picture only where the hit is one."""
        if isinstance(asked, Query):
            hits = self.text_search.search(asked.q, asked.num)
        else:
            url = f"/image/{asked.image_id}" if asked.image_id else asked.url
            inline = re.fullmatch(r"data:image/\w+;base64,(.+)", url, re.DOTALL)
            if not (data := inline[1] if inline else self._own(url)):  # nothing is ever fetched
                raise HTTPException(400, "send a data URL or that of a picture here: POST it to /image first")
            hits = _looked_at(data, lambda picture: self.image_search.search(picture, 10))
        rows = []
        for rank, hit in enumerate(hits, 1):
            row = {"position": rank, "title": hit.title, "link": _url(request, hit.id), "snippet": hit.text}
            if hit.id in self.titles:
                row |= {"source": hit.text} | dict.fromkeys(PICTURES, _url(request, hit.id, "picture"))
            rows.append(row)
        return rows

    async def upload(self, request: Request) -> JSONResponse:
        _check_size(request)
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("image")
            if file is None or isinstance(file, str):
                raise HTTPException(400, "send the picture as the file `image` of a multipart form")
            data = await file.read()
        if len(data) > MAX_UPLOAD:
            raise HTTPException(413, f"the picture is larger than {MAX_UPLOAD} bytes: send a smaller one")
        await run_in_threadpool(_looked_at, data, lambda picture: None)
        name = secrets.token_hex(16)
        self._uploads[name] = (time.monotonic(), data)
        while len(self._uploads) > KEPT_UPLOADS:
            del self._uploads[next(iter(self._uploads))]
        return JSONResponse({"image_id": name})

    def picture(self, request: Request) -> Response:
        path = request.scope["path"]
        if data := self._own(quote(path)):
            return Response(data, media_type="image/png" if path.endswith(".png") else "application/octet-stream")
        raise HTTPException(404, "no such picture, or an upload older than ten minutes")

    def _own(self, url: str) -> bytes:
        """What is served at /image/… or /picture/….png; nothing where that is unknown, or an upload too old."""
        *_, kind, name = ["image", *re.split("/(image|picture)/", unquote(url), maxsplit=1)]
        if kind == "image":
            at, data = self._uploads.get(name, (0.0, b""))
            return data if time.monotonic() - at < KEPT_SECONDS else b""
        buffer = io.BytesIO()
        if kind == "picture" and name.removesuffix(".png") in self.titles:
            self.world.flag(name.removesuffix(".png")).save(buffer, "PNG")
        return buffer.getvalue()

    def page(self, request: Request) -> HTMLResponse:
        name = request.path_params["id"]
        if page := self.world.pages.get(name):
            return HTMLResponse(HTML.render(title=page.title, text=page.text))
        if title := self.titles.get(name):
            picture = _url(request, name, "picture")
            return HTMLResponse(HTML.render(title=title, text=f"A picture: {title}.", picture=picture))
        raise HTTPException(404, "no such page")


def _posted(kind: type[BaseModel], answer: Callable[..., dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that gives `answer` a request and its JSON body, checked, in a worker thread."""

    async def endpoint(request: Request) -> JSONResponse:
        _check_size(request)
        asked = kind.model_validate_json(await request.body())
        return JSONResponse(await run_in_threadpool(answer, request, asked))

    return endpoint


def _check_size(request: Request) -> None:
    size = request.headers.get("content-length", "")
    if not size.isdecimal():
        raise HTTPException(411, "say how long the body is (Content-Length)")
    if int(size[:19]) > MAX_BODY:
        raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")


def _looked_at(data: bytes | str, look: Callable[[Image.Image], T]) -> T:
    """What `look` makes of a picture, given as the bytes of its file or their base64."""
    with DECODING:
        try:
            picture = read_picture(base64.b64decode(data, validate=True) if isinstance(data, str) else data)
        except ValueError as error:
            raise HTTPException(400, f"the picture cannot be read: {error}") from None
        return look(picture)


def _told(request: Request, error: Exception) -> JSONResponse:
    """Errors in the form that both Serper's and SerpApi's clients read."""
    status, said = 500, str(error)
    if isinstance(error, HTTPException):
        status, said = error.status_code, error.detail
    elif isinstance(error, ValidationError):
        wrong = error.errors()[0]
        status, said = 400, f"{wrong['loc'][0] if wrong['loc'] else 'the body'}: {wrong['msg']}"
    return JSONResponse({"error": said, "message": said}, status)


def _url(request: Request, name: str, kind: str = "page") -> str:
    return str(request.url_for(kind, id=quote(name)))


def serve(world: Corpus, text_search: TextRetriever, image_search: ImageRetriever, port: int = 0) -> None:
    """Serve until interrupted, and print the address. Raises OSError where the port is taken."""
    with running(world, text_search, image_search, port) as address:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born ignoring it
        print(f"The offline world answers at {address}", flush=True)
        while True:
            time.sleep(3600)  # the one way of waiting that an interruption ends on Windows too


@contextlib.contextmanager
def running(world: Corpus, text_search: TextRetriever, image_search: ImageRetriever, port: int = 0) -> Iterator[str]:
    """The server in a thread, on loopback alone; gives its address. Port 0 takes a free one."""
    server = uvicorn.Server(uvicorn.Config(WorldServer(world, text_search, image_search), log_level="warning"))
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            # The socket already listens: a request made before the loop runs waits in its queue.
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
