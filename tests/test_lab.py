"""The tools that a notebook's parameters name: local ones, web engines aimed at the served world, large models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_llm import local_llm
from small_policy import tiny

from mmsr.env import Tools
from mmsr.lab import adapter_of, local_tools, open_tools
from mmsr.live.outside import Sources, connect
from mmsr.live.serve import running
from mmsr.presets import get_preset
from mmsr.tools.base import Hit
from mmsr.tools.ground import BaseGrounder
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.summary import ExtractiveSummariser, Shortened
from mmsr.tools.text import LocalTextSearch
from mmsr.world.snapshot import load_world

WORLD, PRESET = load_world(), get_preset("smoke")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(WORLD, LocalTextSearch(WORLD), LocalImageSearch(WORLD)) as url:
        yield url


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def tools(**values: object) -> Tools:
    return open_tools(PRESET, tiny(), WORLD, connect(Sources(**values)))


def test_without_parameters_everything_is_local() -> None:
    for found in (tools(), local_tools(PRESET, tiny(), WORLD)):
        assert isinstance(found.text, LocalTextSearch) and isinstance(found.image, LocalImageSearch)
        assert isinstance(found.grounder, BaseGrounder) and isinstance(found.text_summary, ExtractiveSummariser)


@pytest.mark.parametrize("engine", ["serper", "serpapi", "searxng", "searchr1"])
@pytest.mark.parametrize("read_pages", [False, True])
def test_a_served_world_is_searched_as_the_local_one_without_keys(address: str, engine: str, read_pages: bool) -> None:
    found = tools(search=engine, search_url=address, read_pages=read_pages).text.search("Kenya capital", 5)
    local = LocalTextSearch(WORLD).search("Kenya capital", 5)
    assert [hit.id for hit in found] == [hit.id for hit in local]
    assert all(at.text in hit.text for hit, at in zip(found, local))
    assert all(hit.url.startswith(address) for hit in found)


def test_a_crop_is_uploaded_and_its_hits_are_the_worlds(address: str) -> None:
    found = tools(picture_search="serpapi_lens", picture_url=address + "/").image.search(WORLD.flag("ke"), 5)
    assert found[0].id == "ke" and found[0].title == "Flag of Kenya"
    assert {hit.id for hit in found} <= {flag.iso for flag in WORLD.flags}


def test_large_models_summarise_within_the_policys_budget() -> None:
    with local_llm() as llm:
        found = tools(summary="copies", llm_url=llm)
        hits = [Hit(str(n), f"Title {n}", "Nairobi is the capital. " * 12, 1.0) for n in range(3)]
        text = found.text_summary.summarise("What is the capital?", "Kenya capital", hits)
        assert text.startswith("Title 0 Nairobi is the capital.") and text.endswith("capital.")
        assert 0.7 * PRESET.observation_tokens < tiny().count_tokens(text) <= PRESET.observation_tokens


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(99, "One two. Three four five. Six."), (5, "One two. Three four five."), (4, "One two."), (1, "One"), (0, "")],
)
def test_a_summary_is_cut_at_a_sentence_or_at_least_at_a_word(budget: int, kept: str) -> None:
    class Says:
        def summarise(self, question: str, query: str, hits: object) -> str:
            return "One two. Three four five. Six."

    assert Shortened(Says(), lambda text: len(text.split()), budget).summarise("", "", []) == kept


def test_adapters_are_this_runs_or_else_another_runs(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    with pytest.raises(FileNotFoundError, match="run notebook 02 first, or give adapters=RUN"):
        adapter_of(mine, "", "sft")
    (other / "sft" / "adapter").mkdir(parents=True)
    assert adapter_of(mine, str(other), "sft") == other / "sft" / "adapter"
    (mine / "sft" / "adapter").mkdir(parents=True)
    assert adapter_of(mine, str(other), "sft") == mine / "sft" / "adapter"
    with pytest.raises(FileNotFoundError, match="other/grpo/adapter is not there: run notebook 03 first"):
        adapter_of(mine, str(other), "grpo")
