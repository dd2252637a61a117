"""Two runs of the same questions against each other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from damage import DAMAGES, cut_at_a_line, damage
from sample_run import eval_rows

from mmsr.files import FileDamaged, write_rows
from mmsr.runs.compare import contrast, difference


@pytest.fixture
def rows() -> list[dict]:
    return eval_rows(24)


def saved(folder: Path, rows: list[dict]) -> Path:
    write_rows(folder / "eval" / "rows.jsonl", rows)
    return folder


def better(rows: list[dict], questions: int, workflow: str = "grpo") -> list[dict]:
    """The rows with that many of a workflow's wrong answers put right, each for a search more."""
    changed = copy.deepcopy(rows)
    wrong = [row for row in changed if row["workflow"] == workflow and not row["correct"]]
    for row in wrong[:questions]:
        row.update(correct=True, answer=row["question"]["answer"], searches=row["searches"] + 1)
    assert len(wrong) >= questions
    return changed


def test_a_difference_is_taken_question_by_question(tmp_path: Path, rows: list[dict]) -> None:
    a, b = saved(tmp_path / "priced", better(rows, 3)), saved(tmp_path / "tiny", rows)
    questions, found = difference(a, b)
    assert questions == 24 and set(found) == {"direct", "rag", "prompted", "sft", "grpo", "teacher"}
    assert [name for name in found if found[name]] == ["grpo"]
    assert found["grpo"]["accuracy"].value == pytest.approx(3 / 24)
    assert found["grpo"]["searches"].value == pytest.approx(3 / 24)
    assert found["grpo"]["mcnemar_p"].value == 0.25  # three to nothing: 2 · ½³
    shown = contrast([a], [b]).splitlines()
    assert shown[0] == "priced − tiny, on the same 24 questions"
    assert shown[3].split()[:2] == ["grpo", "+12.5"] and shown[3].endswith("0.25")
    assert "−" not in shown[3] and contrast([b], [a]).splitlines()[3].split()[1] == "-12.5"


def test_a_run_is_the_same_as_itself(tmp_path: Path, rows: list[dict]) -> None:
    run = saved(tmp_path / "tiny", rows)
    assert contrast([run], [run]).splitlines()[1] == (
        "the same outcomes in both: direct, rag, prompted, sft, grpo, teacher"
    )


def test_several_pairs_end_in_their_mean_and_range(tmp_path: Path, rows: list[dict]) -> None:
    base = saved(tmp_path / "base", rows)
    variants = [saved(tmp_path / f"v{n}", better(rows, n)) for n in (0, 1, 2)]
    shown = contrast(variants, [base] * 3)
    assert "3 pairs: the mean of their differences [the lowest, the highest]" in shown
    assert shown.splitlines()[-1].split()[:4] == ["grpo", "+4.2", "[+0.0,", "+8.3]"]


def test_runs_that_cannot_be_paired_are_refused(tmp_path: Path, rows: list[dict]) -> None:
    a, b = saved(tmp_path / "a", rows), saved(tmp_path / "b", eval_rows(20))
    with pytest.raises(ValueError, match="not asked the same questions: pair runs of one preset, seed"):
        contrast([a], [b])
    with pytest.raises(ValueError, match="there are 1 and 2"):
        contrast([a], [a, a])
    empty, other = saved(tmp_path / "empty", []), saved(tmp_path / "other", [{**rows[0], "workflow": "mine"}])
    for without in (empty, other):
        for pair in ([a, without], [without, a]):
            with pytest.raises(ValueError, match="no workflow in common: run notebook 04 into both"):
                contrast(pair[:1], pair[1:])
    with pytest.raises(FileNotFoundError, match="run notebook 04 first"):
        contrast([a], [tmp_path / "none"])


def test_text_that_has_line_ends_of_its_own_is_contrasted(tmp_path: Path, rows: list[dict]) -> None:
    changed = copy.deepcopy(rows)
    for row in changed:
        row["question"]["text"] = row["answer"] = "one\u2028two\u2029three\x85four\x1efive"
    a, b = saved(tmp_path / "a", changed), saved(tmp_path / "b", better(changed, 2))
    assert difference(b, a)[1]["grpo"]["accuracy"].value == pytest.approx(2 / 24)


@pytest.mark.parametrize("how", sorted(DAMAGES.keys() - {"empty"}))
def test_damaged_rows_are_named(how: str, tmp_path: Path, rows: list[dict]) -> None:
    a, b = saved(tmp_path / "a", rows), saved(tmp_path / "b", rows)
    damage(a / "eval" / "rows.jsonl", how)
    with pytest.raises(FileDamaged, match=r"a/eval/rows\.jsonl is damaged: run notebook 04 again\.$"):
        contrast([a], [b])
    saved(a, [{key: value for key, value in row.items() if key != "question"} for row in rows])
    with pytest.raises(FileDamaged, match=r"a/eval/rows\.jsonl is damaged"):
        contrast([b], [a])
    saved(a, rows)
    cut_at_a_line(a / "eval" / "rows.jsonl")
    with pytest.raises(ValueError, match="not asked the same questions"):
        contrast([a], [b])
