"""What large models do besides play: judge answers, sum up what was found, sort questions (paper §3.2 to §3.4, §4).

    judge = ModelJudge(ChatModel("gpt-4o"), door)
    judge.verdict("What is the capital?", ["Nairobi"], "It is Nairobi.")    # -> Verdict("correct", exact=False, …)
    of_pages, of_pictures = summarisers(ChatModel("gpt-4o"), door)
    FieldLabeller(Chat(ChatModel("gpt-4o"), door, "fields"))(question)      # -> "Geography"

Their prompts are those of `assets/prompts/`. Each method that asks a model raises the errors of `live.limits`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mmsr.answers import exact_match
from mmsr.live.door import Door
from mmsr.live.models import Chat, ChatModel
from mmsr.presets import read_prompt
from mmsr.reward import LABELS, Label, Verdict
from mmsr.task import Asked
from mmsr.tools.base import Hit, ToolError, in_parallel

Row = tuple[str, Sequence[str], str]  # question, gold answers, answer
JUDGE = read_prompt("judge")
FIELDS = tuple(read_prompt("fields").split("\n"))  # of knowledge, over which a data set is balanced (paper §3.3)


def as_data(text: str) -> str:
    """Text for a prompt's <<< and >>>, which it cannot close."""
    return text.replace("<<<", "‹‹‹").replace(">>>", "›››")


def _reply(chat: Chat, prompt: str) -> str:
    return chat.complete([{"role": "user", "content": prompt}]).text


class ModelJudge:
    """`reward.Judge` by a large model at temperature 0. Safe between threads."""

    prompt_hash = hashlib.sha256(JUDGE.encode()).hexdigest()[:12]

    def __init__(self, model: ChatModel, door: Door) -> None:
        self.chat = Chat(replace(model, temperature=0.0), door, "judge")
        self.settings, self.workers = {"model": model.model, "prompt": self.prompt_hash}, model.workers
        self._kept: dict[Row, Verdict] = {}
        self._counts: Counter[str] = Counter()
        self._asking, self._counting = threading.Lock(), threading.Lock()

    def verdict(self, question: str, golds: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer, asked for anew; a reply that cannot be read is a label of None."""
        if not answer.strip():
            return self._count(Verdict("not_attempted", False, "no answer"))
        prompt = JUDGE.format(question=as_data(question), golds=as_data(" | ".join(golds)), answer=as_data(answer))
        label, why = read_verdict(_reply(self.chat, prompt))
        return self._count(Verdict(label, exact_match(answer, golds), why))

    def verdicts(self, rows: Sequence[Row]) -> list[Verdict]:
        """The verdicts on (question, golds, answer) rows, in order, asked for side by side; each different row once.

        They are kept for the life of the judge, also where a call failed: its label is None. Raises FatalToolError.
        """
        rows = [(question, tuple(golds), answer) for question, golds, answer in rows]
        with self._asking:
            new = [row for row in dict.fromkeys(rows) if row not in self._kept]
            for row, found in zip(new, in_parallel(lambda row: self.verdict(*row), new, self.workers)):
                self._kept[row] = self._failed(row, found) if isinstance(found, ToolError) else found
            return [self._kept[row] for row in rows]

    def counts(self) -> dict[str, int]:
        """Verdicts by label, "unreadable" replies and "failed" calls, and how many answers match exactly."""
        with self._counting:
            return {name: self._counts[name] for name in (*LABELS, "unreadable", "failed", "exact")}

    def _failed(self, row: Row, error: ToolError) -> Verdict:
        return self._count(Verdict(None, exact_match(row[2], row[1]), str(error)), "failed")

    def _count(self, verdict: Verdict, without_label: str = "unreadable") -> Verdict:
        with self._counting:
            self._counts[verdict.label or without_label] += 1
            self._counts["exact"] += verdict.exact
        return verdict


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


class LLMSummariser:
    """`base.Summariser` by a large model; `prompt` names the one for pages or for picture matches."""

    def __init__(self, model: ChatModel, door: Door, prompt: str) -> None:
        self.chat, self.prompt = Chat(model, door, "summary"), read_prompt(prompt)

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        """What the hits say that bears on the question."""
        if not hits:
            return "Nothing was found."
        results = "\n\n".join(
            f"Result {rank}: <<<{as_data(hit.title)}\n{as_data(hit.text)}>>>" for rank, hit in enumerate(hits, 1)
        )
        return _reply(self.chat, self.prompt.format(question=question, query=query, results=results)).strip()


def summarisers(model: ChatModel, door: Door) -> tuple[LLMSummariser, LLMSummariser]:
    """The two of an episode: of pages, in 10 to 12 sentences, and of picture matches, in 4 to 5."""
    return LLMSummariser(model, door, "text_summary"), LLMSummariser(model, door, "image_summary")


class FieldLabeller:
    """Sorts questions that come without a taxonomy into `FIELDS`, as the paper's teacher does."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def __call__(self, question: Asked) -> str:
        """The field, or "" where the reply names none or several."""
        known = {"question": as_data(question.text), "answer": as_data(question.answer), "fields": "; ".join(FIELDS)}
        prompt = read_prompt("field").format(**known)
        return read_field(_reply(self.chat, prompt))


def read_field(reply: str) -> str:
    """The one field that a reply names; "" where it names none or several."""
    named = [name for name in FIELDS if name.lower() in reply.lower()]
    return named[0] if len(named) == 1 else ""
