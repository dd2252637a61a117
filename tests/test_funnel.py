"""The funnel keeps what is finished: however it is interrupted, it ends in the same data set and does nothing twice."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import DAMAGES, damage
from PIL import Image
from small_funnel import PRESET, Made, make, questions, tools

from mmsr import data, files
from mmsr.env import SearchEnv
from mmsr.files import FileDamaged
from mmsr.protocol import Answer, TextSearch, Turn, render_turn
from mmsr.task import FileQuestion
from mmsr.teacher import FunnelError, Player, scripted


class Killed(BaseException):
    """Not an error that anything could handle."""


def killed_at(call: int, function: Callable) -> Callable:
    """The function, until it is called for the `call`th time."""
    count = iter(range(1, call))

    def counted(*args, **kwargs):
        if next(count, None) is None:
            raise Killed
        return function(*args, **kwargs)

    return counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The data set that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "WAVE", 8)
        return make(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def small_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "WAVE", 8)


def test_the_funnel_narrows_and_labels(whole: Made) -> None:
    counts = whole.built.funnel
    steps = [counts[key] for key in ("questions", "played", "passed_A", "passed_B", "passed_C", "correct")]
    assert steps == sorted(steps, reverse=True) and steps[0] == steps[1] == 30
    assert counts["correct"] >= counts["search_free"] + counts["search_required"] >= counts["balanced"] == 12
    known = {question.id for question in questions()[::3]}
    for example in whole.built.examples:
        assert (example.label == "search_free") == (example.question.id in known)
        assert bool(example.trajectory) == (example.label == "search_required")
        assert example.label == "search_free" or example.question.type != "visual"


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (data, "SearchEnv", 1),
        (data, "SearchEnv", 13),
        (data, "answer_directly", 1),
        (data, "answer_directly", 3),
        (data, "balance", 1),
        (data, "_save_picture", 5),
        (files.Journal, "_append", 20),
    ],
)
def test_a_killed_funnel_goes_on_to_the_same_result(
    module: object, name: str, call: int, whole: Made, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, killed_at(call, getattr(module, name)))
        with pytest.raises(Killed):
            make(tmp_path)
    assert make(tmp_path).files == whole.files


def test_what_is_finished_is_not_done_again(whole: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path)
    assert first.base.batches == whole.base.batches and len(first.base.batches) > 1
    monkeypatch.setattr(data, "SearchEnv", killed_at(1, SearchEnv))
    again = make(tmp_path)
    assert again.base.batches == [] and again.files == whole.files


def test_work_in_batches_is_done_in_the_same_batches(tmp_path: Path, whole: Made) -> None:
    def player(seen: list) -> Player:
        usual = scripted(tools())
        return replace(usual, prepare=lambda wave: seen.append([question.id for question in wave]))

    seen, seen_then = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SearchEnv", killed_at(13, SearchEnv))
        with pytest.raises(Killed):
            make(tmp_path, player(seen))
    make(tmp_path, player(seen_then))
    assert seen == [[q.id for q in questions()[:8]], [q.id for q in questions()[8:16]]]
    assert seen_then[0] == seen[1]  # whole, though half of it was played


@pytest.mark.parametrize("cut", [1, 7, 400])
def test_a_torn_last_line_costs_one_piece_of_work(cut: int, whole: Made, tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("played", "base"):
        path = tmp_path / "funnel" / f"{name}.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
    assert make(tmp_path).files == whole.files


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"seed": 4}, {"preset": replace(PRESET, observation_tokens=90)}])
def test_other_settings_begin_a_free_funnel_afresh(change: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(tmp_path)
    changed = make(tmp_path, **change)
    assert "begun afresh" in capsys.readouterr().out
    assert changed.files == make(tmp_path / "other", **change).files


def test_other_questions_begin_a_free_funnel_afresh(tmp_path: Path) -> None:
    make(tmp_path)
    assert make(tmp_path, asked=questions()[:20]).built.funnel["played"] == 20
    assert len((tmp_path / "funnel" / "played.jsonl").read_text().splitlines()) == 20


def test_a_begin_afresh_that_is_killed_is_begun_once_more(whole: Made, tmp_path: Path) -> None:
    make(tmp_path, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "write_json", killed_at(1, data.write_json))
        with pytest.raises(Killed):
            make(tmp_path)
    assert make(tmp_path).files == whole.files


def test_the_size_of_the_balanced_set_needs_no_new_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(data, "SearchEnv", killed_at(1, SearchEnv))
    assert make(tmp_path, preset=replace(PRESET, data_examples=6)).built.funnel["balanced"] == 6


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FunnelError, match="same id"):
        make(tmp_path, asked=[*questions(), questions()[0]])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_funnel_that_forgot_its_settings_says_how_to_go_on(how: str, whole: Made, tmp_path: Path) -> None:
    make(tmp_path)
    damage(tmp_path / "funnel" / "begun.json", how)
    with pytest.raises(
        FileDamaged, match=r"begun\.json is damaged: delete it to go on under the same settings, or its"
    ):
        make(tmp_path)
    (tmp_path / "funnel" / "begun.json").unlink()
    again = make(tmp_path)
    assert again.base.batches == [] and again.files == whole.files


# --- questions from elsewhere -----------------------------------------------------------------------------------------


def asked(id_: str, text: str, answer: str, picture: Path) -> FileQuestion:
    return FileQuestion(id=id_, type="string", text=text, answer=answer, picture=str(picture))


def public(folder: Path, count: int) -> list[FileQuestion]:
    """Questions about picture files."""
    found = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        Image.new("RGB", (64, 48), (number * 7 % 256, 40, 90)).save(path)
        found.append(asked(f"set/{number}", f"What is {number}?", f"n{number}", path))
    return found


def by_answering(question, task, env) -> object:
    """One search, then the gold answer."""
    env.step(render_turn(Turn("I do not know.", TextSearch("Kenya capital"))))
    env.step(render_turn(Turn("Now I do.", Answer(question.answer))))
    return env.trajectory


def test_a_wave_of_pictures_is_in_memory_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[int] = set()
    most = 0

    def watched(question: FileQuestion, draw=FileQuestion.draw) -> Image.Image:
        nonlocal most
        picture = draw(question)
        alive.add(id(picture))
        weakref.finalize(picture, alive.discard, id(picture))
        most = max(most, len(alive))
        return picture

    monkeypatch.setattr(FileQuestion, "draw", watched)
    monkeypatch.setattr(data, "WAVE", 4)
    gc.collect()
    preset = replace(PRESET, rollout_rows=1)
    made = make(tmp_path, Player({"teacher": "answering"}, by_answering), public(tmp_path, 24), preset=preset)
    assert made.built.funnel["played"] == made.built.funnel["correct"] == 24
    assert 1 <= most <= 6


def test_examples_of_public_questions_come_back(tmp_path: Path) -> None:
    asked = public(tmp_path, 9)
    made = make(tmp_path, Player({"teacher": "answering"}, by_answering), asked)
    examples, pictures = data.load_examples(tmp_path / "data")
    by_id = {question.id: question for question in asked}
    assert len(examples) == 9 and {example.label for example in examples} == {"search_free", "search_required"}
    for example, picture in zip(examples, pictures):
        question = by_id[example.question.id]
        assert (example.question.text, example.question.golds) == (question.text, question.golds)
        assert example.question.taxonomy == data.UNLABELLED
        with Image.open(question.picture) as original:
            assert picture.tobytes() == original.convert("RGB").tobytes()
    assert str(tmp_path) not in made.files["data.jsonl"].decode()


def test_a_picture_that_cannot_be_read_leaves_its_question_out(tmp_path: Path) -> None:
    asked = public(tmp_path, 6)
    Path(asked[2].picture).write_bytes(b"no picture")
    made = make(tmp_path, Player({"teacher": "answering"}, by_answering), asked)
    assert made.built.funnel["questions"] == 6 and made.built.funnel["played"] == 5


def test_the_scripted_teacher_refuses_what_it_cannot_play(tmp_path: Path) -> None:
    with pytest.raises(FunnelError, match="name a model as the teacher"):
        make(tmp_path, asked=public(tmp_path, 2))


def test_what_the_teacher_knew_and_the_base_does_not_is_left_out(tmp_path: Path) -> None:
    def knows(question, task, env):
        env.step(render_turn(Turn("I know.", Answer(question.answer))))
        return env.trajectory

    made = make(tmp_path, Player({"teacher": "knows"}, knows), public(tmp_path, 9))
    assert made.built.funnel["correct"] == 9 and made.built.funnel["search_required"] == 0
    assert made.built.funnel["search_free"] == 3
