"""The paper's benchmarks: loaded from their published files, sampled as the paper samples, scored by their own rules.

    benchmark = check_benchmark("infoseek", "data/infoseek")
    items = benchmark.load(Path("data/infoseek"), seed=0)                   # the paper's 2,000, drawn with the seed
    values = benchmark.score(items, answers, labels)                        # {"harmonic_mean": Interval(…), …}
    exam = open_benchmark("okvqa", "data/okvqa", sample=500, seed=0, block=16)      # for notebook 4

The paper's own results table is an LLM judge's share of correct answers: that is "judge_accuracy", there only with
the judge's labels. The published metric (`headline`) and plain exact match always stand beside it, from 0 to 1.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr.benchmarks import readers
from mmsr.benchmarks import scores as rules
from mmsr.benchmarks.files import BenchmarkError, BenchmarkItem, Draft, located, settle
from mmsr.files import sha256
from mmsr.presets import ASSETS
from mmsr.reward import LABELS, Label, exact_match
from mmsr.stats import Interval, cluster_mean, cluster_ratio, harmonic_interval
from mmsr.task import FileQuestion

if TYPE_CHECKING:  # it loads torch, which a check before a run does not need
    from mmsr.evaluate import Exam

PAPER_SAMPLE = 2000  # of InfoSeek and Encyclopedic-VQA, by the paper; the others are used whole
UNSEEN = ("unseen_question", "unseen_entity")
BOOTSTRAP_SEED = 0
PUBLISHED = tomllib.loads((ASSETS / "benchmarks" / "published.toml").read_text(encoding="utf-8"))

Scores = dict[str, Interval | float]
Marked = Sequence[tuple[BenchmarkItem, float]]  # items with their marks, from 0 to 1
Mark = Callable[[BenchmarkItem, str], float]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by name: how its files are read, how answers are marked, how many questions the paper draws.

    `headline` names the published metric among the scores: the mean of the marks, or with `halves` the harmonic mean
    over InfoSeek's two unseen splits, or without `mark` what SimpleVQA makes of a judge's labels. `beside` are other
    scripts' marks, by the names of their scores.
    """

    name: str
    headline: str
    read: Callable[[Path], Iterator[Draft]]
    mark: Mark | None
    drawn: int = 0
    halves: bool = False
    left_out: str = ""  # the kind of question that the published metric does not count
    beside: Mapping[str, Mark] = field(default_factory=dict)

    def load(self, data_dir: Path, sample: int = 0, seed: int = 0, used: Collection[str] = ()) -> list[BenchmarkItem]:
        """The questions in file order: `sample` of them drawn with the seed, or the paper's number where it is 0.

        None is of a cluster in `used`. BenchmarkError where files, rows, or pictures of the drawn questions are not as
        published.
        """
        drafts = [draft for draft in self.read(data_dir) if draft[0].cluster not in used]
        if not drafts:
            beside = " that is not in use" if used else ""
            raise BenchmarkError(f"{data_dir} holds no question of {self.name}{beside}: expected at least one.")
        size = sample or self.drawn or len(drafts)
        if size < len(drafts):
            drafts = [drafts[i] for i in sorted(random.Random(seed).sample(range(len(drafts)), size))]
        for split in UNSEEN if self.halves else ():
            if all(item.split != split for item, _ in drafts):  # better now than after an evening of rollouts
                raise BenchmarkError(f"None of {len(drafts)} questions is of {split}: the score needs both; draw more.")
        return settle(drafts)

    def score(
        self, items: Sequence[BenchmarkItem], answers: Sequence[str], labels: Sequence[Label | None] | None = None
    ) -> Scores:
        """The published metric, also by kind ("<headline>/<kind>"), exact match, and the judge's with labels.

        A label is None where the judge's reply could not be read. Intervals are bootstrapped over clusters. ValueError
        for unequal lengths, no items, an unknown label, or where no question counts.
        """
        _check(items, answers, labels)
        answered = list(zip(items, answers))
        scores: Scores = {"exact_match": _mean([(item, exact_match(answer, item.golds)) for item, answer in answered])}
        if self.mark is not None:
            counted = [(item, self.mark(item, answer)) for item, answer in answered if item.kind != self.left_out]
            if not counted:
                raise ValueError(f"None of the {len(items)} questions counts for {self.headline}: draw more.")
            scores |= (_unseen if self.halves else _by_kind)(self.headline, counted)
            for name, mark in self.beside.items():
                scores[name] = _mean([(item, mark(item, answer)) for item, answer in answered])
        if labels is not None:
            scores["judge_accuracy"] = _mean([(item, label == "correct") for item, label in zip(items, labels)])
            scores["judge_unreadable"] = sum(label is None for label in labels) / len(labels)  # they count as wrong
            scores |= _attempts(items, labels) if self.mark is None else {}
        return scores


def _check(items: Sequence[BenchmarkItem], answers: Sequence[str], labels: Sequence[Label | None] | None) -> None:
    if not items:
        raise ValueError("There is nothing to score: no items were given.")
    for name, values in (("answers", answers), ("labels", labels)):
        if values is not None and len(values) != len(items):
            raise ValueError(f"Expected one of {name} for each of {len(items)} items, got {len(values)}.")
    unknown = {*(labels or ())} - {*LABELS, None}
    if unknown:
        raise ValueError(f"Expected labels of {', '.join(LABELS)} or None, got {sorted(unknown)[0]!r}.")


def _mean(marked: Marked) -> Interval:
    return cluster_mean([mark for _, mark in marked], [item.cluster for item, _ in marked], BOOTSTRAP_SEED)


def _by_kind(headline: str, marked: Marked) -> Scores:
    """The mean mark, and where there are several kinds of question the mean of each."""
    kinds = dict.fromkeys(item.kind for item, _ in marked)
    means = {f"{headline}/{kind}": _mean([(i, mark) for i, mark in marked if i.kind == kind]) for kind in kinds}
    return {headline: _mean(marked)} | (means if len(kinds) > 1 else {})


def _unseen(headline: str, marked: Marked) -> Scores:
    """InfoSeek: the accuracy of each unseen split, their harmonic mean, and the accuracy by kind."""
    halves = {split: [(item, mark) for item, mark in marked if item.split == split] for split in UNSEEN}
    marks = [[mark for _, mark in half] for half in halves.values()]
    clusters = [[item.cluster for item, _ in half] for half in halves.values()]
    scores: Scores = {headline: harmonic_interval(*marks, *clusters, BOOTSTRAP_SEED)}
    return scores | {split: _mean(half) for split, half in halves.items()} | _by_kind("relaxed_accuracy", marked)


def _attempts(items: Sequence[BenchmarkItem], labels: Sequence[Label | None]) -> Scores:
    """SimpleVQA: F, the harmonic mean of correct and correct given attempted, with c correct and a attempted of n.

    That is 2c / (n + a), so one bootstrap of a ratio serves.
    """
    clusters = [item.cluster for item in items]
    correct = [float(label == "correct") for label in labels]
    attempted = [float(label in ("correct", "incorrect")) for label in labels]  # not an unreadable reply, as published
    return {
        "f_score": cluster_ratio([2 * c for c in correct], [1 + a for a in attempted], clusters, BOOTSTRAP_SEED),
        "accuracy_given_attempted": cluster_ratio(correct, attempted, clusters, BOOTSTRAP_SEED),
        "not_attempted": cluster_mean([1 - a for a in attempted], clusters, BOOTSTRAP_SEED),
    }


def _by(rule: Callable[..., float], *fields: str) -> Mark:
    """The rule of an answer and these fields of its question."""
    return lambda item, answer: rule(answer, *(getattr(item, field) for field in fields))


_infoseek = _by(rules.infoseek_mark, "kind", "golds", "limits")
_LMMS = {"vqa_accuracy_lmms_eval": _by(rules.okvqa_lmms_mark, "golds")}
_ALL = (
    Benchmark("infoseek", "harmonic_mean", readers.infoseek, _infoseek, PAPER_SAMPLE, halves=True),
    Benchmark("infoseek_train", "relaxed_accuracy", partial(readers.infoseek, split="train"), _infoseek),
    Benchmark("evqa", "evqa_exact_match", readers.evqa, _by(rules.evqa_mark, "golds", "kind"), PAPER_SAMPLE),
    Benchmark("okvqa", "vqa_accuracy", readers.okvqa, _by(rules.okvqa_mark, "golds"), beside=_LMMS),
    Benchmark("aokvqa", "direct_answer", readers.aokvqa, _by(rules.aokvqa_mark, "golds"), left_out="difficult"),
    Benchmark("simplevqa", "f_score", readers.simplevqa, None),
    Benchmark("dynvqa", "token_f1_recall", readers.dynvqa, _by(rules.dynvqa_mark, "golds")),
    Benchmark("fvqa", "fvqa_exact_match", readers.fvqa, _by(rules.squad_mark, "golds")),
    Benchmark("fvqa_train", "fvqa_exact_match", partial(readers.fvqa, split="train"), _by(rules.squad_mark, "golds")),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
# Training splits, and by which benchmark they are tested, whose file lies in the same folder.
TESTED = {"infoseek_train": ("infoseek", "infoseek_val.jsonl"), "fvqa_train": ("fvqa", "fvqa_test.parquet")}


def check_benchmark(name: str, data_dir: str | Path, sample: int = 0) -> Benchmark:
    """The benchmark of that name. BenchmarkError, before anything is read, where name, folder or sample is invalid."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"There is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}.")
    file = name.startswith("fvqa") and Path(data_dir).suffix == ".parquet" and Path(data_dir).is_file()
    if not str(data_dir) or not (file or Path(data_dir).is_dir()):
        which = f"the files of {name}: {str(data_dir)!r} is not one. Such a folder holds {PUBLISHED[name]['holds']}."
        raise BenchmarkError(f"data_dir must be the folder with {which}")
    if sample < 0:
        raise BenchmarkError(f"sample must be a number of questions, or 0 for the paper's number: got {sample}.")
    return BENCHMARKS[name]


def check_training(name: str, data_dir: str | Path, sample: int = 0) -> Benchmark:
    """As `check_benchmark`, of a training split. BenchmarkError for a benchmark meant for testing."""
    benchmark = check_benchmark(name, data_dir, sample)
    if name not in TESTED:
        raise BenchmarkError(f"{name} is for testing, not for training: train_benchmark is {' or '.join(TESTED)}.")
    return benchmark


def training_questions(
    name: str, data_dir: str | Path, sample: int, seed: int, used: Collection[str] = ()
) -> list[FileQuestion]:
    """Questions of a training split, their taxonomy for a labeller to fill; none is of an entity in `used`.

    Questions also in the evaluation split of the same folder, by identifier or picture, are refused, and counted.
    Raises BenchmarkError, also where nothing is left.
    """
    items = check_training(name, data_dir, sample).load(Path(data_dir), sample, seed, used)
    folder, (test, file) = Path(data_dir) if Path(data_dir).is_dir() else Path(data_dir).parent, TESTED[name]
    if not (folder / file).is_file():
        print(f"{folder / file} is not there: {name} was not checked against its questions.", flush=True)
        return [item.asked() for item in items]
    drafts = list(BENCHMARKS[test].read(folder))
    names, sizes = {item.id for item, _ in drafts}, {item.picture.stat().st_size for item in items}
    alike = {picture for picture in located(drafts) if picture and picture.stat().st_size in sizes}
    hashes = {sha256(picture) for picture in alike}  # a picture of another size cannot be the same
    kept = [item for item in items if item.id not in names and sha256(item.picture) not in hashes]
    if told := len(items) - len(kept):
        said = f"{told} of {len(items)} questions of {name} are refused: their identifier or picture is in {file}"
        if not kept:
            raise BenchmarkError(f"{said}, and nothing is left to train on.")
        print(f"{said}.", flush=True)
    return [item.asked() for item in kept]


def open_benchmark(name: str, data_dir: str | Path, sample: int, seed: int, block: int) -> Exam:
    """What `Benchmark.load` draws as an exam, at most `block` pictures in memory at once. Raises BenchmarkError."""
    from mmsr.evaluate import Exam

    benchmark = check_benchmark(name, data_dir, sample)
    items = benchmark.load(Path(data_dir), sample, seed)

    def published(rows: Sequence[dict[str, Any]]) -> Scores:
        labels = [row["verdict"] for row in rows] if all("verdict" in row for row in rows) else None
        scores = benchmark.score(items, [row["answer"] for row in rows], labels)
        return {f"{name}/{score}": value for score, value in scores.items()}

    questions = tuple(item.asked(name) for item in items)
    return Exam(questions, block, gold=False, published=published, headline=f"{name}/{benchmark.headline}")
