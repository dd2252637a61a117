"""The offline world as a web engine, asked by our own web tools and by hand over real HTTP."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image
from toolbar_world import BOX, scene, write_sources

from mmsr.live import serve
from mmsr.live.door import Door, ReplayMiss
from mmsr.live.engines import IMAGE_ENGINES, PAGE, TEXT_ENGINES, PageReader, WebSearch, jpeg, moved
from mmsr.live.serve import MAX_UPLOAD, running
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.picture import read_picture
from mmsr.tools.text import LocalTextSearch
from mmsr.world.own import index_world
from mmsr.world.snapshot import World, load_world

QUERY = "Kenya capital"
ENGINES = ("serper", "serpapi", "searxng", "searchr1")


class Failing:
    """A text search whose engine is broken."""

    def search(self, query: str, k: int) -> list[Hit]:
        raise ToolError("the index is gone.")


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def local(world: World) -> tuple[LocalTextSearch, LocalImageSearch]:
    return LocalTextSearch(world), LocalImageSearch(world)


@pytest.fixture(scope="module")
def address(world: World, local: tuple[LocalTextSearch, LocalImageSearch]) -> Iterator[str]:
    with running(world, *local) as url:
        yield url


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.setenv(name, "any")


def web_search(name: str, door: Door, address: str, reader: PageReader | None = None, names: Container[str] = ()):
    """An engine of our own web tools, moved to an address."""
    return WebSearch(moved((TEXT_ENGINES | IMAGE_ENGINES)[name], address), door, reader, names)


def flag(world: World, iso: str = "ke") -> Image.Image:
    return world.flag(iso).convert("RGB")


@pytest.mark.parametrize("name", ENGINES)
def test_text_engines_find_what_the_local_one_finds(name: str, address: str, local: tuple, world: World) -> None:
    hits = web_search(name, Door(), address, names=world.pages).search(QUERY, 5)
    expected = local[0].search(QUERY, 5)
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    assert [(hit.title, hit.text) for hit in hits] == [(hit.title, hit.text) for hit in expected]
    assert "ke/capital" in [hit.id for hit in hits] and hits[0].url == f"{address}/page/{hits[0].id}"


@pytest.mark.parametrize("name", ENGINES)
def test_text_engines_find_nothing(name: str, address: str) -> None:
    assert web_search(name, Door(), address).search("zzzz qqqq", 5) == []


def test_lens_finds_the_flag(address: str, world: World, local: tuple) -> None:
    names = {flag.iso for flag in world.flags}
    hits = web_search("serpapi_lens", Door(), address, names=names).search(flag(world), 5)
    assert hits[0].id == "ke" and hits[0].title == "Flag of Kenya" and len(hits) == 5
    assert hits[0].id == local[1].search(flag(world), 1)[0].id


def test_pages_that_results_name_are_read(address: str, world: World) -> None:
    door = Door()
    reader = PageReader(door, replace(PAGE, near=True, rate=1000.0))
    hits = web_search("serper", door, address, reader).search(QUERY, 3)
    for hit in hits:
        page = world.pages[hit.id.removeprefix(f"{address}/page/")]
        assert hit.title == page.title and page.text in hit.text and not hit.text.startswith(page.title)
    shown = web_search("serpapi_lens", door, address, reader).search(flag(world), 1)
    assert "Flag of Kenya" in shown[0].text


def test_record_then_replay_with_the_server_gone(world: World, local: tuple, tmp_path: Path) -> None:
    def run(door: Door, url: str) -> list[list[Hit]]:
        reader = PageReader(door, replace(PAGE, near=True, rate=1000.0))
        found = [web_search(name, door, url, reader).search(QUERY, 3) for name in ENGINES]
        return [*found, web_search("serpapi_lens", door, url).search(flag(world), 3)]

    with running(world, *local) as url:
        recorded = run(Door("record", tmp_path / "calls"), url)
    replay = Door("replay", tmp_path / "calls")
    assert run(replay, url) == recorded
    with pytest.raises(ReplayMiss, match="Peru"):
        web_search("serper", replay, url).search("Peru capital", 3)


def test_searchr1_batches(address: str) -> None:
    body = {"queries": [QUERY, "Peru population", "zzzz"], "topk": 2, "return_scores": True}
    result = httpx.post(f"{address}/retrieve", json=body).json()["result"]
    assert [len(documents) for documents in result] == [2, 2, 0]
    first = result[1][0]
    assert first["document"]["contents"].startswith('"Peru: Population') and first["score"] > 0
    assert "contents" in httpx.post(f"{address}/retrieve", json={"queries": [QUERY]}).json()["result"][0][0]


def test_serper_lens_by_addresses_it_may_open(address: str, world: World) -> None:
    data = base64.b64encode(jpeg(flag(world), MAX_UPLOAD)).decode()
    name = httpx.post(f"{address}/image", files={"image": jpeg(flag(world), MAX_UPLOAD)}).json()["image_id"]
    urls = [f"data:image/jpeg;base64,{data}", f"{address}/picture/ke.png", f"{address}/image/{name}"]
    for url in urls:
        organic = httpx.post(f"{address}/lens", json={"url": url}).json()["organic"]
        assert organic[0]["title"] == "Flag of Kenya" and organic[0]["link"] == f"{address}/page/ke"
        assert Image.open(io.BytesIO(httpx.get(organic[0]["imageUrl"]).content)).width == 100
    assert httpx.get(urls[2]).status_code == 200


def test_uploads_are_forgotten(address: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "KEPT_UPLOADS", 2)
    files = {"image": jpeg(flag(world), MAX_UPLOAD)}
    names = [httpx.post(f"{address}/image", files=files).json()["image_id"] for _ in range(3)]
    assert [httpx.get(f"{address}/image/{name}").status_code for name in names] == [404, 200, 200]
    monkeypatch.setattr(serve, "KEPT_SECONDS", 0.0)
    asked = {"engine": "google_lens", "image_id": names[2]}
    assert httpx.get(f"{address}/image/{names[2]}").status_code == 404
    assert httpx.get(f"{address}/search.json", params=asked).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "extra", "status"),
    [
        ("POST", "/search", {"json": {}}, 400),
        ("POST", "/search", {"json": {"q": 7}}, 400),
        ("POST", "/search", {"json": {"q": "a", "num": 0}}, 400),
        ("POST", "/search", {"json": ["q"]}, 400),
        ("POST", "/search", {"content": "{"}, 400),
        ("POST", "/search", {"content": "[" * 100_000}, 400),
        ("POST", "/search", {"content": b" " * 2_000_001}, 413),
        ("POST", "/search", {"content": b'{"q": "\\ud800"}'}, 400),
        ("POST", "/search", {"content": b'{"q": "Kenya \\udfff"}'}, 400),
        ("POST", "/search", {"content": b'{"q": "\xed\xa0\x80"}'}, 400),
        ("POST", "/retrieve", {"content": b'{"queries": ["Kenya \\ud800"]}'}, 400),
        ("POST", "/lens", {"content": b'{"url": "data:image/png;base64,\\ud800"}'}, 400),
        ("POST", "/lens", {"json": {"url": "data:image/png;base64,é"}}, 400),
        ("GET", "/search", {"params": {"engine": "google_lens", "url": "data:image/png;base64,é"}}, 400),
        ("POST", "/search", {"content": iter([b"{}"])}, 411),
        ("GET", "/search", {"params": {"q": "a"}}, 400),
        ("GET", "/search", {"params": {"q": "a", "engine": "bing"}}, 400),
        ("GET", "/search", {"params": {"engine": "google"}}, 400),
        ("GET", "/search", {"params": {"engine": "google", "q": "a", "num": "many"}}, 400),
        ("GET", "/search", {"params": {"engine": "google_lens", "image_id": "0" * 32}}, 400),
        ("GET", "/search", {"params": {"engine": "google_lens", "url": "http://169.254.169.254/x.png"}}, 400),
        ("POST", "/lens", {"json": {"url": "http://example.org/a.png"}}, 400),
        ("POST", "/lens", {"json": {"url": "data:image/png;base64,!!!"}}, 400),
        ("POST", "/lens", {"json": {"url": "data:image/png;base64,AAAA"}}, 400),
        ("POST", "/retrieve", {"json": {"queries": "Kenya"}}, 400),
        ("POST", "/retrieve", {"json": {"queries": ["a"] * 1000}}, 400),
        ("POST", "/image", {"files": {"image": b"not a picture"}}, 400),
        ("POST", "/image", {"files": {"other": b"x"}}, 400),
        ("POST", "/image", {"files": {"image": b"x" * (MAX_UPLOAD + 1)}}, 413),
        ("POST", "/image", {"data": {"image": "text"}}, 400),
        ("GET", "/page/xx/capital", {}, 404),
        ("GET", "/page/../../etc/passwd", {}, 404),
        ("GET", "/picture/xx.png", {}, 404),
        ("GET", "/image/0000", {}, 404),
    ],
)
def test_bad_requests_are_told_what_is_wrong(address: str, method: str, path: str, extra: dict, status: int) -> None:
    answer = httpx.request(method, address + path, **extra)
    assert answer.status_code == status
    assert answer.headers["content-type"] != "application/json" or answer.json()["error"]


def test_a_huge_picture_is_refused(address: str) -> None:
    buffer = io.BytesIO()
    Image.new("1", (6000, 6000)).save(buffer, "PNG")
    answer = httpx.post(f"{address}/image", files={"image": buffer.getvalue()})
    assert answer.status_code == 400 and "million pixels" in answer.json()["error"]


def test_large_pictures_are_decoded_one_at_a_time(address: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, lock = [], [], threading.Lock()

    def counted(data: bytes) -> Image.Image:
        with lock:
            now.append(data)
            most.append(len(now))
        time.sleep(0.05)
        with lock:
            now.pop()
        return read_picture(data)

    monkeypatch.setattr(serve, "read_picture", counted)
    data = jpeg(flag(world), MAX_UPLOAD)
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"

    def send(number: int) -> int:
        if number % 2:
            return httpx.post(f"{address}/image", files={"image": data}).status_code
        return httpx.post(f"{address}/lens", json={"url": url}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(8))) == {200}
    assert len(most) == 8 and max(most) == 1


@pytest.mark.parametrize("path", ["/search", "/image"])
def test_a_client_that_hangs_up_is_no_news(
    world: World, local: tuple, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(world, *local) as url:
        host, port = url.removeprefix("http://").split(":")
        kind = "multipart/form-data; boundary=b" if path == "/image" else "application/json"
        with socket.create_connection((host, int(port))) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n\r\n"
            client.sendall(head.encode() + b"--b\r\n")
            time.sleep(0.2)  # it waits for the rest by now
        assert httpx.post(f"{url}/search", json={"q": QUERY}).status_code == 200
    assert capsys.readouterr().err == ""


def test_a_broken_engine_is_an_error_500(world: World, local: tuple) -> None:
    with running(world, Failing(), local[1]) as url:
        answer = httpx.post(f"{url}/search", json={"q": QUERY})
    assert (answer.status_code, answer.json()["error"]) == (500, "the index is gone.")


def test_a_world_of_ones_own_is_served_whatever_its_pages_and_pictures_are_called(tmp_path: Path) -> None:
    pages, pictures = write_sources(tmp_path)
    address_like = {"id": "https://example.org/a b?c=100%#d", "title": "Zebra", "text": "striped"}
    with pages.open("a") as lines:
        lines.write(json.dumps(address_like) + "\n")
    (pictures / "öther 100%").mkdir()
    (pictures / "Save.png").rename(pictures / "öther 100%" / "Sa%2Fve#.png")
    own = index_world(pages, pictures, tmp_path / "world")
    with running(own, own.text_search(), own.picture_search()) as url:
        hits = web_search("serper", Door(), url, PageReader(Door(), own=url), names=own.pages).search("zebra", 3)
        assert [hit.id for hit in hits] == [address_like["id"]] and "striped" in hits[0].text
        assert hits[0].url.startswith(f"{url}/page/https%3A//example.org/")
        names = {flag.iso for flag in own.flags}
        hit = web_search("serpapi_lens", Door(), url, names=names).search(scene("Save").crop(BOX), 1)[0]
        assert (hit.id, hit.title) == ("öther 100%/Sa%2Fve#.png", "Sa%2Fve#")
        data = base64.b64encode(jpeg(scene("Save").crop(BOX), MAX_UPLOAD)).decode()
        found = httpx.post(f"{url}/lens", json={"url": f"data:image/jpeg;base64,{data}"}).json()["organic"][0]
        shown = httpx.get(found["imageUrl"])
        assert shown.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(shown.content)).tobytes() == own.flag(hit.id).tobytes()
        assert "Sa%2Fve#" in httpx.get(found["link"]).text
        again = httpx.post(f"{url}/lens", json={"url": found["imageUrl"]}).json()["organic"][0]
        assert again["title"] == "Sa%2Fve#"


def test_pages_escape_and_stop_is_quick(world: World, local: tuple) -> None:
    with running(world, *local) as url:
        page = httpx.get(f"{url}/page/ke/land-boundaries")
        assert page.headers["content-type"].startswith("text/html") and "Kenya: Land boundaries" in page.text
        started = time.monotonic()
    assert time.monotonic() - started < 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
