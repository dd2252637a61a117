"""Reading pages over real HTTP on loopback: what is text, what is refused, and which addresses are never asked."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from local_web import FAST, QUICK, LocalWeb, Part, failing, fifty_megabytes, gzip_bomb, hangs, local_web, says

from mmsr.live.door import Door, Service
from mmsr.live.engines import MAX_CHARS, PAGE, TEXT_ENGINES, PageReader, WebSearch, moved, with_pages
from mmsr.live.limits import BadAnswer, RateLimited, Refused, Unavailable
from mmsr.live.record import Call
from mmsr.live.wire import is_global
from mmsr.tools.base import KEYS, Hit, ToolError

HTML = (
    "<html><head><title>t</title></head><body><article><p>Nairobi is the capital of Kenya.</p></article></body></html>"
)
NEAR = replace(PAGE, near=True, limits=FAST, rate=1000.0)


@pytest.fixture(scope="module")
def web() -> Iterator[LocalWeb]:
    with local_web() as server:
        yield server


def packed(text: str, bits: int) -> bytes:
    """A text compressed as zlib numbers the forms; 0 leaves it as it is."""
    packing = zlib.compressobj(wbits=bits) if bits else None
    return packing.compress(text.encode()) + packing.flush() if packing else text.encode()


def page(web: LocalWeb, *parts: Part) -> str:
    web.play(*parts)
    return PageReader(Door(), replace(NEAR, limits=QUICK) if hangs in parts else NEAR).read(web.url + "/a?b=c")


def test_page_is_read(web: LocalWeb) -> None:
    assert page(web, says(200, HTML, Content_Type="text/html; charset=utf-8")) == "Nairobi is the capital of Kenya."
    assert web.seen[0].path == "/a?b=c"
    assert page(web, says(200, "just text", Content_Type="text/plain")) == "just text"


@pytest.mark.parametrize(
    ("kind", "meta", "encoding"),
    [
        ("text/html", "", "utf-8"),
        ("text/html; charset=Shift_JIS", "", "shift_jis"),
        ("text/html", '<meta charset="shift_jis">', "shift_jis"),
        ("text/html; charset=no-such", "", "utf-8"),
    ],
)
def test_page_encodings(web: LocalWeb, kind: str, meta: str, encoding: str) -> None:
    body = f"<html><head>{meta}</head><body><article><p>ケニアの首都はナイロビです。</p></article></body></html>"
    assert page(web, says(200, body.encode(encoding), Content_Type=kind)) == "ケニアの首都はナイロビです。"


def test_half_characters_are_dropped(web: LocalWeb) -> None:
    for kind, body in (("plain", "Nairobi is the capital of Kenya."), ("html", HTML)):
        part = says(200, body.replace(" is", " +2AA-is"), Content_Type=f"text/{kind}; charset=utf-7")
        assert page(web, part) == "Nairobi is the capital of Kenya."


@pytest.mark.parametrize(
    ("form", "bits"), [("gzip", 31), ("x-gzip", 31), ("GZip", 31), ("deflate", 15), ("deflate", -15), ("identity", 0)]
)
def test_a_page_that_is_compressed_unasked_is_read(web: LocalWeb, form: str, bits: int) -> None:
    read = page(web, says(200, packed(HTML, bits), Content_Type="text/html", Content_Encoding=form))
    assert read == "Nairobi is the capital of Kenya."


def test_a_page_of_very_many_tags_is_read_in_time(web: LocalWeb) -> None:
    """Extraction is bounded by the limits of the page."""
    web.play(says(200, "<html><body>" + "<p>x" * 300_000, Content_Type="text/html"))
    limits = replace(FAST, attempt=10.0, total=20.0, max_bytes=2_000_000)
    started = time.monotonic()
    text = PageReader(Door(), replace(NEAR, limits=limits)).read(web.url)
    assert text.startswith("x\nx\nx") and len(text) <= MAX_CHARS
    assert time.monotonic() - started < limits.total


def test_an_extractor_that_takes_too_long_or_breaks_leaves_the_snippet(
    web: LocalWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> str:
        raise TypeError("a bug that this page has found")

    web.play(says(200, HTML, Content_Type="text/html"))

    def slow(*args: object, **kwargs: object) -> str:
        return "late" * web.over.wait(3)

    for extract, said in ((slow, "more than 0.2 s"), (broken, "broken (TypeError)")):
        monkeypatch.setattr("trafilatura.extract", extract)
        error = failing(lambda: PageReader(Door(), replace(NEAR, limits=QUICK)).read(web.url), BadAnswer)
        assert said in str(error)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (says(301, "", Location="http://169.254.169.254/"), Refused),
        (says(404, "gone"), Refused),
        (says(401, "log in with an api key"), Refused),
        (says(402, "pay"), Refused),
        (says(403, "quota"), Refused),
        (says(429, "slow"), RateLimited),
        (says(500, "oops"), Unavailable),
        (says(200, b"%PDF-1.7", Content_Type="application/pdf"), BadAnswer),
        (says(200, "", Content_Type="text/html"), BadAnswer),
        (says(200, b"\x1f\x8b\x08\x00" + b"a" * 99, Content_Type="text/html"), BadAnswer),
        (says(200, b"\x00\xff\xfe<", Content_Type="text/html"), BadAnswer),
        (fifty_megabytes, BadAnswer),
        (gzip_bomb, BadAnswer),
        (says(200, packed(HTML, 31)[:-9], Content_Type="text/html", Content_Encoding="gzip"), BadAnswer),
        (says(200, HTML, Content_Type="text/html", Content_Encoding="gzip"), BadAnswer),
        (says(200, HTML, Content_Type="text/html", Content_Encoding="br"), BadAnswer),
        (says(429, b"\x0b\x02\x80slow\x03", Content_Encoding="br"), RateLimited),
        (hangs, Unavailable),
    ],
)
def test_page_troubles_are_never_fatal(web: LocalWeb, part: Part, kind: type[ToolError]) -> None:
    failing(lambda: page(web, part), kind)
    assert len({seen.path for seen in web.seen}) == 1


def test_a_hit_without_its_page_keeps_the_snippet(web: LocalWeb) -> None:
    web.play(says(404, ""))
    hits = [Hit("a", "A", "snippet a", 1.0, web.url + "/a"), Hit("b", "B", "snippet b", 0.5)]
    assert with_pages(hits, PageReader(Door(), NEAR)) == hits
    web.play(says(200, HTML, Content_Type="text/html"))
    read = with_pages(hits, PageReader(Door(), NEAR))
    assert [hit.text for hit in read] == ["Nairobi is the capital of Kenya.", "snippet b"]


def test_a_heading_that_is_the_title_again_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a": "Kenya\nNairobi is its capital.", "b": "Kenya is a country.", "c": "Kenya\n", "d": "Kenya"}
    monkeypatch.setattr(PageReader, "read", lambda self, url: texts[url[-1]])
    hits = [Hit(name, "Kenya", "a snippet", 1.0, f"https://example.org/{name}") for name in texts]
    found = [hit.text for hit in with_pages(hits, PageReader(Door(), NEAR))]
    assert found == ["Nairobi is its capital.", "Kenya is a country.", "Kenya\n", "Kenya"]


@pytest.mark.parametrize("link", ["http://[x", "http://a.example:99999/", "http://a.example:b/", "http://", "http:///"])
def test_a_link_that_leads_nowhere_leaves_its_hit_the_snippet_and_is_counted(
    web: LocalWeb, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    rows = [{"title": "A", "link": link, "snippet": "a"}, {"title": "B", "link": f"{web.url}/b", "snippet": "b"}]
    web.play(says(200, {"organic": rows}), says(200, HTML, Content_Type="text/html"))
    door = Door()
    search = WebSearch(moved(TEXT_ENGINES["serper"], web.url), door, PageReader(door, NEAR), names={"ke/capital"})
    assert [hit.text for hit in search.search("q", 5)] == ["a", "Nairobi is the capital of Kenya."]
    assert door.asked == {"serper": 1, "page": 2} and door.failed == {"page": 1}


def test_page_keys_are_logged_in_order(web: LocalWeb) -> None:
    web.play(says(404, ""))
    hits = [Hit(name, name, "", 1.0, f"{web.url}/{name}") for name in "abcdef"]
    with KEYS.heard() as keys:
        with_pages(hits, PageReader(Door(), NEAR))
    assert keys == [Call("page", 1, "GET", {"url": hit.url}).key for hit in hits]


def test_a_proxy_of_the_environment_is_used_but_not_for_pages(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url.replace("//", "//me:word@"))
    monkeypatch.delenv("no_proxy", raising=False)
    engine = Door().open(Service("engine", "http://engine.example", limits=FAST))
    web.play(says(200, "{}"))
    engine.get("/x")
    assert web.seen[0].path == "http://engine.example/x"
    assert web.seen[0].headers["proxy-authorization"].startswith("Basic ")
    engine.get(f"{web.url}/near")
    assert web.seen[1].path == "/near"
    failing(lambda: PageReader(Door(), replace(PAGE, limits=FAST)).read("http://engine.example/x"), Unavailable)
    assert len(web.seen) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_local_addresses_are_not_fetched(web: LocalWeb, host: str) -> None:
    web.play(says(200, HTML))
    port = web.url.rsplit(":", 1)[1]
    reader = PageReader(Door(), replace(PAGE, limits=FAST))
    failing(lambda: reader.read(f"http://{host}:{port}/"), Refused)
    assert web.seen == []


def test_a_name_with_one_address_inside_is_not_fetched(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in DNS rebinding, whichever address comes first."""
    web.play(says(200, HTML))
    for answer in (["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "127.0.0.1"]):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, found=found, **kwargs: found)
        reader = PageReader(Door(), replace(PAGE, limits=FAST))
        assert "127.0.0.1" in str(failing(lambda reader=reader: reader.read("http://mixed.example/"), Refused))
    assert len(web.seen) == 0


def test_a_redirect_to_an_address_inside_is_not_followed(web: LocalWeb) -> None:
    failing(lambda: page(web, says(302, "", Location=f"{web.url}/inside")), Refused)
    assert [seen.path for seen in web.seen] == ["/a?b=c"]


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.example/", "gopher://a", "data:text/html,x", "//a.example", "http://a..example"],
)
def test_only_the_web_is_read(url: str) -> None:
    failing(lambda: PageReader(Door()).read(url), Refused)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2001:4860:4860::8888", True),
        ("fec0::1", False),  # site-local, as the first plans for IPv6 had it
        ("4000::1", False),
        ("3fff::1", False),
        ("::7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("168.63.129.16", False),  # Azure's services within a machine's own network
        ("::ffff:168.63.129.16", False),
        ("2002:a83f:8110::", False),
        ("192.0.0.192", False),  # Oracle's
        ("161.26.0.8", False),  # IBM's
        ("166.9.1.1", False),
    ],
)
def test_global_addresses(address: str, expected: bool) -> None:
    assert is_global(address) is expected
