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
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mmsr.tools.base import Hit, ImageSearch, TextSearch, ToolError
from mmsr.tools.picture import read_picture
from mmsr.world.snapshot import World

MAX_BODY = 2_000_000  # bytes of a request
MAX_UPLOAD = 500_000  # bytes of a picture, as at SerpApi
MAX_RESULTS = 100
MAX_QUERIES = 512
KEPT_UPLOADS, KEPT_SECONDS = 256, 600.0  # SerpApi keeps an upload for ten minutes


class Uploads:
    """Pictures by a name that cannot be guessed, for ten minutes, the newest 256."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> str:
        name = secrets.token_hex(16)
        with self._lock:
            self._kept[name] = (time.monotonic(), data)
            while len(self._kept) > KEPT_UPLOADS:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        with self._lock:
            at, data = self._kept.get(name, (0.0, b""))
        return data if data and time.monotonic() - at < KEPT_SECONDS else None


class Engine:
    """The routes. Searches run in worker threads, so that a slow one does not hold the others up."""

    def __init__(self, world: World, text_search: TextSearch, image_search: ImageSearch) -> None:
        self.world, self.text_search, self.image_search = world, text_search, image_search
        self.uploads = Uploads()
        self.titles = {flag.iso: flag.title for flag in world.flags}

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        routes = [
            Route("/retrieve", self.retrieve, methods=["POST"]),
            Route("/search", self.serper, methods=["POST"]),
            Route("/search", self.get_search, methods=["GET"]),
            Route("/search.json", self.get_search, methods=["GET"]),
            Route("/lens", self.serper_lens, methods=["POST"]),
            Route("/image", self.upload, methods=["POST"]),
            Route("/image/{name}", self.uploaded, methods=["GET"]),
            Route("/page/{id:path}", self.page, methods=["GET"]),
            Route("/picture/{iso}.png", self.picture, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _error, ToolError: _tool_error})

    # --- Search-R1

    async def retrieve(self, request: Request) -> JSONResponse:
        body = await _json(request)
        queries, topk = body.get("queries"), _number(body.get("topk"), 3)
        if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries) or len(queries) > MAX_QUERIES:
            raise HTTPException(400, f"queries must be a list of at most {MAX_QUERIES} strings")
        with_scores = bool(body.get("return_scores", False))
        batch = []
        for query in queries:
            hits = await self._text(query, topk)
            documents = [{"id": h.id, "contents": f'"{h.title}"\n{h.text}', "url": _url(request, h)} for h in hits]
            scored = [{"document": d, "score": h.score} for d, h in zip(documents, hits)]
            batch.append(scored if with_scores else documents)
        return JSONResponse({"result": batch})

    # --- Serper

    async def serper(self, request: Request) -> JSONResponse:
        body = await _json(request)
        query = _query(body.get("q"))
        organic = self._rows(request, await self._text(query, _number(body.get("num"), 10)))
        parameters = {"q": query, "type": "search", "engine": "google"}
        return JSONResponse({"searchParameters": parameters, "organic": organic, "credits": 1})

    async def serper_lens(self, request: Request) -> JSONResponse:
        url = (await _json(request)).get("url")
        rows = self._rows(request, await self._pictures(self._picture_at(url if isinstance(url, str) else "")))
        organic = [
            {k: row.get(k, "") for k in ("title", "source", "link")}
            | {"imageUrl": row.get("image", ""), "thumbnailUrl": row.get("thumbnail", "")}
            for row in rows
        ]
        return JSONResponse({"searchParameters": {"type": "lens"}, "organic": organic, "credits": 1})

    # --- SerpApi and SearXNG share a path and a method; `engine` or `format` tells which is meant

    async def get_search(self, request: Request) -> JSONResponse:
        params = request.query_params
        if params.get("engine") == "google_lens":
            return await self._serpapi_lens(request)
        if params.get("engine") == "google":
            return await self._serpapi(request)
        if "engine" not in params and params.get("format") == "json":
            return await self._searxng(request)
        raise HTTPException(400, "say engine=google or engine=google_lens (SerpApi), or format=json (SearXNG)")

    async def _serpapi(self, request: Request) -> JSONResponse:
        query = _query(request.query_params.get("q"))
        hits = await self._text(query, _number(request.query_params.get("num"), 10))
        return _serpapi_answer({"engine": "google", "q": query}, "organic_results", self._rows(request, hits))

    async def _serpapi_lens(self, request: Request) -> JSONResponse:
        name, url = request.query_params.get("image_id"), request.query_params.get("url", "")
        data = self.uploads.get(name) if name else self._picture_at(url)
        if data is None:
            raise HTTPException(400, "image_id is unknown or older than ten minutes: upload the picture again")
        rows = self._rows(request, await self._pictures(data))
        return _serpapi_answer({"engine": "google_lens"}, "visual_matches", rows)

    async def _searxng(self, request: Request) -> JSONResponse:
        query = _query(request.query_params.get("q"))
        hits = await self._text(query, 10)
        results = [
            {"url": _url(request, h), "title": h.title, "content": h.text, "engine": "mmsr", "score": h.score}
            for h in hits
        ]
        return JSONResponse({"query": query, "number_of_results": len(results), "results": results, "answers": []})

    async def upload(self, request: Request) -> JSONResponse:
        _check_size(request)
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("image")
            if file is None or isinstance(file, str):
                raise HTTPException(400, "send the picture as the file `image` of a multipart form")
            data = await file.read()
        if len(data) > MAX_UPLOAD:
            raise HTTPException(413, f"the picture is larger than {MAX_UPLOAD} bytes: send a smaller one")
        try:
            await run_in_threadpool(read_picture, data)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return JSONResponse({"image_id": self.uploads.add(data)})

    # --- what results name

    async def uploaded(self, request: Request) -> Response:
        data = self.uploads.get(request.path_params["name"])
        if data is None:
            raise HTTPException(404, "no such upload, or older than ten minutes")
        return Response(data, media_type="application/octet-stream")

    async def page(self, request: Request) -> HTMLResponse:
        name = request.path_params["id"]
        page = self.world.pages.get(name)
        if page is not None:
            return HTMLResponse(_html(page.title, page.text))
        if name in self.titles:
            picture = f'<img src="{html.escape(str(request.url_for("picture", iso=name)))}" alt="">'
            return HTMLResponse(_html(self.titles[name], f"A picture: {self.titles[name]}.", picture))
        raise HTTPException(404, "no such page")

    async def picture(self, request: Request) -> Response:
        return Response(self._flag(request.path_params["iso"]), media_type="image/png")

    def _flag(self, iso: str) -> bytes:
        if iso not in self.titles:
            raise HTTPException(404, "no such picture")
        buffer = io.BytesIO()
        self.world.flag(iso).save(buffer, "PNG")
        return buffer.getvalue()

    def _picture_at(self, url: str) -> bytes:
        """The bytes behind an address, without ever fetching one."""
        try:
            if match := re.fullmatch(r"data:image/\w+;base64,(.+)", url, re.DOTALL):
                return base64.b64decode(match[1], validate=True)
        except binascii.Error:
            raise HTTPException(400, "the data address is broken") from None
        if match := re.search(r"/picture/([a-z]{2})\.png$", url):
            return self._flag(match[1])
        match = re.search(r"/image/([0-9a-f]{32})$", url)
        data = self.uploads.get(match[1]) if match else None
        if data is None:
            raise HTTPException(400, "url must be a data address, or a picture of this server: POST it to /image first")
        return data

    # --- searches

    def _rows(self, request: Request, hits: list[Hit]) -> list[dict[str, Any]]:
        """Hits with the field names that Serper and SerpApi have in common; a picture only where the hit is one."""
        rows = []
        for rank, hit in enumerate(hits, 1):
            row = {"position": rank, "title": hit.title, "link": _url(request, hit), "snippet": hit.text}
            if hit.id in self.titles:
                url = str(request.url_for("picture", iso=hit.id))
                row |= {"source": hit.text, "image": url, "thumbnail": url}
            rows.append(row)
        return rows

    async def _text(self, query: str, k: int) -> list[Hit]:
        return await run_in_threadpool(self.text_search.search, query, k) if query.strip() else []

    async def _pictures(self, data: bytes, k: int = 10) -> list[Hit]:
        def work() -> list[Hit]:
            return self.image_search.search(read_picture(data), k)

        try:
            return await run_in_threadpool(work)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None


def _serpapi_answer(parameters: Mapping[str, str], field: str, results: list[dict[str, Any]]) -> JSONResponse:
    found = {field: results} if results else {"error": "Google hasn't returned any results for this query."}
    return JSONResponse({"search_metadata": {"status": "Success"}, "search_parameters": parameters, **found})


def _url(request: Request, hit: Hit) -> str:
    return str(request.url_for("page", id=hit.id))


def _html(title: str, text: str, extra: str = "") -> str:
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body><main>'
        f"<article><h1>{title}</h1>{extra}<p>{html.escape(text)}</p></article></main></body></html>"
    )


def _check_size(request: Request) -> None:
    size = request.headers.get("content-length", "")
    if not size.isdecimal():
        raise HTTPException(411, "say how long the body is (Content-Length)")
    if int(size[:19]) > MAX_BODY:
        raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")


async def _json(request: Request) -> dict[str, Any]:
    _check_size(request)
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _query(query: Any) -> str:
    if not isinstance(query, str) or not query.strip():
        raise HTTPException(400, "Missing query `q` parameter.")
    return query


def _number(value: Any, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or not 1 <= value <= MAX_RESULTS:
        raise HTTPException(400, f"the number of results must be from 1 to {MAX_RESULTS}")
    return value


async def _error(request: Request, error: Exception) -> JSONResponse:
    """Errors in the form that both Serper's and SerpApi's clients read."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail, "message": error.detail}, error.status_code)


async def _tool_error(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error), "message": str(error)}, 500)


# --- running ----------------------------------------------------------------------------------------------------------


def _server(app: Starlette) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=5))


def serve(
    world: World, text_search: TextSearch, image_search: ImageSearch, host: str = "127.0.0.1", port: int = 0
) -> None:
    """Serve until interrupted; port 0 takes a free one. Prints the address. Raises OSError where the port is taken."""
    with contextlib.closing(socket.create_server((host, port))) as listening:
        print(f"The offline world answers at http://{host}:{listening.getsockname()[1]}", flush=True)
        _server(Engine(world, text_search, image_search).app()).run(sockets=[listening])


@contextlib.contextmanager
def running(world: World, text_search: TextSearch, image_search: ImageSearch) -> Iterator[str]:
    """The server in a thread on a free port of loopback, for tests and notebooks; gives its address."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = _server(Engine(world, text_search, image_search).app())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            # The socket already listens: a request made before the loop runs waits in its queue.
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
