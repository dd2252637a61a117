"""Chat over real HTTP on loopback, through the record."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_web import (
    FAST,
    QUICK,
    LocalWeb,
    Part,
    drips,
    fifty_megabytes,
    gzip_bomb,
    hangs,
    local_web,
    says,
)
from PIL import Image

from mmsr.live.door import Door, ReplayMiss
from mmsr.live.limits import (
    BadAnswer,
    Budget,
    BudgetSpent,
    KeyRefused,
    QuotaGone,
    RateLimited,
    Refused,
    SetUpFirst,
    Unavailable,
)
from mmsr.live.models import Chat, ChatModel
from mmsr.live.record import export_jsonl, stats
from mmsr.tools.base import USAGE, FatalToolError, ToolError, in_parallel

SECRET = "sk-proj-abc123"
ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def web() -> Iterator[LocalWeb]:
    with local_web() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def answer(content: Any, finish: str = "stop", tokens: tuple[int, int] = (100, 20)) -> Part:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    message = {"role": "assistant", "content": content}
    return says(200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


def model(web: LocalWeb, **changes: Any) -> ChatModel:
    limits = QUICK if {hangs, drips} & set(web.script) else FAST
    base = ChatModel("some-model", web.url + "/v1", price_in=2.0, price_out=10.0, rate=1000.0, limits=limits)
    return replace(base, **changes)


def test_a_chat(web: LocalWeb) -> None:
    web.play(answer("Hi"))
    chat = Chat(model(web), Door(), "teacher")
    completion = chat.complete(ASK)
    assert (completion.text, completion.finish, completion.cost) == ("Hi", "stop", pytest.approx(0.0004))
    assert web.seen[0].path == "/v1/chat/completions"
    assert web.seen[0].headers["authorization"] == f"Bearer {SECRET}"
    assert web.seen[0].json() == {"model": "some-model", "temperature": 0.0, "max_tokens": 1024, "messages": ASK}
    assert chat.usage() == {
        "calls": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cost": pytest.approx(0.0004),
    }


def test_settings_can_be_added_and_taken_out(web: LocalWeb) -> None:
    web.play(answer("Hi"))
    extra = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9}
    Chat(model(web, extra=extra, key_env=""), Door(), "teacher").complete(ASK, seed=3)
    assert web.seen[0].json() == {"model": "some-model", "seed": 3, "max_completion_tokens": 9, "messages": ASK}
    assert "authorization" not in web.seen[0].headers


def test_pictures_travel_as_data_and_are_recorded_by_hash(web: LocalWeb, tmp_path: Path) -> None:
    web.play(answer("a flag"))
    picture = Image.new("RGB", (32, 20), "red")
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    chat = Chat(model(web), Door("record", tmp_path / "calls"), "teacher")
    talk = [{"role": "user", "content": parts}, {"role": "tool", "content": "<information>x</information>"}]
    first = chat.complete(talk)
    sent = web.seen[0].json()["messages"]
    assert sent[0]["content"][1] == {"type": "text", "text": "What is it?"} and sent[1]["role"] == "user"
    kind, data = sent[0]["content"][0]["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 20)
    export_jsonl(tmp_path / "calls", tmp_path / "calls.jsonl")
    kept = (tmp_path / "calls.jsonl").read_text()
    assert data[:60] not in kept and SECRET not in kept
    again = Chat(model(web), Door("replay", tmp_path / "calls"), "teacher")
    assert again.complete(talk) == first and again.usage() == chat.usage()
    other = [{"role": "user", "content": [{"type": "image", "image": picture.rotate(90, expand=True)}, parts[1]]}]
    with pytest.raises(ReplayMiss):
        again.complete([other[0], talk[1]])


def test_replay_needs_neither_key_nor_server(web: LocalWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.play(answer("Hi"))
    Chat(model(web), Door("record", tmp_path / "calls"), "teacher").complete(ASK)
    monkeypatch.delenv("OPENAI_API_KEY")
    gone = model(web, base_url="http://127.0.0.1:1/v1")
    assert Chat(gone, Door("replay", tmp_path / "calls"), "teacher").complete(ASK).text == "Hi"


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (
            says(401, {"error": {"message": f"Incorrect API key provided: {SECRET}", "code": "invalid_api_key"}}),
            KeyRefused,
        ),
        (says(400, {"error": {"message": "API key not valid. Please pass a valid API key."}}), KeyRefused),
        (says(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}), QuotaGone),
        (says(402, {"error": {"message": "Insufficient Balance"}}), QuotaGone),
        (says(429, {"error": {"message": "Rate limit reached for tokens per min"}}), RateLimited),
        (says(429, {"error": {"message": "Quota exceeded for requests per minute"}}), RateLimited),
        (says(400, {"error": {"message": "max_tokens is too large: 9999 tokens"}}), Refused),
        (says(404, {"error": {"message": "The model does not exist"}}), SetUpFirst),
        (says(400, {"error": {"message": "some-model is not a valid model ID"}}), SetUpFirst),
        (says(400, {"error": {"message": "Invalid model: some-model"}}), SetUpFirst),
        (says(403, {"error": {"message": "Project has no access to model some-model"}}), SetUpFirst),
        (says(500, "oops"), Unavailable),
        (hangs, Unavailable),
        (drips, Unavailable),
        (says(200, '{"choices": ['), BadAnswer),
        (says(200, "[]"), BadAnswer),
        (says(200, {"choices": []}), BadAnswer),
        (says(200, {"choices": [{"message": "x"}]}), BadAnswer),
        (says(200, {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}), BadAnswer),
        (says(200, {"choices": [{}], "usage": {"prompt_tokens": 9}}), BadAnswer),
        (answer(None, "content_filter"), BadAnswer),
        (answer("  ", "length"), BadAnswer),
        (fifty_megabytes, BadAnswer),
        (gzip_bomb, BadAnswer),
    ],
)
def test_troubles(web: LocalWeb, part: Part, kind: type[ToolError], tmp_path: Path) -> None:
    web.play(part)
    door = Door("record", tmp_path / "calls")
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        Chat(model(web), door, "teacher").complete(ASK)
    assert time.monotonic() - started < 2 and type(caught.value) is kind
    assert SECRET not in str(caught.value)
    kept = stats(tmp_path / "calls").get("teacher", {"errors": 0})
    assert kept["errors"] == (0 if issubclass(kind, FatalToolError) else 1)


# --- what a model will not take ---------------------------------------------------------------------------------------

REFUSALS = {  # as OpenAI, Moonshot and Mistral word them
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only 1 is supported.",
    "seed": "Extra inputs are not permitted: body.seed",
}


def particular(*names: str) -> Part:
    """A model that refuses these parameters."""

    def part(handler: Any) -> None:
        refused = [name for name in names if name in handler.seen.json()]
        (says(400, {"error": {"message": REFUSALS[refused[0]]}}) if refused else answer("Hi"))(handler)

    return part


@pytest.mark.parametrize("names", [("max_tokens",), ("temperature",), ("seed",), tuple(REFUSALS)])
def test_what_a_model_refuses_is_changed_once(names: tuple[str, ...], web: LocalWeb, tmp_path: Path) -> None:
    web.play(particular(*names))
    chat = Chat(model(web), Door("record", tmp_path / "calls"), "judge")
    assert [chat.complete(ASK, seed).text for seed in (1, 2)] == ["Hi", "Hi"]
    assert len(web.seen) == len(names) + 2
    wanted = {"max_tokens": 1024, "temperature": 0.0, "seed": 2, "model": "some-model", "messages": ASK}
    wanted = {name: value for name, value in wanted.items() if name not in names}
    assert web.seen[-1].json() == wanted | ({"max_completion_tokens": 1024} if "max_tokens" in names else {})
    again = Chat(model(web), Door("replay", tmp_path / "calls"), "judge")
    assert again.complete(ASK, 1).text == "Hi" and again.usage()["calls"] == 1


def test_a_model_that_refuses_what_is_sent_instead_is_not_asked_for_ever(web: LocalWeb) -> None:
    web.play(says(400, {"error": {"message": "temperature, seed, max_tokens, max_completion_tokens: all unsupported"}}))
    with pytest.raises(Refused, match="all unsupported"):
        Chat(model(web), Door(), "judge").complete(ASK, 1)
    assert len(web.seen) == 4


def hangs_up(handler: Any) -> None:
    handler.close_connection = True


def test_an_unknown_model_and_a_dead_endpoint_are_told_with_the_setting_that_helps(web: LocalWeb) -> None:
    web.play(says(404, {"error": {"message": "The model does not exist"}}))
    with pytest.raises(SetUpFirst, match=r"does not exist\)\. Name a model that http://.*/v1 has, or give llm_url\."):
        Chat(model(web), Door(), "judge").complete(ASK)
    with pytest.raises(SetUpFirst, match=r"could not be reached .* Start http://127.0.0.1:1, or give .* llm_url\."):
        Chat(model(web, base_url="http://127.0.0.1:1"), Door(), "judge").complete(ASK)
    web.play(answer("Hi"), hangs_up)
    chat = Chat(model(web), Door(), "judge")
    chat.complete(ASK)
    with pytest.raises(Unavailable):  # it has answered: this call failed, and the next may not
        chat.complete(ASK, 2)


# --- replies without text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, " ", [], "<think>Let me see. {", "<think>a</think>\n"])
def test_a_reply_without_text_is_paid_for_and_names_the_remedy(content: Any, web: LocalWeb, tmp_path: Path) -> None:
    web.play(answer(content, "length"))
    budget, found = Budget(money=0.0005), []
    for door in (Door("record", tmp_path / "calls", budget), Door("replay", tmp_path / "calls")):
        chat = Chat(model(web), door, "judge")
        with USAGE.heard() as used, pytest.raises(BadAnswer, match=r"after 100 \+ 20 tokens. Raise llm_max_tokens"):
            chat.complete(ASK)
        found.append((chat.usage(), used))
    assert found[0] == found[1] and found[0][0]["cost"] == pytest.approx(0.0004) == found[0][1][0][1]["cost"]
    assert budget.summary() == {"judge": {"calls": 1, "money": pytest.approx(0.0004)}}


@pytest.mark.parametrize("before", ["<think>Hm. {}</think>", "\n<Thinking>\nHm.\n</Thinking>\n\n", ""])
def test_thoughts_are_taken_off(before: str, web: LocalWeb) -> None:
    web.play(answer(f"{before}I <think> so.</think>"))
    assert Chat(model(web), Door(), "teacher").complete(ASK).text.strip() == "I <think> so.</think>"


# --- money ------------------------------------------------------------------------------------------------------------


def slowly(part: Part) -> Part:
    def later(handler: Any) -> None:
        time.sleep(0.05)
        part(handler)

    return later


def side_by_side(chat: Chat, calls: int) -> list[Any]:
    return in_parallel(lambda seed: chat.complete(ASK, seed).text, range(calls), calls)


@pytest.mark.parametrize("content", ["Hi", None])
def test_calls_side_by_side_spend_no_more_than_the_budget_and_one_call(content: Any, web: LocalWeb) -> None:
    web.play(slowly(answer(content, tokens=(0, 1000))))
    door = Door(budget=Budget(money=0.5))
    with pytest.raises(BudgetSpent):
        side_by_side(Chat(model(web, price_out=1000.0), door, "judge"), 8)
    assert len(web.seen) == 1 and door.budget.summary()["judge"]["money"] == 1.0
    door = Door(budget=Budget(money=4.5))
    with pytest.raises(BudgetSpent):
        side_by_side(Chat(model(web, price_out=1000.0), door, "judge"), 8)
    assert door.budget.summary()["judge"]["money"] == 5.0


def test_where_money_is_enough_calls_go_side_by_side(web: LocalWeb) -> None:
    together = threading.Barrier(7)

    def part(handler: Any) -> None:
        if len(web.seen) > 1:  # the first, whose price is not known, goes alone
            together.wait(10)
        answer("Hi", tokens=(0, 1000))(handler)

    web.play(part)
    assert side_by_side(Chat(model(web, price_out=1000.0), Door(budget=Budget(money=50.0)), "judge"), 8) == ["Hi"] * 8


def test_500_twice_then_success(web: LocalWeb) -> None:
    web.play(says(500, ""), says(503, ""), answer([{"type": "text", "text": "Hi"}]))
    assert Chat(model(web), Door(), "teacher").complete(ASK).text == "Hi"


def test_a_piece_of_work_knows_what_it_has_used(web: LocalWeb) -> None:
    web.play(answer("Hi"))
    chat, judge = Chat(model(web), Door(), "teacher"), Chat(model(web), Door(), "judge")

    def work(calls: int) -> list[tuple[str, dict[str, float]]]:
        with USAGE.heard() as used:
            for _ in range(calls):
                chat.complete(ASK)
            judge.complete(ASK)
        return used

    one = {"calls": 1, "prompt_tokens": 100, "completion_tokens": 20, "cost": pytest.approx(0.0004)}
    for calls, used in zip((1, 2, 3), in_parallel(work, (1, 2, 3), 3)):
        assert used == [("teacher", one)] * calls + [("judge", one)]
    assert chat.usage()["calls"] == 6


def test_money_is_spent_once_and_ends(web: LocalWeb, tmp_path: Path) -> None:
    web.play(answer("Hi", tokens=(1000, 1000)))  # 0.012 dollars
    door = Door("record", tmp_path / "calls", Budget(money=0.02))
    chat = Chat(model(web), door, "teacher")
    for seed in (1, 1, 1, 2):
        chat.complete(ASK, seed)
    assert door.budget.summary() == {"teacher": {"calls": 2, "money": pytest.approx(0.024)}}
    with pytest.raises(BudgetSpent):
        chat.complete(ASK, 3)
    assert chat.complete(ASK, 1).text == "Hi"  # what is recorded stays free


def test_in_parallel_keeps_order_and_errors() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (3 - number))
        if number == 1:
            raise Refused("no.")
        return number * 10

    results = in_parallel(work, range(3), workers=3)
    assert results[0] == 0 and isinstance(results[1], Refused) and results[2] == 20
    assert in_parallel(work, [], workers=3) == []


@pytest.mark.parametrize("error", [BudgetSpent("spent."), KeyError("a bug"), KeyboardInterrupt()])
def test_in_parallel_stops_at_what_no_other_item_can_mend(error: BaseException) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise error
        time.sleep(0.05)
        return number

    with pytest.raises(type(error)):
        in_parallel(work, range(100), workers=2)
    assert len(begun) < 10
