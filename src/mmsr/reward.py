"""The reward, and when an answer is right.

    exact_match("1046 km.", ["1,046 km"])       # True
    support(trajectory.as_dict(), distrusts)    # the pages that the answer stands on
    score(trajectory, task, RewardWeights())    # R = 0.9·s + 0.1·s_fmt by default (paper §3.4)

s is 1 where the judge finds the answer right: offline by exact match over the gold answer and its aliases, else by a
large model (`live.roles.ModelJudge`). s_fmt is the share of turns that were valid, an episode without an answer
counting one more broken turn. So an oracle earns 1 and every malformed turn costs. A price per search and an evidence
bonus are weights too.

Exact match is the usual comparison of open question answering (SQuAD, Rajpurkar et al. 2016, evaluation script): case,
articles, punctuation and spaces do not count. Unlike there, numbers are kept whole ("3.5" does not become "35"), a dash
of any kind before a number is its sign, and marks on letters do not count ("Bogota" is "Bogotá"). Units, ordinals and
number words stand as written: "5 km" is not "5 kilometres", "1st" not "first", "2" not "two". Where meaning is to
count, name a judge; a benchmark's own rule stands beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mmsr.env import SEARCHES, Trajectory
from mmsr.protocol import UNABLE, sanitise, visible
from mmsr.task import Task

Label = Literal["correct", "incorrect", "not_attempted"]
LABELS: tuple[Label, ...] = ("correct", "incorrect", "not_attempted")

# --- exact match ------------------------------------------------------------------------------------------------------

ARTICLES = {"a", "an", "the"}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_DASHES = str.maketrans(dict.fromkeys("‐‒–—―−➖˗", "-"))
_SIGN = re.compile(r"^-\s*[$€£¥]?\s*(?=\d)|(?<!\w)-[$€£¥](?=\d)")  # "– 5" at the start, "-$5" anywhere
_MARKS = re.compile("[\u0300-\u036f]")  # on Latin, Greek and Cyrillic letters; other scripts spell with theirs
_NUMBER = re.compile(r"((?:(?<!\w)-)?\d+(?:\.\d+)*)")
_DELETED = "'’`."  # d'Ivoire and U.S. are one word each; other punctuation parts words, as in Guinea-Bissau


def normalise(text: str) -> str:
    """Lower case, no punctuation, articles or marks, single spaces; numbers whole, signed, without thousands commas.

    "The 1,046km" becomes "1046 km" and "Guinea-Bissau" becomes "guinea bissau". An answer that is an article ("A")
    stays itself.
    """
    text = _MARKS.sub("", unicodedata.normalize("NFD", visible(" ".join(text.split()))))
    text = unicodedata.normalize("NFC", text).lower().translate(_DASHES)
    text = _SIGN.sub("-", _LEADING_POINT.sub("0.", _THOUSANDS.sub("", text)))
    pieces = _NUMBER.split(text)
    words = " ".join(piece if i % 2 else _without_punctuation(piece) for i, piece in enumerate(pieces)).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def _without_punctuation(text: str) -> str:
    """The text with apostrophes and points deleted and every other punctuation mark or symbol made a space."""
    kept = (c for c in text if c not in _DELETED)
    return "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in kept)


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer equals the gold answer or one of its aliases after `normalise`; an empty answer never does."""
    normal = normalise(answer)
    return normal != "" and any(normal == normalise(gold) for gold in golds)


# --- support ----------------------------------------------------------------------------------------------------------

SUPPORT = ("supported", "unsupported", "distrusted")
TITLE = 20  # characters of a page's title by which it is found in an observation: longer ones may be cut there


def support(trajectory: Mapping[str, Any], distrusts: Callable[[str], bool]) -> dict[str, Any]:
    """Which pages hold the answer of an episode (`Trajectory.as_dict()`), once each: {"label": …, "pages": […]}.

    A page holds it where the answer's words stand together in what the policy read of it, both after `normalise`. Each
    comes with the turn that found it first, its rank, title and address, and whether the run `distrusts` the address.
    The label is "supported", "distrusted" where only distrusted pages hold it, "unsupported" where searches found no
    page that does, and "" where nothing was searched or nothing answered.
    """
    answer, pages = normalise(trajectory["answer"]), dict[str | int, dict[str, Any]]()
    turns = enumerate(trajectory["turns"], 1)
    searched = [(number, turn) for number, turn in turns if turn["action"] in SEARCHES and not turn["error"]]
    if trajectory["end"] != "answer" or trajectory["answer"] == UNABLE or not searched:
        return {"label": "", "pages": []}
    for number, turn in searched:
        for rank, read in enumerate(_pages_read(turn)):
            hits = turn["hits"][rank - 1 : rank] if rank else turn["hits"]
            if hits and answer and f" {answer} " in f" {normalise(read)} ":
                named = {key: hits[0][key] if rank else "" for key in ("id", "title", "url")}
                refused = all(distrusts(hit["url"]) for hit in hits)
                pages.setdefault(named["id"] or number, {"turn": number, "rank": rank, **named, "distrusted": refused})
    trusted = any(not page["distrusted"] for page in pages.values())
    label = "supported" if trusted else "distrusted" if pages else "unsupported"
    return {"label": label, "pages": [*pages.values()]}


def _pages_read(turn: Mapping[str, Any]) -> list[str]:
    """What was read of a search, by the rank of each page: a model's summary, which numbers no page, has rank 0."""
    read, titles = [""], [sanitise(hit["title"]).partition("\n")[0][:TITLE] for hit in turn["hits"]]
    for line in turn["observation"].removeprefix("<information>\n").partition("\n</information>")[0].split("\n"):
        rank = len(read)
        if rank <= len(titles) and line.startswith(f"{rank}. {titles[rank - 1]}"):
            read.append(line.removeprefix(f"{rank}. "))
        else:
            read[-1] += f"\n{line}"
    return read


# --- judges -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The judge's label (None where it gave none), whether the answer matches exactly, and the judge's few words."""

    label: Label | None
    exact: bool
    why: str = ""

    @property
    def correct(self) -> bool:
        """The label's word; exact match where there is no label (those are counted by `Judge.counts`)."""
        return self.exact if self.label is None else self.label == "correct"


class Judge(Protocol):
    """Says whether answers are right. `settings` names it in results; `workers` may judge side by side."""

    settings: Mapping[str, Any]
    workers: int

    def verdict(self, question: str, golds: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer. Raises ToolError where none can be had."""

    def verdicts(self, rows: Sequence[tuple[str, Sequence[str], str]]) -> list[Verdict]:
        """On (question, golds, answer) rows, in order; each distinct row is asked once; a failure has no label."""

    def counts(self) -> dict[str, int]:
        """Distinct answers judged, by label, "unreadable" and "failed", and how many of them match exactly."""


def verdicts(judge: Judge | None, answered: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """The judge's verdicts on answers to tasks, or exact match's where there is no judge."""
    rows = [(task.question, task.golds, answer) for task, answer in answered]
    if judge is not None:
        return judge.verdicts(rows)
    matches = [exact_match(answer, golds) for _, golds, answer in rows]
    return [Verdict("correct" if match else "incorrect", match) for match in matches]


# --- the reward -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardWeights:
    """`search_price` is taken off per search that was carried out; `evidence_bonus` is given for the share of gold
    pages among the results. The paper sets both to 0; MMSearch-R1 prices searching at 0.1."""

    correct: float = 0.9
    format: float = 0.1
    search_price: float = 0.0
    evidence_bonus: float = 0.0


def format_score(trajectory: Trajectory) -> float:
    """The share of valid turns, in [0, 1]; no answer counts as one more broken turn."""
    turns = len(trajectory.turns) + (trajectory.end != "answer")
    return trajectory.valid_turns / turns if turns else 0.0


def evidence(trajectory: Trajectory, task: Task) -> float:
    """The share of gold pages that the searches returned; 1 where no page is needed."""
    if not task.gold_pages:
        return 1.0
    return len({*task.gold_pages} & {*trajectory.retrieved}) / len(task.gold_pages)


def score(trajectory: Trajectory, task: Task, weights: RewardWeights, verdict: Verdict | None = None) -> float:
    """The reward of an episode, its answer judged by exact match where no verdict is given.

    The reward's parts are kept in `trajectory.reward`. An episode that did not end in an answer is never right.
    """
    verdict = verdict or verdicts(None, [(task, trajectory.answer)])[0]
    parts = {
        "correct": float(trajectory.end == "answer" and verdict.correct),
        "format": format_score(trajectory),
        "searches": float(trajectory.searches()),
        "evidence": evidence(trajectory, task),
    }
    total = (
        weights.correct * parts["correct"]
        + weights.format * parts["format"]
        - weights.search_price * parts["searches"]
        + weights.evidence_bonus * parts["evidence"] * bool(task.gold_pages)
    )
    trajectory.reward = {"total": round(total, 6)} | {key: round(value, 4) for key, value in parts.items()}
    return total


def scores(
    trajectories: Sequence[Trajectory], tasks: Sequence[Task], weights: RewardWeights, judge: Judge | None
) -> list[float]:
    """The rewards of many episodes, whose answers are judged together, side by side."""
    ended = [i for i, trajectory in enumerate(trajectories) if trajectory.end == "answer"]
    judged = dict(zip(ended, verdicts(judge, [(tasks[i], trajectories[i].answer) for i in ended])))
    return [score(t, task, weights, judged.get(i)) for i, (t, task) in enumerate(zip(trajectories, tasks))]
