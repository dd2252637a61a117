"""The HTML viewer shows what happened, is one file that loads nothing, and lets nothing hostile out of its text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from sample_run import HOSTILE, eval_rows, hostile_trajectory, trajectory

from mmsr.show.transcript import Block, blocks, crop_box, facts, gold_among, outcome, picture_of, reward_parts, shaded
from mmsr.show.viewer import browser, data_url, html_page, trajectory_html
from mmsr.world.questions import make_questions


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return eval_rows(8)


@pytest.fixture(scope="module")
def page(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = html_page(rows, tmp_path_factory.mktemp("pages") / "deep" / "page.html")
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, its text, and whether tags are closed in order."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open, self.unbalanced = "", [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def cards(page: str) -> list[tuple[dict, Elements]]:
    """What the page knows of each of its cards, and the card, which lies in it as text."""
    kept = [attrs["data-facts"] for _, attrs in Elements(page).found if "data-facts" in attrs]
    texts = re.findall(r"<script type=\"text/html\"[^>]*>(.*?)</script>", page, re.DOTALL)
    return [(json.loads(known), Elements(text)) for known, text in zip(kept, texts, strict=True)]


def hostile_row() -> dict:
    question = make_questions("test", 1, seed=0)[0]
    asked = question.as_dict() | {
        "text": HOSTILE,
        "taxonomy": HOSTILE,
        "type": HOSTILE,
        "answer": HOSTILE,
        "id": HOSTILE,
    }
    played = hostile_trajectory(question).as_dict() | {"reward": {HOSTILE: 1.0, "total": 0.9}}
    return {"workflow": HOSTILE, "question": asked, "correct": False, "trajectory": played}


# --- one trajectory -------------------------------------------------------------------------------------------------


def test_a_trajectory_shows_turns_crop_and_verdict() -> None:
    question = next(q for q in make_questions("test", 20, seed=0) if q.type == "one_hop")
    row = {"question": question.as_dict(), "trajectory": trajectory(question, "Atlantis").as_dict()}
    html = trajectory_html(row, question.draw())
    seen = Elements(html)
    assert not seen.unbalanced
    for words in (question.text, question.expression, "Whose flag is it?", "Atlantis", f"gold: {question.answer}", "✗"):
        assert words in seen.text
    boxes = [attrs for tag, attrs in seen.found if tag == "i"]
    assert [box["class"] for box in boxes] == ["gold-box", "crop-box"]
    assert f"left:{100 * question.box[0] / 384:.2f}%" in boxes[1]["style"]
    assert "gold at 1" in seen.text


def test_a_trajectory_shows_the_pages_that_its_answer_stands_on() -> None:
    page = {"turn": 2, "rank": 1, "id": "a", "title": "<b>A", "url": "https://x.org/", "distrusted": True}
    local = page | {"rank": 0, "title": "", "url": "", "distrusted": False}
    row = {"trajectory": {"turns": [], "answer": "Nairobi"}, "support": {"label": "supported", "pages": [page, local]}}
    seen = Elements(trajectory_html(row, Image.new("RGB", (9, 9))))
    assert [attrs["href"] for tag, attrs in seen.found if tag == "a"] == ["https://x.org/"] and not seen.unbalanced
    assert "<b>A turn 2, page 1, distrusted" in seen.text and "turn 2, the summary" in seen.text
    row["support"] = {"label": "unsupported", "pages": []}
    assert "no page that was read" in trajectory_html(row, Image.new("RGB", (9, 9)))


def test_any_picture_and_a_bare_trajectory_are_enough() -> None:
    picture = Image.new("RGBA", (3000, 1000), "red")
    html = trajectory_html({"trajectory": {"task_id": "", "turns": []}}, picture)
    assert "No turns." in html and "no answer" in html and "No picture was searched." in html
    turn = {"text": "<reason>r</reason><img_search><img></img_search>", "action": "img_search", "box": None}
    html = trajectory_html({"trajectory": {"turns": [turn]}, "question": {"text": "What?"}}, picture)
    assert "searched whole" in html and "✗" not in html and "✓" not in html


def test_hostile_text_stays_text() -> None:
    html = trajectory_html(hostile_row(), Image.new("RGB", (384, 384)))
    seen = Elements(html)
    assert not seen.unbalanced
    assert {tag for tag, _ in seen.found}.isdisjoint({"script", "img", "iframe", "object", "answer", "information"})
    assert not [attrs for _, attrs in seen.found if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in seen.found if tag == "a"]  # javascript: is no link
    assert HOSTILE in seen.text
    assert "<script" not in html


def test_what_the_policy_was_not_sure_of_is_marked_where_it_wrote_it() -> None:
    text = "<reason>reason: answer Kenya</reason>\n<answer> Kenya</answer>"
    at = text.rindex("Kenya")
    turn = {"text": text, "action": "answer", "doubts": [[0, 4, 0.2], [8, 10, 0.5], [at - 1, at + 2, 0.25]]}
    seen = Elements(trajectory_html({"trajectory": {"turns": [turn]}}, Image.new("RGB", (9, 9))))
    marks = [attrs for tag, attrs in seen.found if tag == "mark"]
    assert [mark["title"] for mark in marks] == ["probability 0.50", "probability 0.25"] and not seen.unbalanced
    assert marks[1]["style"] == "--doubt:37.50%" and "gave less than 90 %" in seen.text
    reason, answer = blocks(turn)
    assert shaded(turn, reason) == [("", None), ("re", 0.5), ("ason: answer Kenya", None)]
    assert shaded(turn, answer) == [("", None), ("Ke", 0.25), ("nya", None)]
    for old in ({"text": text}, {"text": "", "doubts": [[0, 4, 0.2]]}):
        assert [text for text, sure in shaded(old, answer) if sure is None] == ["Kenya"]


def test_only_web_addresses_become_links() -> None:
    hits = [
        {"id": "a", "title": "A", "score": 1, "url": url} for url in ('https://x.org/"><b>', "data:text/html,x", "")
    ]
    turn = {"text": "", "action": "text_search", "hits": hits, "observation": "<information>\nA\n</information>"}
    seen = Elements(trajectory_html({"trajectory": {"turns": [turn]}}, Image.new("RGB", (9, 9))))
    assert [attrs["href"] for tag, attrs in seen.found if tag == "a"] == ['https://x.org/"><b>']


def test_pictures_are_small() -> None:
    url = data_url(Image.effect_noise((2000, 1000), 60))
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,")))) as picture:
        assert picture.size == (640, 320)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    for seen in (Elements(page), *(card for _, card in cards(page))):
        assert not seen.unbalanced
        for tag, attrs in seen.found:
            assert "src" not in attrs and tag != "link"
    assert not re.findall(r"url\((?!\$)", page)  # the script's own makes them of pictures
    assert "default-src 'none'" in page


def test_the_policy_lets_only_the_pages_own_script_run(page: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "innerHTML" not in page


def test_every_row_is_there_with_what_the_filters_read(page: str, rows: list[dict]) -> None:
    for (known, card), row in zip(cards(page), rows, strict=True):
        assert known["workflow"] == row["workflow"]
        assert known["type"] == row["question"]["type"]
        assert known["outcome"] == ("right" if row["correct"] else "wrong")
        assert known["title"] == row["question"]["text"] and row["question"]["text"] in card.text
        assert row["answer"] in known["answer"] and row["question"]["answer"] in known["answer"]
    options = [attrs["value"] for tag, attrs in Elements(page).found if tag == "option"]
    assert options[:7] == ["", "direct", "rag", "prompted", "sft", "grpo", "teacher"]


def test_a_picture_is_embedded_once_for_all_workflows(page: str, rows: list[dict]) -> None:
    assert page.count("data:image/webp") == len({row["question"]["id"] for row in rows})


def test_changes_are_a_filter_where_both_stages_played(page: str, rows: list[dict], tmp_path: Path) -> None:
    assert 'id="changed"' in page
    half = [row for row in rows if row["workflow"] != "sft"]
    assert 'id="changed"' not in html_page(half, tmp_path / "page.html").read_text()


def test_one_row_is_its_card_alone(rows: list[dict], tmp_path: Path) -> None:
    seen = Elements(page := html_page(rows[:1], tmp_path / "page.html").read_text())
    assert not seen.unbalanced and page.count("data:image/webp") == 1
    assert {tag for tag, _ in seen.found}.isdisjoint({"script", "nav", "select", "button"})
    assert f"<title>{rows[0]['question']['text']}</title>" in page and "Content-Security-Policy" in page


def test_a_hostile_row_does_not_break_the_page(rows: list[dict], tmp_path: Path) -> None:
    picture = Image.new("RGB", (384, 384))
    page = html_page([hostile_row(), rows[0]], tmp_path / "page.html", [picture, picture]).read_text()
    seen = Elements(page)
    assert not seen.unbalanced
    scripts = [attrs.get("type") for tag, attrs in seen.found if tag == "script"]
    assert scripts == ["text/plain", "text/html", "text/html", None]
    known, card = cards(page)[0]
    assert known["title"] == HOSTILE and HOSTILE in card.text and not card.unbalanced
    assert {tag for tag, _ in card.found}.isdisjoint({"script", "img", "answer"})


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        html_page([], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# --- the notebook ---------------------------------------------------------------------------------------------------


def test_the_browser_draws_the_chosen_card_alone_in_a_frame_of_its_own(rows: list[dict]) -> None:
    choices, question, card = browser(rows).children
    workflow, answer = choices.children
    assert len(question.options) == len(rows)
    workflow.value, answer.value = "Agent after GRPO", "right"
    fitting = [row for row in rows if row["workflow"] == "grpo" and row["correct"]]
    assert [row for _, row in question.options] == fitting
    question.index = len(fitting) - 1
    seen = Elements(card.value)
    assert [tag for tag, _ in seen.found] == ["iframe"] and not seen.unbalanced
    frame = seen.found[0][1]
    assert frame["srcdoc"] == trajectory_html(fitting[-1], picture_of(fitting[-1]))
    assert frame["sandbox"] is None  # the strictest: no script, and not the notebook's own origin
    with pytest.raises(ValueError, match="at least one row"):
        browser([])


def test_the_browser_says_where_nothing_fits(rows: list[dict]) -> None:
    choices, question, card = browser([row for row in rows if row["correct"]]).children
    choices.children[1].value = "wrong"
    assert question.options == () and "No trajectory matches." in card.value


# --- the transcript -------------------------------------------------------------------------------------------------


def test_blocks_are_read_by_the_protocols_parser() -> None:
    turn = {
        "text": "<reason>r</reason><img_search><img_crop>1,2,3,4</img_crop></img_search>",
        "observation": "<information>\nA </information> B\n</information>\nNow what?",
    }
    assert blocks(turn) == [
        Block("reason", "r"),
        Block("img_search", "the crop at 1, 2, 3, 4"),
        Block("information", "A </information> B"),
        Block("prompt", "Now what?"),
    ]
    assert blocks({"text": " ", "error": "e"}) == [Block("unread", "(an empty turn)"), Block("error", "e")]
    assert blocks({"text": "Nairobi"}) == [Block("unread", "Nairobi")]


@pytest.mark.parametrize(
    ("box", "wanted"),
    [((10, 10, 30, 20), (10, 10, 30, 20)), ((-5, 3, 2, 900), (0, 3, 2, 40)), ((99, 99, 99, 99), None)],
)
def test_a_crop_stays_inside_the_picture(box: tuple, wanted: tuple | None) -> None:
    played = {"turns": [{"action": "img_search", "error": "", "box": list(box)}]}
    assert crop_box(played, Image.new("RGB", (60, 40))) == wanted


def test_right_is_as_scored_or_by_exact_match() -> None:
    asked = {"answer": "Nairobi", "aliases": ["the city"]}
    scored = {"correct": False, "answer": "Nairobi", "question": asked, "trajectory": {}}
    assert outcome(scored) == ("wrong", "✗", "Nairobi", "Nairobi")
    assert outcome({"trajectory": {"answer": "nairobi."}, "question": asked}) == ("right", "✓", "nairobi.", "")
    assert outcome({"trajectory": {"answer": "x"}, "question": {"text": "What?"}}) == ("unscored", "·", "x", "")


def test_facts_are_those_that_are_known() -> None:
    failed = {"action": "text_search", "error": "no"}
    played = {"turns": [{"action": "img_search", "error": ""}, failed], "reward": {"total": 0.5}}
    row = {"workflow": "grpo", "question": {"type": "two_hop", "taxonomy": "Economy"}, "trajectory": played}
    assert facts(row) == ["Agent after GRPO", "Two hops", "Economy", "1 search", "2 turns", "reward 0.50"]
    assert facts({"question": {"text": "What?"}}) == []


def test_a_reward_is_told_by_its_parts_where_the_usual_weights_made_it() -> None:
    reward = {"total": 0.966667, "correct": 1.0, "format": 0.6667, "searches": 2.0, "evidence": 1.0}
    row = {"question": {"text": "What?"}, "trajectory": {"turns": [], "reward": reward}}
    assert "reward 0.97 = 0.90 right + 0.07 format" in trajectory_html(row, Image.new("RGB", (9, 9)))
    assert reward_parts({"trajectory": {"reward": reward | {"total": 0.766667}}}) == ""  # searches had a price
    assert reward_parts({"trajectory": {"reward": {"total": 0.5}}}) == reward_parts({}) == ""


def test_gold_is_a_page_or_a_country_and_unknown_of_a_picture_in_a_file() -> None:
    hits = [{"id": "fr"}, {"id": "ke/capital"}]
    assert gold_among(hits, {"gold_pages": ["ke/capital"], "entity": "ke"}) == ([False, True], ", gold at 2")
    assert gold_among(hits, {"entity": "ke"}) == ([False, False], ", gold not among them")
    assert gold_among(hits, {"entity": "fr", "picture": "a.png"}) == ([False, False], "")
