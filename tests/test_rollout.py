"""The one loop: what it costs, when an episode ends, and that nothing depends on who answers first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from small_policy import tiny
from stub_tools import PROMPTS, Engine, Finds, Summary, turn

from mmsr.decode import Row
from mmsr.env import Tools
from mmsr.protocol import Answer, ImageSearch, TextSearch
from mmsr.rollout import Episode, Sampling, play, roll
from mmsr.task import Task
from mmsr.tools.base import Hit
from mmsr.world.questions import make_questions

TASKS = [Task.of(question) for question in make_questions("val", 8, seed=5)]
SAMPLING = Sampling(turn_tokens=40, episode_tokens=400, rows=64)
SEARCH, CROP, ANSWER = turn(TextSearch("Kenya capital")), turn(ImageSearch("the flag")), turn(Answer("Nairobi"))


def tools(**changes) -> Tools:
    """Stub tools; every text search gives the same page."""
    found = Tools(Engine(), Engine(), Finds(), Summary(), Summary(), lambda box, picture: box)
    return replace(found, **changes)


def begun(row: Row) -> int:
    """Turns that the policy has written."""
    return sum(own and not before for before, own in zip(row.written, row.written[1:]))


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
    """Let every episode write these turns, one after the other, as real tokens; gives how many rows wrote at each."""

    def write(*turns: str, end: bool = True) -> list[int]:
        wrote: list[int] = []

        def given(decoder, rows: Sequence[Row], limits, *_: object) -> list[str]:
            wrote.append(len(rows))
            tokenizer, texts = decoder.tokenizer, [turns[min(begun(row), len(turns) - 1)] for row in rows]
            for row, limit, text in zip(rows, limits, texts):
                ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:limit]
                row.add(ids if end else ids[:-1], [-0.5] * (len(ids) - (not end)))
            return texts

        monkeypatch.setattr("mmsr.decode.Decoder.write", given)
        return wrote

    yield write


def episode(by: Tools, sampling: Sampling = SAMPLING) -> Episode:
    """One episode, with its tokens."""
    return roll(tiny(), TASKS[:1], by, PROMPTS, sampling, ["a"])[0]


def test_a_search_whose_result_passes_the_token_limit_is_paid_once(writing) -> None:
    wrote, text = writing(CROP, SEARCH, ANSWER), Engine("a long page " * 200)
    image = Engine("a page")
    played = episode(tools(text=text, image=image))
    assert wrote == [1, 1] and len(text.asked) == len(image.asked) == 1
    assert played.trajectory.end == "" and [t.error for t in played.trajectory.turns] == ["", ""]
    assert played.trajectory.searches() == 2 and "a long page" in played.trajectory.turns[1].observation
    assert played.row.written[-1] and len(played.row.ids) - played.row.prompt <= SAMPLING.episode_tokens


def test_what_is_learned_from_is_what_was_written(writing) -> None:
    writing(SEARCH, ANSWER)
    row = episode(tools()).row
    tokenizer = tiny().tokenizer
    own = tokenizer.decode([i for i, written in zip(row.ids, row.written) if written])
    read = tokenizer.decode([i for i, written in zip(row.ids, row.written) if not written])
    assert own == f"{SEARCH}<|im_end|>{ANSWER}<|im_end|>" and "Title a page" in read and SEARCH not in read
    assert all((logp != 0) == written for logp, written in zip(row.logps, row.written))


def test_a_turn_says_where_the_policy_was_not_sure(writing) -> None:
    marks = turn(Answer("São Tomé, Côte d'Ivoire"))
    writing(SEARCH, marks)
    for played in play(tiny(), TASKS[:2], tools(), PROMPTS, SAMPLING)[0].turns:
        spans = [(start, end) for start, end, _ in played.doubts]
        assert "".join(played.text[start:end] for start, end in spans) == played.text and len(spans) > 9
        assert {sure for _, _, sure in played.doubts} == {0.607}  # e to the −0.5, that the fixture writes
    changed = play(tiny(), TASKS[:1], tools(), PROMPTS, SAMPLING, rewrite=lambda text, task: marks)
    assert [t.doubts for t in changed[0].turns] == [[]]  # another's words are not its own


def test_three_broken_turns_end_an_episode_and_nothing_more_is_written(writing) -> None:
    wrote = writing("no turn")
    played = episode(tools())
    assert wrote == [1, 1, 1] and played.trajectory.end == "broken" and sum(played.row.written) < 40
    assert played.row.written[-1]  # it reads nothing more either


def test_a_turn_that_is_cut_off_is_a_broken_turn_and_the_episode_goes_on(writing) -> None:
    wrote = writing(SEARCH[:20], end=False)
    played = episode(tools())
    assert wrote == [1, 1, 1] and played.trajectory.end == "broken"
    assert all("did not count" in t.observation for t in played.trajectory.turns)


def test_an_episode_has_as_many_tokens_in_training_as_in_evaluation(writing) -> None:
    wrote = writing(SEARCH)
    short = replace(SAMPLING, episode_tokens=90)
    played = episode(tools(), short)
    searches = len(wrote)
    assert 0 < searches < 10 and played.trajectory.end == "" and sum(played.row.written) + 1 <= 90
    wrote.clear()
    assert len(play(tiny(), TASKS[:1], tools(), PROMPTS, short)[0].turns) == searches


def test_whoever_has_ended_leaves_at_once(writing, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = writing(SEARCH, ANSWER)
    play(tiny(), TASKS, tools(), PROMPTS, SAMPLING)
    assert wrote == [8, 8]


class Slow(Engine):
    """An engine that takes its time, another for each query."""

    def __init__(self, seconds: float, uneven: bool = False):
        super().__init__()
        self.seconds, self.uneven = seconds, uneven

    def search(self, query: object, k: int) -> list[Hit]:
        time.sleep(self.seconds * (len(self.asked) % 3 if self.uneven else 1))
        return super().search(query, k)


def seconds(workers: int) -> float:
    began = time.perf_counter()
    play(tiny(), TASKS, tools(text=Slow(0.2), workers=workers), PROMPTS, SAMPLING)
    return time.perf_counter() - began


def test_searches_run_side_by_side(writing) -> None:
    writing(SEARCH, ANSWER)
    seconds(8)
    one, eight = seconds(1), seconds(8)
    assert one - eight > 0.7 * 7 * 0.2  # eight waits of 0.2 s one after the other, or at once


def test_all_crops_of_a_turn_are_grounded_in_one_batch(writing) -> None:
    batches = []

    class Batched(Finds):
        def locate_all(self, pairs):
            batches.append(len(pairs))
            return super().locate_all(pairs)

    writing(CROP, SEARCH, ANSWER)
    play(tiny(), TASKS, tools(grounder=Batched()), PROMPTS, SAMPLING)
    assert [size for size in batches if size] == [8]


def sampled(by: Tools, order: Sequence[int]) -> dict[int, list]:
    """Episodes of the tiny base, sampled, by their place in TASKS."""
    by_tokens = Sampling(turn_tokens=24, episode_tokens=300, rows=3, temperature=1.2)
    found = roll(tiny(), [TASKS[i] for i in order], by, PROMPTS, by_tokens, [f"0/1/{i}" for i in order])
    return {i: [e.row.ids, [t.text for t in e.trajectory.turns]] for i, e in zip(order, found)}


def test_what_is_sampled_follows_from_the_key_whoever_answers_first() -> None:
    wanted = sampled(tools(), range(8))
    assert sampled(tools(text=Slow(0.01, uneven=True), workers=8), list(reversed(range(8)))) == wanted
    other = roll(tiny(), TASKS, tools(), PROMPTS, Sampling(24, 300, 3, 1.2), [f"1/1/{i}" for i in range(8)])
    assert [e.row.ids for e in other] != [wanted[i][0] for i in range(8)]
