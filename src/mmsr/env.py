"""SearchEnv: one episode of question, tools and answer, with the full trajectory kept (paper §3.1).

    env = SearchEnv(tools, prompts, task)
    observation = env.step("<reason>…</reason>\\n<img_search>the flag on the left</img_search>")
    env.trajectory            # turns, boxes, pages, scores, time

At most one image search and ten tool calls. After a turn that breaks the protocol the policy is told how, and the
episode goes on, but the turn is counted, and the reward's format part sees it. A turn whose tool failed counts as
valid, and its image search may be tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from mmsr.protocol import (
    Answer,
    Box,
    ImageSearch,
    Prompts,
    ProtocolError,
    TextSearch,
    Turn,
    conversation,
    parse_turn,
    render_observation,
    sanitise,
)
from mmsr.task import Task
from mmsr.tools.base import (
    KEYS,
    FatalToolError,
    Grounder,
    Hit,
    ImageRetriever,
    Summariser,
    TextRetriever,
    ToolError,
)
from mmsr.tools.ground import clamp

MAX_TURNS = 10  # searches of an episode; an example of the teacher has fewer turns
SEARCHES = ("text_search", "img_search")
STRANDED = 3  # failures in a row: where one call in twenty fails, chance brings this once in 8,000: tools are down


@dataclass(frozen=True)
class Tools:
    """What an episode can call. `to_picture` scales a box from the policy's frame to pixels of the picture."""

    text: TextRetriever
    image: ImageRetriever
    grounder: Grounder
    text_summary: Summariser
    image_summary: Summariser
    to_picture: Callable[[Sequence[float], Image.Image], Box]
    workers: int = 1  # episodes that may search side by side
    settings: Mapping[str, Any] = field(default_factory=dict)  # which engines these are, for the card of a data set


@dataclass(frozen=True)
class Rules:
    """What an episode may do (paper §3.1), and how many results a search returns."""

    tool_calls: int = MAX_TURNS
    image_searches: int = 1
    broken_turns: int = 3
    k: int = 5


@dataclass
class TurnRecord:
    """One turn: what was written, what it did, what came back. `error` says why it did not count as valid."""

    text: str
    action: str
    content: str = ""
    error: str = ""
    box: Box | None = None
    hits: list[dict] = field(default_factory=list)
    observation: str = ""
    replay_keys: list[str] = field(default_factory=list)  # of outside calls, to find them in the replay store
    seconds: float = 0.0
    failed: str = ""  # what a tool that gave no answer said
    doubts: list[tuple[int, int, float]] = field(default_factory=list)  # from, to in `text`: a token's probability


@dataclass
class Trajectory:
    """A whole episode. `answer` is empty where none was given; `end` is "answer", "broken" or "" (cut off)."""

    task_id: str
    turns: list[TurnRecord] = field(default_factory=list)
    answer: str = ""
    end: str = ""
    reward: dict[str, float] = field(default_factory=dict)

    def searches(self, kind: str = "") -> int:
        """Searches that were carried out: of "text_search", "img_search", or all."""
        return sum(turn.action in ((kind,) if kind else SEARCHES) for turn in self.turns if not turn.error)

    @property
    def stranded(self) -> int:
        """After how many turns STRANDED searches in a row had failed; 0 where they never had."""
        failures = 0
        for number, turn in enumerate(self.turns, 1):
            if turn.action in SEARCHES and not turn.error:
                failures = failures + 1 if turn.failed else 0
            if failures == STRANDED:
                return number
        return 0

    @property
    def valid_turns(self) -> int:
        return sum(not turn.error for turn in self.turns)

    @property
    def retrieved(self) -> list[str]:
        """Identifiers of everything a search returned, in order."""
        return [hit["id"] for turn in self.turns for hit in turn.hits]

    def as_dict(self) -> dict:
        return asdict(self)


class SearchEnv:
    """The episode of one task. `on_turn` is called after each turn, with its record and its number, counted from 1."""

    def __init__(
        self,
        tools: Tools,
        prompts: Prompts,
        task: Task,
        rules: Rules = Rules(),
        on_turn: Callable[[TurnRecord, int], None] = lambda record, number: None,
    ):
        self.task, self.trajectory = task, Trajectory(task.id)
        self._tools, self._prompts, self._rules, self._on_turn = tools, prompts, rules, on_turn

    def step(self, turn: str) -> str:
        """Play one turn of the policy, its whole text as generated, and return what it reads next.

        That is nothing where this turn ends the episode. Raises FatalToolError.
        """
        done = self.trajectory
        if done.end:
            return "The episode is over."
        began = time.perf_counter()
        record = self._play(turn)
        record.seconds = round(time.perf_counter() - began, 4)
        done.turns.append(record)
        if record.action == "answer" and not record.error:
            done.end, done.answer = "answer", record.content
        elif sum(bool(t.error) for t in done.turns) >= self._rules.broken_turns:
            done.end = "broken"
        self._on_turn(record, len(done.turns))
        return "" if done.end else record.observation

    def _play(self, text: str) -> TurnRecord:
        try:
            turn = parse_turn(text)
        except ProtocolError as error:
            return self._refusal(TurnRecord(text, "none", error=str(error)))
        if isinstance(turn.action, Answer):
            return TurnRecord(text, "answer", turn.action.text)
        if isinstance(turn.action, TextSearch):
            return self._search_text(text, turn.action.query)
        return self._search_image(text, turn)

    def _refusal(self, record: TurnRecord) -> TurnRecord:
        record.observation = render_observation(f"That turn did not count: {sanitise(record.error)}.")
        return record

    def _out_of_budget(self, kind: str) -> str:
        done = self.trajectory
        if done.searches() >= self._rules.tool_calls:
            return f"all {self._rules.tool_calls} searches are used up, so answer now"
        answered = done.searches(kind) - sum(turn.action == kind and bool(turn.failed) for turn in done.turns)
        if kind == "img_search" and answered >= self._rules.image_searches:
            return "the picture was already searched"
        return ""

    def _search_text(self, text: str, query: str) -> TurnRecord:
        record = TurnRecord(text, "text_search", query, error=self._out_of_budget("text_search"))
        if record.error:
            return self._refusal(record)
        return self._observe(record, self._tools.text, query, self._tools.text_summary, self._prompts.after_text)

    def _search_image(self, text: str, turn: Turn) -> TurnRecord:
        action: ImageSearch = turn.action
        content = ",".join(map(str, action.box)) if action.box else action.expression
        record = TurnRecord(text, "img_search", content, error=self._out_of_budget("img_search"))
        if record.error:
            return self._refusal(record)
        picture = self.task.picture
        found = None
        if action.box:
            found = self._tools.to_picture(action.box, picture)
        elif action.expression:
            found = self._tools.grounder.locate(picture, action.expression)
        record.box = found and clamp(found, picture)
        crop = picture.crop(record.box) if record.box else picture
        return self._observe(record, self._tools.image, crop, self._tools.image_summary, self._prompts.after_image)

    def _observe(self, record: TurnRecord, engine, query, summariser: Summariser, follow_up: str) -> TurnRecord:
        """Ask an engine and write down what the policy gets to read."""
        summary = look_up(record, engine, query, summariser, self.task.question, self._rules.k)
        prompt = follow_up.format(question=sanitise(self.task.question))
        record.observation = render_observation(summary, prompt)
        return record


def look_up(record: TurnRecord, engine, query, summariser: Summariser, question: str, k: int) -> str:
    """The summary of what an engine finds, sanitised; hits and keys of outside calls go into `record`.

    A tool's failure is reported in the summary, not hidden. Raises FatalToolError.
    """
    with KEYS.heard() as record.replay_keys:
        try:
            hits: list[Hit] = engine.search(query, k)
            summary = summariser.summarise(question, record.content, hits)
        except FatalToolError:
            raise
        except ToolError as error:
            hits, summary, record.failed = [], f"The search failed: {error}", str(error)
    record.hits = [{"id": h.id, "title": h.title, "score": h.score, "url": h.url} for h in hits]
    return sanitise(summary)


def first_messages(task: Task, prompts: Prompts) -> list[dict[str, Any]]:
    """The conversation before the policy's first turn: the picture and the question, which is outside text too."""
    return conversation(prompts.first_turn, question=task.question)
