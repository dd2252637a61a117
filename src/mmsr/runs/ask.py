"""The trained agent on any picture: one question, one episode, told turn by turn.

    mmsr ask flags.png "What is the capital of the country whose flag is on the left?" --html episode.html

    who = find_agent("tiny")                                # the shipped agent; or of a run, or an adapter's folder
    episode = ask(who, read_file(path), question, tell=print)
    write_html(episode, Path("episode.html"))

Offline it searches the flags and pages of the world and nothing else; with the parameters of `sources.Sources` it
searches the web. Everything printed comes from a model or from outside, so it is printed without control characters.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from mmsr.env import SearchEnv, Task, Trajectory, TurnRecord
from mmsr.lab import env_factory, open_tools
from mmsr.live.outside import Sources, connect
from mmsr.policy import TINY_DIR, Policy, load_policy
from mmsr.presets import Preset, get_preset
from mmsr.rollout import Sampling, play
from mmsr.runs.notebooks import KINDS, read_value
from mmsr.show.transcript import TAGS, blocks
from mmsr.show.viewer import write_page
from mmsr.tools.base import FatalToolError
from mmsr.tools.picture import read_picture
from mmsr.world.snapshot import load_world

SHIPPED = TINY_DIR / "agent"  # LoRA weights of the reference run, after GRPO
MAX_BYTES = 50_000_000  # of a picture's file
LABEL, WIDTH = 15, 110  # columns: before a text, of a line
SHOWN = 3  # hits of a search that are named


class AskError(Exception):
    """The question cannot be asked as it is; the message says why and what to do."""


# --- who is asked, and what -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """A policy's sizes and its adapter, None where the base itself is asked with the protocol's prompt."""

    preset: Preset
    adapter: Path | None
    four_bit: bool = False


def find_agent(
    preset: str = "", run: Path | None = None, adapter: Path | None = None, model: str = "", four_bit: bool = False
) -> Agent:
    """The agent of a run, of a folder of LoRA weights, or the shipped one (preset "tiny").

    preset and model are the run's where they are not given. Raises AskError, saying what is missing.
    """
    kept = _run_state(run) if run else {}
    try:
        size = get_preset(preset or kept.get("preset", "tiny"), model or kept.get("model", ""))
    except ValueError as error:
        raise AskError(str(error)) from error
    if run and not adapter:
        adapter = next((place for stage in ("grpo", "sft") if (place := run / stage / "adapter").is_dir()), None)
        if adapter is None:
            raise AskError(f"{run} holds no trained agent: run notebooks 01 to 03 into it, or give --adapter.")
    if size.policy == "tiny" and not adapter:
        adapter = SHIPPED
        if not adapter.is_dir():
            raise AskError("this copy ships no trained tiny agent: give one with --run RUN or --adapter DIR.")
    if adapter and not _is_lora(adapter):
        raise AskError(f"{adapter} is no folder of LoRA weights: its adapter_config.json does not say so.")
    return Agent(size, adapter, four_bit)


def _is_lora(folder: Path) -> bool:
    try:
        return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"
    except (OSError, ValueError, KeyError):
        return False


def _run_state(run: Path) -> dict[str, str]:
    """The preset and the model of a run, from its `state.json` or `manifest.json`."""
    for name in ("state.json", "manifest.json"):
        if (run / name).exists():
            state = json.loads((run / name).read_text(encoding="utf-8"))
            given = (record["parameters"].get("model") for record in state["notebooks"].values())
            model = next(filter(None, given), "")
            folder = run.resolve().parents[1] / "notebooks" / model
            return {"preset": state["preset"], "model": str(folder) if model and folder.is_dir() else model}
    raise AskError(f"{run} is not the folder of a run: it has neither state.json nor manifest.json.")


def read_parameters(pairs: Mapping[str, str]) -> tuple[Sources, dict[str, Any]]:
    """The notebooks' parameters for web tools, and `model` and `four_bit`, from text. Raises AskError."""
    defaults = {f.name: f.default for f in dataclasses.fields(Sources)} | {"model": "", "four_bit": False}
    values = {}
    for key, text in pairs.items():
        if key not in defaults:
            raise AskError(f"there is no parameter {key!r}: there are {', '.join(defaults)}.")
        kind = type(defaults[key])
        try:
            values[key] = read_value(kind, text)
        except ValueError:
            raise AskError(f"{key} must be {KINDS[kind]}: got {text!r}.") from None
    try:
        return Sources.of(values), {key: values[key] for key in ("model", "four_bit") if key in values}
    except ValueError as error:
        raise AskError(str(error)) from error


def read_file(path: Path) -> Image.Image:
    """The picture in a file, upright, its first frame, in RGB. Raises AskError for a missing, broken or huge one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AskError(f"the picture {path} cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_BYTES:
        raise AskError(f"the picture {path} has more than {MAX_BYTES // 1_000_000} MB: make it smaller.")
    try:
        return read_picture(data)
    except ValueError as error:
        raise AskError(f"the picture {path} cannot be used: {error}.") from error


# --- the episode ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Episode:
    """What was asked and what happened."""

    picture: Image.Image
    question: str
    trajectory: Trajectory
    seconds: float


def ask(
    agent: Agent,
    picture: Image.Image,
    question: str,
    sources: Sources | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Episode:
    """Play one episode, telling each turn when it has been played.

    Raises AskError where the policy or a tool cannot be had, and where the picture is too thin for the policy.
    """
    question = question.strip()
    if not question:
        raise AskError("the question is empty.")
    size, task = agent.preset, Task("ask", question, picture, golds=())
    try:
        connection = connect(sources or Sources())
        policy = _load(agent)
        _check_shape(policy, picture)
        tools = open_tools(size, policy, load_world(), connection)
        env = telling(env_factory(size, tools, [task])(), tell)
        tell(f"{printable(question)}\n")
        began = time.perf_counter()
        played = play(policy, [task], lambda: env, size.prompts, Sampling(size.new_tokens))[0]
    except FatalToolError as error:
        raise AskError(str(error)) from error
    episode = Episode(picture, question, played, time.perf_counter() - began)
    tell(summary(episode))
    return episode


def _load(agent: Agent) -> Policy:
    size = agent.preset
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load_policy(size.policy, agent.adapter, size.revision, size.max_pixels, agent.four_bit)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        what = f"{size.policy} with {agent.adapter}" if agent.adapter else size.policy
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AskError(f"the policy {what} could not be loaded: {said}") from error


def _check_shape(policy: Policy, picture: Image.Image) -> None:
    try:
        policy.frame(picture)
    except ValueError as error:
        raise AskError(f"a picture of {picture.width} × {picture.height} pixels is too thin to be seen.") from error


def telling(env: SearchEnv, tell: Callable[[str], None]) -> SearchEnv:
    """The environment, with `tell` called after each turn."""
    played = env.step

    def step(turn: str) -> str:
        observation = played(turn)
        tell(turn_text(env.trajectory.turns[-1], len(env.trajectory.turns)))
        return observation

    env.step = step
    return env


def write_html(episode: Episode, path: Path) -> Path:
    """The episode as one page that loads nothing, the crop drawn in. Raises AskError where it cannot be written."""
    row = {"trajectory": episode.trajectory.as_dict(), "question": {"text": episode.question}}
    try:
        return write_page([row], [episode.picture], path)
    except OSError as error:
        raise AskError(f"the page {path} cannot be written: {error.strerror or error}.") from error


# --- in words -------------------------------------------------------------------------------------------------------


def turn_text(turn: TurnRecord, number: int) -> str:
    """A turn as lines: what was thought, what was done, which part of the picture, what was found and read."""
    record = dataclasses.asdict(turn)
    lines = []
    for block in blocks(record):
        if block.kind == "information":
            lines += _searched(turn)
        if block.kind != "prompt":
            lines += _labelled(TAGS[block.kind], block.text)
    return f"{number}.\n" + "\n".join(lines) + "\n"


def _searched(turn: TurnRecord) -> list[str]:
    lines = []
    if turn.action == "img_search":
        x1, y1, x2, y2 = turn.box or (0, 0, 0, 0)
        box = f"{x1}, {y1} to {x2}, {y2} ({x2 - x1} × {y2 - y1} pixels)"
        lines += _labelled("crop", box if turn.box else "none: the whole picture was searched")
    named = ", ".join(f"{hit['title']} ({hit['score']:.2f})" for hit in turn.hits[:SHOWN])
    return lines + _labelled("found", named or "nothing")


def _labelled(label: str, text: str) -> list[str]:
    """A text behind its label, wrapped to the terminal and indented under itself."""
    width = max(40, min(WIDTH, shutil.get_terminal_size().columns)) - LABEL - 3
    lines = [line for part in printable(text).splitlines() for line in textwrap.wrap(part, width)] or [""]
    return [f"   {label if first else '':{LABEL}}{line}" for first, line in zip([True] + [False] * len(lines), lines)]


def printable(text: str) -> str:
    """The text without control characters, which could command a terminal; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " * c.isspace() for c in text)


def summary(episode: Episode) -> str:
    """One line with the answer, one with what it took."""
    done = episode.trajectory
    answer = printable(done.answer) if done.end == "answer" else "none: too many turns broke the protocol"
    searches, turns = done.searches(), len(done.turns)
    took = f"{searches} search{'es' * (searches != 1)}, {turns} turn{'s' * (turns != 1)}, {episode.seconds:.1f} s"
    return f"Answer: {answer}\n{took}"
