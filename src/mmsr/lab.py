"""Put an experiment together from a preset: policy, tools, environment (what every notebook starts with)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mmsr.env import Limits, SearchEnv, Task, Tools
from mmsr.live.milvus import world_image_search, world_text_search
from mmsr.live.outside import LOCAL, MILVUS, Connection, Sources, connect
from mmsr.live.web_text import WorldHits
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.tools.base import Grounder, ImageSearch, TextSearch
from mmsr.tools.ground import BaseGrounder
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.summary import ExtractiveSummariser, Shortened
from mmsr.tools.text import LocalTextSearch
from mmsr.world.snapshot import World

WORKERS = 8  # searches side by side where they wait for the network; the engines' own pace still holds


def local_tools(preset: Preset, policy: Policy, world: World) -> Tools:
    """The offline engines, the frozen base as grounder, extractive summaries in the preset's budget."""
    return open_tools(preset, policy, world, connect(Sources()))


def open_tools(preset: Preset, policy: Policy, world: World, connection: Connection) -> Tools:
    """The tools that the parameters of a notebook name (`sources.Sources`), local where they name none."""
    if connection.summaries:
        shortened = [Shortened(s, policy.count_tokens, preset.observation_tokens) for s in connection.summaries]
        text_summary, image_summary = shortened
    else:
        text_summary = image_summary = ExtractiveSummariser(policy.count_tokens, preset.observation_tokens)
    return Tools(
        text=_text(world, connection),
        image=_image(world, connection),
        grounder=_grounder(preset, policy, connection.sources.grounder),
        text_summary=text_summary,
        image_summary=image_summary,
        to_picture=policy.to_picture,
        special_tokens=tuple(policy.tokenizer.all_special_tokens),
        workers=WORKERS if connection.sources.asks_outside else 1,
    )


def _text(world: World, connection: Connection) -> TextSearch:
    if connection.sources.search == LOCAL:
        return LocalTextSearch(world)
    if connection.sources.search == MILVUS:
        return world_text_search(world, connection.sources.search_url)
    engine = connection.text_search()
    return WorldHits(engine, world.pages) if connection.sources.search_url else engine


def _image(world: World, connection: Connection) -> ImageSearch:
    if connection.sources.picture_search == LOCAL:
        return LocalImageSearch(world)
    if connection.sources.picture_search == MILVUS:
        return world_image_search(world, connection.sources.picture_url)
    engine = connection.picture_search()
    return WorldHits(engine, {flag.iso for flag in world.flags}) if connection.sources.picture_url else engine


def _grounder(preset: Preset, policy: Policy, name: str) -> Grounder:
    if name == "dino":
        from mmsr.live.dino import DinoGrounder  # loads a detector of its own

        return DinoGrounder()
    return BaseGrounder(policy, preset.prompts.locate)


def adapter_of(folder: Path, adapters: str, stage: str) -> Path:
    """Where the adapter of a stage ("sft", "grpo") lies: in this run's folder, else in that of the run `adapters`.

    Raises FileNotFoundError, saying what to do, where neither has one.
    """
    places = [place / stage / "adapter" for place in (folder, *([Path(adapters)] if adapters else []))]
    for place in places:
        if place.is_dir():
            return place
    notebook = {"sft": "02", "grpo": "03"}[stage]
    raise FileNotFoundError(f"{places[-1]} is not there: run notebook {notebook} first, or give adapters=RUN.")


def env_factory(
    preset: Preset, tools: Tools, tasks: Sequence[Task], grounder: Grounder | None = None
) -> Callable[[], SearchEnv]:
    """Makes environments over these tasks, with another grounder where one is given."""
    chosen = replace(tools, grounder=grounder) if grounder else tools
    by_id = {task.id: task for task in tasks}
    return lambda: SearchEnv(chosen, preset.prompts, Limits(), by_id)
