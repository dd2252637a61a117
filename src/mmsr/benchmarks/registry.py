"""The paper's benchmarks: loaded from their published files, sampled as the paper samples, scored by their own rules.

    benchmark = find_benchmark("infoseek")
    items = benchmark.load(Path("data/infoseek"), sample=None, seed=0)      # the paper's 2,000, drawn with the seed
    values = benchmark.score(items, answers, verdicts)                      # {"harmonic_mean": Interval(…), …}

The paper's own results table is an LLM judge's share of correct answers: that is "judge_accuracy", there only with
verdicts. The published metric (`headline`) and plain exact match always stand beside it. What each folder must hold is
in `mmsr.benchmarks.readers`, the rules in `mmsr.benchmarks.scores`. All values are shares from 0 to 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmsr.benchmarks import readers
from mmsr.benchmarks import scores as rules
from mmsr.benchmarks.files import BenchmarkError, BenchmarkItem, Draft, settle
from mmsr.stats import Interval, cluster_mean, cluster_ratio, exact_match, harmonic_interval

VERDICTS = ("correct", "incorrect", "not_attempted")
PAPER_SAMPLE = 2000  # of InfoSeek and Encyclopedic-VQA, by the paper; the others are used whole
UNSEEN = ("unseen_question", "unseen_entity")
BOOTSTRAP_SEED = 0

Verdict = str | None  # one of VERDICTS; None where the judge's reply could not be read
Scores = dict[str, Interval | float]


# --- summaries --------------------------------------------------------------------------------------------------------


def _mean(items: Sequence[BenchmarkItem], marks: Sequence[float]) -> Interval:
    return cluster_mean(marks, [item.extra["cluster"] for item in items], BOOTSTRAP_SEED)


def _plain(headline: str, items: Sequence[BenchmarkItem], marks: Sequence[float]) -> Scores:
    """The mean mark, and where there are several kinds of question the mean of each."""
    scores: Scores = {headline: _mean(items, marks)}
    kinds = dict.fromkeys(item.kind for item in items)
    for kind in kinds if len(kinds) > 1 else ():
        chosen = [(item, mark) for item, mark in zip(items, marks) if item.kind == kind]
        scores[f"{headline}/{kind}"] = _mean(*zip(*chosen))
    return scores


def _unseen(headline: str, items: Sequence[BenchmarkItem], marks: Sequence[float]) -> Scores:
    """InfoSeek: the accuracy of each unseen split, their harmonic mean, and the accuracy by kind."""
    _need_both_unseen(items)
    chosen = {split: [(i, m) for i, m in zip(items, marks) if i.split == split] for split in UNSEEN}
    groups = [[mark for _, mark in chosen[split]] for split in UNSEEN]
    clusters = [[item.extra["cluster"] for item, _ in chosen[split]] for split in UNSEEN]
    scores: Scores = {headline: harmonic_interval(*groups, *clusters, BOOTSTRAP_SEED)}
    scores |= {split: _mean(*zip(*chosen[split])) for split in UNSEEN}
    return scores | _plain("relaxed_accuracy", items, marks)


def _need_both_unseen(items: Sequence[BenchmarkItem]) -> None:
    missing = [split for split in UNSEEN if all(item.split != split for item in items)]
    if missing:
        raise BenchmarkError(f"No question of {missing[0]} among {len(items)}: InfoSeek's score needs both; draw more.")


def _judged(items: Sequence[BenchmarkItem], verdicts: Sequence[Verdict]) -> Scores:
    """The judge's share of correct answers, and the share of unreadable replies, which count as not correct."""
    return {
        "judge_accuracy": _mean(items, [float(verdict == "correct") for verdict in verdicts]),
        "judge_unreadable": sum(verdict is None for verdict in verdicts) / len(verdicts),
    }


def _judged_attempts(items: Sequence[BenchmarkItem], verdicts: Sequence[Verdict]) -> Scores:
    """SimpleVQA: F, the harmonic mean of correct and correct given attempted; an unreadable reply is no attempt.

    With c correct of n and a attempted that is 2c / (n + a), so one bootstrap of a ratio serves. Source: SimpleVQA
    (Cheng et al. 2025, simpleVQA_eval.py), whose script too files an unreadable verdict under not attempted.
    """
    clusters = [item.extra["cluster"] for item in items]
    correct = [float(verdict == "correct") for verdict in verdicts]
    attempted = [float(verdict in ("correct", "incorrect")) for verdict in verdicts]
    return _judged(items, verdicts) | {
        "f_score": cluster_ratio([2 * c for c in correct], [1 + a for a in attempted], clusters, BOOTSTRAP_SEED),
        "accuracy_given_attempted": cluster_ratio(correct, attempted, clusters, BOOTSTRAP_SEED),
        "not_attempted": _mean(items, [1 - a for a in attempted]),
    }


# --- the benchmark ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by name: how its files are read, how answers are marked and summed up, how many the paper draws.

    mark gives 0 to 1, or None where the published metric leaves the question out. It is None itself where the metric is
    made of a judge's verdicts (SimpleVQA). headline names the published metric among the scores.
    """

    name: str
    headline: str
    read: Callable[[Path], list[Draft]]
    mark: Callable[[BenchmarkItem, str], float | None] | None
    drawn: int | None = None
    summarise: Callable[[str, Sequence[BenchmarkItem], Sequence[float]], Scores] = _plain
    judged: Callable[[Sequence[BenchmarkItem], Sequence[Verdict]], Scores] = _judged

    def load(self, data_dir: Path, sample: int | None = None, seed: int = 0) -> list[BenchmarkItem]:
        """The questions, in file order, with their pictures found; sample of them drawn with the seed.

        Without a sample it is as many as the paper draws. BenchmarkError where files, rows or pictures are not as
        published; only the pictures of the drawn questions are looked for.
        """
        if not data_dir.is_dir():
            raise BenchmarkError(f"{data_dir} is not a folder: give the one that holds the files of {self.name}.")
        drafts = self.read(data_dir)
        if not drafts:
            raise BenchmarkError(f"{data_dir} holds no question of {self.name}: expected at least one.")
        size = sample if sample is not None else self.drawn
        if size is not None and size < len(drafts):
            drawn = sorted(random.Random(seed).sample(range(len(drafts)), size))
            drafts = [drafts[i] for i in drawn]
        if self.summarise is _unseen:  # better now than after an evening of rollouts
            _need_both_unseen([draft.item for draft in drafts])
        return settle(drafts)

    def score(
        self, items: Sequence[BenchmarkItem], answers: Sequence[str], verdicts: Sequence[Verdict] | None = None
    ) -> Scores:
        """The published metric, also by kind ("<headline>/<kind>"), exact match, and the judge's with verdicts.

        answers, verdicts: one per item, in order. Intervals are bootstrapped over clusters of questions. ValueError for
        unequal lengths, no items, an unknown verdict, or where no question counts.
        """
        _check(items, answers, verdicts)
        matches = [float(exact_match(answer, item.golds)) for item, answer in zip(items, answers)]
        scores: Scores = {"exact_match": _mean(items, matches)}
        if self.mark is not None:
            scores |= self._marked(items, answers)
        return scores | (self.judged(items, verdicts) if verdicts is not None else {})

    def _marked(self, items: Sequence[BenchmarkItem], answers: Sequence[str]) -> Scores:
        marks = [(item, self.mark(item, answer)) for item, answer in zip(items, answers)]
        counted = [(item, mark) for item, mark in marks if mark is not None]
        if not counted:
            raise ValueError(f"None of the {len(items)} questions counts for {self.headline}: draw more.")
        return self.summarise(self.headline, *zip(*counted))


def _check(items: Sequence[BenchmarkItem], answers: Sequence[str], verdicts: Sequence[Verdict] | None) -> None:
    if not items:
        raise ValueError("There is nothing to score: no items were given.")
    for name, values in (("answers", answers), ("verdicts", verdicts)):
        if values is not None and len(values) != len(items):
            raise ValueError(f"Expected one of {name} for each of {len(items)} items, got {len(values)}.")
    unknown = {verdict for verdict in verdicts or () if verdict is not None} - set(VERDICTS)
    if unknown:
        raise ValueError(f"Expected verdicts of {', '.join(VERDICTS)} or None, got {sorted(unknown)[0]!r}.")


# --- the registry -----------------------------------------------------------------------------------------------------


def _infoseek(item: BenchmarkItem, answer: str) -> float:
    return rules.infoseek_mark(answer, item.kind, item.golds, item.extra.get("limits"))


def _evqa(item: BenchmarkItem, answer: str) -> float:
    return rules.evqa_mark(answer, item.golds, item.kind)


def _okvqa(item: BenchmarkItem, answer: str) -> float:
    return rules.okvqa_mark(answer, item.golds)


def _aokvqa(item: BenchmarkItem, answer: str) -> float | None:
    """The published direct-answer score leaves out the questions that are difficult to answer directly."""
    return None if item.kind == "difficult" else rules.aokvqa_mark(answer, item.golds)


def _dynvqa(item: BenchmarkItem, answer: str) -> float:
    return rules.dynvqa_mark(answer, item.golds)


def _fvqa(item: BenchmarkItem, answer: str) -> float:
    return rules.squad_mark(answer, item.golds)


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("infoseek", "harmonic_mean", readers.infoseek, _infoseek, PAPER_SAMPLE, _unseen),
        Benchmark("infoseek_train", "relaxed_accuracy", partial(readers.infoseek, split="train"), _infoseek),
        Benchmark("evqa", "evqa_exact_match", readers.evqa, _evqa, PAPER_SAMPLE),
        Benchmark("okvqa", "vqa_accuracy", readers.okvqa, _okvqa),
        Benchmark("aokvqa", "direct_answer", readers.aokvqa, _aokvqa),
        Benchmark("simplevqa", "f_score", readers.simplevqa, None, judged=_judged_attempts),
        Benchmark("dynvqa", "token_f1_recall", readers.dynvqa, _dynvqa),
        Benchmark("fvqa", "fvqa_exact_match", readers.fvqa, _fvqa),
        Benchmark("fvqa_train", "fvqa_exact_match", partial(readers.fvqa, split="train"), _fvqa),
    )
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name; BenchmarkError listing the names otherwise."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"There is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
