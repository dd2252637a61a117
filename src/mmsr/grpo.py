"""GRPO against the live tools (paper §3.4), with TRL's GRPOTrainer and SearchEnv as its environment.

TRL generates a turn, asks the tokenizer to parse it, calls the environment's one tool with the whole turn, appends what
comes back and masks it from the loss. So that the protocol's own parser is the only one, the tokenizer's
`parse_response` is ours: every turn but an answer is a call of `step`; an answer ends the rollout, and the reward reads
it through the same `step`.

Paper's settings: 8 rollouts a question, advantage = reward − group mean (no standard deviation), KL 0.001, clip 0.2.
"""

from __future__ import annotations

import csv
import importlib.util
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from datasets import Sequence as Many
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from mmsr.env import SearchEnv, Task, Trajectory, first_messages
from mmsr.policy import Policy, best_device, in_bf16, merged
from mmsr.presets import Preset
from mmsr.protocol import Answer, ProtocolError, parse_turn
from mmsr.reward import Judge, RewardWeights, matches, score
from mmsr.sft import typed
from mmsr.stats import Interval
from mmsr.training import StepCSV, last_checkpoint, quiet_trainers, save_adapter, split_batch

MAX_TURNS = 10
ROWS = 8  # rollouts computed on at once, of like length
PROMPT_TOKENS = 2048  # room for the first turn's prompt and picture beside the completion, where vLLM rolls out


def read_turn(text: str, finished: bool) -> dict[str, Any]:
    """One generated turn as TRL's message: a call of `step` with the turn's text, unless it answers or was cut off."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    try:
        ends = isinstance(parse_turn(text).action, Answer)
    except ProtocolError:
        ends = False
    if finished and not ends:
        call = {"type": "function", "function": {"name": "step", "arguments": {"turn": text}}}
        message["tool_calls"] = [call]
    return message


def install_parser(tokenizer: Any) -> None:
    """Make `read_turn` what TRL parses generated tokens with."""

    def parse_response(self: Any, response: Any, **_: Any) -> dict[str, Any]:
        ids = response.tolist() if isinstance(response, torch.Tensor) else list(response)
        return read_turn(self.decode(ids, skip_special_tokens=True), self.eos_token_id in ids)

    tokenizer.response_template = {"role": "assistant"}  # TRL asks for one; parsing is the method below
    tokenizer.parse_response = types.MethodType(parse_response, tokenizer)


def as_rows(tasks: Sequence[Task], preset: Preset) -> Dataset:
    """Rows as TRL reads them: the prompt, the picture, and the task's identifier for `SearchEnv.reset`."""
    part = {"type": Value("string"), "text": Value("string")}
    prompt = [{"role": Value("string"), "content": [part]}]
    features = Features({"prompt": prompt, "images": Many(Picture()), "task_id": Value("string")})
    prompts = [typed(first_messages(task, preset.prompts)) for task in tasks]
    rows = {"prompt": prompts, "images": [[t.picture] for t in tasks], "task_id": [t.id for t in tasks]}
    return Dataset.from_dict(rows, features=features)


def vllm_settings(preset: Preset) -> dict[str, Any]:
    """Rollouts by vLLM on the GPU that trains: it keeps a key-value cache between turns, and a share of the memory.

    vLLM resizes pictures by the hub's own settings: larger ones than `max_pixels` do not fit our prompts. It needs an
    environment of its own: the newest that TRL 1.16 takes (0.31) holds transformers below 5.18, from which on SFT
    trains. Raises ImportError where it is missing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError("rollouts by vLLM need an environment with it: pip install 'mmsr[vllm]', or leave vllm off")
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": PROMPT_TOKENS + preset.completion_tokens,
        "generation_kwargs": {"max_tokens": preset.new_tokens},
    }


def grpo_config(preset: Preset, folder: Path, seed: int, kl: float, vllm: bool = False) -> GRPOConfig:
    """The paper's settings, sizes by preset."""
    rows, passes = split_batch(preset.grpo_questions * preset.generations, preset.micro_batch)
    rollouts = vllm_settings(preset) if vllm else {"generation_kwargs": {"max_new_tokens": preset.new_tokens}}
    return GRPOConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=preset.grpo_steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        num_generations=preset.generations,
        learning_rate=preset.grpo_lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=preset.grpo_warmup,
        beta=kl,
        epsilon=0.2,
        scale_rewards="none",
        loss_type="grpo",
        temperature=preset.temperature,
        max_completion_length=preset.completion_tokens,
        max_tool_calling_iterations=MAX_TURNS,
        **rollouts,
        mask_truncated_completions=False,
        bf16=in_bf16(best_device()),
        gradient_checkpointing=preset.policy != "tiny",
        logging_steps=1,
        save_steps=preset.checkpoint_steps,
        save_total_limit=1,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def reward_functions(
    tasks: dict[str, Task], weights: RewardWeights, judge: Judge
) -> tuple[list[Callable], list[float]]:
    """The reward, and beside it, with weight 0, the parts and habits that the CSV keeps a column of."""

    def reward(environments: list[SearchEnv], completions: list[list[dict]], **_: Any) -> list[float]:
        return [
            score(close(e, c), tasks[e.trajectory.task_id], weights, judge) for e, c in zip(environments, completions)
        ]

    def watch(name: str, measure: Callable[[Trajectory], float]) -> Callable:
        def watched(environments: list[SearchEnv], **_: Any) -> list[float]:
            return [measure(environment.trajectory) for environment in environments]

        watched.__name__ = name
        return watched

    watched = [
        watch("accuracy", lambda t: t.reward["correct"]),
        watch("searches", lambda t: float(t.searches())),
        watch("crops", lambda t: float(any(turn.box for turn in t.turns))),
        watch("valid_turns", lambda t: t.valid_turns / max(1, len(t.turns))),
    ]
    return [reward, *watched], [1.0] + [0.0] * len(watched)


def close(environment: SearchEnv, completion: list[dict]) -> Trajectory:
    """Give the environment the last turn, which TRL does not call it for: an answer, or a turn that was cut off."""
    trajectory = environment.trajectory
    if not trajectory.end and completion and completion[-1]["role"] == "assistant":
        environment.step(completion[-1]["content"])
    return trajectory


class Trainer(GRPOTrainer):
    """TRL's trainer, thrifty: it generates with LoRA merged where that is exact, and computes on little padding."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with merged(self.model):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """As the parent's, rollouts of like length together: half of a batch of episodes is padding otherwise.

        input_ids and attention_mask [B, L]; log-probabilities and entropies [B, logits_to_keep], 0 in the padding.
        """
        found = [torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device) for _ in range(2)]
        order = attention_mask.sum(1).argsort()
        for rows in order.split(min(batch_size or ROWS, ROWS)):
            first, last = attended(attention_mask[rows])
            kept = logits_to_keep - (input_ids.shape[1] - last)
            logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[rows, first:last],
                attention_mask[rows, first:last],
                kept,
                compute_entropy=compute_entropy,
                **pictures_of(rows, inputs, first, last),
            )
            for whole, part in zip(found, (logps, entropies)):
                if part is not None:
                    whole[rows, :kept] = part.to(whole.dtype)
        return found[0], found[1] if compute_entropy else None, None


def attended(mask: torch.Tensor) -> tuple[int, int]:
    """The columns from the first to the last that any row attends to, of an attention mask [B, L]."""
    columns = mask.any(0).nonzero()
    return int(columns[0]), int(columns[-1]) + 1


def pictures_of(rows: torch.Tensor, inputs: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """What else the model reads of these rows, of which each has one picture.

    Raises ValueError for an input that it does not know how to divide.
    """
    given = {name: value for name, value in inputs.items() if value is not None and value is not False}
    chosen: dict[str, Any] = {"num_images": [1] * len(rows)}
    if unknown := given.keys() - {"pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"}:
        raise ValueError(f"a batch holds {', '.join(sorted(unknown))}, which GRPO here cannot divide by rows")
    if any(number != 1 for number in given["num_images"]):
        raise ValueError("every question needs exactly one picture")
    grids = given["image_grid_thw"]
    patches = given["pixel_values"].split(grids.prod(-1).tolist())
    chosen |= {"image_grid_thw": grids[rows], "pixel_values": torch.cat([patches[row] for row in rows.tolist()])}
    if "mm_token_type_ids" in given:
        chosen["mm_token_type_ids"] = given["mm_token_type_ids"][rows, first:last]
    return chosen


def train_grpo(
    policy: Policy,
    tasks: Sequence[Task],
    new_env: Callable[[], SearchEnv],
    preset: Preset,
    folder: Path,
    seed: int,
    weights: RewardWeights | None = None,
    kl: float = 0.001,
    judge: Judge = matches,
    vllm: bool = False,
) -> Policy:
    """Train a policy that carries the SFT adapter, going on from the last checkpoint if there is one.

    The adapter lands in `folder/adapter`, one row per step in `folder/grpo.csv`.
    """
    quiet_trainers()
    install_parser(policy.tokenizer)
    functions, shares = reward_functions({task.id: task for task in tasks}, weights or RewardWeights(), judge)
    config = grpo_config(preset, folder, seed, kl, vllm)
    config.reward_weights = shares
    trainer = Trainer(
        model=policy.model,
        args=config,
        reward_funcs=functions,
        train_dataset=as_rows(tasks, preset),
        processing_class=policy.processor,
        environment_factory=new_env,
        callbacks=[StepCSV(folder / "grpo.csv")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    trained = Policy(trainer.model, policy.processor, policy.name)
    save_adapter(trainer, folder / "adapter")
    return trained


def first_and_last(csv_path: Path) -> dict[str, Interval]:
    """Mean reward over the first and the last tenth of the steps (at least one each), as `grpo/reward_first`, `…_last`.

    Accuracy, searches and valid turns likewise.
    """
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    tenth = max(1, len(rows) // 10)
    columns = {"reward": "reward", "searches": "rewards/searches/mean", "accuracy": "rewards/accuracy/mean"}
    columns["valid_turns"] = "rewards/valid_turns/mean"
    found = {}
    for name, column in columns.items():
        for part, chosen in (("first", rows[:tenth]), ("last", rows[-tenth:])):
            values = [float(row[column]) for row in chosen]
            found[f"grpo/{name}_{part}"] = Interval(sum(values) / len(values), None, None, len(values))
    return found
