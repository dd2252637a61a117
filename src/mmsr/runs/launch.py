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

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsr.evaluate import summarise
from mmsr.grpo import first_and_last
from mmsr.lab import Lab
from mmsr.reward import RewardWeights
from mmsr.runs import refusing
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.parameters import assign
from mmsr.runs.runner import State
from mmsr.stats import Interval
from mmsr.tools.base import ToolError
from mmsr.training import processes, quiet_trainers, split_batch

NOTEBOOKS = {"sft": "02_sft", "grpo": "03_grpo"}


def launch(stage: str, preset: str, run: Path, seed: int, parameters: Mapping[str, str], root: Path) -> None:
    """Train one stage, "sft" or "grpo", into `run/<stage>`; record and print the metrics of its notebook.

    parameters: of the stage's notebook in `root/notebooks`, as text. Raises UsageError before anything starts.
    """
    with refusing(ValueError, FileNotFoundError, ToolError):
        notebook = read_notebook(root / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
        values = assign([notebook], preset, parameters, Path.cwd())[notebook.name]
        opened = {name: values.pop(name, "") for name in ("sizes", "outside", "adapters")}
        _check_run(run, preset, seed)
        lab = Lab(run, preset, seed, **opened)
        size, group = lab.size, processes()
        split_batch(size.sft_batch if stage == "sft" else size.grpo_questions * size.generations, size.micro_batch)
        if stage == "grpo":
            lab.adapter("sft")
            _check_weights()
    quiet_trainers()
    with refusing(FileNotFoundError, ToolError):  # data or tools that cannot be had are told before training, too
        found = _sft(lab) if stage == "sft" else _grpo(lab, values)
    if group.is_main_process:
        lab.record(found)
        print("\n".join(f"{name:24} {value.value:.3f}" for name, value in found.items()), flush=True)
    group.wait_for_everyone()
    group.destroy_process_group()


def _sft(lab: Lab) -> dict[str, Interval]:
    """The cold start, and its metrics on validation questions."""
    found = summarise(lab.validate("sft", lab.sft()), lab.seed)
    return {f"sft/val/{name}": found[name] for name in ("accuracy", "valid_turn_rate", "searches")}


def _grpo(lab: Lab, values: Mapping[str, Any]) -> dict[str, Interval]:
    """GRPO from the cold start's adapter, and its metrics over the steps."""
    names = ("correct_weight", "format_weight", "search_price", "evidence_bonus")
    lab.grpo(lab.policy("sft"), RewardWeights(*(values[name] for name in names)), values["kl"])
    return first_and_last(lab.folder / "grpo" / "grpo.csv")


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
