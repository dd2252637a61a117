"""Search on Milvus finds what the local engines find; errors are one sentence; what it costs can be measured."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_milvus import BLOCK, K, Pages, Vectors, exact, main
from PIL import Image
from small_policy import tiny
from toolbar_world import BOX, BUTTONS, scene, write_sources

from mmsr.lab import open_tools
from mmsr.live import milvus
from mmsr.live.limits import Unavailable
from mmsr.live.milvus import Collection, dimension, index_pages, world_image_search, world_text_search
from mmsr.live.outside import Outside, connect
from mmsr.presets import get_preset
from mmsr.runs import command as cli
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.picture import flat
from mmsr.tools.text import LocalTextSearch, page_words, words
from mmsr.world.own import index_world
from mmsr.world.relations import RELATIONS
from mmsr.world.snapshot import Page, load_world

WORLD = load_world()
TEXT, IMAGE = LocalTextSearch(WORLD), LocalImageSearch(WORLD)
PAGES = [Page("a", "Peru capital", "", "Lima"), Page("b", "Chad", "", "Lima bean"), Page("c", "Chad", "", "Lima bean")]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of Milvus Lite."""
    return str(tmp_path_factory.mktemp("milvus") / "lite.db")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a Milvus in a process of its own, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "data"), "--port", port]
    with subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until:
                with socket.socket() as knock:
                    if not knock.connect_ex(("127.0.0.1", int(port))):
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def same(found: list[Hit], ranked: list[Hit]) -> bool:
    """Whether these are the first of a longer ranking; what scores alike, to a rounding, may change places."""
    scores = [hit.score for hit in found]
    alike = [hit.id in {other.id for other in ranked if abs(other.score - hit.score) < 2e-4} for hit in found]
    return all(alike) and scores == pytest.approx([hit.score for hit in ranked[: len(found)]], abs=2e-4)


# --- the world --------------------------------------------------------------------------------------------------------


def test_pages_are_found_as_by_the_local_engine(uri: str) -> None:
    search, rng = world_text_search(WORLD, uri), random.Random(7)
    countries, pages = list(WORLD.countries.values()), list(WORLD.pages.values())
    queries = [f"{rng.choice(countries).name} {rng.choice(list(RELATIONS.values())).noun}" for _ in range(150)]
    queries += [" ".join(rng.sample(rng.choice(pages).text.split() * 4, 4)) for _ in range(150)]
    queries += ["Kenya Kenya capital", "zzyzx Kenya capital", "capital"]
    exactly = 0
    for query in queries:
        found, ranked = search.search(query, 5), TEXT.search(query, 40)
        assert len(found) == len(ranked[:5]) and len({hit.id for hit in found}) == len(found)
        assert same(found, ranked), query
        exactly += found == ranked[:5]
    assert exactly / len(queries) > 0.95
    assert search.search("zzyzx qwrt", 5) == search.search("what is the", 5) == search.search("", 5) == []


def test_flags_are_found_as_by_the_local_engine(uri: str) -> None:
    search, exactly = world_image_search(WORLD, uri), 0
    for number, flag in enumerate(WORLD.flags):
        crop = flat(WORLD.flag(flag.iso)).rotate(number % 13 - 6, expand=True)  # as tilted as flags in scenes are
        found, ranked = search.search(crop, 5), IMAGE.search(crop, 40)
        assert len(found) == 5 and same(found, ranked), flag.title
        exactly += found == ranked[:5]
    assert exactly / len(WORLD.flags) > 0.95


def test_parameters_of_a_notebook_name_it(uri: str) -> None:
    outside = Outside(search="milvus", search_url=uri, picture_search="milvus", picture_url=uri)
    tools = open_tools(get_preset("tiny"), tiny(), connect(outside))
    assert tools.text.search("Kenya capital", 5) == TEXT.search("Kenya capital", 5)
    flag = WORLD.flag("ke").convert("RGB")
    assert tools.image.search(flag, 5) == IMAGE.search(flag, 5)
    for address in ("", "world.sqlite"):
        with pytest.raises(ValueError, match=r"search_url must be an address such as .*, or a file that ends in \.db"):
            Outside(search="milvus", search_url=address)


def test_a_world_of_ones_own_is_indexed_too(uri: str, tmp_path: Path) -> None:
    own = index_world(*write_sources(tmp_path), tmp_path / "world")
    asked = {"search": "milvus", "search_url": uri, "picture_search": "milvus", "picture_url": uri}
    tools = open_tools(get_preset("tiny"), tiny(), connect(Outside(world=str(tmp_path / "world"), **asked)))
    for query in ("pan button", "restore the original view", "comma separated files"):
        assert same(tools.text.search(query, 5), own.text_search().search(query, 40))
    for name in BUTTONS:
        crop = scene(name).crop(BOX)
        assert same(tools.image.search(crop, 5), own.picture_search().search(crop, 40))


def test_the_world_is_indexed_once(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world_text_search(WORLD, uri)
    monkeypatch.setattr(milvus, "index_pages", lambda *_: pytest.fail("indexed again"))
    assert world_text_search(WORLD, uri).search("Kenya capital", 1)[0].id == "ke/capital"


def test_no_two_words_of_the_world_share_a_dimension() -> None:
    known = {word for page in WORLD.pages.values() for word in page_words(page)}
    assert len({dimension(word) for word in known}) == len(known) > 8000
    assert all(0 <= dimension(word) < 2**32 - 1 for word in known)


# --- collections ------------------------------------------------------------------------------------------------------


def test_equal_scores_keep_the_order_of_indexing(uri: str) -> None:
    three = Collection(uri, "three")
    index_pages(three, PAGES)
    found = three.load().search("chad", 2)
    assert [hit.id for hit in found] == ["b", "c"] and found[0].score == found[1].score
    assert found[0] == Hit("b", "Chad", "Lima bean", found[0].score)


def test_an_interrupted_indexing_leaves_nothing_and_another_replaces(uri: str) -> None:
    def broken() -> Iterator[milvus.Row]:
        yield "a", "A", "", np.array([1, 0], np.float32)
        raise KeyboardInterrupt

    def collections() -> set[str]:
        with milvus.client(uri) as client:
            return set(client.list_collections())

    before, two = collections(), Collection(uri, "two", 2, np.asarray)
    with pytest.raises(KeyboardInterrupt):
        two.fill(broken())
    assert collections() == before
    for name in ("old", "new"):
        two.fill([(name, name, "", np.array([0.6, 0.8], np.float32))])
    assert two.load().search(np.array([1, 0], np.float32), 5) == [Hit("new", "new", "", 0.6)]


# --- a server ---------------------------------------------------------------------------------------------------------


def test_a_server_answers_like_a_file_and_its_death_is_told(
    server: tuple[str, subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, process = server
    three, four = Collection(address, "three"), Collection(address, "four")
    index_pages(three, PAGES)
    search = three.load()
    assert [hit.id for hit in search.search("lima beans", 3)] == ["b", "c", "a"]
    assert three.exists() and not four.exists()
    with pytest.raises(ToolError, match=f"{address} has no collection 'four': index it first"):
        four.load()
    with pytest.raises(ToolError, match=f"{address} refused"):
        replace(three, vector_of=np.asarray).search(np.array([1, 0], np.float32), 5)  # a picture's vector among pages
    process.kill()
    process.wait()
    monkeypatch.setattr(milvus, "SECONDS", 2.0)
    with pytest.raises(Unavailable, match=f"{address} does not answer"):
        search.search("lima beans", 3)


def test_no_server_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(Unavailable, match=f"{address} does not answer .*: check the address, and that it runs"):
        Collection(address, "three").load()
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("address", ["world.sqlite", "ftp://127.0.0.1:1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ToolError, match=r"give a file that ends in \.db, or http://host:port"):
        world_text_search(WORLD, address)


def test_a_file_in_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="its folder must exist, and only one process may have it open"):
        world_text_search(WORLD, str(tmp_path / "none" / "world.db"))


def test_what_cannot_be_opened_is_one_sentence_to_who_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    (tmp_path / "text.db").write_text("no database")
    for kind, key in (("search", "search_url"), ("picture_search", "picture_url")):
        for place in ("none/world.db", "text.db"):
            asked = ["-p", f"{kind}=milvus", "-p", f"{key}={tmp_path / place}"]
            assert cli.main(["ask", str(tmp_path / "a.png"), "Whose flag?", *asked]) == 2
            told = capsys.readouterr().err
            assert told.startswith(f"mmsr: The Milvus at {tmp_path / place} cannot be opened") and told.count("\n") == 1


# --- measuring --------------------------------------------------------------------------------------------------------


def test_made_up_pages_and_vectors_are_the_same_each_time() -> None:
    pages = list(Pages(BLOCK + 3))
    assert pages[-4:] == list(Pages(BLOCK + 3))[-4:] and len({page.id for page in pages}) == BLOCK + 3
    assert all(len(page_words(page)) == 60 for page in pages[:50])
    assert Pages(5).queries(2) == Pages(9).queries(2) and len(words(Pages(5).queries(2)[0])) == 8
    vectors = [vector for _, _, vector in Vectors(30)]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and np.array_equal(vectors, *Vectors(30).blocks())


def test_exact_search_is_the_local_engines() -> None:
    """BM25 of bm25s and a plain product, over more than one block of scores."""
    pages = Pages(300)
    world = type("Corpus", (), {"pages": {page.id: page for page in pages}})
    local, queries = LocalTextSearch(world), pages.queries(10)
    scores = np.concatenate(list(pages.scores(queries)))
    for query, found in zip(queries, exact([scores], K)):
        ranked = local.search(query, 300)
        assert found >= {hit.id for hit in ranked[:K] if hit.score > ranked[K - 1].score + 1e-4}
        assert found <= {hit.id for hit in ranked if hit.score >= ranked[K - 1].score - 1e-4}
    vectors, asked = Vectors(BLOCK + 50), Vectors(1).queries(3)
    whole = np.concatenate(list(vectors.scores(asked)))
    best = [{f"p{n}" for n in np.argsort(-whole[:, q])[:K]} for q in range(3)]
    assert exact(vectors.scores(asked), K) == best


def test_a_small_size_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    assert main(["--pages", "2000", "--vectors", "2000", "--queries", "20", "--out", str(out)]) == 0
    cost = json.loads(out.read_text())
    assert cost["server"] == "Milvus Lite" and cost["machine"]["versions"]["pymilvus"]
    for part in ("pages", "vectors"):
        found = cost[part]
        assert found["number"] == 2000 and found["queries"] == 20 and found["recall_at_10"] == 1
        assert 0 < found["p50_ms"] <= found["p95_ms"] and found["build_s"] > 0 and found["disk_gb"] > 0
        assert found["peak_gb"] >= found["build_peak_gb"] > 0
    assert cost["vectors"]["disk_gb"] > 2000 * 768 * 4 / 1e9  # nothing is left out


def test_measuring_where_nothing_runs_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    assert main(["--pages", "10", "--uri", "http://127.0.0.1:9", "--out", str(out)]) == 1
    assert capfd.readouterr().err.startswith("mmsr: The Milvus at http://127.0.0.1:9 does not answer")
    assert not out.exists()
