"""An LLM teacher over real HTTP: it plays like any policy, goes on where it was killed, replays alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from local_web import LocalWeb, Part, local_web, says
from small_funnel import PRESET, Made, make, questions, tools

from mmsr.benchmarks.registry import training_questions
from mmsr.data import UNLABELLED
from mmsr.env import SearchEnv, Trajectory
from mmsr.evaluate import Exam, direct, rag
from mmsr.files import Stopped
from mmsr.live.door import Door
from mmsr.live.engines import base64_jpeg
from mmsr.live.limits import Budget, BudgetSpent, Limits, SetUpFirst
from mmsr.live.models import Chat, ChatModel
from mmsr.live.record import stats
from mmsr.live.roles import FIELDS, LLMTeacher, ModelJudge, Rival, label_field, turn_prompt
from mmsr.protocol import Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.task import Task
from mmsr.teacher import FunnelError, Teacher

TOKENS = {"prompt_tokens": 1000, "completion_tokens": 100}
FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
Reply = Callable[[dict[str, Any]], str | Part]


# --- models that answer by what they are asked ------------------------------------------------------------------------


def model(reply: Reply) -> Part:
    """An endpoint whose model says what `reply` makes of a request; a part instead of a text is trouble."""

    def part(handler: Any) -> None:
        said = reply(handler.seen.json())
        if isinstance(said, str):
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            said = says(200, {"choices": [choice], "usage": TOKENS})
        said(handler)

    return part


def address(request: dict[str, Any]) -> str:
    """The picture of a request as it was sent; "" where there is none."""
    content = request["messages"][0]["content"]
    return "" if isinstance(content, str) else content[0]["image_url"]["url"]


@cache
def scripts() -> dict[str, Trajectory]:
    """The scripted teacher's episodes, by picture."""
    teacher, found = Teacher(), {}
    for question in questions():
        task = Task.of(question)
        env = SearchEnv(tools(), PRESET.prompts, task)
        found["data:image/jpeg;base64," + base64_jpeg(task.picture)] = teacher.play(question, env)
    return found


def plays_well(request: dict[str, Any]) -> str:
    """The scripted teacher's next turn; as a judge it compares letters, and it sorts questions by their length."""
    if url := address(request):
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return scripts()[url].turns[done].text
    prompt = request["messages"][0]["content"]
    if "Fields:" in prompt:
        return FIELDS[len(re.search(r"Question: <<<(.*?)>>>", prompt).group(1)) % 3]
    golds, answer = re.search(r"<<<([^<]*)>>>\nAnswer to judge: <<<([^<]*)>>>", prompt).groups()
    return json.dumps({"verdict": "correct" if golds.split(" | ")[0] in answer else "incorrect", "why": "letters"})


@pytest.fixture(scope="module")
def web() -> Iterator[LocalWeb]:
    with local_web() as server:
        yield server


def chat(url: str, role: str = "teacher", door: Door | None = None, **changes: Any) -> Chat:
    limits = Limits(total=120.0, attempt=60.0, tries=9, first_wait=0.001)
    at = ChatModel("some-model", url + "/v1", "", 2.0, 10.0, workers=3, rate=1e5, limits=limits)
    return Chat(replace(at, **changes), door or Door(), role)


def teach(folder: Path, url: str, door: Door | None = None, **changes: Any) -> Made:
    """The small funnel with a model as the teacher, the judge and the one who labels."""
    talk = chat(url, door=door)
    labeller = partial(label_field, chat(url, "fields", talk.door))
    player = replace(LLMTeacher(talk, seed=3).player(3), field_of=labeller)
    return make(folder, player, judge=ModelJudge(talk.model, talk.door), **changes)


@pytest.fixture(scope="module")
def whole(web: LocalWeb, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The data set that nothing interrupted."""
    web.play(model(plays_well))
    return teach(tmp_path_factory.mktemp("whole"), web.url)


def calls(web: LocalWeb) -> Counter[str]:
    """Requests by the picture they are about."""
    return Counter(address(seen.json()) for seen in web.seen)


# --- an episode -------------------------------------------------------------------------------------------------------


def test_it_plays_the_protocol_on_its_own_prompts(web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(plays_well))
    question = next(q for q in questions() if q.type == "two_hop")
    task = Task.of(question)
    door = Door("record", tmp_path / "calls")
    policys = {"after_image": "The policy looks.", "after_text": "The policy reads."}
    env = SearchEnv(tools(), replace(PRESET.prompts, **policys), task)
    played = LLMTeacher(chat(web.url, door=door), seed=7).play(task, env)
    scripted = scripts()["data:image/jpeg;base64," + base64_jpeg(task.picture)]
    assert [(t.text, t.hits, t.error) for t in played.turns] == [(t.text, t.hits, t.error) for t in scripted.turns]
    assert (played.answer, played.end) == (scripted.answer, "answer")
    requests = [seen.json() for seen in web.seen]
    assert {request["seed"] for request in requests} == {7}
    told = [request["messages"][-1]["content"] for request in requests]
    assert told[0][1]["text"] == turn_prompt(question.text)
    for turn, text in zip(played.turns, told[1:]):
        kind = "image" if turn.action == "img_search" else "text"
        assert text.endswith(turn_prompt(question.text, turn.action))
        assert turn.observation.endswith(policys[f"after_{kind}"]) and "The policy" not in text
        assert text.startswith(turn.observation.partition("</information>")[0])
    assert all(len(turn.replay_keys) == 1 for turn in played.turns)
    assert stats(tmp_path / "calls")["teacher"]["calls"] == len(played.turns)


def test_a_rival_plays_what_the_base_plays_and_is_not_advised(
    web: LocalWeb, capsys: pytest.CaptureFixture[str]
) -> None:
    web.play(model(plays_well))
    rival, exam = Rival(chat(web.url, "rival some-model")), Exam(tuple(questions()))
    played = exam.play(lambda tasks: rival.play(tasks, tools(), PRESET.prompts))
    assert [episode.answer for episode in played] == [scripts()[url].answer for url in scripts()]
    told = [seen.json()["messages"][0]["content"][1]["text"] for seen in web.seen]
    assert {*told} == {turn_prompt(question.text, advised=False) for question in questions()}
    assert not {*told} & {turn_prompt(question.text) for question in questions()}
    web.play(model(lambda request: "<think>hm</think> " + request["messages"][0]["content"][1]["text"]))
    assert [episode.answer for episode in direct(rival, exam, PRESET)] == [question.text for question in exam.questions]
    for question, episode in zip(exam.questions, rag(rival, exam, PRESET, tools())):
        assert question.text in episode.answer and episode.searches() == 2
    web.play(model(lambda request: says(400, {"error": {"message": "no such picture"}})))
    assert {episode.answer for episode in direct(rival, exam, PRESET)} == {""}
    assert f"some-model: {len(exam)} of {len(exam)} were not answered. The first: " in capsys.readouterr().out


def test_samples_of_one_task_are_told_apart(web: LocalWeb) -> None:
    web.play(model(plays_well))
    task = Task.of(questions()[0])
    teacher = LLMTeacher(chat(web.url, temperature=0.7), seed=7)
    for sample in (0, 1):
        teacher.play(task, SearchEnv(tools(), PRESET.prompts, task), sample)
    assert {(seen.json()["seed"], seen.json()["temperature"]) for seen in web.seen} == {(7, 0.7), (8, 0.7)}


def test_a_broken_turn_is_told_so(web: LocalWeb) -> None:
    def stumbles(request: dict[str, Any]) -> str:
        said = [m["content"] for m in request["messages"] if m["role"] == "assistant"]
        if len(said) < 2:
            return "It is surely Kenya." if not said else "<reason>x</reason><answer>a</answer><answer>b</answer>"
        return render_turn(Turn("I was told twice.", Answer("Nairobi")))

    web.play(model(stumbles))
    task = Task.of(questions()[0])
    env = SearchEnv(tools(), PRESET.prompts, task)
    played = LLMTeacher(chat(web.url)).play(task, env)
    assert (played.end, played.answer, played.valid_turns, len(played.turns)) == ("answer", "Nairobi", 1, 3)
    for turn, seen in zip(played.turns, web.seen[1:]):
        assert turn.error and "did not count" in turn.observation
        assert seen.json()["messages"][-1]["content"] == turn.observation


@pytest.mark.parametrize("text", ["no", render_turn(Turn("Again.", TextSearch("Kenya"))), "<reason>" * 900])
def test_a_model_that_never_ends_is_ended(text: str, web: LocalWeb) -> None:
    web.play(model(lambda request: text))
    task = Task.of(questions()[0])
    env = SearchEnv(tools(), PRESET.prompts, task)
    played = LLMTeacher(chat(web.url)).play(task, env)
    assert played.end == "broken" and len(web.seen) == len(played.turns) <= 13


def test_a_spent_budget_ends_the_episode_loudly(web: LocalWeb) -> None:
    web.play(model(plays_well))
    task = Task.of(next(q for q in questions() if q.type == "one_hop"))
    env = SearchEnv(tools(), PRESET.prompts, task)
    with pytest.raises(BudgetSpent):
        LLMTeacher(chat(web.url, door=Door(budget=Budget(calls=1)))).play(task, env)


# --- the funnel -------------------------------------------------------------------------------------------------------


def test_a_model_that_plays_well_gives_the_scripted_data_set(whole: Made, tmp_path: Path) -> None:
    scripted = make(tmp_path)
    assert whole.built.funnel == scripted.built.funnel
    for ours, theirs in zip(whole.built.examples, scripted.built.examples, strict=True):
        assert (ours.question, ours.label, ours.messages) == (theirs.question, theirs.label, theirs.messages)


def test_tokens_and_dollars_are_counted(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(plays_well))
    made = teach(tmp_path, web.url)
    by_role = made.built.usage
    with_picture = sum(bool(address(seen.json())) for seen in web.seen)
    assert by_role["teacher"]["calls"] == with_picture == sum(len(t.turns) for t in scripts().values())
    assert by_role["judge"]["calls"] == len(web.seen) - with_picture > 0
    for used in by_role.values():
        assert used["prompt_tokens"] == 1000 * used["calls"] and used["completion_tokens"] == 100 * used["calls"]
        assert used["cost"] == pytest.approx(0.003 * used["calls"])
    assert json.loads(made.files["card.json"])["usage"] == by_role
    assert made.files == whole.files


def test_thoughts_before_a_turn_or_a_label_are_taken_off(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    def thinks(request: dict[str, Any]) -> str:
        said = plays_well(request)
        return f"{'<think>' if len(said) % 2 else ''}Is it <reason>so</reason>? History?</think>\n{said}"

    web.play(model(lambda request: plays_well(request) if "verdict" in str(request) else thinks(request)))
    assert teach(tmp_path, web.url).files == whole.files


def test_a_data_set_with_nothing_in_it_is_refused(web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(lambda request: "It is Kenya."))
    said = r"would be empty \(questions 30, played 30, passed_A 0, .*balanced 0\): see in .*played.jsonl what"
    with pytest.raises(FunnelError, match=said):
        teach(tmp_path, web.url)
    assert len((tmp_path / "funnel" / "played.jsonl").read_text().splitlines()) == 30


def test_the_judge_keeps_what_exact_match_does_not(web: LocalWeb, tmp_path: Path) -> None:
    def wordy(request: dict[str, Any]) -> str:
        said = plays_well(request)
        return said.replace("</answer>", ", to be exact</answer>") if address(request) else said

    web.play(model(wordy))
    made = teach(tmp_path, web.url)
    with pytest.raises(FunnelError, match="correct 0, "):
        make(tmp_path / "strict", LLMTeacher(chat(web.url), seed=3).player(3))
    assert made.built.funnel["correct"] > 20
    judged = [json.loads(line) for line in (tmp_path / "funnel" / "judged.jsonl").read_text().splitlines()]
    assert {row["label"] for row in judged} <= {"correct", "incorrect"} and len(judged) >= 25


def test_trouble_now_and_then_changes_nothing(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    tries = Counter()

    def shaky(request: dict[str, Any]) -> str | Part:
        which = zlib.crc32(json.dumps(request).encode())
        tries[which] += 1
        if tries[which] == 1 and which % 2:
            return says(429, {"error": {"message": "slow down"}}, Retry_After="0")
        return says(500, "oops") if tries[which] == 2 and which % 3 == 0 else plays_well(request)

    web.play(model(shaky))
    assert teach(tmp_path, web.url).files == whole.files
    assert len(web.seen) > 1.3 * sum(used["calls"] for used in whole.built.usage.values())


def test_refused_questions_are_left_out_and_tried_at_the_next_start(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    unwanted = set(list(scripts())[4:7])

    def picky(request: dict[str, Any]) -> str | Part:
        filtered = says(400, {"error": {"message": "content management policy"}})
        return filtered if address(request) in unwanted else plays_well(request)

    web.play(model(picky))
    assert teach(tmp_path, web.url).built.funnel["played"] == 27
    web.play(model(plays_well))
    assert teach(tmp_path, web.url).files == whole.files
    assert set(calls(web)) - {""} == unwanted


def test_an_endpoint_in_trouble_stops_the_funnel(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    count = Counter()

    def dies(request: dict[str, Any]) -> str | Part:
        count["all"] += 1
        return plays_well(request) if count["all"] <= 12 else says(422, {"error": {"message": "out of order"}})

    web.play(model(dies))
    with pytest.raises(Stopped, match=r"out of order.*start again"):
        teach(tmp_path, web.url)
    web.play(model(plays_well))
    assert teach(tmp_path, web.url).files == whole.files


def test_a_model_that_is_not_there_is_said(web: LocalWeb, tmp_path: Path) -> None:
    web.play(says(404, {"error": {"message": "no such model"}}))
    with pytest.raises(SetUpFirst, match=r"no such model.*llm_url"):
        teach(tmp_path, web.url)
    assert len(web.seen) < 10  # of thirty questions: those under way when the first was answered
    web.play(says(422, {"error": {"message": "out of order"}}))
    with pytest.raises(FunnelError, match=r"None of 3 questions could be played: .*out of order"):
        teach(tmp_path, web.url, asked=questions()[:3])


# --- killed and resumed -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an error that anything could handle."""


@pytest.mark.parametrize("call", [1, 2, 30, 61, 80])
def test_killed_at_any_call_it_goes_on_to_the_same_result(
    call: int, whole: Made, web: LocalWeb, tmp_path: Path
) -> None:
    web.play(model(plays_well))
    count, real = iter(range(1, call)), Chat.complete

    def complete(self: Chat, *args: Any, **kwargs: Any) -> Any:
        if next(count, None) is None:
            raise Killed
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chat, "complete", complete)
        with pytest.raises(Killed):
            teach(tmp_path, web.url)
    first = calls(web)
    assert teach(tmp_path, web.url).files == whole.files
    finished = {url for url, turns in first.items() if url and turns == len(scripts()[url].turns)}
    assert all(calls(web)[url] == first[url] for url in finished)


def test_a_spent_budget_can_be_raised(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(plays_well))
    for money in (0.05, 0.02):
        with pytest.raises(BudgetSpent):
            teach(tmp_path, web.url, Door(budget=Budget(money=money)))
    assert teach(tmp_path, web.url).files == whole.files


def test_sigkill_costs_the_episodes_under_way(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    child: list[subprocess.Popen] = []
    count = Counter()

    def kills(request: dict[str, Any]) -> str:
        count["all"] += 1
        if count["all"] == 25:
            child[0].send_signal(signal.SIGKILL)
        return plays_well(request)

    scripts()
    web.play(model(kills))
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "helpers")])
    code = f"from pathlib import Path; import test_teacher as t; t.teach(Path({str(tmp_path)!r}), {web.url!r})"
    child.append(subprocess.Popen([sys.executable, "-c", code], cwd=here, env=os.environ | {"PYTHONPATH": path}))
    assert child[0].wait(600) == -signal.SIGKILL
    kept = (tmp_path / "funnel" / "played.jsonl").read_bytes().count(b"\n")
    assert kept >= 4
    web.play(model(plays_well))
    assert teach(tmp_path, web.url).files == whole.files
    assert len(set(calls(web)) - {""}) == 30 - kept


# --- record and replay ------------------------------------------------------------------------------------------------


def test_a_replay_without_a_server_gives_the_same_data_set(whole: Made, web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(plays_well))
    recorded = teach(tmp_path / "a", web.url, Door("record", tmp_path / "calls"))
    asked = len(web.seen)
    again = teach(tmp_path / "b", web.url, Door("record", tmp_path / "calls"))
    replayed = teach(tmp_path / "c", "http://127.0.0.1:1", Door("replay", tmp_path / "calls"))
    assert recorded.files == again.files == replayed.files == whole.files and len(web.seen) == asked


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"tools": replace(tools(), settings={"search": "brave"})}, "sources {}, not {'search': 'brave'}"),
        ({"asked": questions()[:9]}, "questions"),
    ],
)
def test_what_was_paid_for_is_never_begun_afresh(change: dict, told: str, web: LocalWeb, tmp_path: Path) -> None:
    web.play(model(plays_well))
    teach(tmp_path, web.url)
    before = {path: path.read_bytes() for path in (tmp_path / "funnel").iterdir()}
    with pytest.raises(FunnelError, match=re.escape(told) + ".*choose another run, or delete that folder"):
        teach(tmp_path, web.url, **change)
    with pytest.raises(FunnelError, match="teacher 'some-model', not 'scripted'"):
        make(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "funnel").iterdir()} == before


def test_a_free_funnel_gives_way_to_a_model(web: LocalWeb, tmp_path: Path, whole: Made) -> None:
    web.play(model(plays_well))
    make(tmp_path)
    assert teach(tmp_path, web.url).files == whole.files


# --- questions from elsewhere -----------------------------------------------------------------------------------------


def test_a_benchmark_is_played_and_labelled(web: LocalWeb, tmp_path: Path) -> None:
    golds: dict[str, str] = {}

    def looks_it_up(request: dict[str, Any]) -> str:
        if not (url := address(request)):
            return plays_well(request)
        done = sum(message["role"] == "assistant" for message in request["messages"])
        actions = [ImageSearch(), TextSearch("Kenya capital"), Answer(golds[url])]
        return render_turn(Turn("So.", actions[done]))

    asked = training_questions("infoseek_train", FIXTURES / "infoseek", 0, seed=3)
    for question in asked:
        golds["data:image/jpeg;base64," + base64_jpeg(Task.of(question).picture)] = question.answer
    web.play(model(looks_it_up))
    made = teach(tmp_path, web.url, asked=asked)
    counts = made.built.funnel
    assert counts["played"] == counts["passed_C"] == len(asked) and counts["search_required"] > 0
    assert {example.question.taxonomy for example in made.built.examples} <= {*FIELDS[:3], UNLABELLED}
    assert made.built.usage["fields"]["calls"] == counts["search_free"] + counts["search_required"]
