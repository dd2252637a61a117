"""Large models over any OpenAI-compatible endpoint: chat, judge, summariser (paper §3.2, §3.4, §4).

    model = ChatModel("gpt-4o", price_in=2.5, price_out=10.0)    # or base_url="http://127.0.0.1:8000/v1", key_env=""
    chat = Chat(model, outside, role="teacher")
    chat.complete([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "…"}]}])
    judge = Judge(model, outside)
    judge.verdict("What is the capital?", ["Nairobi"], "It is Nairobi.")   # -> Verdict(label="correct", exact=False, …)

Every call goes through the record (`tools.replay`), by role, with pictures known by the hash of their pixels; retries,
time-outs and the budget are those of the web engines. Tokens and dollars are counted alike live and in replay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from mmsr.live.fetch import Client, Service
from mmsr.live.limits import BadAnswer, Limits
from mmsr.live.prompts import IMAGE_SUMMARY, JUDGE, TEXT_SUMMARY
from mmsr.live.replay import Call, Outside
from mmsr.live.web_image import base64_jpeg
from mmsr.stats import exact_match
from mmsr.tools.base import Hit, ToolError, in_parallel
from mmsr.tools.picture import picture_key

Message = Mapping[str, Any]
Label = Literal["correct", "incorrect", "not_attempted"]
T, R = TypeVar("T"), TypeVar("R")

VERSION = 1
LABELS: tuple[Label, ...] = ("correct", "incorrect", "not_attempted")
PATIENCE = Limits(total=300.0, attempt=120.0, tries=5, first_wait=1.0)
# Providers word limits per minute as quotas too; only these words mean that money must be paid first.
USED_UP = "insufficient_quota|insufficient balance|credit|billing.hard|payment required"


@dataclass(frozen=True)
class ChatModel:
    """A model behind an endpoint: its name there, the key's environment variable ("" for none), prices and settings.

    Prices are US dollars per million tokens. `extra` is merged into every request, and None takes a field out of it:
    reasoning models want {"max_tokens": None, "temperature": None, "max_completion_tokens": 4096}.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    price_in: float = 0.0
    price_out: float = 0.0
    max_tokens: int = 1024
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 8
    rate: float = 20.0
    limits: Limits = PATIENCE


@dataclass(frozen=True)
class Completion:
    """One answer: its text, why it ended ("stop", "length", …), its tokens, what it costs and the key of its record."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    key: str


@dataclass
class Usage:
    """Running totals of a role, for a run's manifest."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, completion: Completion) -> None:
        """Count one answer."""
        self.calls += 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.cost += completion.cost


_SPENT: ContextVar[dict[str, Usage] | None] = ContextVar("spent", default=None)


@contextlib.contextmanager
def spent() -> Iterator[dict[str, Usage]]:
    """What this thread's calls within the block use, by role: one episode's share of a long run's bill."""
    by_role: dict[str, Usage] = {}
    token = _SPENT.set(by_role)
    try:
        yield by_role
    finally:
        _SPENT.reset(token)


class Chat:
    """One model in one role ("teacher", "judge", "summary"). Safe between threads."""

    def __init__(self, model: ChatModel, outside: Outside, role: str) -> None:
        self.model, self.outside, self.role = model, outside, role
        self._usage, self._lock = Usage(), threading.Lock()
        service = Service(
            role,
            model.base_url,
            model.key_env,
            key_header="Authorization",
            key_prefix="Bearer ",
            rate=model.rate,
            quota=USED_UP,
            limits=model.limits,
        )
        self._client = Client(service, outside.budget)

    def complete(self, messages: Sequence[Message], seed: int | None = None) -> Completion:
        """The model's answer to a chat; `seed` tells repeated samples of one chat apart, in the record too.

        A message is {"role", "content"}; content is text or parts {"type": "text", "text"} and {"type": "image",
        "image": PIL picture}. Raises the errors of `tools.limits`, or ReplayMiss.
        """
        model = self.model
        settings = {
            "model": model.model,
            "temperature": model.temperature,
            "max_tokens": model.max_tokens,
            "seed": seed,
        }
        settings = {name: value for name, value in {**settings, **model.extra}.items() if value is not None}
        pictures = [
            p["image"] for m in messages if not isinstance(m["content"], str) for p in m["content"] if _shows(p)
        ]
        named = {**settings, "messages": [_message(m, lambda picture: "picture") for m in messages]}
        hashes = tuple(picture_key(picture) for picture in pictures)
        call = Call(self.role, VERSION, "POST /chat/completions", named, hashes)

        def ask() -> str:
            sent = {**settings, "messages": [_message(m, _data_address) for m in messages]}
            text = self._client.send("POST", "/chat/completions", json=sent).json_text(self.role)
            self.outside.budget.add(self.role, self._read(text, call.key).cost)
            return text

        completion = self._read(self.outside.answer(call, ask), call.key)
        with self._lock:
            self._usage.add(completion)
        by_role = _SPENT.get()
        if by_role is not None:
            by_role.setdefault(self.role, Usage()).add(completion)
        return completion

    def usage(self) -> dict[str, float]:
        """Calls, tokens and dollars so far; a replayed call counts as when it was made."""
        with self._lock:
            return asdict(self._usage)

    def _read(self, text: str, key: str) -> Completion:
        answer = json.loads(text)
        try:
            choice = answer["choices"][0]
            content, finish = choice["message"]["content"], str(choice.get("finish_reason"))
            usage = answer.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise BadAnswer(f"{self.role} answered in another format: it has no choices with a message.") from None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if not isinstance(content, str) or not content.strip():
            raise BadAnswer(f"{self.role} ({self.model.model}) gave no text: it ended with {finish[:40]!r}.")
        cost = (tokens[0] * self.model.price_in + tokens[1] * self.model.price_out) / 1e6
        return Completion(content.encode("utf-8", "replace").decode(), finish, *tokens, cost, key)


def _shows(part: Mapping[str, Any]) -> bool:
    return part["type"] == "image"


def _data_address(picture: Any) -> str:
    return f"data:image/jpeg;base64,{base64_jpeg(picture)}"


def _message(message: Message, address: Callable[[Any], str]) -> dict[str, Any]:
    """A message as the endpoint takes it; results of our tools are the user's words, as in the chat template."""
    role = "user" if message["role"] == "tool" else message["role"]
    if isinstance(message["content"], str):
        return {"role": role, "content": message["content"]}
    parts = [
        {"type": "image_url", "image_url": {"url": address(p["image"])}} if _shows(p) else {**p}
        for p in message["content"]
    ]
    return {"role": role, "content": parts}


def as_data(text: str) -> str:
    """Text for a prompt's <<< and >>>, which it cannot close."""
    return text.replace("<<<", "‹‹‹").replace(">>>", "›››")


# --- judge ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The judge's label (None where it gave none), whether the answer matches exactly, and the judge's few words."""

    label: Label | None
    exact: bool
    why: str = ""

    @property
    def correct(self) -> bool:
        """The label's word; exact match where there is no label (those are counted by `Judge.counts`)."""
        return self.exact if self.label is None else self.label == "correct"


class Judge:
    """Compares answers with gold answers at temperature 0. `prompt_hash` and the model name belong in every result."""

    prompt_hash = hashlib.sha256(JUDGE.encode()).hexdigest()[:12]

    def __init__(self, model: ChatModel, outside: Outside) -> None:
        self.chat = Chat(replace(model, temperature=0.0), outside, "judge")
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def verdict(self, question: str, golds: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer. Raises the errors of `tools.limits`; an unreadable reply is a label of None."""
        if not answer.strip():
            return self._count(Verdict("not_attempted", False, "no answer"))
        prompt = JUDGE.format(question=as_data(question), golds=as_data(" | ".join(golds)), answer=as_data(answer))
        reply = self.chat.complete([{"role": "user", "content": prompt}]).text
        label, why = read_verdict(reply)
        return self._count(Verdict(label, exact_match(answer, golds), why))

    def verdicts(self, rows: Sequence[tuple[str, Sequence[str], str]]) -> list[Verdict]:
        """Verdicts on (question, golds, answer) rows, side by side; a call that failed is a label of None, counted."""
        found = in_parallel(lambda row: self.verdict(*row), rows, self.chat.model.workers)
        return [self._failed(v, row) if isinstance(v, ToolError) else v for v, row in zip(found, rows)]

    def counts(self) -> dict[str, int]:
        """How many verdicts of each label, "unreadable" replies and "failed" calls there were."""
        with self._lock:
            return {name: self._counts[name] for name in (*LABELS, "unreadable", "failed")}

    def _count(self, verdict: Verdict, without_label: str = "unreadable") -> Verdict:
        with self._lock:
            self._counts[verdict.label or without_label] += 1
        return verdict

    def _failed(self, error: ToolError, row: tuple[str, Sequence[str], str]) -> Verdict:
        return self._count(Verdict(None, exact_match(row[2], row[1]), str(error)), "failed")


def read_verdict(reply: str) -> tuple[Label | None, str]:
    """Label and reason in a judge's reply, from its last JSON object; (None, the reply's start) where there is none."""
    for found in reversed(re.findall(r"\{[^{}]*\}", reply)):
        try:
            said = json.loads(found)
        except ValueError:
            continue
        if said.get("verdict") in LABELS:
            return said["verdict"], str(said.get("why", ""))[:200]
    return None, reply[:200]


# --- summariser -------------------------------------------------------------------------------------------------------


class LLMSummariser:
    """`base.Summariser` by a large model: `TEXT_SUMMARY` for pages, `IMAGE_SUMMARY` for picture matches."""

    def __init__(self, model: ChatModel, outside: Outside, prompt: str = TEXT_SUMMARY) -> None:
        self.chat, self.prompt = Chat(model, outside, "summary"), prompt

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        """What the hits say that bears on the question. Raises the errors of `tools.limits`."""
        if not hits:
            return "Nothing was found."
        results = "\n\n".join(
            f"Result {rank}: <<<{as_data(hit.title)}\n{as_data(hit.text)}>>>" for rank, hit in enumerate(hits, 1)
        )
        prompt = self.prompt.format(question=question, query=query, results=results)
        return self.chat.complete([{"role": "user", "content": prompt}]).text.strip()


def summarisers(model: ChatModel, outside: Outside) -> tuple[LLMSummariser, LLMSummariser]:
    """The two of an episode: of pages, in 10 to 12 sentences, and of picture matches, in 4 to 5."""
    return LLMSummariser(model, outside, TEXT_SUMMARY), LLMSummariser(model, outside, IMAGE_SUMMARY)
