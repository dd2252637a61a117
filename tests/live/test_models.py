"""Chat over real HTTP on loopback, through the record."""

from __future__ import annotations

import base64
import io
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
from mmsr.live.limits import BadAnswer, Budget, BudgetSpent, KeyRefused, QuotaGone, RateLimited, Refused, Unavailable
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
        (says(404, {"error": {"message": "The model does not exist"}}), Refused),
        (says(500, "oops"), Unavailable),
        (hangs, Unavailable),
        (drips, Unavailable),
        (says(200, '{"choices": ['), BadAnswer),
        (says(200, "[]"), BadAnswer),
        (says(200, {"choices": []}), BadAnswer),
        (says(200, {"choices": [{"message": "x"}]}), BadAnswer),
        (says(200, {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}), BadAnswer),
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
