"""A journal keeps every row that was added, belongs to one process, and names what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmsr.files import Journal, JournalError, Stopped, fill, total_usage
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
    with pytest.raises(JournalError, match="line 2 is no row"):
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
