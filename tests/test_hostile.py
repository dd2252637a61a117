"""Hostile pages, pictures, questions, addresses, turns, verdicts and answers do no harm, and what they hold is read."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile
import httpx
import pytest
from hostile import Case, cases, harm, page, picture, special_tokens, text
from local_web import FAST, local_web, says
from PIL import Image
from small_policy import tiny

from mmsr.env import Tools, first_messages
from mmsr.files import read_rows, write_rows
from mmsr.lab import open_tools
from mmsr.live.door import Door
from mmsr.live.engines import MAX_CHARS, PAGE, TEXT_ENGINES, PageReader, WebSearch, main_text, moved
from mmsr.live.roles import read_verdict
from mmsr.live.wire import is_global
from mmsr.presets import get_preset
from mmsr.protocol import ProtocolError, conversation, parse_turn, render_observation, sanitise
from mmsr.reward import exact_match
from mmsr.task import Task
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.ground import OracleGrounder
from mmsr.tools.picture import MAX_PIXELS, THINNEST, read_picture

PRESET = get_preset("smoke")
FROM_WEB = replace(PAGE, limits=FAST, rate=1000.0)


def each(kind: str, having: str = "id") -> Any:
    """A parameter `case` for every case of a kind that has this field."""
    found = [case for case in cases(kind) if having in case]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def test_there_are_more_than_a_hundred_and_each_has_its_name() -> None:
    names = {kind: [case["id"] for case in cases(kind)] for kind in hostile.KINDS}
    assert all(len({*ids}) == len(ids) > 20 for ids in names.values())
    assert sum(len(names[kind]) for kind in ("pages", "pictures", "questions", "addresses")) > 100


# --- pages ------------------------------------------------------------------------------------------------------------


@each("pages")
def test_a_page_is_words_or_refused(case: Case, tmp_path: Path) -> None:
    reply = httpx.Response(200, headers={"content-type": text(case["type"])}, content=page(case))
    try:
        read = main_text(reply)
    except ToolError as error:
        assert "reads" not in case, error
        return
    assert not case.get("refused") and len(read) <= MAX_CHARS
    row = {"page": read, "title": text(case.get("title", ""))}
    write_rows(tmp_path / "rows.jsonl", [row, row])
    assert read_rows(tmp_path / "rows.jsonl", "write it first") == [row, row]
    clean = sanitise(read)
    assert harm(clean) == "" and case.get("reads", "") in clean
    assert not [part for part in case.get("never", ()) if part in clean]
    assert render_observation(clean).count("</information>") == 1


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The addresses that anything connects to; names lead where the hostile set says, and nobody is asked for them."""
    told = {}
    for case in cases("addresses"):
        if "resolves" in case:
            told |= dict.fromkeys(hosts(text(case["url"])), case["resolves"])
    found, connect, lookup = [], socket.socket.connect, socket.getaddrinfo

    def looked_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> list:
        if (name := host.decode() if isinstance(host, bytes) else host) in told:
            if not told[name]:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in told[name]]
        return lookup(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)

    def connected(self: socket.socket, address: Any) -> None:
        found.append(address)
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(socket.socket, "connect", connected)
    yield found


def hosts(url: str) -> list[str]:
    """The host of an address in the spellings that a client may look up."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return []
    return [parsed.host, parsed.raw_host.decode()]


@each("addresses")
def test_an_address_inside_or_of_nowhere_is_never_reached(case: Case, reached: list[Any]) -> None:
    with pytest.raises(ToolError) as refused:
        PageReader(Door(), FROM_WEB).read(text(case["url"]))
    assert reached == [] and "\n" not in str(refused.value)


def test_links_to_anywhere_in_one_answer_cost_their_pages_alone(reached: list[Any]) -> None:
    links = [text(case["url"]).encode("utf-8", "replace").decode() for case in cases("addresses")]
    rows = [{"title": f"T{n}", "link": link, "snippet": "words"} for n, link in enumerate(links)]
    with local_web() as web:
        web.play(says(200, {"organic": rows}))
        engine = moved(TEXT_ENGINES["serper"], web.url)
        found = WebSearch(engine, Door(), PageReader(Door(), FROM_WEB), names={"ke"}).search("flag", 100)
        assert {address[1] for address in reached} == {int(web.url.rpartition(":")[2])} and len(web.seen) == 1
    assert len(found) > 40 and all(hit.text == "words" for hit in found)


@pytest.mark.parametrize("address", ["fec0::1", "feff:ffff::1", "168.63.129.16", "::ffff:168.63.129.16"])
def test_what_only_looks_public_is_not(address: str) -> None:
    assert not is_global(address)


# --- pictures ---------------------------------------------------------------------------------------------------------


@each("pictures")
def test_a_picture_is_seen_as_it_is_or_refused_in_a_sentence(case: Case) -> None:
    try:
        seen = read_picture(picture(case))
    except ValueError as error:
        assert "reads" not in case, error
        assert case.get("refused", "") in str(error) and " at 0x" not in str(error) and "\n" not in str(error)
        return
    assert "refused" not in case and seen.mode == "RGB"
    assert seen.width * seen.height <= MAX_PIXELS and max(seen.size) <= THINNEST * min(seen.size)
    assert list(seen.size) == case.get("reads", [*seen.size])
    assert list(seen.getpixel((0, 0))) == case.get("pixel", [*seen.getpixel((0, 0))])
    tiny().frame(seen)  # a policy can look at it


# --- questions --------------------------------------------------------------------------------------------------------


@each("questions")
def test_a_question_is_words_in_every_prompt(case: Case) -> None:
    words, blank = text(case["text"]), Image.new("RGB", (28, 28))
    task, plain = (Task("q", question, blank, ("Kenya",)) for question in (words, "Whose flag?"))
    prompts = PRESET.prompts

    def asked(task: Task) -> list[list[dict]]:
        about = {"question": task.question, "pages": task.question}
        return [
            first_messages(task, prompts),
            conversation(prompts.direct, question=task.question),
            conversation(prompts.rag, **about),
        ]

    for hostile_one, plain_one in zip(asked(task), asked(plain)):
        rendered = [rendered_for_policy(messages) for messages in (hostile_one, plain_one)]
        assert special_tokens(rendered[0]) == special_tokens(rendered[1])
        said = hostile_one[0]["content"][1]["text"]
        assert not any(0xD800 <= ord(c) <= 0xDFFF for c in said)


def rendered_for_policy(messages: Sequence[dict]) -> str:
    return tiny().tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


# --- what models write ------------------------------------------------------------------------------------------------


@each("turns")
def test_a_turn_is_read_strictly(case: Case) -> None:
    try:
        action = parse_turn(text(case["text"])).action
    except ProtocolError:
        assert not case.get("reads")
        return
    assert "reads" not in case or getattr(action, "text", None) == case["reads"]


@each("verdicts")
def test_a_verdict_is_one_object_or_none(case: Case) -> None:
    label, why = read_verdict(text(case["text"]))
    assert label == case["label"] and len(why) <= 200


@each("answers")
def test_an_answer_is_right_or_wrong(case: Case) -> None:
    assert exact_match(text(case["answer"]), case["golds"]) is case["right"]


# --- tools of one's own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools() -> Tools:
    return open_tools(PRESET, tiny())


def test_the_local_tools_lose_nothing(tools: Tools) -> None:
    found = list(hostile.attempts(tools))
    assert len(found) > 200 and [attempt for attempt in found if attempt[1]] == []


class Careless:
    """A tool that raises what tools must not, and returns what nobody can write or draw."""

    def search(self, query: object, k: int) -> list[Hit]:
        if not isinstance(query, str):
            return [Hit("a", "A", "words", float("nan"))]
        return [Hit("a", query.split()[1], "", 1.0)]

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        return hits[0].text

    def locate(self, picture: Image.Image, expression: str) -> tuple[int, int, int, int]:
        return tuple(map(int, expression.split()))


@pytest.mark.parametrize(
    ("part", "said"),
    [("text", "IndexError"), ("image", "cannot be written"), ("grounder", "ValueError")],
)
def test_a_careless_tool_is_named(tools: Tools, part: str, said: str) -> None:
    found = hostile.attempts(replace(tools, **{"grounder": OracleGrounder({}), part: Careless()}))
    assert any(said in wrong for _, wrong in found)


def test_the_script_for_ones_own_tools_counts(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile, "own", lambda: replace(tools, text=Careless()), raising=False)
    monkeypatch.setattr(hostile, "attempts", lambda tools: iter([("a", ""), ("b", "KeyError: 'b'")]))
    assert hostile.main("hostile:own") == 1
    assert capsys.readouterr().out == "b: KeyError: 'b'\ntried 2, lost 1\n"
