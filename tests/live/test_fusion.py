"""Several engines at once: the fused list by hand, engines that fail, what the policy reads, and a record of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from local_web import Handler, local_web, says
from stub_tools import environment, turn

from mmsr.live.engines import TEXT_ENGINES, moved
from mmsr.live.fusion import Fused, fuse
from mmsr.live.limits import QuotaGone, Unavailable
from mmsr.live.outside import Outside, connect
from mmsr.protocol import TextSearch
from mmsr.tools.base import KEYS, Hit, ToolError
from mmsr.world.snapshot import load_world


def hits(*ids: str) -> list[Hit]:
    return [Hit(id_, id_.upper(), f"text of {id_}", 9.0) for id_ in ids]


def engine(*ids: str, error: Exception | None = None) -> SimpleNamespace:
    """An engine that finds these, or fails."""

    def search(query: str, k: int) -> list[Hit]:
        if error:
            raise error
        return hits(*ids)[:k]

    return SimpleNamespace(search=search)


def test_what_several_find_goes_before_what_one_finds_first() -> None:
    fused = fuse([hits("a", "b", "c"), hits("d", "c")])
    assert [hit.id for hit in fused] == ["c", "a", "d", "b"]  # 1/63 + 1/62, 1/61, 1/61, 1/62
    assert [hit.score for hit in fused] == [round(x, 6) for x in (1 / 63 + 1 / 62, 1 / 61, 1 / 61, 1 / 62)]
    assert [hit.title for hit in fused[:2]] == ["C (2 of 2 engines)", "A (1 of 2 engines)"]
    assert fused[0].text == "text of c" and fuse([[], []]) == []


def test_a_page_that_an_engine_names_twice_counts_once_for_it() -> None:
    assert [hit.title for hit in fuse([hits("b", "a", "a"), hits("a")])] == ["A (2 of 2 engines)", "B (1 of 2 engines)"]


def test_an_address_is_the_same_page_with_and_without_what_does_not_matter() -> None:
    ways = ("https://www.a.example/ke/", "http://a.example/ke", "https://a.example/ke#capital")
    [hit] = fuse([hits(way) for way in ways])
    assert hit.id == ways[0] and hit.title.endswith("(3 of 3 engines)")
    assert len(fuse([hits("https://a.example/ke"), hits("https://a.example/KE?x")])) == 2


def test_one_that_fails_leaves_the_others() -> None:
    found = Fused([engine(error=Unavailable("serper is down.")), engine("a", "b")]).search("q", 1)
    assert [hit.title for hit in found] == ["A (1 of 2 engines)"]
    with pytest.raises(ToolError, match=r"^serper is down\. brave is down\.$"):
        Fused([engine(error=ToolError(f"{name} is down.")) for name in ("serper", "brave")]).search("q", 5)
    with pytest.raises(QuotaGone):
        Fused([engine(error=QuotaGone("top it up.")), engine("a")]).search("q", 5)


def test_the_policy_reads_how_many_agree() -> None:
    read = environment(text=Fused([engine("a", "b"), engine("b")])).step(turn(TextSearch("q")))
    assert "B (2 of 2 engines): text of b" in read and "A (1 of 2 engines): text of a" in read


def test_engines_that_are_named_together_are_asked_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with local_web() as web:
        kenya, other = f"{web.url}/wiki/Kenya", f"{web.url}/other"
        for name in ("serper", "wikimedia"):
            monkeypatch.setitem(TEXT_ENGINES, name, moved(TEXT_ENGINES[name], web.url))

        def answers(handler: Handler) -> None:
            organic = [{"title": "Other", "link": other, "snippet": "s"}, {"title": "Kenya", "link": kenya}]
            pages = [{"title": "Kenya", "key": "Kenya", "excerpt": "Nairobi"}]
            says(200, {"organic": organic} if handler.seen.method == "POST" else {"pages": pages})(handler)

        web.play(answers)
        asked = {"search": "serper+wikimedia+local", "read_pages": False, "record": str(tmp_path / "calls")}
        found, keys = {}, {}
        for mode in ("record", "replay"):
            connection = connect(Outside(**asked, mode=mode))
            with KEYS.heard() as keys[mode]:
                found[mode] = connection.text_search(load_world()).search("Kenya capital", 3)
            assert connection.door.asked == {"serper": 1, "wikimedia": 1}
        assert len(web.seen) == 2
    assert found["record"] == found["replay"] and keys["record"] == keys["replay"]
    assert [hit.title for hit in found["record"]] == [
        "Kenya (2 of 3 engines)",
        "Other (1 of 3 engines)",
        "Kenya: Capital (1 of 3 engines)",
    ]


def test_pages_of_the_fused_list_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    reader = SimpleNamespace(read=lambda url: read.append(url) or f"page {url}")
    one, two = ([Hit(url, "t", "snippet", 1.0, url)] for url in ("https://a.example/x", "https://www.a.example/x/"))
    both = [SimpleNamespace(search=lambda query, k, found=found: found) for found in (one, two)]
    assert [hit.text for hit in Fused(both, reader).search("q", 5)] == ["page https://a.example/x"]
    assert read == ["https://a.example/x"]
