"""SFT and GRPO as commands that accelerate can launch: what notebooks 02 and 03 train, on one process or on many.

    mmsr run 01 --preset qwen3b --name big
    accelerate launch --multi_gpu --num_processes 4 -m mmsr sft --preset qwen3b --run papermill_runs/big
    accelerate launch --multi_gpu --num_processes 4 -m mmsr grpo --preset qwen3b --run papermill_runs/big
    mmsr run 04 05 --preset qwen3b --name big

They take the parameters of their notebook (`-p key=value`), and read and write what it does in the run's folder, which
all processes must see. The batch of a step is divided among the processes and keeps its size, so a preset holds for any
number of them. How weights and gradients are kept is accelerate's configuration: DDP, and for SFT also FSDP and
DeepSpeed. On a machine without GPUs `--multi_gpu` starts CPU processes; `--cpu` starts a single one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from mmsr.evaluate import summarise
from mmsr.files import FileDamaged
from mmsr.grpo import first_and_last
from mmsr.lab import Lab
from mmsr.reward import RewardWeights
from mmsr.runs import refusing
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.parameters import assign
from mmsr.runs.runner import State, _alone
from mmsr.tools.base import ToolError
from mmsr.training import processes, quiet_trainers, split_batch

NOTEBOOKS = {"sft": "02_sft", "grpo": "03_grpo"}
WEIGHTS = ("correct_weight", "format_weight", "search_price", "evidence_bonus")  # of the reward, in its order


def launch(stage: str, preset: str, run: Path, seed: int, parameters: Mapping[str, str], root: Path) -> None:
    """Train one stage, "sft" or "grpo", into `run/<stage>`; record and print the metrics of its notebook.

    parameters: of the stage's notebook in `root/notebooks`, as text. Raises UsageError before it starts, and where
    another process works in the folder.
    """
    with refusing(ValueError, FileNotFoundError, ToolError):
        notebook = read_notebook(root / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
        values = assign([notebook], preset, parameters, Path.cwd())[notebook.name]
        state = State.load(run)
        if state and (state.preset, state.seed) != (preset, seed):
            raise ValueError(f"{run} was begun with preset {state.preset} and seed {state.seed}: give these.")
        places = (values.get("adapters", ""), values["train_benchmark"], values["train_dir"])
        lab = Lab(run, preset, seed, values["sizes"], values["outside"], *places)
        size, group = lab.size, processes()
        split_batch(size.sft_batch if stage == "sft" else size.grpo_questions * size.generations, size.micro_batch)
        if stage == "grpo":
            lab.adapter("sft")
            _check_weights()
        _ = lab.validation if stage == "sft" else lab.grpo_questions  # a benchmark's files are read now
    quiet_trainers()
    alone = _alone(run.absolute()) if group.is_main_process else contextlib.nullcontext()
    with alone, refusing(FileNotFoundError, FileDamaged, ToolError):  # data, tools: reported before training, too
        if stage == "sft":
            measured = summarise(lab.validate("sft", lab.sft()), seed)
            found = {f"sft/val/{name}": measured[name] for name in ("accuracy", "valid_turn_rate", "searches")}
        else:
            weights = RewardWeights(*(values[name] for name in WEIGHTS))
            _, measured = lab.choose(lab.grpo(lab.policy("sft"), weights, values["kl"]))
            found = first_and_last(lab.folder / "grpo" / "grpo.csv") | measured
    if group.is_main_process:
        lab.record(found)
        print("\n".join(f"{name:24} {value.value:.3f}" for name, value in found.items()), flush=True)
    group.wait_for_everyone()
    group.destroy_process_group()


def _check_weights() -> None:
    """ValueError where the launcher scatters the weights, which are then gathered from all processes for every turn.

    Episodes differ in turns, so the processes would wait for each other for ever.
    """
    asked = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")}
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")  # not set where a file configures DeepSpeed
    if asked["FSDP"] or (asked["DEEPSPEED"] and stage == "3"):
        name = "FSDP" if asked["FSDP"] else "DeepSpeed ZeRO-3"
        raise ValueError(f"GRPO does not run under {name}: launch it with DDP (--multi_gpu) or --zero_stage 2.")
