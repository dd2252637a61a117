"""Cold start: supervised fine-tuning on the teacher's episodes (paper §4.1), with TRL's SFTTrainer.

LoRA on every linear layer of the language model; vision encoder and projector frozen; the loss covers what the policy
writes and skips prompts and `<information>` (the chat template's generation marks say which is which).

    result = train_sft(policy, examples, pictures, preset, folder, seed)
    policy = load_policy(preset.policy, adapter=folder / "adapter")
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from datasets import Sequence as Many
from PIL import Image
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from mmsr.dataset import Example
from mmsr.policy import Policy, best_device, fast_bf16, lora_config
from mmsr.presets import Preset
from mmsr.trainlog import StepCSV, last_checkpoint, quiet_trainers, save_adapter, split_batch


def as_rows(
    examples: Sequence[Example], pictures: Sequence[Image.Image], epochs: int, batch: int, seed: int
) -> Dataset:
    """Rows as TRL reads them, all epochs in one pass: `messages` with typed parts and an `images` column.

    Every epoch is shuffled anew and then put into batches of like length, in random order: half of a batch of mixed
    lengths would be padding.
    """
    order, rng = [], random.Random(f"{seed}/order")
    length = [sum(len(str(m["content"])) for m in e.messages) for e in examples]
    for _ in range(epochs):
        ranked = sorted(rng.sample(range(len(examples)), len(examples)), key=lambda i: length[i] // 64)
        batches = [ranked[start : start + batch] for start in range(0, len(ranked), batch)]
        rng.shuffle(batches)
        order += [i for group in batches for i in group]
    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"messages": [{"role": Value("string"), "content": [part]}], "images": Many(Picture())})
    rows = {"messages": [typed(examples[i].messages) for i in order], "images": [[pictures[i]] for i in order]}
    return Dataset.from_dict(rows, features=features)


def typed(messages: Sequence[dict]) -> list[dict]:
    """Messages whose contents are all lists of parts, as a column of one type needs."""
    rows = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        rows.append({"role": message["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in parts]})
    return rows


def sft_config(preset: Preset, folder: Path, seed: int) -> SFTConfig:
    """The paper's settings: cosine, warm-up 0.1, bf16; rate, batch and epochs by preset."""
    rows, passes = split_batch(preset.sft_batch, preset.micro_batch)
    return SFTConfig(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,  # the rows hold every epoch
        train_sampling_strategy="sequential",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        learning_rate=preset.sft_lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        bf16=fast_bf16(best_device()),
        assistant_only_loss=True,
        max_length=None,
        gradient_checkpointing=preset.policy != "tiny",
        logging_steps=1,
        save_steps=preset.checkpoint_steps,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train_sft(
    policy: Policy,
    examples: Sequence[Example],
    pictures: Sequence[Image.Image],
    preset: Preset,
    folder: Path,
    seed: int,
) -> Policy:
    """Train from the base, going on from the last checkpoint if there is one; the adapter lands in `folder/adapter`.

    Raises ValueError where there is nothing to learn from.
    """
    if not examples:
        raise ValueError("there are no examples to learn from: run notebook 01 with more questions")
    quiet_trainers()
    trainer = SFTTrainer(
        model=policy.model,
        args=sft_config(preset, folder, seed),
        train_dataset=as_rows(examples, pictures, preset.sft_epochs, preset.sft_batch, seed),
        processing_class=policy.processor,
        peft_config=lora_config(preset.lora_r, preset.lora_alpha),
        callbacks=[StepCSV(folder / "sft.csv")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = True  # Qwen's says no: passes and processes would be averaged, not their tokens
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    trained = Policy(trainer.model, policy.processor, policy.name)
    save_adapter(trainer, folder / "adapter")
    return trained
