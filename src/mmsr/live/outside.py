"""Where a run's tools and large models are: the notebooks' dictionary `outside`, checked, and what it opens.

size, outside = settings("tiny", {"grpo_steps": 8}, {"search": "serper", "judge": "gpt-4o"})
connection = connect(outside, folder)
connection.text_search(load_world()).search("Kenya capital", 5)
connection.judge                                         # `reward.Judge`: None means exact match
record_usage(connection, folder, "04_evaluate")          # what was asked and spent
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, Field, model_validator

from mmsr.files import write_json
from mmsr.live.door import Door, Mode
from mmsr.live.engines import IMAGE_ENGINES, TEXT_ENGINES, Engine, PageReader, WebSearch, moved, set_key
from mmsr.live.fusion import Fused
from mmsr.live.limits import Budget
from mmsr.live.milvus import world_image_search, world_text_search
from mmsr.live.models import Chat, ChatModel
from mmsr.live.roles import LLMSummariser, ModelJudge, Rival
from mmsr.live.wire import is_address
from mmsr.presets import Preset, get_preset, read_settings
from mmsr.results import record_metrics
from mmsr.tools.base import Corpus, ImageRetriever, TextRetriever

LOCAL, MILVUS = "local", "milvus"
TEXT_SOURCES = (LOCAL, MILVUS, *TEXT_ENGINES)
DOMAIN = re.compile(r"[\w-]+(\.[\w-]+)*")
ADDRESS = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
SPENT, USAGE = "outside/spent.json", "outside"  # within a run's folder
PATH = {"path": True}  # a field's mark: unless it holds an address, its path is relative to where the command runs
LOOSE = {"loose": True}  # it may change when a run goes on
ROLE = LOOSE | {"dictionary": True}  # and it is given as one


class RoleModel(BaseModel, frozen=True, extra="allow", allow_inf_nan=False):
    """Settings for the model of one role; any other key goes into each request, and null takes one out of it."""

    price_in: float | None = Field(None, ge=0)
    price_out: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)


class Outside(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What is asked outside, and where. Raises ValueError for values that do not go together.

    The keys of services come from the environment alone; at another address than an engine's own see `engines.moved`.
    """

    search: str = LOCAL  # one of TEXT_SOURCES, or several at once and fused, such as "serper+wikimedia"
    search_url: str = Field("", json_schema_extra=PATH)  # another address, such as that of `mmsr serve`; or Milvus
    picture_search: Literal[LOCAL, MILVUS, *IMAGE_ENGINES] = LOCAL
    picture_url: str = Field("", json_schema_extra=PATH)  # as search_url
    world: str = Field("", json_schema_extra=PATH)  # what `mmsr world index` made, "" for flags × factbook
    read_pages: bool = True  # whether to read the pages that a web engine names, or make do with snippets
    distrusted: str = ""  # domains, such as "example.org example.net": an answer that they alone support is marked
    grounder: Literal["base", "dino"] = "base"  # the frozen policy, or Grounding DINO
    teacher: str = ""  # a model's name at the endpoint, "" for the script
    teacher_workers: int = Field(8, ge=1, json_schema_extra=LOOSE)  # episodes side by side
    judge: str = ""  # a model's name, "" for exact match
    summary: str = ""  # a model's name, "" for the extractive summary
    rivals: str = Field("", json_schema_extra=LOOSE)  # models' names, "gpt-5 o3": notebook 04 plays them as workflows
    llm_url: str = Field("", json_schema_extra=LOOSE)  # an OpenAI-compatible endpoint, "" for OpenAI's
    llm_price_in: float = Field(0.0, ge=0)  # US dollars a million tokens
    llm_price_out: float = Field(0.0, ge=0)
    llm_max_tokens: int = Field(1024, ge=1, json_schema_extra=LOOSE)  # of a reply, with the thoughts before it
    teacher_llm: RoleModel = Field(RoleModel(), json_schema_extra=ROLE)  # of that role alone: {"max_tokens": 8192}
    judge_llm: RoleModel = Field(RoleModel(), json_schema_extra=ROLE)  # {"price_in": 1.25, "reasoning_effort": "low"}
    summary_llm: RoleModel = Field(RoleModel(), json_schema_extra=ROLE)
    rivals_llm: RoleModel = Field(RoleModel(), json_schema_extra=ROLE)  # of each of them
    record: str = Field("", json_schema_extra=PATH)  # the file of the record
    mode: Mode = "live"  # see `live.door`
    record_days: float = Field(0.0, ge=0, le=10_000, json_schema_extra=LOOSE)  # older answers are asked again; 0: none
    budget_calls: int = Field(0, ge=0, json_schema_extra=LOOSE)  # of the whole run; 0 for no limit
    budget_money: float = Field(0.0, ge=0, json_schema_extra=LOOSE)  # in US dollars

    @model_validator(mode="after")
    def _together(self) -> Outside:
        names = self.search.split("+")
        if {*names} - {*TEXT_SOURCES}:
            known = ", ".join(map(repr, TEXT_SOURCES))
            raise ValueError(f"outside: search must be {known}, or several of them joined by +, not {self.search!r}.")
        if len(names) > 1 and (self.search_url or MILVUS in names or len({*names}) < len(names)):
            raise ValueError(f"search={self.search}: each engine once, at its own address, and milvus only by itself.")
        for kind, key in (("search", "search_url"), ("picture_search", "picture_url"), ("llm", "llm_url")):
            url, engine = getattr(self, key), getattr(self, kind, "")
            if url and engine == LOCAL:
                raise ValueError(f"{key} is given but {kind} is {LOCAL}: name the engine whose dialect it speaks.")
            in_file = engine == MILVUS and url.endswith(".db")
            reachable = in_file or (ADDRESS.fullmatch(url) and is_address(url))
            if (url and not reachable) or (engine == MILVUS and not url):
                file = ", or a file that ends in .db" if engine == MILVUS else ""
                raise ValueError(f"{key} must be an address such as http://127.0.0.1:8765{file}, not {url!r}.")
        if wrong := [name for name in self.distrusted.split() if not DOMAIN.fullmatch(name)]:
            raise ValueError(f"distrusted must be domains such as 'example.org example.net', not {wrong[0]!r}.")
        if bool(self.record) == (self.mode == "live"):
            what = "names a file, but mode is live" if self.record else f"names no file, but mode is {self.mode}"
            raise ValueError(f"record {what}: give both record=FILE and mode=record or mode=replay, or neither.")
        if self.budget_money and any(not (m.price_in or m.price_out or self.llm_url) for m in self.models().values()):
            raise ValueError("budget_money cannot hold without prices: give llm_price_in and llm_price_out.")
        return self

    def models(self) -> dict[str, ChatModel]:
        """The large models that are asked, by role; of several rivals the first."""
        return {
            role: self.chat_model(role) for role in ("teacher", "judge", "summary", "rivals") if getattr(self, role)
        }

    def chat_model(self, role: str, number: int = 0) -> ChatModel:
        """A role's model at the endpoint, with the shared settings and its own; of several in a role, that number."""
        own, known = getattr(self, f"{role}_llm"), {*RoleModel.model_fields}
        name = getattr(self, role).split()[number] if role == "rivals" else getattr(self, role)
        at = ChatModel(name, price_in=self.llm_price_in, price_out=self.llm_price_out, max_tokens=self.llm_max_tokens)
        at = replace(at, extra=own.model_extra, **own.model_dump(include=known, exclude_none=True))
        return replace(at, base_url=self.llm_url, key_env=set_key(at.key_env)) if self.llm_url else at

    def engines(self) -> list[Engine | None]:
        """The search engines for text, one or several, then that for pictures; None where none is asked."""
        text = [(TEXT_ENGINES.get(name), self.search_url) for name in self.search.split("+")]
        every = [*text, (IMAGE_ENGINES.get(self.picture_search), self.picture_url)]
        return [engine and moved(engine, url) for engine, url in every]

    def distrusts(self, url: str) -> bool:
        """Whether an address belongs to a distrusted domain, or to one below it."""
        host = httpx.URL(url).host.rstrip(".") if is_address(url) else ""
        return any(f".{host}".endswith(f".{domain.lower()}") for domain in self.distrusted.split())

    def check_keys(self) -> None:
        """Raises KeyRefused where a key is missing that a call would need; a replay needs none."""
        services = [engine.service for engine in self.engines() if engine]
        services += [model.service(model.model) for model in self.models().values()]
        for service in services if self.mode != "replay" else ():
            service.key()


def settings(
    preset: str, sizes: Mapping[str, Any] | None = None, outside: Mapping[str, Any] | None = None
) -> tuple[Preset, Outside]:
    """The checked sizes and sources of an experiment. Raises ValueError, in one sentence, for what cannot be."""
    return get_preset(preset, sizes), read_settings(Outside, outside or {}, "outside")


@dataclass(frozen=True)
class Connection:
    """What a notebook asks through: the door to the outside, the judge and the summarisers where models are named."""

    outside: Outside
    door: Door
    judge: ModelJudge | None
    summaries: tuple[LLMSummariser, ...]  # of pages and of picture matches, or none
    chats: list[Chat] = field(default_factory=list)  # all that were opened, for the account

    def chat(self, role: str) -> Chat:
        """The teacher's model, as "teacher" or in another role, such as "fields"."""
        self.chats.append(Chat(self.outside.chat_model("teacher"), self.door, role))
        return self.chats[-1]

    def rivals(self) -> list[Rival]:
        """The large models that notebook 04 plays beside ours."""
        models = [self.outside.chat_model("rivals", number) for number in range(len(self.outside.rivals.split()))]
        chats = [Chat(model, self.door, f"rival {model.model.replace('/', '_')}") for model in models]
        self.chats.extend(chats)
        return list(map(Rival, chats))

    def text_search(self, world: Corpus) -> TextRetriever:
        """The engine for text, several fused, or the world's pages in Milvus, where search is not local."""
        (engine, *more), url = self.outside.engines()[:-1], self.outside.search_url
        if more:
            each = [WebSearch(one, self.door) if one else world.text_search() for one in (engine, *more)]
            return Fused(each, PageReader(self.door) if self.outside.read_pages else None)
        return self._web(engine, url, world.pages) if engine else world_text_search(world, url)

    def picture_search(self, world: Corpus) -> ImageRetriever:
        """The engine for pictures, or the world's pictures in Milvus, where picture_search is not local."""
        engine, url = self.outside.engines()[-1], self.outside.picture_url
        return self._web(engine, url, {flag.iso for flag in world.flags}) if engine else world_image_search(world, url)

    def _web(self, engine: Engine, url: str, names: Container[str]) -> WebSearch:
        """A web engine; at an address of one's own it may be `mmsr serve`, whose hits bear the world's names."""
        reader = PageReader(self.door, own=url) if self.outside.read_pages else None
        return WebSearch(engine, self.door, reader, names if url else ())


def connect(outside: Outside, folder: Path | None = None) -> Connection:
    """Open the door to the outside. What is spent is kept in the run's `folder`: all its notebooks share one budget.

    Raises KeyRefused for a missing key and FatalToolError for a record that is missing or cannot be used.
    """
    outside.check_keys()
    budget = Budget(outside.budget_calls or None, outside.budget_money or None, folder / SPENT if folder else None)
    door = Door(outside.mode, Path(outside.record) if outside.record else None, budget, outside.record_days)
    judge = ModelJudge(outside.chat_model("judge"), door) if outside.judge else None
    kinds = ("text_summary", "image_summary") if outside.summary else ()
    summaries = tuple(LLMSummariser(outside.chat_model("summary"), door, kind) for kind in kinds)
    return Connection(outside, door, judge, summaries, [role.chat for role in (judge, *summaries) if role])


def record_usage(connection: Connection, folder: Path, notebook: str) -> str:
    """Write down what this notebook asked for outside, if anything, and return it in a few lines.

    `metrics.json` gets what is the same live and replayed; `outside/<notebook>.json` also what the run has truly spent.
    """
    asked, spent = dict(sorted(connection.door.asked.items())), connection.door.budget.summary()
    if not asked:
        return "Nothing was asked outside."
    failed = {name: connection.door.failed[name] for name in asked}
    kept: dict[str, Any] = {"asked": asked, "failed": failed, "roles": {}, "spent_by_the_run": spent}
    values = {f"outside/{notebook}/{name}/asked": float(count) for name, count in asked.items()}
    values |= {f"outside/{notebook}/{name}/failed": float(count) for name, count in failed.items()}
    for chat in connection.chats:  # the two summarisers are one role
        usage, role = chat.usage(), kept["roles"].setdefault(chat.role, {"model": chat.model.model})
        role["tokens"] = role.get("tokens", 0) + usage["prompt_tokens"] + usage["completion_tokens"]
        role["dollars"] = round(role.get("dollars", 0.0) + usage["cost"], 6)
        values |= {f"outside/{notebook}/{chat.role}/{key}": role[key] for key in ("tokens", "dollars")}
    calls, dollars = (sum(one[key] for one in spent.values()) for key in ("calls", "money"))
    told = f"asked outside: {_list(asked)}\nspent by this run so far: {calls:.0f} calls, ${dollars:.4f}"
    if any(failed.values()):
        told += f"\nnot answered: {_list({name: count for name, count in failed.items() if count})}"
    if judge := connection.judge:
        kept["judge"] = {"prompt_sha256": judge.settings["prompt"], "counts": judge.counts()}
        values |= {f"judge/{notebook}/{name}": float(count) for name, count in judge.counts().items()}
        told += f"\njudge (prompt {judge.settings['prompt']}): {_list(judge.counts())}"
    record_metrics(folder, values)
    write_json(folder / USAGE / f"{notebook}.json", kept)
    return told


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
