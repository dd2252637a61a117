"""Put an experiment together from a preset: policy, tools, environment (what every notebook starts with)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mmsr.env import Limits, SearchEnv, Task, Tools
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.tools.base import Grounder
from mmsr.tools.ground import BaseGrounder
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.summary import ExtractiveSummariser
from mmsr.tools.text import LocalTextSearch
from mmsr.world.data import World


def local_tools(preset: Preset, policy: Policy, world: World) -> Tools:
    """The offline engines, the frozen base as grounder, extractive summaries in the preset's budget."""
    summary = ExtractiveSummariser(policy.count_tokens, preset.observation_tokens)
    return Tools(
        text=LocalTextSearch(world),
        image=LocalImageSearch(world),
        grounder=BaseGrounder(policy, preset.prompts.locate),
        text_summary=summary,
        image_summary=summary,
        to_picture=policy.to_picture,
        special_tokens=tuple(policy.tokenizer.all_special_tokens),
    )


def env_factory(
    preset: Preset, tools: Tools, tasks: Sequence[Task], grounder: Grounder | None = None
) -> Callable[[], SearchEnv]:
    """Makes environments over these tasks, with another grounder where one is given."""
    chosen = replace(tools, grounder=grounder) if grounder else tools
    by_id = {task.id: task for task in tasks}
    return lambda: SearchEnv(chosen, preset.prompts, Limits(), by_id)
