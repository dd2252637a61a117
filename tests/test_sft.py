"""Rows of SFT in which countries, and what is asked, go by other names: the same in every turn, no more changed."""

from __future__ import annotations

import random
import re

from PIL import Image

from mmsr.data import Example
from mmsr.protocol import parse_turn
from mmsr.sft import aliased, as_rows
from mmsr.training import typed
from mmsr.world.questions import Question, make_questions
from mmsr.world.relations import RELATIONS
from mmsr.world.snapshot import load_world

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is the capital of its country?"}]},
    {"role": "assistant", "content": "<reason>Whose flag?</reason>\n<img_search> the flag on the left</img_search>"},
    {"role": "tool", "content": "<information>\n1. Flag of {a}\n2. Flag of {b}\n</information>"},
    {"role": "assistant", "content": "<reason>This is {a}.</reason>\n<text_search> {a} capital</text_search>"},
]


QUESTION = next(q for q in make_questions("train", 400, seed=1) if q.type == "one_hop" and q.relation == "capital")
HARD = next(q for q in make_questions("train", 400, seed=1) if q.type == "hard" and q.relation == "capital")
WORD = RELATIONS[QUESTION.relation].noun
PLAIN, OTHER = 0, 1  # seeds of a row that keeps what is asked, and of one in which it goes by other words


def conversation() -> tuple[list[dict], str, str]:
    first, second = (country.name for country in load_world().by_split("train")[:2])
    filled = [
        m | {"content": m["content"].format(a=first, b=second) if isinstance(m["content"], str) else m["content"]}
        for m in MESSAGES
    ]
    return typed(filled), first, second


def test_a_name_is_replaced_alike_in_all_turns_and_the_rest_stays():
    messages, first, second = conversation()
    renamed = aliased(messages, QUESTION, random.Random(PLAIN))
    listed = re.search(r"1\. Flag of (.+)\n2\. Flag of (.+)\n", renamed[2]["content"][0]["text"])
    new_first, new_second = listed.groups()
    assert len({first, second, new_first, new_second}) == 4
    assert parse_turn(renamed[3]["content"][0]["text"]).action.query == f"{new_first} capital"
    assert renamed[0] == messages[0] and renamed[1] == messages[1]
    assert messages == conversation()[0]  # the example itself is as it was


def test_another_draw_gives_another_name():
    messages, *_ = conversation()
    assert aliased(messages, QUESTION, random.Random(PLAIN)) != aliased(messages, QUESTION, random.Random(4))


def test_a_name_within_a_word_is_left_alone():
    world = load_world()
    niger = next(c.name for c in world.countries.values() if c.iso == "ne")
    text = f"{niger}ish"
    messages = typed([{"role": "tool", "content": text}])
    assert aliased(messages, QUESTION, random.Random(PLAIN))[0]["content"][0]["text"] == text


def asked_about(question: Question) -> list[str]:
    """A row's texts in which what is asked goes by other words: question, turn, pages."""
    turn = f"<reason>I look for its {WORD}.</reason>\n<text_search> Atlantis {WORD}</text_search>"
    texts = [question.text, turn, f"1. Atlantis: {WORD.capitalize()}: name: Poseidonis\n{question.text}"]
    rows = aliased(typed([{"role": "user", "content": text} for text in texts]), question, random.Random(OTHER))
    return [row["content"][0]["text"] for row in rows]


def test_what_is_asked_goes_by_the_same_other_words_in_all_turns():
    question, turn, pages = asked_about(QUESTION)
    noun = re.fullmatch(r"<reason>I look for its (.+)\.</reason>\n<text_search> Atlantis (.+)</text_search>", turn)
    assert (
        noun[1] == noun[2] != WORD
        and question.split(maxsplit=1)[1] == QUESTION.text.replace(WORD, noun[1]).split(maxsplit=1)[1]
    )
    assert question.split()[0] != QUESTION.text.split()[0]
    assert pages == f"1. Atlantis: {noun[1].capitalize()}: name: Poseidonis\n{question}"


def test_a_hard_wording_keeps_its_words_and_the_pages_own():
    question, turn, _ = asked_about(HARD)
    assert question.split(maxsplit=1)[1] == HARD.text.split(maxsplit=1)[1] and f"Atlantis {WORD}<" in turn


def test_only_rows_with_searches_are_renamed_and_only_where_asked_for():
    messages, first, _ = conversation()
    [question] = make_questions("train", 1, seed=0)
    pictures = [Image.new("RGB", (8, 8))] * 2
    examples = [Example(question, label, messages) for label in ("search_free", "search_required")]

    def shown(aliases: float) -> list[bool]:
        rows = as_rows(examples, pictures, epochs=1, aliases=aliases, seed=0)
        return sorted(first in str(row) for row in rows["messages"])

    assert shown(0.0) == [True, True] and shown(1.0) == [False, True]
