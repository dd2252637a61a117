"""The data builder checks, keeps what is right, labels by what the base knows, balances, and saves all or nothing."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from damage import DAMAGES, cut_at_a_line, damage
from small_policy import tiny

from mmsr.ablation import oracle
from mmsr.data import (
    Built,
    Example,
    balance,
    build,
    checks,
    load_examples,
    save_examples,
    to_messages,
)
from mmsr.env import Trajectory, TurnRecord
from mmsr.files import FileDamaged
from mmsr.lab import open_tools
from mmsr.presets import get_preset
from mmsr.protocol import UNABLE, Answer, parse_turn
from mmsr.reward import exact_match
from mmsr.rollout import answer_directly
from mmsr.task import Task
from mmsr.teacher import scripted
from mmsr.world.questions import make_questions

PRESET = get_preset("smoke", {"data_examples": 24})
QUESTIONS = make_questions("train", 60, seed=31)
OK, BAD = TurnRecord("", "text_search"), TurnRecord("", "none", error="broken")
END = TurnRecord("", "answer", "Lima")


@functools.cache
def made() -> Built:
    """A small data set, its boxes given, so that the teacher alone decides."""
    tools = replace(open_tools(PRESET, tiny()), grounder=oracle(QUESTIONS))
    with tempfile.TemporaryDirectory() as folder:
        return build(QUESTIONS, scripted(tools), tools, tiny(), PRESET, 0, Path(folder))


def built() -> tuple[list[Example], dict[str, int]]:
    return made().examples, made().funnel


@pytest.mark.parametrize(
    ("turns", "answer", "end", "passed"),
    [
        ([OK, END], "Lima", "answer", "ABC"),
        ([OK] * 8 + [END], "Lima", "answer", "ABC"),
        ([OK] * 9 + [END], "Lima", "answer", "AC"),
        ([BAD, END], "Lima", "answer", "BC"),
        ([OK], "", "", "AB"),
        ([BAD] * 3, "", "broken", "B"),
        ([OK, END], UNABLE, "answer", "AB"),
    ],
)
def test_checks(turns: list[TurnRecord], answer: str, end: str, passed: str) -> None:
    found = checks(Trajectory("t", turns, answer, end))
    assert found == {check: check in passed for check in "ABC"}


def test_the_funnel_only_narrows() -> None:
    examples, funnel = built()
    steps = [funnel[key] for key in ("questions", "passed_A", "passed_B", "passed_C", "correct")]
    assert steps == sorted(steps, reverse=True) and steps[0] == len(QUESTIONS)
    kept = funnel["search_free"] + funnel["search_required"]
    assert funnel["correct"] >= kept >= funnel["balanced"] == len(examples) > 12
    assert funnel["search_free"] and funnel["search_required"] > 12


def test_labels_follow_the_knowledge_boundary() -> None:
    examples, _ = built()
    answers = answer_directly(tiny(), [Task.of(e.question) for e in examples], PRESET.prompts, 5)
    for example, answer in zip(examples, answers):
        assert example.label == ("search_free" if exact_match(answer, example.question.golds) else "search_required")
        assert example.question.type != "visual" or example.label == "search_free"


def test_conversations_are_whole_and_end_in_the_right_answer() -> None:
    for example in built()[0]:
        roles = [message["role"] for message in example.messages]
        assert roles[0] == "user" and example.question.text in example.messages[0]["content"][1]["text"]
        written = [parse_turn(m["content"]).action for m in example.messages if m["role"] == "assistant"]
        assert isinstance(written[-1], Answer) and exact_match(written[-1].text, example.question.golds)
        assert roles[1:] == ["assistant", "tool"] * (len(written) - 1) + ["assistant"]
        assert (len(written) == 1) == (example.label == "search_free") == (example.trajectory == {})
        for message in example.messages:
            if message["role"] == "tool":
                assert message["content"].startswith("<information>\n")


def test_a_conversation_is_what_the_policy_would_have_had() -> None:
    turns = [TurnRecord("a", "text_search", observation="b"), TurnRecord("c", "answer", "d")]
    messages = to_messages(QUESTIONS[0], Trajectory("t", turns), PRESET.prompts)
    assert messages[1:] == [
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]


def some(label: str, counts: dict[str, int]) -> list[Example]:
    """So many examples of each taxonomy label."""
    base = next(q for q in QUESTIONS if q.type == "one_hop")
    return [
        Example(replace(base, id=f"{label}-{taxonomy}-{n}", taxonomy=taxonomy), label, [])
        for taxonomy, count in counts.items()
        for n in range(count)
    ]


def test_balance_is_half_and_half_and_about_uniform() -> None:
    pool = some("search_free", {"a": 30, "b": 9, "c": 2}) + some("search_required", {"a": 40, "d": 40})
    chosen = balance(pool, 40, seed=1)
    counts = Counter((e.label, e.question.taxonomy) for e in chosen)
    assert counts == {
        ("search_free", "a"): 9,
        ("search_free", "b"): 9,
        ("search_free", "c"): 2,
        ("search_required", "a"): 10,
        ("search_required", "d"): 10,
    }
    assert len({e.question.id for e in chosen}) == 40
    labels = [e.label for e in chosen]
    assert labels != sorted(labels)  # shuffled
    order = [e.question.id for e in chosen]
    assert order == [e.question.id for e in balance(pool, 40, seed=1)] != [e.question.id for e in balance(pool, 40, 2)]


def test_balance_takes_what_there_is() -> None:
    pool = some("search_free", {"a": 3}) + some("search_required", {"a": 40})
    assert Counter(e.label for e in balance(pool, 40, seed=0)) == {"search_free": 3, "search_required": 20}


def test_the_built_set_is_balanced() -> None:
    examples, funnel = built()
    labels = Counter(e.label for e in examples)
    assert labels["search_required"] == 12 and labels["search_free"] == min(12, funnel["search_free"])


def test_saved_examples_come_back(tmp_path: Path) -> None:
    examples, funnel = built()
    card = made().card()
    save_examples(examples, tmp_path, card)
    loaded, pictures = load_examples(tmp_path)
    assert [(e.question, e.label, e.messages) for e in loaded] == [(e.question, e.label, e.messages) for e in examples]
    for example, picture in zip(examples, pictures):
        assert picture.mode == "RGB" and picture.tobytes() == example.question.scene().picture.tobytes()
    assert {p.name for p in tmp_path.iterdir()} == {"card.json", "data.jsonl", "pictures"}
    assert (
        sum(card["labels"].values()) == sum(card["types"].values()) == sum(card["searches"].values()) == len(examples)
    )
    assert card["searches"][0] == card["labels"]["search_free"] and card["funnel"] == funnel


def test_a_half_written_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, _ = built()
    monkeypatch.setattr("mmsr.data.json.dumps", fail_at(len(examples) // 2))
    with pytest.raises(KeyboardInterrupt):
        save_examples(examples, tmp_path, {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="run notebook 01 first"):
        load_examples(tmp_path)
    save_examples(examples, tmp_path, {})
    assert len(load_examples(tmp_path)[0]) == len(examples)


def fail_at(call: int):
    """A writer of JSON that is interrupted."""
    calls = iter(range(call))

    def dumps(row: object, **_: object) -> str:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return "{}"

    return dumps


@pytest.mark.parametrize("how", [*DAMAGES, "cut at a line"])
def test_damaged_data_is_named_and_never_trained_on(how: str, tmp_path: Path) -> None:
    examples, _ = built()
    for name in ("data.jsonl", "card.json", f"pictures/{examples[0].question.id}.png"):
        save_examples(examples, tmp_path, made().card())
        (cut_at_a_line if how == "cut at a line" else functools.partial(damage, how=how))(tmp_path / name)
        with pytest.raises(FileDamaged, match=r"(data\.jsonl|card\.json|\.png) is damaged: run notebook 01 again\."):
            load_examples(tmp_path)
    save_examples(examples, tmp_path, made().card())
    (tmp_path / "pictures" / f"{examples[0].question.id}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"\.png is not there: run notebook 01 again\."):
        load_examples(tmp_path)
