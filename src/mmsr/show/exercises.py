"""The notebooks' exercises: an answer is checked, and what is not right yet is named.

    check("a turn", "<reason>…</reason>\\n<text_search>…</text_search>")      # prints "Right." or "Not yet: …"
    check("the funnel", 26, lab.folder)             # some read a run's files
    wrong("a clip", lambda ratio, advantage: …)     # what `check` prints after "Not yet: "; "" where it is right

Questions, hints and solutions are in the notebooks; the tests play each solution.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsr.env import Trajectory, TurnRecord
from mmsr.files import read_json, read_table
from mmsr.protocol import ProtocolError, TextSearch, parse_turn
from mmsr.results import read_metrics
from mmsr.reward import RewardWeights, score
from mmsr.task import UNPICTURED, Task
from mmsr.tools.ground import clamp
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.text import LocalTextSearch
from mmsr.world.scenes import Scene, draw_scene
from mmsr.world.snapshot import load_world

UNANSWERED = "Put your answer in place of the three dots, and run this cell again."


def check(name: str, answer: Any, run: str | Path = ".") -> None:
    """Print whether an answer is right, and if not, why not; with three dots for an answer, what to do."""
    if answer is ...:
        print(UNANSWERED)
        return
    try:
        flaw = wrong(name, answer, run)
    except Exception as error:  # an answer may be a function, and do anything
        flaw = f"it ends in {type(error).__name__}: {error}"
    print(f"Not yet: {flaw}" if flaw else "Right.")


def wrong(name: str, answer: Any, run: str | Path = ".") -> str:
    """What is wrong with an answer; "" where it is right."""
    return CHECKS[name](answer, Path(run))


def three_flags() -> Scene:
    """The scene of notebook 5's exercise: Kenya, Japan and Brazil."""
    return draw_scene(load_world(), ["ke", "jp", "br"], 7)


# --- the checks: an answer and a run's folder; what is wrong, in words ------------------------------------------------


def _number(answer: Any, right: float, within: float, why: str) -> str:
    return "" if abs(float(answer) - right) <= within else f"it is not {answer}. {why}"


def _turn(answer: str, run: Path) -> str:
    try:
        action = parse_turn(answer).action
    except ProtocolError as error:
        return f"{error}."
    return "" if isinstance(action, TextSearch) else "it is a valid turn, but it does not search the pages."


def _query(answer: str, run: Path) -> str:
    best = LocalTextSearch(load_world()).search(answer, 1)
    if best and best[0].id == "hr/median-age":
        return ""
    found = f"it finds {best[0].title} first" if best else "it finds nothing"
    return f"{found}. BM25 knows words, not meanings: use those of the page."


def _funnel(answer: int, run: Path) -> str:
    kept = read_json(run / "data" / "card.json", dict, "run notebook 01 first")["funnel"]
    return _number(answer, kept["passed_B"] - kept["passed_C"], 0, "Look at the bars of B and C in the figure.")


def _mask(answer: str, run: Path) -> str:
    flaws = {
        "A": "the pages are learned too: the policy would practise inventing what tools return.",
        "B": "the end of the turn is not learned: the policy would write on, observations and all.",
    }
    return "" if answer == "C" else flaws.get(answer, "answer with A, B or C.")


def _lora(answer: Callable[[int, int, int], int], run: Path) -> str:
    for sizes in ((256, 768, 16), (256, 256, 8)):
        if (found := answer(*sizes)) != (right := sizes[2] * (sizes[0] + sizes[1])):
            return f"for a matrix of {sizes[0]}×{sizes[1]} at rank {sizes[2]} it gives {found:,}, not {right:,}."
    return ""


def _steps(answer: int, run: Path) -> str:
    rows = read_table(run / "sft" / "sft.csv", ["step"], "run notebook 02 first")
    return _number(answer, len(rows), 0, "Each step is a row of sft/sft.csv, and a point of the figure.")


def _advantages(answer: Callable[[list[float]], list[float]], run: Path) -> str:
    for rewards in ([1.0] + [0.1] * 7, [0.5] * 8, [1.0, 0.1]):
        found, mean = [*answer(rewards)], sum(rewards) / len(rewards)
        if abs(sum(found)) > 1e-6:
            return f"for {rewards} they sum to {sum(found):g}; what lies above the mean and below it sums to 0."
        if any(abs(x - (reward - mean)) > 1e-6 for x, reward in zip(found, rewards, strict=True)):
            return f"for {rewards} they are {found}: nothing divides them (paper §3.4)."
    return ""


def _price(answer: RewardWeights, run: Path) -> str:
    task = Task("exercise", "?", UNPICTURED, ("gold",))
    earned = []
    for searches in (1, 4):
        turns = [TurnRecord("", "text_search") for _ in range(searches)] + [TurnRecord("", "answer", "gold")]
        earned.append(score(Trajectory("exercise", turns, "gold", "answer"), task, answer))
    told = f"right after one search earns {earned[0]:.2f}, right after four {earned[1]:.2f}"
    return "" if earned[1] > earned[0] else f"{told}: a policy would not learn to search more."


def _clip(answer: Callable[[float, float], bool], run: Path) -> str:
    cut, free = ((1.5, 1), (0.5, -1)), ((1.1, 1), (1.5, -1), (0.5, 1))
    for ratio, advantage, right in [(*case, True) for case in cut] + [(*case, False) for case in free]:
        if bool(answer(ratio, advantage)) != right:
            does = "is" if right else "is not"
            return f"at a ratio of {ratio} and an advantage of {advantage:+} the gradient {does} cut: look at the min."
    return ""


def _gains(answer: set[str], run: Path) -> str:
    if "b" in answer:
        return "b may be the largest, but its interval holds 0: it may be no gain at all."
    return "" if {*answer} == {"a", "c"} else "a small gain whose whole interval lies above 0 is a gain, too."


def _tries_again(answer: float, run: Path) -> str:
    metrics = read_metrics(run)
    before, after = (metrics[f"eval/{stage}/habit/tries_again"].value for stage in ("sft", "grpo"))
    return _number(answer, 100 * (after - before), 0.1, "It is the figure's difference after GRPO and after SFT.")


def _needless(answer: Callable[[int, bool, str], bool], run: Path) -> str:
    cases = (
        (0, True, "fact", False),
        (2, True, "fact", True),
        (1, False, "visual", True),
        (2, False, "one_hop", False),
    )
    for searches, known, kind, right in cases:
        if bool(answer(searches, known, kind)) != right:
            base = "knows" if known else "does not know"
            told = f"{searches} searches, of type {kind}, where the base {base} the answer"
            return f"{told}: {'needless' if right else 'not needless'}."
    return ""


def _iou(answer: float, run: Path) -> str:
    return _number(answer, 1 / 3, 0.005, "They share 50 square pixels; together they cover 150.")


def _crop(answer: tuple[int, int, int, int], run: Path) -> str:
    picture = three_flags().picture
    box = clamp(tuple(answer), picture)
    if box is None:
        return f"no part of it lies inside the picture of {picture.width}×{picture.height} pixels."
    found = LocalImageSearch(load_world()).search(picture.crop(box), 1)[0]
    return "" if found.id == "jp" else f"this crop finds {found.title}. Does it hold one flag, and little else?"


def _padding(answer: float, run: Path) -> str:
    return _number(answer, 0.44, 0.005, "A tenth on each side makes a side 1.2 times as long; count the area.")


CHECKS: dict[str, Callable[[Any, Path], str]] = {
    "a turn": _turn,
    "a query": _query,
    "the funnel": _funnel,
    "a mask": _mask,
    "LoRA's size": _lora,
    "steps": _steps,
    "advantages": _advantages,
    "a wrong price": _price,
    "a clip": _clip,
    "three gains": _gains,
    "trying again": _tries_again,
    "needless": _needless,
    "two boxes": _iou,
    "a crop": _crop,
    "padding": _padding,
}
