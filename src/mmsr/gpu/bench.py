"""Steps of SFT and GRPO on models of the true sizes with random weights: speed, utilisation, memory.

    mmsr bench --model qwen7b --steps 3 --out bench.json

Nothing is downloaded: the configuration is the published one (memory.py), the tokenizer the tiny base's, whose 2,560
tokens lie within Qwen's vocabulary, and pictures are scaled to the preset's largest. Training is `train_sft` and
`train_grpo` as they are. A model of random weights would never write a turn, so what it samples in rollouts is steered:
each turn is forced, token by token, to a written one; searches run, and the next turn reads what they found. As all
rollouts are alike, GRPO's advantages are 0; the work is the same.

Utilisation (`mfu`) is the arithmetic that LoRA training needs over what the device could do in that time. A frozen
weight takes 2 operations a position forwards and 2 backwards; training it would take 2 more for its own gradient. So
LoRA takes 4·N where full training takes 6·N; `mfu_6n` counts the latter, to be compared with what others report. What
checkpointing computes twice counts in neither. `tiny` stands in for the large sizes: in bf16, with checkpointing.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmsr.ablation import oracle
from mmsr.dataset import Example, to_messages
from mmsr.env import SearchEnv
from mmsr.gpu.fit import GIB, Stage, plan
from mmsr.gpu.memory import (
    PATCH,
    PUBLISHED,
    Counts,
    count_weights,
    pixel_bytes,
    published_config,
    rollout_terms,
    static_terms,
    update_terms,
)
from mmsr.gpu.meter import REFERENCE, UPDATE, Lap, Meter
from mmsr.grpo import train_grpo
from mmsr.lab import env_factory, local_tools
from mmsr.policy import TINY_DIR, PictureProcessor, Policy, add_lora, load_processor
from mmsr.presets import Preset, get_preset
from mmsr.protocol import Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.runs.manifest import PACKAGES, device
from mmsr.sft import train_sft
from mmsr.teacher import Teacher, as_task
from mmsr.world.questions import Question, make_questions
from mmsr.world.snapshot import World, load_world

ROLLOUT, TOOLS = "rollout", "tools"
SEARCHED = ("one_hop", "two_hop", "hard")  # types of question that take a picture search and then text searches
PEAK_FLOPS = {  # dense bf16, as the vendor states it
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
    "RTX 3090": 71e12,
}
ACTIONS = (
    ImageSearch("the flag on the left"),
    TextSearch("Kenya capital"),
    TextSearch("Kenya area"),
    Answer("Nairobi"),
)


class BenchError(Exception):
    """The model does not fit this machine; the message says by how much."""


def bench(model: str, steps: int, seed: int = 0) -> dict[str, Any]:
    """Measure `steps` steps of each stage, after one to warm up. Raises BenchError before anything is allocated."""
    preset = get_preset(model)
    settings = {stage: preset for stage in ("sft", "grpo")}
    if preset.policy in PUBLISHED:
        config = published_config(preset.policy)
        if not torch.cuda.is_available():
            print("Without a GPU, a step of this size takes hours.", file=sys.stderr)
        settings = {stage: _fitting(stage, preset) for stage in settings}
    else:
        config = Qwen2_5_VLConfig.from_pretrained(TINY_DIR)
    counts = count_weights(config)
    flops, source = peak_flops()
    return {
        "model": model,
        "weights": asdict(counts),
        "device": device(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device_flops": {"value": flops, "source": source},
        "sft": measure("sft", settings["sft"], config, counts, flops, steps, seed),
        "grpo": measure("grpo", settings["grpo"], config, counts, flops, steps, seed),
    }


def _fitting(stage: Stage, preset: Preset) -> Preset:
    """The preset with what it takes to fit this machine's free memory. Raises BenchError where nothing does."""
    if torch.cuda.is_available():
        kind, free, name = "cuda", torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    else:
        kind, free, name = "cpu", psutil.virtual_memory().available, "this machine, without a GPU,"
    found = plan(stage, preset, free, (False,), kind)
    if not found.fits:
        raise BenchError(
            f"{stage} of {preset.name} takes at least {found.peak / GIB:.1f} GiB and {name} has {free / GIB:.1f} free: "
            "choose a smaller model or a larger GPU."
        )
    return found.settings


def measure(
    stage: Stage, preset: Preset, config: Qwen2_5_VLConfig, counts: Counts, flops: float, steps: int, seed: int
) -> dict[str, Any]:
    """One warm-up step and `steps` measured ones of a stage, on a fresh model. `flops`: of the device, a second."""
    size = replace(preset, policy="random", sft_epochs=1, grpo_steps=steps + 1, checkpoint_steps=steps + 2)
    world = load_world()
    policy = random_policy(config, size, seed)
    number = (steps + 1) * (size.sft_batch if stage == "sft" else size.grpo_questions)
    drawn = make_questions(world, "train", 3 * number + 24, seed)
    questions = [question for question in drawn if question.type in SEARCHED][:number]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        train = _sft if stage == "sft" else _grpo
        meter = train(policy, questions, world, size, Path(folder), seed)
    report = {"settings": _sizes(size), "steps": len(meter.laps) - 1} | _speed(meter.laps[1:], counts, flops)
    return report | {"peaks": _peaks(stage, meter, config, counts, size)}


def _sft(policy: Policy, questions: Sequence[Question], world: World, size: Preset, folder: Path, seed: int) -> Meter:
    examples = _examples(policy, questions, world, size)
    meter = Meter(policy.model)
    try:
        train_sft(policy, examples, [e.question.scene(world).picture for e in examples], size, folder, seed)
    finally:
        meter.close()
    return meter


def _examples(policy: Policy, questions: Sequence[Question], world: World, size: Preset) -> list[Example]:
    """The scripted teacher's episodes on these questions, with the gold boxes for its crops."""
    tasks = [as_task(question, world) for question in questions]
    env = env_factory(size, local_tools(size, policy, world), tasks, oracle(questions, world))()
    episodes = [(question, Teacher(world).play(question, env)) for question in questions]
    return [Example(q, "search_required", to_messages(q, played, world, size.prompts)) for q, played in episodes]


def _grpo(policy: Policy, questions: Sequence[Question], world: World, size: Preset, folder: Path, seed: int) -> Meter:
    policy = add_lora(policy, size.lora_r, size.lora_alpha)
    tasks = [as_task(question, world) for question in questions]
    new_env = env_factory(size, local_tools(size, policy, world), tasks)
    meter = Meter(policy.model)
    policy.model.generate = steered(policy, meter, size.new_tokens)
    try:
        train_grpo(policy, tasks, timed(new_env, meter), size, folder, seed)
    finally:
        meter.close()
    return meter


# --- a policy of random weights ---------------------------------------------------------------------------------------


def random_policy(config: Qwen2_5_VLConfig, preset: Preset, seed: int) -> Policy:
    """A policy in bf16 on the GPU if there is one, with the tiny base's tokenizer and its special tokens' numbers."""
    config, known = copy.deepcopy(config), Qwen2_5_VLConfig.from_pretrained(TINY_DIR)  # a trainer changes its model's
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, key, getattr(known, key))
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        setattr(config.text_config, key, getattr(known.text_config, key))
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    processor = load_processor("tiny")
    if preset.max_pixels:
        pixels = {"shortest_edge": preset.max_pixels, "longest_edge": preset.max_pixels}
        pictures = Qwen2VLImageProcessorPil(patch_size=PATCH, temporal_patch_size=2, merge_size=2, size=pixels)
        processor = PictureProcessor(pictures, processor.tokenizer, processor.chat_template)
    return Policy(model.eval(), processor, "random")


class Forced(LogitsProcessor):
    """Leaves every row one token to sample: the next of `ids`, from position `start` on."""

    def __init__(self, ids: Sequence[int], start: int):
        self.ids, self.start = ids, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1] - self.start]] = 0
        return forced


def written_turns(policy: Policy, new_tokens: int) -> list[list[int]]:
    """A picture search, two text searches and an answer as tokens, each a third of what a turn may have."""
    turns = []
    for action in ACTIONS:
        reason = "I look at it."
        while policy.count_tokens(render_turn(Turn(f"{reason} I look at it.", action))) < new_tokens // 3:
            reason += " I look at it."
        ids = policy.tokenizer(render_turn(Turn(reason, action)), add_special_tokens=False)["input_ids"]
        turns.append([*ids, policy.tokenizer.eos_token_id])
    return turns


def steered(policy: Policy, meter: Meter, new_tokens: int) -> Callable[..., Any]:
    """`generate` as it is for tools; in rollouts, timed, and made to write the turns one after the other.

    All rollouts of a step write the same turn at the same time, and their prefix grows; where it is short again, new
    rollouts have begun.
    """
    generate, turns = policy.model.generate, written_turns(policy, new_tokens)
    written, longest = 0, 0

    def generate_turn(*args: Any, **kwargs: Any) -> Any:
        nonlocal written, longest
        if meter.current == TOOLS:
            return generate(*args, **kwargs)
        length = kwargs["input_ids"].shape[1]
        written = written + 1 if length > longest else 0
        longest = length
        forced = Forced(turns[min(written, len(turns) - 1)], length)
        with meter.phase(ROLLOUT):
            return generate(*args, **kwargs, logits_processor=LogitsProcessorList([forced]))

    return generate_turn


def timed(new_env: Callable[[], SearchEnv], meter: Meter) -> Callable[[], SearchEnv]:
    """Environments whose turns count as tools, grounding by the frozen base included."""

    def new_timed_env() -> SearchEnv:
        env = new_env()
        play = env._play

        def timed_play(turn: str) -> Any:
            with meter.phase(TOOLS):
                return play(turn)

        env._play = timed_play
        return env

    return new_timed_env


# --- what was measured ------------------------------------------------------------------------------------------------


def peak_flops() -> tuple[float, str]:
    """Operations a second of the device in bf16, and where that number is from."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for known, value in PEAK_FLOPS.items():
            if known in name:
                return value, f"the vendor's, for {known}, dense bf16"
    return _matmul_flops(), "measured here, on the product of two square bf16 matrices"


def _matmul_flops() -> float:
    """The best of five products."""
    kind, side = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    a, b = (torch.randn(side, side, device=kind, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        (a @ b).sum().item()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def _speed(laps: Sequence[Lap], counts: Counts, flops: float) -> dict[str, Any]:
    """Seconds a step by phase, positions a second, utilisation. `flops`: of the device, a second.

    The head counts at every position of a training pass, as in 6·N, though TRL skips those without a label.
    """
    seconds, positions, rows, patches = (
        sum((getattr(lap, name) for lap in laps), start=Counter())
        for name in ("seconds", "positions", "rows", "patches")
    )
    wall, steps = sum(seconds.values()), len(laps)
    heads = {kind: rows[kind] if kind == ROLLOUT else number for kind, number in positions.items()}
    forward = {
        kind: 2 * (counts.matrices * positions[kind] + counts.head * heads[kind] + counts.vision * patches[kind])
        for kind in positions
    }
    backward = 2 * (counts.matrices + counts.head) * positions[UPDATE]
    weighted = 6 * (counts.matrices + counts.head) * positions[UPDATE]
    update = forward[UPDATE] + forward.get(REFERENCE, 0) + backward
    report = {
        "seconds_per_step": wall / steps,
        "seconds": {kind: value / steps for kind, value in seconds.items()},
        "positions_per_step": {kind: value / steps for kind, value in positions.items()},
        "tokens_per_second": positions[UPDATE] / wall,
        "mfu": (sum(forward.values()) + backward) / (wall * flops),
        "update": {
            "tokens_per_second": positions[UPDATE] / seconds[UPDATE],
            "mfu": update / (seconds[UPDATE] * flops),
            "mfu_6n": weighted / (seconds[UPDATE] * flops),
        },
    }
    if seconds[ROLLOUT]:
        report["rollout"] = {"new_tokens_per_second": rows[ROLLOUT] / seconds[ROLLOUT]}
    return report


def _peaks(stage: Stage, meter: Meter, config: Qwen2_5_VLConfig, counts: Counts, size: Preset) -> dict[str, Any]:
    """Bytes at the highest, by phase: measured, and what the arithmetic says for the same shapes."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    stays = static_terms(config, counts, size.lora_r, reference=stage == "grpo")
    rows = size.sft_batch if stage == "sft" else size.grpo_questions * size.generations
    shape = meter.shapes[UPDATE]
    stays["pixels"] = pixel_bytes(config, rows * shape.patches // shape.rows)
    found = {}
    for phase, moment in ((UPDATE, update_terms(config, shape, device=kind)), (ROLLOUT, None)):
        if phase not in meter.peaks:
            continue
        moment = moment or rollout_terms(config, meter.shapes[ROLLOUT])
        terms = stays | moment
        found[phase] = {
            "measured_bytes": meter.peaks[phase],
            "predicted_bytes": sum(terms.values()),
            "predicted_terms": terms,
            "shape": asdict(meter.shapes[phase]),
        }
    return found


def _sizes(size: Preset) -> dict[str, Any]:
    names = ("max_pixels", "micro_batch", "sft_batch", "grpo_questions", "generations", "lora_r", "completion_tokens")
    return {name: getattr(size, name) for name in names}
