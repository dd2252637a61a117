"""What is examined: the world's held-out questions or a public benchmark's, in one shape for workflows and rows.

    exam = open_exam("", "", 0, seed, preset, world)                        # the world's test questions
    exam = open_exam("okvqa", "data/okvqa", 500, seed, preset, world)       # 500 of a benchmark's
    for tasks in exam.blocks(): …          # with pictures; the world in one block, a benchmark a few at a time
    exam.about[0]                          # the question as a row of `eval/rows.jsonl` keeps it

A benchmark has no gold pages, no gold box and no scripted teacher: what is measured by these is left out of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmsr.benchmarks.registry import Benchmark, BenchmarkError, BenchmarkItem, Scores, find_benchmark
from mmsr.env import Task, Trajectory
from mmsr.presets import Preset
from mmsr.teacher import as_task
from mmsr.tools.picture import read_picture
from mmsr.world.questions import Question, make_questions
from mmsr.world.snapshot import World

UNPICTURED = Image.new("RGB", (1, 1))  # scoring looks at no picture


@dataclass(frozen=True)
class Exam:
    """Questions in order. `about` has id, text, answer, aliases, type, taxonomy, half and entity (the cluster) of each.

    `questions` are the world's own; `benchmark` and `items` a public benchmark's.
    """

    about: list[dict[str, Any]]
    blocks: Callable[[], Iterator[list[Task]]]
    questions: tuple[Question, ...] = ()
    benchmark: Benchmark | None = None
    items: tuple[BenchmarkItem, ...] = ()

    def __len__(self) -> int:
        return len(self.about)

    @property
    def halves(self) -> bool:
        """Whether it has InfoSeek's two halves, unseen entities and unseen questions."""
        return {"unseen_entity", "unseen_question"} <= {about["half"] for about in self.about}

    def unpictured(self) -> list[Task]:
        """The tasks without their pictures, for scoring."""
        return [
            Task(a["id"], a["text"], UNPICTURED, (a["answer"], *a["aliases"]), tuple(a["gold_pages"]))
            for a in self.about
        ]

    def play(self, workflow: Callable[[list[Task]], list[Trajectory]]) -> list[Trajectory]:
        """The trajectories of a workflow on all tasks, block by block."""
        return [trajectory for tasks in self.blocks() for trajectory in workflow(tasks)]

    def published(self, rows: Sequence[dict[str, Any]]) -> Scores:
        """The benchmark's own scores of one workflow's rows, as `<benchmark>/<score>`; none for the world."""
        if self.benchmark is None:
            return {}
        verdicts = [row["verdict"] for row in rows] if all("verdict" in row for row in rows) else None
        scores = self.benchmark.score(self.items, [row["answer"] for row in rows], verdicts)
        return {f"{self.benchmark.name}/{name}": value for name, value in scores.items()}


def open_exam(benchmark: str, data_dir: str, sample: int, seed: int, preset: Preset, world: World) -> Exam:
    """The benchmark of that name, or the world's test questions where there is none; `sample` may shrink either."""
    if benchmark:
        return benchmark_exam(benchmark, data_dir, sample, seed, preset.eval_batch)
    return world_exam(make_questions(world, "test", sample or preset.eval_questions, seed), world)


def world_exam(questions: Sequence[Question], world: World) -> Exam:
    """The world's questions; their pictures are redrawn from their seeds."""
    return Exam(
        [question.as_dict() for question in questions],
        lambda: iter([[as_task(question, world) for question in questions]]),
        tuple(questions),
    )


def benchmark_exam(name: str, data_dir: str, sample: int, seed: int, block: int) -> Exam:
    """A benchmark's questions, `sample` of them drawn with the seed, or as many as the paper draws where it is 0.

    At most `block` pictures are in memory at once. Raises BenchmarkError as `Benchmark.load` does.
    """
    check_benchmark(name, data_dir, sample)
    benchmark = find_benchmark(name)
    items = benchmark.load(Path(data_dir), sample or None, seed)

    def blocks() -> Iterator[list[Task]]:
        for start in range(0, len(items), block):
            yield [_task(item) for item in items[start : start + block]]

    return Exam([_about(item, name) for item in items], blocks, (), benchmark, tuple(items))


def check_benchmark(name: str, data_dir: str, sample: int) -> None:
    """Raises BenchmarkError, before anything is read, for a benchmark or a folder that there is not."""
    find_benchmark(name)
    if not data_dir or not Path(data_dir).is_dir():
        raise BenchmarkError(f"data_dir must be the folder with the files of {name}: {data_dir!r} is none.")
    if sample < 0:
        raise BenchmarkError(
            f"sample must be a number of questions, or 0 for as many as the paper draws: got {sample}."
        )


def _task(item: BenchmarkItem) -> Task:
    try:
        picture = read_picture(item.picture.read_bytes())
    except ValueError as error:
        raise BenchmarkError(f"The picture {item.picture} of question {item.id} cannot be used: {error}.") from None
    return Task(item.id, item.question, picture, item.golds)


def _about(item: BenchmarkItem, name: str) -> dict[str, Any]:
    """The question in the fields of `Question.as_dict` that rows, figures and viewer read, and its picture's path."""
    return {
        "id": item.id,
        "type": item.kind,
        "text": item.question,
        "answer": item.golds[0],
        "aliases": list(item.golds[1:]),
        "taxonomy": name,
        "gold_pages": [],
        "entity": item.extra["cluster"],
        "half": item.split,
        "picture": str(item.picture),
    }
