"""The page of trajectories in a browser: filters, search, two episodes side by side, keys, a phone's width, speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_chromium
from PIL import Image
from sample_run import HOSTILE, eval_rows

from mmsr.show.viewer import html_page

pytestmark = needs_chromium

LISTED = "[...document.querySelectorAll('#list span')].map((e) => e.textContent)"
CHOSEN = "document.querySelector('#list [aria-current=true] span').textContent"
SHOWN = "[...document.querySelectorAll('.stage .mmsr')].map((e) => e.querySelector('.facts span').textContent)"
FOCUS = "document.activeElement.id || document.activeElement.tagName"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    rows = eval_rows(24)
    for row in rows:  # no two questions read alike, and the first is hostile
        name = row["question"]["id"]
        row["question"]["text"] += f" ({HOSTILE if name == 'test-0-0' else name})"
    return rows


@pytest.fixture(scope="module")
def url(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    return html_page(rows, tmp_path_factory.mktemp("pages") / "page.html").as_uri()


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Browser]:
    """The page as it opens; whatever is done with it, nothing may complain."""
    chromium.errors.clear()
    chromium.resize(1400, 900)
    chromium.open("about:blank")
    chromium.open(url)
    yield chromium
    assert chromium.errors == []


def choose(page: Browser, filter_: str, value: str) -> None:
    page.run(f"{filter_}.value = '{value}', {filter_}.dispatchEvent(new Event('change'))")


def asked(rows: list[dict], workflow: str = "grpo") -> list[str]:
    return [row["question"]["text"] for row in rows if row["workflow"] == workflow]


def test_it_opens_on_the_trained_agent_with_picture_and_crop(page: Browser, rows: list[dict]) -> None:
    assert page.run(LISTED) == asked(rows) and page.run(SHOWN) == ["Agent after GRPO"]
    assert page.run("document.querySelector('.mmsr h2').textContent") == rows[0]["question"]["text"]
    drawn = "getComputedStyle(document.querySelector('.scene')).backgroundImage"
    assert page.run(drawn).startswith('url("data:image/webp;base64,')


def test_changed_narrows_to_questions_that_grpo_won_or_lost(page: Browser, rows: list[dict]) -> None:
    right = {(row["workflow"], row["question"]["text"]): row["correct"] for row in rows}
    for before, change in ((False, "SFT wrong → GRPO right"), (True, "SFT right → GRPO wrong")):
        choose(page, "changed", change)
        wanted = [text for text in asked(rows) if (right["sft", text], right["grpo", text]) == (before, not before)]
        assert page.run(LISTED) == wanted != []
    choose(page, "workflow", "sft")
    assert page.run(LISTED) == wanted


def test_search_narrows_to_words_of_questions_and_answers(page: Browser, rows: list[dict]) -> None:
    page.press("/")
    page.type("FLAG  läft")  # in any case and order, whatever the marks on letters: here none fits
    assert page.run(LISTED) == [text for text in asked(rows) if "flag" in text.lower() and "laft" in text.lower()]
    page.run("search.select()")
    page.type("FLÁG whích")
    assert page.run(LISTED) == [text for text in asked(rows) if "flag" in text.lower() and "which" in text.lower()]
    page.run("search.select()")
    page.type("atlantis")
    assert page.run(LISTED) == [r["question"]["text"] for r in rows if r["workflow"] == "grpo" and not r["correct"]]
    page.run("search.select()")
    page.type("nowhere at all")
    assert page.run("stage.textContent") == "No trajectory matches." and page.run(LISTED) == []


def test_two_episodes_stand_side_by_side(page: Browser) -> None:
    page.press("b")
    assert page.run(SHOWN) == ["Agent after SFT", "Agent after GRPO"]
    left, right = page.run("[...document.querySelectorAll('.stage .mmsr')].map((e) => e.getBoundingClientRect().x)")
    assert left < right
    page.click("#others button:nth-child(6)")
    assert page.run(SHOWN) == ["Agent after SFT", "Teacher (ceiling)"]
    page.click("#others button:nth-child(4)")
    assert page.run(SHOWN) == ["Agent after SFT", "Agent after GRPO"]
    marked = "[...document.querySelectorAll('#others [aria-current=true]')].map((e) => e.textContent.slice(2))"
    assert page.run(marked) == ["SFT", "GRPO"]
    page.click("#pair")
    assert page.run(SHOWN) == ["Agent after SFT"]


def test_keys_alone_are_enough(page: Browser, rows: list[dict]) -> None:
    page.press("ArrowRight")
    assert page.run(CHOSEN) == asked(rows)[1]
    page.press("/")
    assert page.run(FOCUS) == "search"
    page.press("b")
    assert page.run("search.value") == "b" and len(page.run(SHOWN)) == 1  # a letter, no command
    page.run("search.value = '', narrow()")
    chosen = asked(rows).index(page.run(CHOSEN))
    stops = []
    for _ in range(7):
        page.press("Tab")
        stops.append(page.run(FOCUS))
    assert stops == ["workflow", "outcome", "type", "changed", "BUTTON", "back", "next"]  # the list is one stop
    page.press("Tab", shift=True)
    page.press("Tab", shift=True)
    page.press("ArrowDown")
    assert page.run(CHOSEN) == asked(rows)[chosen + 1]
    assert page.run("document.activeElement === document.querySelector('#list [aria-current=true]')")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_phone_shows_every_name_whole(page: Browser) -> None:
    page.resize(390, 844)
    page.press("b")
    assert page.run("document.documentElement.scrollWidth") == 390
    cut = "[...document.querySelectorAll('#list span, #list small, h2, button, .facts span')]"
    assert page.run(f"{cut}.filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).length") == 0
    page.run("pen = document.createElement('canvas').getContext('2d'), 0")
    room = "(pen.font = getComputedStyle(s).font, s.clientWidth - 40 - pen.measureText(o.textContent).width)"
    options = f"[...document.querySelectorAll('select')].flatMap((s) => [...s.options].map((o) => {room}))"
    assert min(page.run(options)) >= 0
    first, second = page.run("[...document.querySelectorAll('.stage .mmsr')].map((e) => e.getBoundingClientRect().y)")
    assert second > first + 300  # below each other


def test_ten_thousand_rows_are_quick(chromium: Browser, rows: list[dict], tmp_path: Path) -> None:
    both = [row for row in rows if row["workflow"] in ("sft", "grpo")]
    many = [
        row | {"question": row["question"] | {"id": f"q{copy}-{number // 2}", "text": f"{copy} {number // 2}?"}}
        for copy in range(10_000 // len(both) + 1)
        for number, row in enumerate(both)
    ][:10_000]
    url = html_page(many, tmp_path / "page.html", [Image.new("RGB", (384, 384))] * len(many)).as_uri()
    opened = []
    for _ in range(3):
        chromium.open("about:blank")
        began = time.perf_counter()
        chromium.open(url)
        opened.append(time.perf_counter() - began)
    assert min(opened) < 2
    narrowed = "((t) => (narrow(), document.body.offsetHeight, performance.now() - t))(performance.now())"
    assert min(chromium.run(narrowed) for _ in range(3)) < 200  # milliseconds
    assert chromium.run("list.children.length") == 100
    chromium.press("ArrowLeft")  # from the first round to the last
    assert chromium.run(CHOSEN) == asked(many)[-1]
    for end in ("0", "list.scrollHeight", "0"):
        held = chromium.run("list.children.length")
        chromium.run(f"list.scrollTop = {end}")
        chromium.wait_for(f"list.children.length > {held} || {end} > 0")
    listed = chromium.run(LISTED)
    assert listed == asked(many)[-len(listed) :] and chromium.run(f"({LISTED}).length") > 200
