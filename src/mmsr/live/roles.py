"""What large models do: judge answers, sum up what was found, sort questions, play (paper §3.2 to §3.4, §4).

    judge = ModelJudge(ChatModel("gpt-4o"), door)
    judge.verdict("What is the capital?", ["Nairobi"], "It is Nairobi.")    # -> Verdict("correct", exact=False, …)
    LLMSummariser(ChatModel("gpt-4o"), door, "text_summary").summarise(question, query, hits)
    label_field(Chat(ChatModel("gpt-4o"), door, "fields"), question)        # -> "Geography"
    LLMTeacher(Chat(ChatModel("gemini-2.5-pro"), door, "teacher")).play(task, env)    # -> a trajectory
    evaluate.direct(Rival(Chat(ChatModel("gpt-5"), door, "rival gpt-5")), exam, size)    # a workflow of notebook 04

Their prompts are those of `assets/prompts/`. Each method that asks a model raises the errors of `live.limits`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mmsr.env import SearchEnv, Tools, Trajectory, TurnRecord
from mmsr.live.door import Door
from mmsr.live.models import THOUGHTS, Chat, ChatModel
from mmsr.presets import Prompts, read_prompt
from mmsr.protocol import is_blank, sanitise
from mmsr.reward import LABELS, Label, Verdict, exact_match
from mmsr.task import Asked, Task
from mmsr.teacher import Player
from mmsr.tools.base import Hit, Summariser, ToolError, in_parallel
from mmsr.tools.summary import longest

Row = tuple[str, Sequence[str], str]  # question, gold answers, answer
JUDGE = read_prompt("judge")
FIELDS = tuple(read_prompt("fields").split("\n"))  # of knowledge, over which a data set is balanced (paper §3.3)
END = "</information>"
TURNS = {"start": "first_turn", "img_search": "after_image_search", "text_search": "after_text_search"}
# Every spelling of an angle bracket, and the signs that look like several.
ANGLES = str.maketrans(
    dict.fromkeys("<＜﹤", "‹") | dict.fromkeys(">＞﹥", "›") | {"≪": "‹‹", "≫": "››", "⋘": "‹‹‹", "⋙": "›››"}
)


def as_data(text: str) -> str:
    """Text to go between a prompt's <<< and >>>: it can neither close them nor spell a model's special tokens."""
    return text.translate(ANGLES)


def _reply(chat: Chat, prompt: str) -> str:
    return chat.complete([{"role": "user", "content": prompt}]).text


def _after_thoughts(text: str) -> str:
    """The text after `</think>`, whose opening tag some endpoints leave out; not for verdicts, which may quote it."""
    return text.rpartition("</think>")[2].strip()


class ModelJudge:
    """`reward.Judge` by a large model at temperature 0. Safe between threads."""

    def __init__(self, model: ChatModel, door: Door) -> None:
        self.chat, self.workers = Chat(replace(model, temperature=0.0), door, "judge"), model.workers
        self.settings = {"model": model.model, "prompt": hashlib.sha256(JUDGE.encode()).hexdigest()[:12]}
        self._kept: dict[Row, Verdict] = {}
        self._counted: list[str] = []  # each a name of `counts`; appending to a list is safe between threads
        self._asking = threading.Lock()

    def verdict(self, question: str, golds: Sequence[str], answer: str) -> Verdict:
        """The verdict on one answer, always asked for anew; a reply that cannot be read gives the label None."""
        if is_blank(answer):
            return self._count(Verdict("not_attempted", False, "no answer"))
        prompt = JUDGE.format(question=as_data(question), golds=as_data(" | ".join(golds)), answer=as_data(answer))
        label, why = read_verdict(_reply(self.chat, prompt))
        return self._count(Verdict(label, exact_match(answer, golds), why))

    def verdicts(self, rows: Sequence[Row]) -> list[Verdict]:
        """The verdicts on rows, in order, asked for side by side, each once; a failed call gives the label None."""
        rows = [(question, tuple(golds), answer) for question, golds, answer in rows]
        with self._asking:
            new = [row for row in dict.fromkeys(rows) if row not in self._kept]
            for row, found in zip(new, in_parallel(lambda row: self.verdict(*row), new, self.workers)):
                if isinstance(found, ToolError):
                    found = self._count(Verdict(None, exact_match(row[2], row[1]), str(found)), "failed")
                self._kept[row] = found
            return [self._kept[row] for row in rows]

    def counts(self) -> dict[str, int]:
        """Verdicts by label, "unreadable" replies and "failed" calls, and how many answers match exactly."""
        return {name: self._counted.count(name) for name in (*LABELS, "unreadable", "failed", "exact")}

    def _count(self, verdict: Verdict, without_label: str = "unreadable") -> Verdict:
        self._counted.extend([verdict.label or without_label] + ["exact"] * verdict.exact)
        return verdict


def read_verdict(reply: str) -> tuple[Label | None, str]:
    """Label and reason in a judge's reply: one JSON object alone, but for thoughts before it or a code fence.

    Anything else may be quoted from the answer: (None, the reply's start).
    """
    text = THOUGHTS.sub("", reply, count=1).strip()
    fenced = re.fullmatch(r"```(?:json)?(.*)```", text, re.DOTALL | re.IGNORECASE)
    try:
        said = json.loads(fenced[1] if fenced else text, object_pairs_hook=_each_once)
        label = said["verdict"].lower()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None, reply[:200]
    return (label, str(said.get("why", ""))[:200]) if label in LABELS else (None, reply[:200])


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it gives a name twice: one of the two would be passed over."""
    if len(found := {name.lower(): value for name, value in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return found


class LLMSummariser:
    """`base.Summariser` by a large model, of pages in 10 to 12 sentences or picture matches in 4 to 5, by `prompt`."""

    def __init__(self, model: ChatModel, door: Door, prompt: str) -> None:
        self.chat, self.prompt = Chat(model, door, "summary"), read_prompt(prompt)

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        """What the hits say that bears on the question."""
        if not hits:
            return "Nothing was found."
        shown = [f"<<<{as_data(hit.title)}\n{as_data(hit.text)}>>>" for hit in hits]
        results = "\n\n".join(f"Result {rank}: {hit}" for rank, hit in enumerate(shown, 1))
        known = {"question": as_data(question), "query": as_data(query), "results": results}
        return _after_thoughts(_reply(self.chat, self.prompt.format(**known)))


@dataclass(frozen=True)
class Shortened:
    """Another summariser's text, cut to at most `budget` tokens of the policy: at a sentence, a word or a letter."""

    summariser: Summariser
    count_tokens: Callable[[str], int]
    budget: int

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        """The summary as far as it fits."""
        text = self.summariser.summarise(question, query, hits)
        if self._fits(text):
            return text
        units = ((re.split(r"(?<=[.!?])\s+", text), " "), (text.split(), " "), (text, ""))
        return next(filter(None, (longest(pieces, joint, self._fits) for pieces, joint in units)), "")

    def _fits(self, text: str) -> bool:
        return self.count_tokens(text) <= self.budget


def label_field(chat: Chat, question: Asked) -> str:
    """The field of a question that comes without a taxonomy, as the paper's teacher labels it; "" for no clear one."""
    known = {"question": as_data(question.text), "answer": as_data(question.answer), "fields": "; ".join(FIELDS)}
    return read_field(_after_thoughts(_reply(chat, read_prompt("field").format(**known))))


def read_field(reply: str) -> str:
    """The one field that a reply names; "" where it names none or several."""
    named = [name for name in FIELDS if name.lower() in reply.lower()]
    return named[0] if len(named) == 1 else ""


class LLMTeacher:
    """The teacher as the paper has it (§3.3, Gemini-2.5-Pro): it plays whole episodes against the tools.

    What it writes is parsed like any policy's turn: a broken one gets an error back, and may fail the episode. It reads
    the policies' prompts with advice on when to search; the trajectory, from which the policy will learn, holds them
    without it; a rival is not `advised`. `seed` goes with every call. Safe between threads.
    """

    def __init__(self, chat: Chat, seed: int = 0, advised: bool = True) -> None:
        self.chat, self.seed, self.advised = chat, seed, advised

    def play(self, task: Task, env: SearchEnv, sample: int = 0) -> Trajectory:
        """Play a task to its end in `env`, which holds it; `sample` tells repeated episodes of one task apart."""
        question = sanitise(task.question)
        first = {"type": "text", "text": turn_prompt(question, advised=self.advised)}
        messages = [{"role": "user", "content": [{"type": "image", "image": task.picture}, first]}]
        while not env.trajectory.end:
            completion = self.chat.complete(messages, seed=self.seed + sample)
            text = _after_thoughts(completion.text)
            env.step(text)
            turn = env.trajectory.turns[-1]
            turn.replay_keys.insert(0, completion.key)
            read = _next(question, turn, self.advised)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": read}]
        return env.trajectory

    def player(self, workers: int = 8) -> Player:
        """This teacher as the data building sees it, playing `workers` episodes at once."""
        model, prompts = self.chat.model, "".join(turn_prompt("", before) for before in TURNS)
        written = hashlib.sha256(prompts.encode()).hexdigest()[:16]
        settings = {"teacher": model.model, "temperature": model.temperature, "teacher_prompts": written}
        return Player(settings, lambda question, task, env: self.play(task, env), workers)


class Rival:
    """A large model as a workflow of notebook 04, with tools or without (paper Table 1: GPT-4o, o3).

    A call that failed counts as no answer, and is reported; what cannot be mended by asking again is raised.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat, self.name = chat, chat.model.model.replace("/", "_")

    def ask(self, asked: Sequence[tuple[Image.Image, list[dict]]], batch_size: int = 0) -> list[str]:
        """What it answers in each conversation, as `Policy.ask`; its workers say how many it answers at once."""

        def one(conversation: tuple[Image.Image, list[dict]]) -> str:
            picture, messages = conversation
            shown = {"type": "image", "image": picture}
            parts = [[shown if part["type"] == "image" else part for part in m["content"]] for m in messages]
            told = [message | {"content": content} for message, content in zip(messages, parts)]
            return _after_thoughts(self.chat.complete(told).text)

        answers = in_parallel(one, asked, self.chat.model.workers)
        self._tell(answers)
        return ["" if isinstance(answer, ToolError) else answer for answer in answers]

    def play(self, tasks: Sequence[Task], tools: Tools, prompts: Prompts) -> list[Trajectory]:
        """The protocol, explained as it is to the base (the paper's prompted agent), with all tools."""
        player = LLMTeacher(self.chat, advised=False)
        episodes = [SearchEnv(tools, prompts, task) for task in tasks]
        self._tell(in_parallel(lambda env: player.play(env.task, env), episodes, self.chat.model.workers))
        return [env.trajectory for env in episodes]

    def _tell(self, results: Sequence[Any]) -> None:
        if failed := [result for result in results if isinstance(result, ToolError)]:
            print(f"{self.name}: {len(failed)} of {len(results)} were not answered. The first: {failed[0]}", flush=True)


def turn_prompt(question: str, before: str = "start", advised: bool = True) -> str:
    """The prompt of a turn as the policies have it, with advice on when to search; `before` is the action before it."""
    return read_prompt(TURNS[before], read_prompt("teacher_advice") if advised else "").format(question=question)


def _next(question: str, turn: TurnRecord, advised: bool) -> str:
    """What the teacher reads after a turn: what came back, and its own prompt in place of the policy's."""
    found, end, _ = turn.observation.partition(END)
    if turn.error or not end:
        return turn.observation
    return f"{found}{end}\n{turn_prompt(question, turn.action, advised)}"
