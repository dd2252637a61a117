"""Rows of SFT in which countries go by invented names: the same one in every turn, and nothing else changed."""

from __future__ import annotations

import random
import re

from PIL import Image

from mmsr.data import Example
from mmsr.protocol import parse_turn
from mmsr.sft import aliased, as_rows
from mmsr.training import typed
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import load_world

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is the capital of its country?"}]},
    {"role": "assistant", "content": "<reason>Whose flag?</reason>\n<img_search> the flag on the left</img_search>"},
    {"role": "tool", "content": "<information>\n1. Flag of {a}\n2. Flag of {b}\n</information>"},
    {"role": "assistant", "content": "<reason>This is {a}.</reason>\n<text_search> {a} capital</text_search>"},
]


def conversation() -> tuple[list[dict], str, str]:
    first, second = (country.name for country in load_world().by_split("train")[:2])
    filled = [
        m | {"content": m["content"].format(a=first, b=second) if isinstance(m["content"], str) else m["content"]}
        for m in MESSAGES
    ]
    return typed(filled), first, second


def test_a_name_is_replaced_alike_in_all_turns_and_the_rest_stays():
    messages, first, second = conversation()
    renamed = aliased(messages, random.Random(0))
    listed = re.search(r"1\. Flag of (.+)\n2\. Flag of (.+)\n", renamed[2]["content"][0]["text"])
    new_first, new_second = listed.groups()
    assert len({first, second, new_first, new_second}) == 4
    assert parse_turn(renamed[3]["content"][0]["text"]).action.query == f"{new_first} capital"
    assert renamed[0] == messages[0] and renamed[1] == messages[1]
    assert messages == conversation()[0]  # the example itself is as it was


def test_another_draw_gives_another_name():
    messages, *_ = conversation()
    assert aliased(messages, random.Random(0)) != aliased(messages, random.Random(1))


def test_a_name_within_a_word_is_left_alone():
    world = load_world()
    niger = next(c.name for c in world.countries.values() if c.iso == "ne")
    text = f"{niger}ish"
    assert aliased(typed([{"role": "tool", "content": text}]), random.Random(0))[0]["content"][0]["text"] == text


def test_only_rows_with_searches_are_renamed_and_only_where_asked_for():
    messages, first, _ = conversation()
    [question] = make_questions("train", 1, seed=0)
    pictures = [Image.new("RGB", (8, 8))] * 2
    examples = [Example(question, label, messages) for label in ("search_free", "search_required")]

    def shown(aliases: float) -> list[bool]:
        rows = as_rows(examples, pictures, epochs=1, aliases=aliases, seed=0)
        return sorted(first in str(row) for row in rows["messages"])

    assert shown(0.0) == [True, True] and shown(1.0) == [False, True]
