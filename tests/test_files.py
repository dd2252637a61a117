"""Files come back as they were written or are named as damaged; a journal keeps every row that was added."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from damage import DAMAGES, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsr.files import (
    FileDamaged,
    Journal,
    JournalError,
    Stopped,
    check_seal,
    fill,
    read_json,
    read_rows,
    read_table,
    seal,
    total_usage,
    write_json,
    write_rows,
)
from mmsr.tools.base import USAGE, FatalToolError, ToolError


def test_a_journal_keeps_rows_and_failures(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    with Journal(path) as kept:
        kept.add("a", {"text": "é\n\u2028", "n": 1})
        kept.fail("b", "broken")
        kept.fail("c", "broken")
        kept.add("c", {"n": 2})
        kept.add("a", {"n": 3})
    with Journal(path) as kept:
        assert list(kept) == ["a", "c"] and len(kept) == 2 and "b" not in kept
        assert kept["a"] == {"n": 3} and kept["c"] == {"n": 2} and kept.failed == {"b": "broken"}
        with pytest.raises(KeyError):
            kept["b"]


def test_a_journal_has_one_owner(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match="in use by another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"key": "a"}\n[1]\n{"key": "b"}\n')
    with pytest.raises(JournalError, match="line 2 is not a journal row"):
        Journal(tmp_path / "j")


def test_rows_from_many_threads_are_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as kept:
        fill(kept, {str(n): n for n in range(300)}, lambda n: {"n": n, "text": "x" * n}, 8)
    rows = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert sorted(row["n"] for row in rows) == list(range(300))
    with Journal(tmp_path / "j") as kept:
        assert all(kept[str(n)]["n"] == n for n in range(300))


def test_failures_are_tried_again_and_many_in_a_row_stop(tmp_path: Path) -> None:
    def work(n: int) -> dict:
        if n < 5 or mended < n < 100:
            raise ToolError(f"no {n}")
        return {"n": n}

    items, mended = {str(n): n for n in range(200)}, 60
    with Journal(tmp_path / "j") as kept, pytest.raises(Stopped, match=r"20 pieces of work .* no 80 .* 56 are kept"):
        fill(kept, items, work, 1)
    mended = 200
    with Journal(tmp_path / "j") as kept:
        fill(kept, items, work, 1)
        assert len(kept) == 195 and set(kept.failed) == set("01234")
    mended = 0
    with Journal(tmp_path / "k") as kept:
        for key in items:
            kept.fail(key, "before")
        fill(kept, items, work, 1)  # what failed before does not stop what comes after it
        assert len(kept) == 100


def test_a_fatal_error_is_no_failure(tmp_path: Path) -> None:
    def work(n: int) -> dict:
        raise FatalToolError("spent")

    with Journal(tmp_path / "j") as kept, pytest.raises(FatalToolError, match="spent"):
        fill(kept, {"a": 1}, work, 1)
    assert (tmp_path / "j").read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 3])
def test_a_torn_last_line_is_dropped(cut: int, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as kept:
        kept.add("a", {"n": 1})
        kept.add("b", {"n": 2})
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-cut])
    with Journal(tmp_path / "j") as kept:
        assert list(kept) == ["a"]
        kept.add("b", {"n": 2})
        assert kept["a"] == {"n": 1} and kept["b"] == {"n": 2}
    assert (tmp_path / "j").read_bytes() == whole


def test_a_killed_process_leaves_its_rows_and_lets_go(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from pathlib import Path
        from mmsr.files import Journal
        kept = Journal(Path(sys.argv[1]))
        for n in range(50):
            kept.add(str(n), {"n": n})
        print("added", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", code, str(tmp_path / "j")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "added\n"
    with pytest.raises(JournalError, match="in use by another process"):
        Journal(tmp_path / "j")
    child.kill()
    child.communicate()
    with Journal(tmp_path / "j") as kept:
        assert [kept[key]["n"] for key in kept] == list(range(50))


def test_a_full_disk_costs_the_row_that_did_not_fit_and_no_other(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "j") as kept:
        kept.add("a", {"n": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "j").stat().st_size + 9, hard))
        try:
            for key in "bb":
                with pytest.raises(OSError):
                    kept.add(key, {"n": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(kept) == ["a"] and kept["a"] == {"n": 1}
        kept.add("c", {"n": 3})
        assert kept["a"] == {"n": 1} and kept["c"] == {"n": 3}
    with Journal(tmp_path / "j") as kept:
        assert kept["a"] == {"n": 1} and kept["c"] == {"n": 3}


def test_what_a_row_has_taken_is_kept_with_it_and_summed(tmp_path: Path) -> None:
    def work(n: int) -> dict:
        for role in ("teacher", "teacher", "judge")[: 1 + n]:
            USAGE.note((role, {"calls": 1, "prompt_tokens": 10, "completion_tokens": n, "cost": 0.1}))
        return {"n": n}

    with Journal(tmp_path / "j") as one, Journal(tmp_path / "k") as other:
        fill(one, {str(n): n for n in range(3)}, work, 2)
        fill(other, {"1": 0}, work, 1)
        assert one["2"]["usage"] == {
            "teacher": {"calls": 2, "prompt_tokens": 20, "completion_tokens": 4, "cost": 0.2},
            "judge": {"calls": 1, "prompt_tokens": 10, "completion_tokens": 2, "cost": 0.1},
        }
        assert total_usage([one, other], ["0", "1", "2", "3"]) == {
            "judge": {"calls": 1, "prompt_tokens": 10, "completion_tokens": 2, "cost": 0.1},
            "teacher": {"calls": 6, "prompt_tokens": 60, "completion_tokens": 6, "cost": 0.6},
        }


# --- lines and damage -------------------------------------------------------------------------------------------------

ANY = st.text(st.characters() | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1e\r\n\ud83d\udc00"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), ANY | st.integers() | st.none())))
def test_rows_come_back_as_they_were_whatever_their_text(rows: list[dict], tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(row)) for row in rows]  # halves of a pair that stand together are one letter
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", "") == rows
    (tmp_path / "j").unlink(missing_ok=True)
    with Journal(tmp_path / "j") as kept:
        for number, row in enumerate(rows):
            kept.add(str(number), row)
    with Journal(tmp_path / "j") as kept:
        assert [kept[str(number)] for number in range(len(rows))] == rows


def test_sealed_rows_that_were_cut_at_a_line_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    (tmp_path / "page.html").write_text("before")
    write_rows(path, [{"a": 1}, {"a": 2}])
    seal(tmp_path, "*.jsonl")
    (tmp_path / "page.html").write_text("after")  # what is not among them may change
    assert read_rows(path, "run notebook 04 again") == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n')
    with pytest.raises(FileDamaged, match=r"rows\.jsonl is damaged: run notebook 04 again"):
        read_rows(path, "run notebook 04 again")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_with_what_to_do(how: str, tmp_path: Path) -> None:
    value, rows, table = (tmp_path / name for name in ("a.json", "a.jsonl", "a.csv"))
    write_json(value, {"a": 1.0, "b": 2.0})
    write_rows(rows, [{"a": 1}])
    table.write_text("step,loss,grad_norm\n1,0.5,0.1\n2,0.25,0.1\n")
    reads = {
        value: lambda: read_json(value, dict[str, float], "make it first"),
        rows: lambda: read_rows(rows, "make it first"),
        table: lambda: read_table(table, ["step", "loss"], "make it first"),
    }
    for path, read in reads.items():
        assert read()
        damage(path, how)
        if (path, how) == (rows, "empty"):
            assert read() == []  # as many lines as were written: the reader says whether that can be
            continue
        with pytest.raises(FileDamaged, match=f"^{re.escape(str(path))} is damaged: make it again\\.$"):
            read()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(path))} is not there: make it first\\.$"):
            read()


def test_a_sealed_folder_tells_which_file_has_changed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.bin", "deep/b.bin", "README.md"):
        (tmp_path / name).write_bytes(bytes(range(100)))
    check_seal(tmp_path, "")  # was never sealed
    seal(tmp_path)
    (tmp_path / "README.md").write_text("a note")
    check_seal(tmp_path, "")
    damage(tmp_path / "deep" / "b.bin", "zeroed")
    with pytest.raises(FileDamaged, match=r"b\.bin is damaged: train it again\."):
        check_seal(tmp_path, "train it again")
    (tmp_path / "deep" / "b.bin").unlink()
    with pytest.raises(FileDamaged, match=r"b\.bin is damaged"):
        check_seal(tmp_path, "train it again")


def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    write_json(tmp_path / "a.json", [1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError) as full:
            write_json(tmp_path / "a.json", ["x" * 100_000])
        assert Path(full.value.filename) == tmp_path / "a.json"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_json(tmp_path / "a.json", list[int], "") == [1] and len(list(tmp_path.iterdir())) == 1
