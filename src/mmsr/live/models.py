"""Large models over any OpenAI-compatible endpoint: chat, tokens, dollars (their roles are in `live.roles`).

    model = ChatModel("gpt-4o", price_in=2.5, price_out=10.0)    # or base_url="http://127.0.0.1:8000/v1", key_env=""
    chat = Chat(model, door, role="teacher")
    chat.complete([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "…"}]}])

Pictures are recorded by the hash of their pixels; tokens and dollars are counted alike live and in replay. The client
is our own and not the openai package, whose HTTP stack (httpx2) cannot serve the door's transports.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from mmsr.live.door import Door, Service, json_text, understood
from mmsr.live.engines import base64_jpeg
from mmsr.live.limits import BadAnswer, Limits, Refused, SetUpFirst, Unavailable
from mmsr.live.record import Call
from mmsr.tools.base import USAGE
from mmsr.tools.picture import picture_key

Message = Mapping[str, Any]
VERSION = 1
PATIENCE = Limits(total=300.0, attempt=120.0, tries=5, first_wait=1.0)
# Providers word limits per minute as quotas too; only these words mean that money must be paid first.
USED_UP = "insufficient_quota|insufficient balance|credit|billing.hard|payment required"
# The words in which endpoints refuse a parameter, and a model; those of `wire.send` for an address where nothing is.
REFUSED = {
    "max_tokens": r"(?i)max_completion_tokens|un(support|recogni|know).*max_tokens|max_tokens.*not (support|permit)",
    "temperature": r"(?i)\btemperature\b",
    "seed": r"(?i)\bseed\b",
}
UNKNOWN = re.compile(
    r"HTTP 404|(invalid|unknown|no such) model|model\b.{0,60}(not found|not exist|not a valid)|access to model",
    re.IGNORECASE,
)
UNREACHED = "could not be reached"
THOUGHTS = re.compile(r"\A\s*<(think|thinking)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
TAKEN = re.compile(r"after (\d+) \+ (\d+) tokens")  # what a reply without text has cost is said in its error alone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatModel:
    """A model behind an endpoint: its name there, the key's environment variable ("" for none), prices and settings.

    Prices are US dollars per million tokens. `extra` is merged into every request; None takes a field out of it.
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

    def service(self, role: str) -> Service:
        """The endpoint, asked in a role."""
        key = {"key_env": self.key_env, "key_header": "Authorization"}
        return Service(role, self.base_url, **key, rate=self.rate, quota=USED_UP, limits=self.limits)


@dataclass(frozen=True)
class Completion:
    """One answer: its text, why it ended ("stop", "length", …), its tokens, what it costs and the key of its record."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    key: str


class Chat:
    """One model in one role ("teacher", "judge", "summary"). Safe between threads."""

    def __init__(self, model: ChatModel, door: Door, role: str) -> None:
        self.model, self.door, self.role = model, door, role
        self._usage, self._lock = Counter(calls=0, prompt_tokens=0, completion_tokens=0, cost=0.0), threading.Lock()
        self._instead: dict[str, Any] = {}  # what is sent in place of parameters that the model has refused

    def complete(self, messages: Sequence[Message], seed: int | None = None) -> Completion:
        """The model's answer to a chat of messages as above; `seed` tells repeated samples of one chat apart.

        Raises BadAnswer for a reply without text, whose tokens count too, and SetUpFirst for an unknown model or an
        address where nothing has answered yet.
        """
        model, path = self.model, "/chat/completions"
        asked = {"model": model.model, "temperature": model.temperature, "max_tokens": model.max_tokens, "seed": seed}
        asked = {name: value for name, value in {**asked, **model.extra}.items() if value is not None}
        parts = [part for message in messages for part in message["content"] if isinstance(part, Mapping)]
        hashes = tuple(picture_key(part["image"]) for part in parts if part["type"] == "image")
        named = asked | {"messages": [_message(message, as_data=False) for message in messages]}
        call = Call(self.role, VERSION, f"POST {path}", named, hashes)

        def ask() -> str:
            sent = asked | {"messages": [_message(message, as_data=True) for message in messages]}
            with self.door.budget.room(self.role):
                text = json_text(self._post(path, sent), self.role)
                answer = self._read(text, call.key)
                self.door.budget.add(self.role, answer.cost)
            if not answer.text:
                taken = f"{answer.finish[:40]!r} after {answer.prompt_tokens} + {answer.completion_tokens} tokens"
                said = f"{self.role} ({model.model}) gave no text: it ended with {taken}"
                raise BadAnswer(f"{said}. Raise llm_max_tokens, or the role's own, or name another model.")
            return text

        try:
            answer = self._read(self.door.answer(call, ask), call.key)
        except BadAnswer as error:
            if taken := TAKEN.search(str(error)):
                self._count(*map(int, taken.groups()))
            raise
        self._count(answer.prompt_tokens, answer.completion_tokens)
        return answer

    def usage(self) -> dict[str, float]:
        """Calls, tokens and dollars so far; a replayed call counts as it did when it was made."""
        with self._lock:
            return dict(self._usage)

    def _post(self, path: str, sent: Mapping[str, Any]) -> httpx.Response:
        """The reply. A parameter that the model refuses is changed for this and all later calls."""
        service = self.model.service(self.role)
        while True:
            body = {name: value for name, value in {**sent, **self._instead}.items() if value is not None}
            try:
                return self.door.open(service).post(path, json=body)
            except Refused as error:
                said = str(error)
                name = next((name for name in REFUSED if name in body and re.search(REFUSED[name], said)), "")
                if not name and UNKNOWN.search(said):
                    raise SetUpFirst(f"{said} Name a model that {service.base_url} has, or give llm_url.") from None
                if not name:
                    raise
                renamed = {"max_completion_tokens": body[name]} if name == "max_tokens" else {}
                self._instead |= {name: None, **renamed}
                logger.warning("%s refuses %s: %s is sent instead.", self.model.model, name, *renamed or ["nothing"])
            except Unavailable as error:
                if UNREACHED in str(error) and not self._usage["calls"]:
                    raise SetUpFirst(f"{error} Start {service.base_url}, or give another address as llm_url.") from None
                raise

    def _read(self, text: str, key: str) -> Completion:
        """A reply without the thoughts before it; its text is empty where it holds none."""
        with understood(self.role):
            answer = json.loads(text)
            choice, usage = (answer.get("choices") or [{}])[0], answer.get("usage") or {}
            content, finish = (choice.get("message") or {}).get("content"), str(choice.get("finish_reason"))
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content)
        said = THOUGHTS.sub("", content, count=1) if isinstance(content, str) else ""
        said = said.encode("utf-8", "replace").decode()
        return Completion(said if said.strip() else "", finish, *tokens, self._cost(*tokens), key)

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.model.price_in + completion_tokens * self.model.price_out) / 1e6

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        used = {"calls": 1, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        used["cost"] = self._cost(prompt_tokens, completion_tokens)
        with self._lock:
            self._usage.update(used)
        USAGE.note((self.role, used))


def _message(message: Message, as_data: bool) -> dict[str, Any]:
    """A message as the endpoint takes it; results of our tools are the user's words, as in the chat template."""

    def sent(part: Message) -> Message:
        if part["type"] == "text":
            return part
        url = f"data:image/jpeg;base64,{base64_jpeg(part['image'])}" if as_data else "picture"
        return {"type": "image_url", "image_url": {"url": url}}

    role, content = "user" if message["role"] == "tool" else message["role"], message["content"]
    return {"role": role, "content": content if isinstance(content, str) else [sent(part) for part in content]}
