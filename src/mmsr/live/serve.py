"""The offline world as a web engine on loopback: our web tools are tested over it, others' agents can train on it.

    with running(world, text_search, image_search) as address:     # "http://127.0.0.1:43215"
        httpx.post(address + "/search", json={"q": "Kenya capital"}).json()["organic"][0]["link"]

| request | dialect |
|---|---|
| POST /retrieve {"queries": […], "topk": 3} | Search-R1 |
| POST /search {"q"}, POST /lens {"url"} | Serper |
| GET /search?engine=google&q=, GET /search?engine=google_lens&image_id=, POST /image | SerpApi |
| GET /search?q=&format=json | SearXNG |
| GET /page/{id}, GET /picture/{iso}.png | the pages and pictures that results name |

No key is asked for. Nothing outside is ever fetched: /lens takes a `data:` address, or that of a picture which was sent
to /image (GET /image/{image_id}) or is served here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import io
import re
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import uvicorn
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mmsr.tools.base import Hit, ImageRetriever, TextRetriever, ToolError
from mmsr.tools.picture import read_picture
from mmsr.world.snapshot import World

MAX_BODY = 2_000_000  # bytes of a request
MAX_UPLOAD = 500_000  # bytes of a picture, as at SerpApi
KEPT_UPLOADS, KEPT_SECONDS = 256, 600.0  # SerpApi keeps an upload for ten minutes

Count = Annotated[int, Field(ge=1, le=100)]
Rows = list[dict[str, Any]]


class Query(BaseModel):
    """What Serper, SerpApi and SearXNG are asked, in a body or in an address."""

    q: Annotated[str, Field(pattern=r"\S")]
    num: Count | None = None


class Queries(BaseModel):
    """What Search-R1 is asked."""

    queries: Annotated[list[str], Field(max_length=512)]
    topk: Count | None = None
    return_scores: bool = False


class Lens(BaseModel):
    """What is asked about a picture: Serper by its address, SerpApi also by the name of an upload."""

    url: str = ""
    image_id: str = ""


class WorldServer:
    """The routes. What searches runs in worker threads, so that a slow search does not hold the others up."""

    def __init__(self, world: World, text_search: TextRetriever, image_search: ImageRetriever) -> None:
        self.world, self.text_search, self.image_search = world, text_search, image_search
        self.titles = {flag.iso: flag.title for flag in world.flags}
        self._uploads: dict[str, tuple[float, bytes]] = {}  # when and what, by a name that cannot be guessed

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        routes = [
            Route("/retrieve", _posted(Queries, self.searchr1), methods=["POST"]),
            Route("/search", _posted(Query, self.serper), methods=["POST"]),
            Route("/lens", _posted(Lens, self.serper_lens), methods=["POST"]),
            Route("/search", self.get_search),
            Route("/search.json", self.get_search),
            Route("/image", self.upload, methods=["POST"]),
            Route("/image/{name}", self.picture),
            Route("/page/{id:path}", self.page),
            Route("/picture/{iso}.png", self.picture),
        ]
        errors = dict.fromkeys((HTTPException, ValidationError, ToolError), _told)
        return Starlette(routes=routes, exception_handlers=errors)

    # --- the dialects

    def searchr1(self, request: Request, asked: Queries) -> dict[str, Any]:
        batch = []
        for query in asked.queries:
            hits = self.text_search.search(query, asked.topk or 3) if query.strip() else []
            found = [{"id": h.id, "contents": f'"{h.title}"\n{h.text}', "url": _url(request, h)} for h in hits]
            scored = [{"document": document, "score": hit.score} for document, hit in zip(found, hits)]
            batch.append(scored if asked.return_scores else found)
        return {"result": batch}

    def serper(self, request: Request, asked: Query) -> dict[str, Any]:
        parameters = {"q": asked.q, "type": "search", "engine": "google"}
        return {"searchParameters": parameters, "organic": self._found(request, asked), "credits": 1}

    def serper_lens(self, request: Request, asked: Lens) -> dict[str, Any]:
        return {"searchParameters": {"type": "lens"}, "organic": self._similar(request, asked.url), "credits": 1}

    def get_search(self, request: Request) -> JSONResponse:
        """SerpApi and SearXNG share a path and a method; `engine` or `format` tells which is meant."""
        params = dict(request.query_params)
        match params.get("engine"), params.get("format"):
            case "google", _:
                asked = Query.model_validate(params)
                answer = _serpapi({"engine": "google", "q": asked.q}, "organic_results", self._found(request, asked))
            case "google_lens", _:
                asked = Lens.model_validate(params)
                url = f"/image/{asked.image_id}" if asked.image_id else asked.url
                answer = _serpapi({"engine": "google_lens"}, "visual_matches", self._similar(request, url))
            case None, "json":
                answer = self._searxng(request, Query.model_validate(params))
            case _:
                raise HTTPException(400, "say engine=google or engine=google_lens (SerpApi), or format=json (SearXNG)")
        return JSONResponse(answer)

    def _searxng(self, request: Request, asked: Query) -> dict[str, Any]:
        results = [
            {"url": _url(request, h), "title": h.title, "content": h.text, "engine": "mmsr", "score": h.score}
            for h in self.text_search.search(asked.q, 10)
        ]
        return {"query": asked.q, "number_of_results": len(results), "results": results, "answers": []}

    def _found(self, request: Request, asked: Query) -> Rows:
        return self._rows(request, self.text_search.search(asked.q, asked.num or 10))

    def _similar(self, request: Request, url: str) -> Rows:
        picture = _read(self._picture_at(url))
        return self._rows(request, self.image_search.search(picture, 10))

    def _rows(self, request: Request, hits: list[Hit]) -> Rows:
        """Hits with the field names of Serper and SerpApi; those of a picture only where the hit is one."""
        rows = []
        for rank, hit in enumerate(hits, 1):
            row = {"position": rank, "title": hit.title, "link": _url(request, hit), "snippet": hit.text}
            if hit.id in self.titles:
                names = ("image", "thumbnail", "imageUrl", "thumbnailUrl")
                row |= {"source": hit.text} | dict.fromkeys(names, str(request.url_for("picture", iso=hit.id)))
            rows.append(row)
        return rows

    # --- pictures

    async def upload(self, request: Request) -> JSONResponse:
        _check_size(request)
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("image")
            if file is None or isinstance(file, str):
                raise HTTPException(400, "send the picture as the file `image` of a multipart form")
            data = await file.read()
        if len(data) > MAX_UPLOAD:
            raise HTTPException(413, f"the picture is larger than {MAX_UPLOAD} bytes: send a smaller one")
        await run_in_threadpool(_read, data)
        name = secrets.token_hex(16)
        self._uploads[name] = (time.monotonic(), data)
        while len(self._uploads) > KEPT_UPLOADS:
            del self._uploads[next(iter(self._uploads))]
        return JSONResponse({"image_id": name})

    def picture(self, request: Request) -> Response:
        path = request.url.path
        if data := self._own(path):
            return Response(data, media_type="image/png" if path.endswith(".png") else "application/octet-stream")
        raise HTTPException(404, "no such picture, or an upload older than ten minutes")

    def _picture_at(self, url: str) -> bytes:
        """The bytes behind an address, without ever fetching one."""
        if match := re.fullmatch(r"data:image/\w+;base64,(.+)", url, re.DOTALL):
            try:
                return base64.b64decode(match[1], validate=True)
            except binascii.Error:
                raise HTTPException(400, "the data address is broken") from None
        if data := self._own(url):
            return data
        raise HTTPException(400, "it must be a data address, or a picture of this server: POST it to /image first")

    def _own(self, url: str) -> bytes:
        """What is served at /image/… or /picture/….png; nothing where that is unknown, or an upload too old."""
        kind, name = f"/{url}".split("/")[-2:]
        if kind == "image":
            at, data = self._uploads.get(name, (0.0, b""))
            return data if time.monotonic() - at < KEPT_SECONDS else b""
        buffer = io.BytesIO()
        if kind == "picture" and name.removesuffix(".png") in self.titles:
            self.world.flag(name.removesuffix(".png")).save(buffer, "PNG")
        return buffer.getvalue()

    def page(self, request: Request) -> HTMLResponse:
        name = request.path_params["id"]
        if name in self.world.pages:
            return _html(self.world.pages[name].title, self.world.pages[name].text)
        if name in self.titles:
            picture = f'<img src="{html.escape(str(request.url_for("picture", iso=name)))}" alt="">'
            return _html(self.titles[name], f"A picture: {self.titles[name]}.", picture)
        raise HTTPException(404, "no such page")


# --- requests and answers ---------------------------------------------------------------------------------------------


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


def _read(data: bytes) -> Image.Image:
    try:
        return read_picture(data)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _told(request: Request, error: Exception) -> JSONResponse:
    """Errors in the form that both Serper's and SerpApi's clients read."""
    status, said = 500, str(error)
    if isinstance(error, HTTPException):
        status, said = error.status_code, error.detail
    elif isinstance(error, ValidationError):
        wrong = error.errors()[0]
        status, said = 400, f"{wrong['loc'][0] if wrong['loc'] else 'the body'}: {wrong['msg']}"
    return JSONResponse({"error": said, "message": said}, status)


def _serpapi(parameters: dict[str, str], field: str, results: Rows) -> dict[str, Any]:
    found = {field: results} if results else {"error": "Google hasn't returned any results for this query."}
    return {"search_metadata": {"status": "Success"}, "search_parameters": parameters, **found}


def _url(request: Request, hit: Hit) -> str:
    return str(request.url_for("page", id=hit.id))


def _html(title: str, text: str, extra: str = "") -> HTMLResponse:
    title = html.escape(title)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body><main>'
        f"<article><h1>{title}</h1>{extra}<p>{html.escape(text)}</p></article></main></body></html>"
    )


# --- running ----------------------------------------------------------------------------------------------------------


def _server(app: Starlette) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=5))


def serve(world: World, text_search: TextRetriever, image_search: ImageRetriever, port: int = 0) -> None:
    """Serve until interrupted; port 0 takes a free one. Prints the address. Raises OSError where the port is taken."""
    with contextlib.closing(socket.create_server(("127.0.0.1", port))) as listening:
        print(f"The offline world answers at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        _server(WorldServer(world, text_search, image_search).app()).run(sockets=[listening])


@contextlib.contextmanager
def running(world: World, text_search: TextRetriever, image_search: ImageRetriever) -> Iterator[str]:
    """The server in a thread on a free port of loopback, for tests and notebooks; gives its address."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = _server(WorldServer(world, text_search, image_search).app())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            # The socket already listens: a request made before the loop runs waits in its queue.
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
