"""The record: modes, keys, one outcome per request, several threads and processes, export and import."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr.live.door import Door, ReplayMiss
from mmsr.live.limits import BadAnswer, BudgetSpent, RateLimited, Unavailable
from mmsr.live.record import Call, export_jsonl, import_jsonl, stats
from mmsr.tools.base import KEYS, FatalToolError, ToolError

CALL = Call("serper", 1, "POST /search", {"q": "Kenya", "num": 10})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "calls.sqlite"


def says(text: str) -> Callable[[], str]:
    return lambda: text


def fails(error: ToolError) -> Callable[[], str]:
    def ask() -> str:
        raise error

    return ask


def never() -> str:
    raise AssertionError("nothing may be asked here")


def test_live_keeps_nothing() -> None:
    door = Door()
    assert door.answer(CALL, says("one")) == "one"
    assert door.answer(CALL, says("two \ud800")) == "two ?"  # as a record would have it


def test_record_asks_once_and_replay_never(file: Path) -> None:
    record = Door("record", file)
    assert record.answer(CALL, says("one ☃ \ud800")) == record.answer(CALL, never) == "one ☃ ?"
    assert Door("record", file).answer(CALL, never) == "one ☃ ?"
    assert Door("replay", file).answer(CALL, never) == "one ☃ ?"


def test_an_answer_that_is_too_old_is_asked_for_again_once(file: Path) -> None:
    Door("record", file).answer(CALL, says("old"))
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE calls SET created = '2020-01-01T00:00:00+00:00'")
    assert Door("record", file).answer(CALL, never) == "old"
    assert Door("replay", file, days=1.0).answer(CALL, never) == "old"
    failing = Door("record", file, days=1.0)
    for ask in (fails(Unavailable("no answer.")), never):
        assert failing.answer(CALL, ask) == "old"  # better than none
    record = Door("record", file, days=1.0)
    assert record.answer(CALL, says("new")) == record.answer(CALL, never) == "new"
    assert Door("record", file, days=1.0).answer(CALL, never) == Door("replay", file).answer(CALL, never) == "new"


@pytest.mark.parametrize(
    "other",
    [
        replace(CALL, backend="brave"),
        replace(CALL, version=2),
        replace(CALL, path="GET /search"),
        replace(CALL, body={"q": "kenya", "num": 10}),
        replace(CALL, pictures=("00",)),
    ],
)
def test_a_miss_names_the_request(file: Path, other: Call) -> None:
    Door("record", file).answer(CALL, says("one"))
    with pytest.raises(ReplayMiss) as caught:
        Door("replay", file).answer(other, never)
    assert isinstance(caught.value, FatalToolError)
    assert all(part in str(caught.value) for part in (str(file), other.backend, other.path, "enya", other.key[:12]))


def test_errors_replay_as_they_were(file: Path) -> None:
    record = Door("record", file)
    for call, error in ((CALL, RateLimited("slow down.", 3.0)), (replace(CALL, version=2), BadAnswer("broken."))):
        with pytest.raises(type(error)):
            record.answer(call, fails(error))
        with pytest.raises(type(error), match=str(error)):
            Door("replay", file).answer(call, never)


def test_one_request_has_one_outcome_in_a_run(file: Path) -> None:
    run = Door("record", file)
    with pytest.raises(Unavailable):
        run.answer(CALL, fails(Unavailable("down.")))
    with pytest.raises(Unavailable):
        run.answer(CALL, never)  # else the run would see what its replay cannot show
    assert Door("record", file).answer(CALL, says("up")) == "up"  # the next run asks again
    assert Door("replay", file).answer(CALL, never) == "up"


def test_an_answer_of_another_process_wins_over_an_error(file: Path) -> None:
    here, there = Door("record", file), Door("record", file)

    def ask() -> str:
        there.answer(CALL, says("up"))
        raise Unavailable("down.")

    assert here.answer(CALL, ask) == "up"


def test_fatal_errors_are_not_recorded(file: Path) -> None:
    with pytest.raises(BudgetSpent):
        Door("record", file).answer(CALL, fails(BudgetSpent("spent.")))
    with pytest.raises(ReplayMiss):
        Door("replay", file).answer(CALL, never)


def test_rollouts_with_one_query_pay_once(file: Path) -> None:
    door, asked = Door("record", file), []

    def ask() -> str:
        asked.append(threading.get_ident())
        time.sleep(0.05)
        return str(len(asked))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: door.answer(CALL, ask), range(16)))
    assert len(asked) == 1 and set(answers) == {"1"}


def _record_many(arguments: tuple[str, int]) -> list[str]:
    file, worker = arguments
    door = Door("record", Path(file))
    return [door.answer(replace(CALL, body={"q": i}), says(f"{worker}")) for i in range(25)]


def test_processes_share_a_record(file: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.map(_record_many, [(str(file), worker) for worker in range(3)])
    assert answers[0] == answers[1] == answers[2]  # the first answer kept is everyone's
    assert stats(file)["serper"]["calls"] == 25


def test_keys_used(file: Path) -> None:
    door = Door("record", file)
    with KEYS.heard() as keys:
        door.answer(CALL, says("one"))
        door.answer(CALL, never)
    door.answer(replace(CALL, version=2), says("two"))
    assert keys == [CALL.key, CALL.key]


def test_wrong_files_and_modes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mode"):
        Door("cached", tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="file"):
        Door("record")
    with pytest.raises(FatalToolError, match="no record at"):
        Door("replay", tmp_path / "missing")
    (tmp_path / "text").write_text("this is not a database, but long enough to be taken for one" * 20)
    for mode in ("record", "replay"):
        with pytest.raises(FatalToolError, match="text"):
            Door(mode, tmp_path / "text")  # type: ignore[arg-type]
    with pytest.raises(FatalToolError, match="cannot be used"):
        Door("record", tmp_path / "text" / "calls")
    with sqlite3.connect(tmp_path / "newer") as connection:
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(FatalToolError, match="version"):
        Door("replay", tmp_path / "newer")


def test_a_damaged_record_is_told(file: Path, tmp_path: Path) -> None:
    Door("record", file).answer(CALL, says("one"))
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE calls SET answer = x'00'")
    with pytest.raises(FatalToolError, match=r"The record .*calls\.sqlite cannot be used"):
        Door("replay", file).answer(CALL, never)
    with pytest.raises(FatalToolError, match="cannot be used"):
        export_jsonl(file, tmp_path / "a.jsonl")


def test_export_and_import(file: Path, tmp_path: Path) -> None:
    door = Door("record", file)
    door.answer(CALL, says("one ☃\n"))
    door.answer(replace(CALL, backend="judge", body={"messages": [{"content": "ü"}]}, pictures=("ab",)), says("yes"))
    with pytest.raises(Unavailable):
        door.answer(replace(CALL, backend="page"), fails(Unavailable("down.")))
    assert export_jsonl(file, tmp_path / "a.jsonl") == 3
    copy = tmp_path / "copy.sqlite"
    assert import_jsonl(copy, tmp_path / "a.jsonl") == {"added": 3, "left": 0}
    assert import_jsonl(copy, tmp_path / "a.jsonl") == {"added": 0, "left": 3}
    export_jsonl(copy, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert Door("replay", copy).answer(CALL, never) == "one ☃\n"
    assert {name: (row["calls"], row["errors"]) for name, row in stats(copy).items()} == {
        "judge": (1, 0),
        "page": (1, 1),
        "serper": (1, 0),
    }


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"key": "0"}',
        "\udcff",
        "tampered",
        "wrong key",
    ],
)
def test_import_names_the_broken_line(file: Path, tmp_path: Path, broken: str) -> None:
    door = Door("record", file)
    for i in range(2):
        door.answer(replace(CALL, body=i), says("one"))
    export_jsonl(file, tmp_path / "a.jsonl")
    first, second = (tmp_path / "a.jsonl").read_text().splitlines()
    if broken == "tampered":
        broken = json.dumps({**json.loads(second), "answer": 7})
    elif broken == "wrong key":
        broken = json.dumps({**json.loads(second), "key": json.loads(first)["key"]})
    (tmp_path / "b.jsonl").write_bytes(f"{first}\n{broken}\n{second}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(ToolError, match="line 2 "):
        import_jsonl(tmp_path / "copy.sqlite", tmp_path / "b.jsonl")
    assert stats(tmp_path / "copy.sqlite") == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON, _JSON)
def test_keys_tell_bodies_apart(one: object, other: object) -> None:
    a, b = replace(CALL, body=one), replace(CALL, body=other)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (a.key == b.key) is same
    assert replace(CALL, body=json.loads(json.dumps(one))).key == a.key
