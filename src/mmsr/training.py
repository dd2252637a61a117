"""One CSV row per training step, and the small things both trainers share, with one process or with many."""

from __future__ import annotations

import csv
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

# of a GRPO step, whose loss is 0 by its making: advantages of a group have no mean, and the ratio starts at 1
REINFORCED = {"reward": "reward", "accuracy": "rewards/accuracy/mean", "searches": "rewards/searches/mean"}
PATIENCE = timedelta(hours=2)  # of processes for each other: live tools may hold one of them up


class StepCSV(TrainerCallback):
    """Writes each step's logged numbers as a CSV row and shows a line of progress.

    The file is rewritten whole, under a temporary name first, so it is never half a table. A resumed training keeps the
    rows before its checkpoint.
    """

    def __init__(self, path: Path):
        self.path, self.rows, self.began = path, [], time.time()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= state.global_step]

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        row = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "step"}}
        self.rows.append(row | {"seconds": round(time.time() - self.began, 2)})
        names = list(dict.fromkeys(key for row in self.rows for key in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        part.replace(self.path)
        if state.global_step % max(1, state.max_steps // 10) == 0:
            names = REINFORCED if "reward" in row else {"loss": "loss"}
            numbers = "  ".join(f"{name} {float(row[key]):.3f}" for name, key in names.items() if key in row)
            print(f"step {state.global_step}/{state.max_steps}  {numbers}", file=sys.stdout, flush=True)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint to go on from, or None."""
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def processes() -> PartialState:
    """The processes that train together, as accelerate launched them; the first call gives each its own device."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def split_batch(batch: int, micro_batch: int) -> tuple[int, int]:
    """Rows per backward pass, at most `micro_batch`, and passes per optimiser step, of each process.

    All processes together do exactly `batch` rows a step, so a result does not depend on their number. Raises
    ValueError where the batch cannot be divided among them.
    """
    number = processes().num_processes
    share, rest = divmod(batch, number)
    if rest:
        raise ValueError(f"a batch of {batch} cannot be divided among {number} processes: use a divisor of {batch}")
    rows = max(size for size in range(1, min(share, micro_batch) + 1) if share % size == 0)
    return rows, share // rows


def save_adapter(trainer: Trainer, folder: Path) -> None:
    """Write the LoRA weights in training, from the main process alone; weights that are sharded are gathered first."""
    accelerator = trainer.accelerator
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(trainer.model)
        model.save_pretrained(folder, state_dict=weights, selected_adapters=["default"])
    accelerator.wait_for_everyone()


def quiet_trainers() -> None:
    """No progress bars and no chatter: notebooks keep what is printed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
