"""A benchmark is examined like our world: its questions in blocks, its own scores of the rows beside the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from small_fvqa import write
from small_policy import tiny

from mmsr.benchmarks.registry import BENCHMARKS, BenchmarkError, open_benchmark, training_questions
from mmsr.env import Trajectory
from mmsr.task import FileQuestion, Task

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"


def test_the_questions_of_an_exam_carry_what_rows_and_intervals_need() -> None:
    exam = open_benchmark("infoseek", FIXTURES / "infoseek", 0, seed=0, block=4)
    item = BENCHMARKS["infoseek"].load(FIXTURES / "infoseek")[1]
    assert exam.questions[1] == FileQuestion(
        id="infoseek_val_00000001",
        type="string",
        text="Which city is this tower in?",
        answer="Paris",
        aliases=("City of Light",),
        picture=str(item.picture),
        taxonomy="infoseek",
        entity="oven_04925692",
        half="unseen_question",
    )
    assert len(exam) == 6 and exam.halves and not exam.gold
    assert FileQuestion.from_dict(exam.questions[1].as_dict()) == exam.questions[1]


def test_a_sample_follows_the_seed() -> None:
    drawn = [open_benchmark("okvqa", str(FIXTURES / "okvqa"), 2, seed, 1).questions for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 and len({*drawn}) > 1


def test_pictures_are_drawn_a_block_at_a_time() -> None:
    blocks: list[int] = []

    def workflow(tasks: list[Task]) -> list[Trajectory]:
        assert all(task.picture.width > 1 and task.gold_pages == () and task.box is None for task in tasks)
        blocks.append(len(tasks))
        return [Trajectory(task.id, [], "", "answer") for task in tasks]

    exam = open_benchmark("infoseek", FIXTURES / "infoseek", 0, 0, block=4)
    assert [trajectory.task_id for trajectory in exam.play(workflow)] == [question.id for question in exam.questions]
    assert blocks == [4, 2]


def test_published_scores_are_named_by_the_benchmark() -> None:
    exam = open_benchmark("okvqa", FIXTURES / "okvqa", 0, 0, 8)
    benchmark, rows = BENCHMARKS["okvqa"], [{"answer": answer} for answer in ("chess", "two", "orange")]
    items, answers = benchmark.load(FIXTURES / "okvqa"), [row["answer"] for row in rows]
    plain = benchmark.score(items, answers)
    assert exam.published(rows) == {f"okvqa/{name}": value for name, value in plain.items()}
    assert exam.headline == "okvqa/vqa_accuracy" and exam.headline in exam.published(rows)
    judged = exam.published([row | {"verdict": label} for row, label in zip(rows, ("correct", None, "incorrect"))])
    assert judged["okvqa/judge_accuracy"].value == pytest.approx(1 / 3)
    assert {*judged} - {*exam.published(rows)} == {"okvqa/judge_accuracy", "okvqa/judge_unreadable"}


def test_a_picture_that_is_none_is_named_with_its_question(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "okvqa", tmp_path / "okvqa")
    exam = open_benchmark("okvqa", tmp_path / "okvqa", 0, 0, 8)
    Path(exam.questions[2].picture).write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=rf"question {exam.questions[2].id}, .*COCO_val2014_0+22\.jpg"):
        exam.play(lambda tasks: [])


LAST = Path("val2014") / "COCO_val2014_000000000022.jpg"  # of OK-VQA's third question


def test_all_pictures_are_looked_at_before_anything_is_played(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "okvqa", tmp_path / "okvqa")
    named = BENCHMARKS["okvqa"].load(folder)[2].id
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:200])
    with pytest.raises(BenchmarkError, match=rf"question {named}, .*{LAST.name}, cannot be read: not a picture"):
        open_benchmark("okvqa", folder, 0, 0, 8)


def test_a_picture_that_is_too_thin_is_played_padded(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "okvqa", tmp_path / "okvqa")
    Image.new("RGB", (4100, 20), "red").save(folder / LAST)

    def workflow(tasks: list[Task]) -> list[Trajectory]:
        assert tasks[2].picture.size == (4100, 21)
        return [Trajectory(task.id, [], str(tiny().frame(task.picture)), "answer") for task in tasks]

    assert len(open_benchmark("okvqa", folder, 0, 0, 8).play(workflow)) == 3


def test_training_questions_leave_the_taxonomy_to_a_labeller() -> None:
    questions = training_questions("infoseek_train", FIXTURES / "infoseek", 0, seed=0)
    assert [(q.type, q.taxonomy, q.entity, q.half) for q in questions] == [
        ("numerical", "", "oven_05512345", "train"),
        ("string", "", "oven_05512345", "train"),
    ]
    assert questions[1].golds == ("Rhône", "Rhone")


def test_questions_of_the_test_set_are_refused_for_training_with_their_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "fvqa_train.parquet", range(9))
    asked = training_questions("fvqa_train", folder, 0, seed=0)
    assert len(asked) == 9 and "fvqa_test.parquet is not there: fvqa_train was not checked" in capsys.readouterr().out
    write(folder / "fvqa_test.parquet", [3, 40], split="test")  # a picture
    assert [q.id for q in training_questions("fvqa_train", folder, 0, 0)] == [q.id for q in asked if q.id[-1] != "3"]
    said = "1 of 9 questions of fvqa_train are refused: their identifier or picture is in fvqa_test.parquet.\n"
    assert capsys.readouterr().out == said
    write(folder / "fvqa_test.parquet", [3, 5], split="train")  # a picture and its identifier, twice
    assert {q.id[-1] for q in training_questions("fvqa_train", folder, 0, 0)} == {*"0124678"}
    write(folder / "fvqa_test.parquet", range(9), split="test")
    with pytest.raises(
        BenchmarkError, match=r"9 of 9 questions of fvqa_train are refused: .* nothing is left to train"
    ):
        training_questions("fvqa_train", folder, 0, 0)


def test_a_picture_that_is_not_there_to_be_tested_on_is_no_hindrance(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "infoseek", tmp_path / "infoseek")
    (folder / "oven_images" / "04" / "oven_04000017.jpg").unlink()
    assert len(training_questions("infoseek_train", folder, 0, seed=0)) == 2
    shutil.copy(
        folder / "oven_images" / "05" / "oven_05512345.JPEG", folder / "oven_images" / "04" / "oven_04000017.jpg"
    )
    with pytest.raises(BenchmarkError, match="2 of 2 questions of infoseek_train are refused"):
        training_questions("infoseek_train", folder, 0, seed=0)


def test_any_file_in_fvqas_format_is_trained_on_and_held_against_the_test_beside_it(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.parquet", range(4)) / "mine.parquet"
    write(tmp_path / "fvqa_test.parquet", [2], split="test")
    assert [q.answer for q in training_questions("fvqa_train", file, 0, 0)] == ["colour 0", "colour 1", "colour 3"]
    with pytest.raises(BenchmarkError, match=r"data_dir must be the folder with the files of infoseek_train: .*mine"):
        training_questions("infoseek_train", file, 0, 0)


def test_what_is_there_to_test_is_not_trained_on() -> None:
    with pytest.raises(
        BenchmarkError, match=r"okvqa is for testing, not for training: .* infoseek_train or fvqa_train"
    ):
        training_questions("okvqa", FIXTURES / "okvqa", 0, seed=0)


@pytest.mark.parametrize(
    "read", [lambda *given: open_benchmark(*given, 0, 8), lambda *given: training_questions(*given, 0)]
)
def test_what_there_is_not_is_refused_before_anything_is_read(read: Callable, tmp_path: Path) -> None:
    for name, folder, sample, named in (
        ("vqa", tmp_path, 0, "no benchmark 'vqa': choose one of infoseek"),
        ("okvqa", "", 0, "data_dir must be the folder with the files of okvqa: '' is not one"),
        ("okvqa", tmp_path / "nowhere", 0, "data_dir must be the folder"),
        ("okvqa", tmp_path, -1, "sample must be a number of questions, .* got -1"),
    ):
        with pytest.raises(BenchmarkError, match=named):
            read(name, folder, sample)
