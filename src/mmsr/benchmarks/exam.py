"""A public benchmark as an `Exam` for the workflows of notebook 4, or as questions to build data from in notebook 1.

    exam = open_benchmark("okvqa", "data/okvqa", sample=500, seed=0, block=16)
    exam.published(rows)[exam.headline]         # "okvqa/vqa_accuracy" of one workflow's rows, as published

A benchmark has no gold pages, no gold box and no scripted teacher: what is measured by these is left out of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr.benchmarks.registry import Scores, check_benchmark
from mmsr.evaluate import Exam
from mmsr.task import FileQuestion


def open_benchmark(name: str, data_dir: str | Path, sample: int, seed: int, block: int) -> Exam:
    """A benchmark's questions, `sample` of them drawn with the seed, or as many as the paper draws where it is 0.

    At most `block` pictures are in memory at once. Raises BenchmarkError as `Benchmark.load` does.
    """
    benchmark = check_benchmark(name, data_dir, sample)
    items = benchmark.load(Path(data_dir), sample, seed)

    def published(rows: Sequence[dict[str, Any]]) -> Scores:
        labels = [row["verdict"] for row in rows] if all("verdict" in row for row in rows) else None
        scores = benchmark.score(items, [row["answer"] for row in rows], labels)
        return {f"{name}/{score}": value for score, value in scores.items()}

    questions = tuple(item.asked(name) for item in items)
    return Exam(questions, block, gold=False, published=published, headline=f"{name}/{benchmark.headline}")


def training_questions(name: str, data_dir: str | Path, sample: int, seed: int) -> list[FileQuestion]:
    """Questions of a training split, their taxonomy for a labeller to fill. Raises BenchmarkError."""
    return [item.asked() for item in check_benchmark(name, data_dir, sample).load(Path(data_dir), sample, seed)]
