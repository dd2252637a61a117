"""SFT and GRPO as commands that accelerate can launch: what notebooks 02 and 03 train, on one process or on many.

    mmsr run 01 --preset qwen3b --name big
    accelerate launch --multi_gpu --num_processes 4 -m mmsr sft --preset qwen3b --run papermill_runs/big
    accelerate launch --multi_gpu --num_processes 4 -m mmsr grpo --preset qwen3b --run papermill_runs/big
    mmsr run 04 05 --preset qwen3b --name big

They take the parameters of their notebook (`-p key=value`), read what notebook 01 left in the run's folder, and leave
adapter, CSV and metrics where the notebook does. The batch of a step is divided among the processes and keeps its size,
so the settings of a preset hold for any number of them. How weights and gradients are kept is accelerate's
configuration: DDP, and for SFT also FSDP and DeepSpeed. All processes must see the run's folder. On a machine without
GPUs `--multi_gpu` starts CPU processes; `--cpu` starts a single one, whatever `--num_processes` says.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from PIL import Image

from mmsr.dataset import Example, load_examples
from mmsr.env import Tools
from mmsr.evaluate import agent, judge_rows, summarise
from mmsr.exam import world_exam
from mmsr.grpo import first_and_last, train_grpo
from mmsr.lab import adapter_of, env_factory, open_tools
from mmsr.live.outside import Connection, Sources, connect
from mmsr.policy import Policy, load_policy
from mmsr.presets import Preset, get_preset
from mmsr.results import record_metrics
from mmsr.reward import RewardWeights, matches
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.runner import OURS, State
from mmsr.sft import train_sft
from mmsr.stats import Interval
from mmsr.teacher import as_task
from mmsr.tools.base import FatalToolError, ToolError
from mmsr.training import processes, quiet_trainers, split_batch
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import World, load_world

NOTEBOOKS = {"sft": "02_sft.ipynb", "grpo": "03_grpo.ipynb"}


class LaunchError(Exception):
    """A training that cannot begin: the request is at fault."""


@dataclass(frozen=True)
class Job:
    """What a training was asked for: sizes, the run's folder, seed, its notebook's parameters, the door to outside."""

    size: Preset
    run: Path
    seed: int
    values: Mapping[str, Any]
    connection: Connection

    def load(self, adapter: Path | None = None) -> Policy:
        """The policy, with the adapter of a folder."""
        size = self.size
        return load_policy(size.policy, adapter, size.revision, size.max_pixels, self.values["four_bit"])

    def tools(self, policy: Policy, world: World) -> Tools:
        """The tools that the parameters name; the main process opens them first, should an index have to be made."""
        with processes().main_process_first():
            try:
                return open_tools(self.size, policy, world, self.connection)
            except ToolError as error:
                raise LaunchError(str(error)) from error


def launch(stage: str, preset: str, run: Path, seed: int, parameters: Mapping[str, str], root: Path) -> None:
    """Train one stage, "sft" or "grpo", into `run/<stage>`; record and print the metrics of its notebook.

    parameters: of the stage's notebook in `root/notebooks`, as text. Raises LaunchError before anything starts.
    """
    try:
        values = _values(root / "notebooks" / NOTEBOOKS[stage], parameters)
        size = get_preset(preset, values["model"])
        _check_run(run, preset, seed)
        group = processes()
        split_batch(size.sft_batch if stage == "sft" else size.grpo_questions * size.generations, size.micro_batch)
        if stage == "sft":
            examples, pictures = load_examples(run / "data")
        else:
            adapter = adapter_of(run, values["adapters"], "sft")
            _check_weights()
        job = Job(size, run, seed, values, connect(Sources.of(values), run))
    except (ValueError, FileNotFoundError, FatalToolError) as error:
        raise LaunchError(str(error)) from error
    quiet_trainers()
    found = _sft(job, examples, pictures) if stage == "sft" else _grpo(job, adapter)
    if group.is_main_process:
        record_metrics(run, found)
        print("\n".join(f"{name:24} {value.value:.3f}" for name, value in found.items()), flush=True)
    group.wait_for_everyone()
    group.destroy_process_group()


# --- what is asked ----------------------------------------------------------------------------------------------------


def _values(path: Path, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A notebook's parameters, its defaults but for what was asked. ValueError for one that it has not or is ours."""
    notebook = read_notebook(path)
    known = [key for key in notebook.defaults if key not in OURS]
    for key in parameters:
        if key not in known:
            raise ValueError(f"{notebook.name} has no parameter {key!r} to set here: there are {', '.join(known)}.")
    return {key: notebook.typed(key, parameters.get(key, notebook.defaults[key])) for key in known}


def _check_run(run: Path, preset: str, seed: int) -> None:
    """ValueError where the folder holds a run of another preset or seed."""
    state = State.load(run)
    if state and (state.preset, state.seed) != (preset, seed):
        raise ValueError(f"{run} was begun with preset {state.preset} and seed {state.seed}: give these.")


def _check_weights() -> None:
    """ValueError where the launcher scatters the weights over the processes, which GRPO does not run under.

    Weights are then gathered from all processes for every turn that is generated; episodes differ in turns, so the
    processes would wait for each other for ever.
    """
    asked = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")}
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")  # not told where a file configures DeepSpeed
    if asked["FSDP"] or (asked["DEEPSPEED"] and stage == "3"):
        name = "FSDP" if asked["FSDP"] else "DeepSpeed ZeRO-3"
        raise ValueError(f"GRPO does not run under {name}: launch it with DDP (--multi_gpu) or --zero_stage 2.")


# --- what is done -----------------------------------------------------------------------------------------------------


def _sft(job: Job, examples: Sequence[Example], pictures: Sequence[Image.Image]) -> dict[str, Interval]:
    """The cold start, and its metrics on validation questions, which the processes divide."""
    policy, world = job.load(), load_world()
    job.tools(policy, world)  # what cannot be had is told now, not after the training
    train_sft(policy, examples, pictures, job.size, job.run / "sft", job.seed)
    del policy  # its weights may be scattered over the processes now: what was saved is measured
    gc.collect()
    policy = job.load(job.run / "sft" / "adapter")
    questions = make_questions(world, "val", max(10, job.size.eval_questions // 6), job.seed)
    with processes().split_between_processes(questions) as mine:
        val = world_exam(mine, world)
        played = agent(policy, val, job.size, job.tools(policy, world))
        visual = [question.type == "visual" for question in val.questions]
        rows = judge_rows("sft", val, played, visual, job.connection.judge)
    found = summarise(gather_object(rows), job.seed)
    return {f"sft/val/{name}": found[name] for name in ("accuracy", "valid_turn_rate", "searches")}


def _grpo(job: Job, adapter: Path) -> dict[str, Interval]:
    """GRPO from the cold start's adapter, and its metrics over the steps."""
    size, values, world, policy = job.size, job.values, load_world(), job.load(adapter)
    weights = RewardWeights(
        values["correct_weight"], values["format_weight"], values["search_price"], values["evidence_bonus"]
    )
    questions = make_questions(world, "train", size.grpo_questions * size.grpo_steps, job.seed + 1000)
    tasks = [as_task(question, world) for question in questions]
    new_env = env_factory(size, job.tools(policy, world), tasks)
    judge = job.connection.judge or matches
    train_grpo(policy, tasks, new_env, size, job.run / "grpo", job.seed, weights, values["kl"], judge, values["vllm"])
    return first_and_last(job.run / "grpo" / "grpo.csv")
