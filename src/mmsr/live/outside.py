"""Where a run's tools and large models are: the notebooks' parameters, checked, and the door to the outside they open.

    connection = connect(Sources.of(globals()), folder)      # in a notebook: its parameters, by their names
    tools = open_tools(size, policy, world, connection)      # setup.py
    judge = connection.judge                                 # `reward.Judge`: None means exact match
    record_usage(connection, folder, "04_evaluate")          # what was asked and spent

| parameter | value |
|---|---|
| search, search_url | "local" or an engine of `tools.web_text`; another address for it, such as `mmsr serve` gives |
| picture_search, picture_url | "local" or an engine of `tools.web_image`; another address for it |
| … "milvus" for either | the world in the Milvus at the address, or in the file (.db), that the second one gives |
| read_pages | whether the pages that a web engine names are read, or their snippets have to do |
| grounder | "base" (the frozen policy) or "dino" (Grounding DINO) |
| teacher, judge, summary | a model's name at the endpoint; "" for the script, exact match, the extractive summary |
| llm_url, llm_price_in, llm_price_out | an OpenAI-compatible endpoint, "" for OpenAI's; dollars per million tokens |
| record, mode | the file of the record; "live", "record" or "replay" (see `tools.replay`) |
| budget_calls, budget_money | what the whole run may spend outside, in calls and US dollars; 0 for no limit |

Keys come from the environment alone. At an engine's own address its key must be set; at another address it is sent if
it is set, and a server that needs none is taken for one's own: it costs nothing and is asked as fast as it answers.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmsr.env import Task
from mmsr.live.fetch import Service
from mmsr.live.limits import Budget
from mmsr.live.models import Chat, ChatModel, Judge, LLMSummariser, Verdict, summarisers
from mmsr.live.page import PageReader
from mmsr.live.replay import Outside
from mmsr.live.web_image import IMAGE_ENGINES, WebImageSearch
from mmsr.live.web_text import TEXT_ENGINES, Engine, WebTextSearch
from mmsr.results import record_metrics, write_json

LOCAL, MILVUS = "local", "milvus"
ADDRESS = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
GROUNDERS = ("base", "dino")
MODES = ("live", "record", "replay")
OWN_RATE = 100.0  # calls a second to a server of one's own
SPENT, USAGE = "outside/spent.json", "outside"  # within a run's folder


@dataclass(frozen=True)
class Sources:
    """The parameters of the table above. Raises ValueError, in one sentence, for values that do not go together."""

    search: str = LOCAL
    search_url: str = ""
    picture_search: str = LOCAL
    picture_url: str = ""
    read_pages: bool = True
    grounder: str = "base"
    teacher: str = ""
    judge: str = ""
    summary: str = ""
    llm_url: str = ""
    llm_price_in: float = 0.0
    llm_price_out: float = 0.0
    record: str = ""
    mode: str = "live"
    budget_calls: int = 0
    budget_money: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sources:
        """From a mapping that holds the parameters by their names, among others: a notebook's `globals()`."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})

    def __post_init__(self) -> None:
        _one_of("search", self.search, (LOCAL, MILVUS, *TEXT_ENGINES))
        _one_of("picture_search", self.picture_search, (LOCAL, MILVUS, *IMAGE_ENGINES))
        _one_of("grounder", self.grounder, GROUNDERS)
        _one_of("mode", self.mode, MODES)
        engines = {"search_url": self.search, "picture_url": self.picture_search, "llm_url": ""}
        for name, engine in engines.items():
            url = getattr(self, name)
            in_file = engine == MILVUS and url.endswith(".db")
            if (url and not in_file and not ADDRESS.fullmatch(url)) or (engine == MILVUS and not url):
                file = ", or a file that ends in .db" if engine == MILVUS else ""
                raise ValueError(f"{name} must be an address such as http://127.0.0.1:8765{file}, not {url!r}.")
        for engine, url in (("search", "search_url"), ("picture_search", "picture_url")):
            if getattr(self, url) and getattr(self, engine) == LOCAL:
                raise ValueError(f"{url} is given but {engine} is {LOCAL}: name the engine whose dialect it speaks.")
        for name in ("llm_price_in", "llm_price_out", "budget_calls", "budget_money"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0: got {getattr(self, name)}.")
        if bool(self.record) == (self.mode == "live"):
            what = "names a file, but mode is live" if self.record else f"names no file, but mode is {self.mode}"
            raise ValueError(f"record {what}: give both record=FILE and mode=record or mode=replay, or neither.")
        if self.budget_money and self.models and not (self.llm_url or self.llm_price_in or self.llm_price_out):
            raise ValueError("budget_money cannot hold without prices: give llm_price_in and llm_price_out.")

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the large models that are asked, each once."""
        return tuple(dict.fromkeys(name for name in (self.teacher, self.judge, self.summary) if name))

    @property
    def asks_outside(self) -> bool:
        """Whether a search or its summary is asked for outside."""
        return bool(self.engines() or self.summary)

    def chat_model(self, name: str) -> ChatModel:
        """The model of that name at the endpoint, with the prices of the parameters."""
        at = ChatModel(name, price_in=self.llm_price_in, price_out=self.llm_price_out)
        return replace(at, base_url=self.llm_url, key_env=_key_at(self.llm_url, at.key_env)) if self.llm_url else at

    def engines(self) -> list[Service]:
        """The services of the search engines that are asked."""
        chosen = [(TEXT_ENGINES, self.search, self.search_url), (IMAGE_ENGINES, self.picture_search, self.picture_url)]
        return [moved(engines[name], url).service for engines, name, url in chosen if name in engines]

    def check_keys(self) -> None:
        """Raises KeyRefused where a key is missing that a call would need; a replay needs none."""
        if self.mode == "replay":
            return
        for service in self.engines():
            service.key()
        for name in self.models:
            model = self.chat_model(name)
            Service(name, model.base_url, model.key_env).key()


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}: got {value!r}.")


def _key_at(url: str, key_env: str) -> str:
    """The variable of a key that is sent to another address than the engine's own: one that is set."""
    return key_env if os.environ.get(key_env) else ""


def moved(engine: Engine, url: str) -> Engine:
    """An engine at another address, as the head of this module says; at its own where `url` is empty."""
    if not url:
        return engine
    service = replace(engine.service, base_url=url, key_env=_key_at(url, engine.service.key_env))
    return replace(engine, service=service if service.key_env else replace(service, price=0.0, rate=OWN_RATE))


# --- what they open ---------------------------------------------------------------------------------------------------


class AnswerJudge:
    """`reward.Judge` by a large model: an answer is judged once; where no verdict can be read, exact match decides."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._kept: dict[tuple[str, str], Verdict] = {}
        self._lock = threading.Lock()

    def __call__(self, task: Task, answer: str) -> bool:
        return self.verdicts([(task, answer)])[0].correct

    def verdicts(self, pairs: Sequence[tuple[Task, str]]) -> list[Verdict]:
        """The verdicts on answers to tasks, in order, asked for side by side. Raises FatalToolError."""
        with self._lock:
            new = {(task.id, answer): task for task, answer in pairs if (task.id, answer) not in self._kept}
            rows = [(task.question, task.golds, answer) for (_, answer), task in new.items()]
            self._kept |= dict(zip(new, self.judge.verdicts(rows)))
            return [self._kept[task.id, answer] for task, answer in pairs]

    def counts(self) -> dict[str, int]:
        """Different answers judged: each label, "unreadable", "failed", and how many of them match exactly."""
        return self.judge.counts() | {"exact": sum(verdict.exact for verdict in self._kept.values())}


@dataclass(frozen=True)
class Connection:
    """What a notebook asks through: the door to the outside, the judge and the summarisers where models are named."""

    sources: Sources
    outside: Outside
    judge: AnswerJudge | None
    summaries: tuple[LLMSummariser, LLMSummariser] | None
    chats: list[Chat] = field(default_factory=list)  # all that were opened, for the account

    def chat(self, name: str, role: str) -> Chat:
        """A model of the endpoint in a role of its own, such as "teacher"."""
        self.chats.append(Chat(self.sources.chat_model(name), self.outside, role))
        return self.chats[-1]

    def text_search(self) -> WebTextSearch:
        """The web engine for text. Raises KeyError where search is local."""
        engine = moved(TEXT_ENGINES[self.sources.search], self.sources.search_url)
        return WebTextSearch(engine, self.outside, self._reader(self.sources.search_url))

    def picture_search(self) -> WebImageSearch:
        """The web engine for pictures. Raises KeyError where picture_search is local."""
        engine = moved(IMAGE_ENGINES[self.sources.picture_search], self.sources.picture_url)
        return WebImageSearch(engine, self.outside, self._reader(self.sources.picture_url))

    def _reader(self, own: str) -> PageReader | None:
        return PageReader(self.outside, own=own) if self.sources.read_pages else None


def connect(sources: Sources, folder: Path | None = None) -> Connection:
    """Open the door to the outside. What is spent is kept in the run's `folder`: all its notebooks share one budget.

    Raises KeyRefused for a missing key and FatalToolError for a record that is missing or cannot be used.
    """
    sources.check_keys()
    spent = folder / SPENT if folder else None
    budget = Budget(sources.budget_calls or None, sources.budget_money or None, spent)
    outside = Outside(sources.mode, Path(sources.record) if sources.record else None, budget)
    judge = AnswerJudge(Judge(sources.chat_model(sources.judge), outside)) if sources.judge else None
    summaries = summarisers(sources.chat_model(sources.summary), outside) if sources.summary else None
    chats = [*([judge.judge.chat] if judge else []), *(summary.chat for summary in summaries or ())]
    return Connection(sources, outside, judge, summaries, chats)


# --- the account ------------------------------------------------------------------------------------------------------


def record_usage(connection: Connection, folder: Path, notebook: str) -> str:
    """Write down what this notebook asked for outside, if anything, and return it in a few lines.

    `metrics.json` gets what is alike live, recorded and replayed: `outside/<notebook>/<back end>/asked`, tokens and
    dollars by role, and the judge's labels as `judge/<notebook>/<label>`. `outside/<notebook>.json`, for the manifest,
    also has the models, the hash of the judge's prompt and what the run has truly spent so far.
    """
    asked, spent = dict(sorted(connection.outside.asked.items())), connection.outside.budget.summary()
    if not asked:
        return "Nothing was asked outside."
    roles = _roles(connection.chats)
    values = {f"outside/{notebook}/{name}/asked": float(count) for name, count in asked.items()}
    for role, usage in roles.items():
        values |= {f"outside/{notebook}/{role}/{key}": usage[key] for key in ("tokens", "dollars")}
    kept: dict[str, Any] = {"asked": asked, "roles": roles, "spent_by_the_run": spent}
    if connection.judge:
        counts = connection.judge.counts()
        values |= {f"judge/{notebook}/{name}": float(count) for name, count in counts.items()}
        kept["judge"] = {"prompt_sha256": connection.judge.judge.prompt_hash, "counts": counts}
    record_metrics(folder, values)
    (folder / USAGE).mkdir(exist_ok=True)
    write_json(folder / USAGE / f"{notebook}.json", kept)
    return _told(asked, spent, kept.get("judge"))


def _roles(chats: Sequence[Chat]) -> dict[str, dict[str, Any]]:
    """Model, tokens and dollars of each role; the two summarisers are one role."""
    roles: dict[str, dict[str, Any]] = {}
    for chat in chats:
        usage, role = (
            chat.usage(),
            roles.setdefault(chat.role, {"model": chat.model.model, "tokens": 0, "dollars": 0.0}),
        )
        role["tokens"] += usage["prompt_tokens"] + usage["completion_tokens"]
        role["dollars"] = round(role["dollars"] + usage["cost"], 6)
    return roles


def _told(asked: Mapping[str, int], spent: Mapping[str, Mapping[str, float]], judge: Mapping[str, Any] | None) -> str:
    calls, dollars = (sum(one[key] for one in spent.values()) for key in ("calls", "money"))
    lines = ["asked outside: " + ", ".join(f"{name} {count}" for name, count in asked.items())]
    lines.append(f"spent by this run so far: {calls:.0f} calls, ${dollars:.4f}")
    if judge:
        counts = ", ".join(f"{name} {count}" for name, count in judge["counts"].items())
        lines.append(f"judge (prompt {judge['prompt_sha256']}): {counts}")
    return "\n".join(lines)
