"""One CSV row per training step, and the small things both trainers share, with one process or with many."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from datasets import Value
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging

from mmsr.files import FileDamaged, check_seal, read_json, read_table, saving, seal, undamaged, write_whole
from mmsr.policy import Policy, best_device, in_bf16, list_targets
from mmsr.presets import Preset

# of a GRPO step, whose loss is 0 by construction: a group's advantages average 0, and the ratio starts at 1
REINFORCED = {"reward": "reward", "accuracy": "rewards/accuracy/mean", "searches": "rewards/searches/mean"}
PATIENCE = timedelta(hours=2)  # of processes for each other: live tools may hold one of them up
MESSAGES = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]  # of a row


class StepCSV(TrainerCallback):
    """Writes each step's logged numbers as a CSV row and shows a line of progress.

    The file is rewritten whole, so it is never half a table. A resumed run keeps the rows before its checkpoint, which
    must all be there (else FileDamaged), and goes on counting seconds; tokens too, where the trainer counts them `anew`
    after a resume, as TRL's does in SFT.
    """

    def __init__(self, path: Path, anew: bool = False):
        self.path, self.anew, self.rows, self.began, self.tokens = path, anew, [], time.time(), 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            remedy = f"delete {args.output_dir}, and the training begins again"
            with undamaged(self.path, remedy):
                steps = {int(row["step"]): row for row in read_table(self.path, ["step"], remedy)}
                self.rows = [steps[step] for step in range(1, state.global_step + 1)]
                self.began -= float(self.rows[-1]["seconds"])
                self.tokens = float(self.rows[-1]["num_tokens"]) if self.anew else 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        row = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "step"}}
        if "num_tokens" in row:
            row["num_tokens"] += self.tokens
        self.rows.append(row | {"seconds": round(time.time() - self.began, 2)})
        names = list(dict.fromkeys(key for row in self.rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, table.getvalue())
        if state.global_step % max(1, state.max_steps // 10) == 0:
            names = REINFORCED if "reward" in row else {"loss": "loss"}
            numbers = "  ".join(f"{name} {float(row[key]):.3f}" for name, key in names.items() if key in row)
            print(f"step {state.global_step}/{state.max_steps}  {numbers}", file=sys.stdout, flush=True)


class Sealed(TrainerCallback):
    """Seals a checkpoint when all processes have saved their parts of it."""

    def on_save(self, args, state, control, **kwargs):
        processes().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint to go on from, or None; those that a kill has left half saved are removed.

    Raises FileDamaged where none is whole, though one had been saved completely.
    """
    with processes().main_process_first():  # which removes; the others find what is left
        found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
        found.sort(key=lambda path: int(path.name.removeprefix("checkpoint-")))
        lost = []
        while found and (flaw := _flaw(found[-1])):
            lost.append((found.pop(), flaw))
        spoilt = [flaw for _, flaw in lost if isinstance(flaw, FileDamaged)]
        if spoilt and not found:
            raise spoilt[0]
        for path, _ in lost:
            print(f"{path} is not whole: removed, to go on from {found[-1].name if found else 'the start'}", flush=True)
            shutil.rmtree(path)
    return str(found[-1]) if found else None


def _flaw(checkpoint: Path) -> Exception | None:
    """Why one cannot go on from a checkpoint: its state, which is saved last, is missing, or a file is damaged."""
    remedy = f"delete {checkpoint}, and the training begins again"
    try:
        read_json(checkpoint / "trainer_state.json", dict, remedy)
        check_seal(checkpoint, remedy)
    except (FileNotFoundError, FileDamaged) as error:
        return error
    return None


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


def training_arguments(preset: Preset, folder: Path, seed: int, batch: int) -> dict[str, Any]:
    """The settings of both trainers: `batch` rows a step, where checkpoints go, and which device computes."""
    rows, passes = split_batch(batch, preset.micro_batch)
    return {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "bf16": in_bf16(best_device()),
        "gradient_checkpointing": preset.policy != "tiny",
        "logging_steps": 1,
        "save_steps": preset.checkpoint_steps,
        "save_total_limit": 1,
        "seed": seed,
        "report_to": preset.report_to,
        "run_name": f"{folder.parent.name}-{folder.name}",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def typed(messages: Sequence[dict]) -> list[dict]:
    """Messages whose contents are all lists of parts, as a column of one type needs."""
    rows = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        rows.append({"role": message["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in parts]})
    return rows


class Frozen(TrainerCallback):
    """Spares what is frozen the backward pass.

    For reentrant checkpointing, which this is not, trainers use hooks that let gradients into the embeddings, the
    vision encoder's too.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for module in model.modules():
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__name__", "") == "make_inputs_require_grads":
                    del module._forward_hooks[key]


def train(trainer: Trainer, policy: Policy, folder: Path) -> Policy:
    """Train from the last checkpoint in `folder` or from the start; the adapter lands in `folder/adapter`."""
    trainer.remove_callback(PrinterCallback)
    for callback in (Frozen(), Sealed()):
        trainer.add_callback(callback)
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL makes LoRA bf16 on a 4-bit base, where small steps would leave no trace in it
            weight.data = weight.data.float()
    with saving(folder):
        trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
        save_adapter(trainer, folder / "adapter")
    return Policy(trainer.model, policy.processor, policy.name)


def save_adapter(trainer: Trainer, folder: Path) -> None:
    """Save the LoRA weights being trained, from the main process alone; sharded weights are gathered first."""
    accelerator = trainer.accelerator
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(trainer.model)
        list_targets(model)
        model.save_pretrained(folder, state_dict=weights, selected_adapters=["default"])
        seal(folder)
    accelerator.wait_for_everyone()


def quiet_trainers() -> None:
    """No progress bars and no chatter: notebooks keep what is printed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
