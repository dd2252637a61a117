"""The notebooks' exercises: each has a hint and a solution that its check accepts, and wrong answers are told why."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsr.files import read_json
from mmsr.presets import get_preset
from mmsr.reward import RewardWeights
from mmsr.show.exercises import CHECKS, UNANSWERED, check, three_flags, wrong

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "papermill_runs" / "reference"
WRONG: dict[str, list[tuple[Any, str]]] = {
    "a turn": [
        ("Kenya capital", "a turn starts with <reason>"),
        ("<reason>Nairobi.</reason><answer>Nairobi</answer>", "does not search the pages"),
    ],
    "a query": [("Croatia typical number of birthdays", "BM25 knows words, not meanings"), ("", "finds nothing")],
    "the funnel": [(0, "bars of B and C")],
    "a mask": [("A", "inventing what tools return"), ("B", "would write on"), ("D", "A, B or C")],
    "LoRA's size": [(lambda inputs, outputs, r: r * inputs * outputs, "not 16,384")],
    "steps": [(1005, "row of sft/sft.csv")],
    "advantages": [
        (lambda rewards: rewards, "sums to 0"),
        (lambda rewards: [2 * (r - sum(rewards) / len(rewards)) for r in rewards], "nothing divides them"),
    ],
    "a wrong price": [
        (RewardWeights(), "would not learn to search more"),
        (RewardWeights(search_price=0.1), "after four 0.60"),
    ],
    "a clip": [
        (lambda ratio, advantage: abs(ratio - 1) > 0.2, "at a ratio of 1.5 and an advantage of -1 the gradient is not"),
        (lambda ratio, advantage: False, "the gradient is cut"),
    ],
    "three gains": [({"a", "b", "c"}, "holds 0"), ({"a"}, "small gain")],
    "trying again": [(0.0, "figure's difference")],
    "needless": [
        (lambda searches, known, kind: searches > 0, "not needless"),
        (lambda searches, known, kind: searches > 0 and known, "visual"),
    ],
    "two boxes": [(0.5, "cover 150")],
    "a crop": [((0, 0, 384, 384), "one flag, and little else"), ((900, 900, 950, 950), "lies inside the picture")],
    "padding": [(0.2, "1.2 times")],
}


def exercises() -> list[tuple[str, str, str]]:
    """Notebook, exercise and solution, in order."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for told, asked in itertools.pairwise(cells):
            text, code = "".join(told["source"]), "".join(asked["source"])
            if named := re.search(r'^check\("([^"]+)", answer', code, re.MULTILINE):
                assert "<summary>Hint</summary>" in text and "answer = ...\n" in code
                [solution] = re.findall(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```", text, re.DOTALL)
                found.append((path.stem, named[1], solution))
    return found


@pytest.mark.parametrize(("notebook", "name", "solution"), exercises(), ids=lambda value: value[:20])
def test_the_solution_is_right(notebook: str, name: str, solution: str) -> None:
    card = read_json(REFERENCE / "data" / "card.json", dict, "run it")
    known: dict[str, Any] = {  # what a notebook has by then
        "built": SimpleNamespace(funnel=card["funnel"]),
        "examples": range(card["funnel"]["balanced"]),
        "lab": SimpleNamespace(size=get_preset("tiny"), folder=REFERENCE),
        "RewardWeights": RewardWeights,
        "three_flags": three_flags,
    }
    exec(solution, known)
    assert wrong(name, known["answer"], REFERENCE) == ""


@pytest.mark.parametrize(("name", "answer", "why"), [(n, a, w) for n, cases in WRONG.items() for a, w in cases])
def test_a_wrong_answer_is_told_why(name: str, answer: Any, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, answer, REFERENCE)
    said = capsys.readouterr().out
    assert said.startswith("Not yet: ") and why in said


def test_every_notebook_has_three_and_every_check_is_asked() -> None:
    notebooks, names, _ = zip(*exercises())
    assert all(notebooks.count(notebook) >= 3 for notebook in {*notebooks}) and len({*notebooks}) == 5
    assert sorted(names) == sorted(CHECKS) == sorted(WRONG)


def test_no_answer_and_a_broken_one_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    check("a mask", ...)
    check("advantages", lambda rewards: 1 / 0)
    check("the funnel", 26, ROOT)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == UNANSWERED and said[1] == "Not yet: it ends in ZeroDivisionError: division by zero"
    assert "run notebook 01 first" in said[2]
