"""The trained agent on any picture: one question, one episode, told turn by turn.

    mmsr ask flags.png "What is the capital of the country whose flag is on the left?" --html episode.html

    who = find_agent("tiny")                                # the shipped agent; or a run's, or an adapter folder's
    played = ask(who, Task("ask", question, read_file(path), golds=()), tell=print)

Offline it searches the flags and pages of the world and nothing else; with the keys of `live.outside.Outside`, the web.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers.utils import logging

from mmsr.env import Trajectory, TurnRecord
from mmsr.files import FileDamaged, read_json
from mmsr.lab import open_tools
from mmsr.live.outside import Outside, connect, settings
from mmsr.policy import TINY_DIR, Policy, load_policy
from mmsr.presets import Preset
from mmsr.results import check_adapter
from mmsr.reward import support
from mmsr.rollout import Sampling, play
from mmsr.runs import UsageError, refusing
from mmsr.runs.parameters import SETTINGS, sort
from mmsr.show.look import TAGS, words
from mmsr.show.transcript import blocks, facts, supporting
from mmsr.show.viewer import html_page
from mmsr.task import Task
from mmsr.tools.base import ToolError
from mmsr.tools.picture import read_picture

SHIPPED = TINY_DIR / "agent"  # LoRA weights of the reference run, after GRPO
MAX_BYTES = 50_000_000  # of a picture's file
LABEL, WIDTH = 18, 110  # columns: before a text, of a line
SHOWN = 3  # hits of a search that are named


class Agent(NamedTuple):
    """A policy's sizes, its adapter (None where the base itself is asked with the protocol's prompt), and its tools."""

    preset: Preset
    adapter: Path | None
    outside: Outside


def find_agent(
    preset: str = "", run: Path | None = None, adapter: Path | None = None, given: Mapping[str, Any] | None = None
) -> Agent:
    """The agent of a run, of a folder of LoRA weights, or the shipped one (preset "tiny").

    `given` are fields of `Preset` and `Outside`, as text or typed; preset and sizes are the run's where they are not
    given. Raises UsageError, saying what is missing.
    """
    kept, sizes = _run_settings(run) if run else ("tiny", {})
    with refusing(ValueError):
        asked = sort(given or {}, SETTINGS)
        size, outside = settings(preset or kept, sizes | asked.get("sizes", {}), asked.get("outside"))
    if run and not adapter:
        adapter = next((place for stage in ("grpo", "sft") if (place := run / stage / "adapter").is_dir()), None)
        if adapter is None:
            raise UsageError(f"{run} holds no trained agent: run notebooks 01 to 03 into it, or give --adapter.")
    if size.policy == "tiny" and not adapter:
        adapter = SHIPPED
        if not adapter.is_dir():
            raise UsageError("this copy ships no trained tiny agent: give one with --run RUN or --adapter DIR.")
    if adapter and not _is_lora(adapter):
        raise UsageError(f"{adapter} is not a folder of LoRA weights: its adapter_config.json does not say so.")
    return Agent(size, adapter, outside)


def load(agent: Agent) -> Policy:
    """The policy with its adapter. Raises UsageError, saying which could not be loaded and why."""
    size, adapter, _ = agent
    what = f"{size.policy} with {adapter}" if adapter else size.policy
    with refusing(OSError, ValueError, RuntimeError, ImportError, saying=f"the policy {what} could not be loaded"):
        if adapter:
            check_adapter(adapter)
        return load_policy(size.policy, adapter, size.revision, size.max_pixels, size.four_bit)


def _is_lora(folder: Path) -> bool:
    try:
        return read_json(folder / "adapter_config.json", dict, "give another")["peft_type"] == "LORA"
    except (OSError, ValueError, KeyError):
        return False


def _run_settings(run: Path) -> tuple[str, dict[str, Any]]:
    """The preset and the sizes of a run, from its `state.json` or `manifest.json`."""
    file = next((run / name for name in ("state.json", "manifest.json") if (run / name).exists()), None)
    if file is None:
        raise UsageError(f"{run} is not the folder of a run: it has neither state.json nor manifest.json.")
    try:
        state, sizes = json.loads(file.read_text(encoding="utf-8")), {}
        for record in state["notebooks"].values():
            sizes |= record["parameters"].get("sizes", {})
        preset = str(state["preset"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UsageError(f"{file} is broken: give the agent's LoRA weights with --adapter, and --preset.") from None
    folder = run.resolve().parent.parent / "notebooks" / str(sizes.get("policy", ""))
    if "policy" in sizes and folder.is_dir():
        sizes["policy"] = str(folder)
    return preset, sizes


def read_file(path: Path) -> Image.Image:
    """The picture in a file, upright, its first frame, in RGB. Raises UsageError for a missing, broken or huge one."""
    with refusing(OSError, saying=f"the picture {path} cannot be read"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"the picture {path} is larger than {MAX_BYTES // 1_000_000} MB: make it smaller.")
    with refusing(ValueError, saying=f"the picture {path} cannot be used"):
        return read_picture(data)


def ask(agent: Agent, task: Task, tell: Callable[[str], None] = lambda text: None) -> Trajectory:
    """Play one episode; `tell` gets each turn once it is played, and at the end the answer and the pages that hold it.

    Raises UsageError for an empty question, or for a policy or tool that cannot be loaded.
    """
    size, _, outside = agent
    if not task.question.strip():
        raise UsageError("the question is empty.")
    logging.set_verbosity_error()
    with refusing(ToolError, FileDamaged, FileNotFoundError):
        connection, policy = connect(outside), load(agent)
        tools = open_tools(size, policy, connection)
        tell(f"{printable(task.question)}\n")
        began, sampling = time.perf_counter(), Sampling.of(size)
        [played] = play(policy, [task], tools, size.prompts, sampling, on_turn=lambda *turn: tell(turn_text(*turn)))
    why = "too many turns broke the protocol" if played.end else "its tokens were used up"
    answer = printable(played.answer) if played.end == "answer" else f"none: {why}"
    row = _row(agent, task, played)
    took = [*facts(row), f"{time.perf_counter() - began:.1f} s"]
    if label := row["support"]["label"]:
        pages = [", ".join(filter(None, page)) for page in supporting(row)]
        answer += "\n" + _labelled(label, "\n".join(pages) or words(label))
    tell(f"Answer: {answer}\n{', '.join(took)}")
    return played


def _row(agent: Agent, task: Task, played: Trajectory) -> dict[str, Any]:
    """The episode as the viewer takes it, its answer checked against the pages that were read."""
    trajectory = played.as_dict()
    found = support(trajectory, agent.outside.distrusts)
    return {"trajectory": trajectory, "question": {"text": task.question}, "support": found}


def write_html(agent: Agent, task: Task, played: Trajectory, path: Path) -> Path:
    """The episode as one page that loads nothing, the crop drawn in. Raises UsageError where it cannot be written."""
    with refusing(OSError, saying=f"the page {path} cannot be written"):
        return html_page([_row(agent, task, played)], path, [task.picture])


def turn_text(turn: TurnRecord, number: int) -> str:
    """A turn as lines: what was thought, what was done, which part of the picture, what was found and read."""
    lines = [f"{number}."]
    for block in blocks(dataclasses.asdict(turn)):
        if block.kind == "information":
            if turn.action == "img_search":
                x1, y1, x2, y2 = turn.box or (0, 0, 0, 0)
                box = f"{x1}, {y1} to {x2}, {y2} ({x2 - x1} × {y2 - y1} pixels)"
                lines.append(_labelled("crop", box if turn.box else "none: the whole picture was searched"))
            named = ", ".join(f"{hit['title']} ({hit['score']:.2f})" for hit in turn.hits[:SHOWN])
            lines.append(_labelled("found", named or "nothing"))
        if block.kind != "prompt":
            lines.append(_labelled(TAGS[block.kind], block.text))
    return "\n".join(lines) + "\n"


def _labelled(label: str, text: str) -> str:
    """A text after its label, wrapped to the terminal and indented under itself."""
    width = max(40, min(WIDTH, shutil.get_terminal_size().columns)) - LABEL
    lines = [line for part in printable(text).splitlines() for line in textwrap.wrap(part, width)]
    return f"   {label}".ljust(LABEL) + f"\n{'':{LABEL}}".join(lines)


def printable(text: str) -> str:
    """A model's or a page's text without control characters, which could command a terminal; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " * c.isspace() for c in text)
