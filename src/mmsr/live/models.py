"""Large models over any OpenAI-compatible endpoint: chat, tokens, dollars (their roles are in `live.roles`).

    model = ChatModel("gpt-4o", price_in=2.5, price_out=10.0)    # or base_url="http://127.0.0.1:8000/v1", key_env=""
    chat = Chat(model, door, role="teacher")
    chat.complete([{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "…"}]}])

Pictures are recorded by the hash of their pixels; tokens and dollars are counted alike live and in replay. The client
is our own and not the openai package, whose HTTP stack (httpx2) cannot serve the door's transports.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmsr.live.door import Door, Service, json_text, understood
from mmsr.live.engines import base64_jpeg
from mmsr.live.limits import BadAnswer, Limits
from mmsr.live.record import Call
from mmsr.tools.base import USAGE
from mmsr.tools.picture import picture_key

Message = Mapping[str, Any]
VERSION = 1
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

    def complete(self, messages: Sequence[Message], seed: int | None = None) -> Completion:
        """The model's answer to a chat of messages as above; `seed` tells repeated samples of one chat apart."""
        model, path = self.model, "/chat/completions"
        asked = {"model": model.model, "temperature": model.temperature, "max_tokens": model.max_tokens, "seed": seed}
        asked = {name: value for name, value in {**asked, **model.extra}.items() if value is not None}
        parts = [part for message in messages for part in message["content"] if isinstance(part, Mapping)]
        hashes = tuple(picture_key(part["image"]) for part in parts if part["type"] == "image")
        named = asked | {"messages": [_message(message, as_data=False) for message in messages]}
        call = Call(self.role, VERSION, f"POST {path}", named, hashes)

        def ask() -> str:
            sent = asked | {"messages": [_message(message, as_data=True) for message in messages]}
            text = json_text(self.door.open(model.service(self.role)).post(path, json=sent), self.role)
            self.door.budget.add(self.role, self._read(text, call.key).cost)
            return text

        answer = self._read(self.door.answer(call, ask), call.key)
        used = {"calls": 1} | {name: getattr(answer, name) for name in ("prompt_tokens", "completion_tokens", "cost")}
        with self._lock:
            self._usage.update(used)
        USAGE.note((self.role, used))
        return answer

    def usage(self) -> dict[str, float]:
        """Calls, tokens and dollars so far; a replayed call counts as when it was made."""
        with self._lock:
            return dict(self._usage)

    def _read(self, text: str, key: str) -> Completion:
        with understood(self.role):
            answer = json.loads(text)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            content, finish = choice["message"]["content"], str(choice.get("finish_reason"))
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str) or not content.strip():
            raise BadAnswer(f"{self.role} ({self.model.model}) gave no text: it ended with {finish[:40]!r}.")
        cost = (tokens[0] * self.model.price_in + tokens[1] * self.model.price_out) / 1e6
        return Completion(content.encode("utf-8", "replace").decode(), finish, *tokens, cost, key)


def _message(message: Message, as_data: bool) -> dict[str, Any]:
    """A message as the endpoint takes it; results of our tools are the user's words, as in the chat template."""

    def sent(part: Message) -> Message:
        if part["type"] == "text":
            return part
        url = f"data:image/jpeg;base64,{base64_jpeg(part['image'])}" if as_data else "picture"
        return {"type": "image_url", "image_url": {"url": url}}

    role, content = "user" if message["role"] == "tool" else message["role"], message["content"]
    return {"role": role, "content": content if isinstance(content, str) else [sent(part) for part in content]}
