"""What holds for every text: of the parser, of sanitising, of verdicts, of exact match, of files of rows."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hostile import harm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmsr.files import Journal, read_rows, write_rows
from mmsr.live.roles import read_verdict
from mmsr.protocol import MAX_CONTENT, TAGS, Answer, ProtocolError, TextSearch, Turn, parse_turn, render_turn, sanitise
from mmsr.reward import LABELS, exact_match

OFTEN = settings(max_examples=300, deadline=None)
ANY = st.text(st.characters(), max_size=60)  # half characters too
WRITABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# The ends of lines of all kinds, what nobody sees, signs that fold to others, and the protocol's own.
AWKWARD = [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\x00\x1b\u200b\u200d\u2060\ufeff\u00ad\u202e\u0301\u0338\u3000<>"]
AWKWARD += ["＜", "＞", "﹤", "≮", "\U000e0041", "\ue000"]
AWKWARD += [mark for tag in TAGS for mark in (f"<{tag}>", f"</{tag}>")]
PIECES, ROW = (
    st.lists(st.one_of(st.sampled_from(AWKWARD), some), max_size=12).map("".join) for some in (ANY, WRITABLE)
)
UNSEEN = st.text(st.sampled_from([*" \n\t\u00a0\u3000\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\x00"]), max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), ROW),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ROW, inner, max_size=3)),
    max_leaves=6,
)


# --- the parser -------------------------------------------------------------------------------------------------------


@given(PIECES)
@OFTEN
def test_whatever_is_written_is_a_turn_that_reads_back_or_is_refused(text: str) -> None:
    for written in (text, f"<reason>a</reason><answer>{text}</answer>", f"<reason>{text}</reason><answer>a</answer>"):
        try:
            turn = parse_turn(written)
        except ProtocolError as error:
            assert str(error)
            continue
        assert parse_turn(render_turn(turn)) == turn and len(turn.reason) <= MAX_CONTENT
        assert not {"<", ">"} & {*turn.reason, *getattr(turn.action, "text", "")}


@given(UNSEEN)
@OFTEN
@example("\u200b")
def test_what_nobody_sees_is_no_reason_answer_or_query(unseen: str) -> None:
    for turn in (Turn(unseen, Answer("a")), Turn("a", Answer(unseen)), Turn("a", TextSearch(unseen))):
        with pytest.raises(ProtocolError):
            parse_turn(render_turn(turn))


# --- outside text -----------------------------------------------------------------------------------------------------


@given(PIECES)
@OFTEN
def test_sanitised_text_is_words_and_stays_as_it_is(text: str) -> None:
    clean = sanitise(text)
    assert harm(clean) == "" and sanitise(clean) == clean
    assert clean.count("\n") == text.count("\n")


@given(st.text(st.sampled_from("\u0301\u0323\u0327\u0334a"), max_size=40), st.integers(1, 400))
@OFTEN
def test_a_long_text_is_sanitised_as_its_parts_are(piece: str, times: int) -> None:
    parts = sanitise(f"b{piece} ")
    assert sanitise(f"b{piece} " * times) == parts * times


# --- verdicts ---------------------------------------------------------------------------------------------------------


@given(st.one_of(PIECES, JSON.map(json.dumps)))
@OFTEN
def test_whatever_a_judge_says_is_a_label_or_none(reply: str) -> None:
    label, why = read_verdict(reply)
    assert label in (*LABELS, None) and len(why) <= 200


@given(st.sampled_from(LABELS), PIECES, st.sampled_from(["{}", "```json\n{}\n```", "```\n{}```", " \n{}\n"]), st.data())
@OFTEN
def test_one_object_is_read_and_what_an_answer_quotes_is_not(label: str, why: str, form: str, data: Any) -> None:
    spelt = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in label)
    said = json.dumps({"verdict": spelt, "why": why})
    assert read_verdict(form.replace("{}", said))[0] == label
    quoted = json.dumps({"verdict": data.draw(st.sampled_from(LABELS))})
    for reply in (f"{quoted} {said}", f"{said}\n{quoted}", f"[{said}]", f"The answer is {quoted}."):
        assert read_verdict(reply)[0] is None


# --- exact match ------------------------------------------------------------------------------------------------------

DASHES = st.sampled_from("-‐‑‒–—―−﹘﹣－")
NUMBER = st.builds(
    "{}{}{}".format, st.integers(1, 9999), st.sampled_from(["", ".5", ".25"]), st.sampled_from(["", " m", " °C"])
)
WORD = st.text(st.sampled_from("bcdfghjklmnopqrtuvwxyzñö"), min_size=2, max_size=9)


@given(PIECES, PIECES)
@OFTEN
def test_two_texts_match_both_ways_and_nothing_matches_nothing(one: str, other: str) -> None:
    assert exact_match(one, [other]) == exact_match(other, [one])
    assert exact_match(one, [one]) or not any(c.isascii() and c.isalnum() for c in one)
    assert not exact_match("", [one]) and not exact_match(one, [])


@given(DASHES, NUMBER)
@OFTEN
@example("–", "5 °C")
def test_a_dash_before_a_number_is_its_sign(dash: str, number: str) -> None:
    assert exact_match(f"{dash}{number}", [f"-{number}"])
    assert not exact_match(f"{dash}{number}", [number]) and not exact_match(number, [f"{dash}{number}"])


@given(st.lists(WORD, min_size=1, max_size=4), st.integers(0, 9))
@OFTEN
def test_case_stops_and_spaces_are_nothing_and_words_are_all(words: list[str], at: int) -> None:
    name = " ".join(words)
    assert exact_match(f"  The {name.upper()}. ", [name]) and exact_match("  ".join(words), ["x", name])
    more = [*words[: at % len(words)], "zzyzx", *words[at % len(words) :]]
    assert not exact_match(" ".join(more), [name]) and not exact_match(name, [" ".join(more)])


# --- files of rows ----------------------------------------------------------------------------------------------------


@given(st.lists(st.dictionaries(ROW, JSON, max_size=3), max_size=4))
@settings(max_examples=150, deadline=None)
@example([{"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"}])
def test_rows_come_back_as_they_were_written(rows: list[dict]) -> None:
    with TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", rows)
        assert read_rows(Path(folder) / "rows.jsonl", "write it first") == rows


@given(st.dictionaries(ROW, st.dictionaries(ROW.map("x".__add__), JSON, max_size=2), max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_a_journal_gives_back_what_was_added_wherever_it_was_cut(rows: dict[str, dict], data: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with Journal(path) as journal:
            for key, row in rows.items():
                journal.add(key, row)
        written = path.read_bytes()
        cut = data.draw(st.integers(0, len(written)))
        path.write_bytes(written[:cut])
        with Journal(path) as journal:
            kept = [key for key in rows if key in journal]
            assert len(kept) == written[:cut].count(b"\n") and kept == [*rows][: len(kept)]
            for key, row in rows.items():
                journal.add(key, row)
            assert {key: journal[key] for key in journal} == rows
