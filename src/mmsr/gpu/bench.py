"""Steps of SFT and GRPO on models of the true sizes with random weights: speed, utilisation, memory.

    mmsr bench --model qwen7b --steps 3 --out bench.json

Training is `train_sft` and `train_grpo` as they are. A model of random weights would never write a turn, so in rollouts
it is made to write given ones; searches run, and the next turn reads what they found. `--against trl` is in against.py.

Utilisation (`mfu`) is the arithmetic that LoRA training needs over what the device could do in that time: a frozen
weight takes 2 operations a position forwards and 2 backwards. `mfu_6n` counts the 6·N of full training, as others
report. What checkpointing computes twice counts in neither.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr.ablation import needing_crop, oracle
from mmsr.data import Example, to_messages
from mmsr.decode import Decoder, Row
from mmsr.env import SearchEnv, Tools
from mmsr.gpu.cost import operations, rated
from mmsr.gpu.device import device, versions
from mmsr.gpu.fit import GIB, PUBLISHED, ROLLOUT, STAGES, UPDATE, Memory, Stage, memory_of, plan
from mmsr.gpu.meter import DECODE, GROUNDING, PREFILL, REFERENCE, TOOLS, Meter
from mmsr.grpo import train_grpo
from mmsr.lab import open_tools
from mmsr.policy import TINY_DIR, Policy, add_lora, best_device, load_processor
from mmsr.presets import Preset, get_preset
from mmsr.protocol import Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.sft import train_sft
from mmsr.task import Task
from mmsr.teacher import Teacher
from mmsr.world.questions import Question, make_questions

EPISODE = ImageSearch("the flag on the left"), TextSearch("Kenya capital"), TextSearch("Kenya area"), Answer("Nairobi")
SIZES = ("max_pixels", "micro_batch", "sft_batch", "grpo_questions", "generations", "lora_r", "completion_tokens")
SEED = 0


class BenchError(Exception):
    """The model does not fit this machine; the message says by how much."""


def bench(model: str, steps: int) -> dict[str, Any]:
    """Measure `steps` steps of each stage, after one to warm up. Raises BenchError before anything is allocated.

    `tiny` stands in for the large sizes: in bf16, with checkpointing.
    """
    preset = get_preset(model)
    if preset.policy in PUBLISHED:
        if not torch.cuda.is_available():
            print("Without a GPU, a step of this size takes hours.", file=sys.stderr)
        memory, settings = memory_of(preset.policy), {stage: fitting(stage, preset) for stage in STAGES}
    else:
        memory, settings = Memory(Qwen2_5_VLConfig.from_pretrained(TINY_DIR)), dict.fromkeys(STAGES, preset)
    flops, source = peak_flops()
    return {
        "model": model,
        "weights": memory.weights,
        "device": device(),
        "versions": versions(),
        "device_flops": {"value": flops, "source": source},
    } | {stage: measure(stage, settings[stage], memory, flops, steps) for stage in STAGES}


def fitting(stage: Stage, preset: Preset) -> Preset:
    """The preset with what it takes to fit this machine's free memory. Raises BenchError where nothing does."""
    free, name, cpu = psutil.virtual_memory().available, "this machine, without a GPU,", True
    if torch.cuda.is_available():
        free, name, cpu = torch.cuda.mem_get_info()[0], torch.cuda.get_device_name(), False
    settings, found = plan(stage, preset, free, four_bit=False, cpu=cpu)
    if not found["fits"]:
        raise BenchError(
            f"{stage} of {preset.name} takes at least {found['peak_bytes'] / GIB:.1f} GiB and {name} has "
            f"{free / GIB:.1f} free: choose a smaller model or a larger GPU."
        )
    return settings


def measure(stage: Stage, preset: Preset, memory: Memory, flops: float, steps: int) -> dict[str, Any]:
    """One warm-up step and `steps` measured ones of a stage, on a fresh model. `flops`: the device's, a second."""
    size = replace(preset, policy="random", sft_epochs=1, grpo_steps=steps + 1, checkpoint_steps=steps + 2)
    policy = random_policy(memory.config, size)
    number = (steps + 1) * (size.sft_batch if stage == "sft" else size.grpo_questions)
    questions = needing_crop(make_questions("train", 3 * number + 24, SEED), number)
    train, quiet = {"sft": sft, "grpo": grpo}[stage], contextlib.redirect_stdout(sys.stderr)
    with tempfile.TemporaryDirectory() as folder, quiet, Meter(policy.model) as meter:
        train(policy, questions, size, Path(folder), meter)
    return {
        "settings": {name: getattr(size, name) for name in SIZES},
        "steps": meter.steps,
        **speed(meter, memory.weights, flops),
        "peaks": peaks(stage, meter, memory, size),
    }


def sft(policy: Policy, questions: Sequence[Question], size: Preset, folder: Path, _: Meter) -> None:
    """On the scripted teacher's episodes, with the gold boxes for its crops."""
    tools = replace(open_tools(size, policy), grounder=oracle(questions))
    episodes = [Teacher().play(q, SearchEnv(tools, size.prompts, Task.of(q))) for q in questions]
    told = [to_messages(question, episode, size.prompts) for question, episode in zip(questions, episodes)]
    examples = [Example(question, "search_required", messages) for question, messages in zip(questions, told)]
    train_sft(policy, examples, [question.draw() for question in questions], size, folder, SEED)


def grpo(policy: Policy, questions: Sequence[Question], size: Preset, folder: Path, meter: Meter) -> None:
    """On episodes of the written turns."""
    turns = written_turns(policy, size.new_tokens)
    policy = add_lora(policy, size.lora_r, size.lora_alpha)
    policy.decoder = Steered(policy.model, policy.processor, turns)
    our_grpo(policy, questions, size, folder, meter)


def our_grpo(policy: Policy, questions: Sequence[Question], size: Preset, folder: Path, meter: Meter) -> None:
    """GRPO by our own loop, its parts measured separately."""
    with metered(meter, policy.decoder):
        train_grpo(policy, questions, metered_tools(meter, open_tools(size, policy)), size, folder, SEED)


class Steered(Decoder):
    """Writes given turns, one after the other, where it samples; all the work of sampling is done, and thrown away."""

    def __init__(self, model: Any, processor: Any, turns: Sequence[Sequence[int]]):
        super().__init__(model, processor)
        self.turns = turns

    def write(self, rows: Sequence[Row], limits: Sequence[int], temperature: float, draws: Any, size: int) -> list[str]:
        if temperature:
            ended = [sum(own and i == self.tokenizer.eos_token_id for i, own in zip(r.ids, r.written)) for r in rows]
            draws = [self.turns[min(number, len(self.turns) - 1)] for number in ended]
            limits = [min(limit, len(turn)) for limit, turn in zip(limits, draws)]
        return super().write(rows, limits, temperature, draws, size)

    def _choose(self, states: torch.Tensor, temperature: float, draws: Any) -> tuple[list[int], list[float]]:
        if draws is None:
            return super()._choose(states, temperature, None)
        _, logps = super()._choose(states, temperature, [0.5] * len(draws))
        return [int(token) for token in draws], logps


@contextlib.contextmanager
def metered(meter: Meter, decoder: Decoder) -> Iterator[None]:
    """Measure the decoder's work by its parts in this block, except for what a grounder asks of it."""
    states, write, opened = decoder._states, decoder.write, decoder.open

    def within(phase: str, work: Callable, *given: Any) -> Any:
        with meter.phase(GROUNDING if meter.current == GROUNDING else phase):
            return work(*given)

    def counted(rows: Sequence[Row], *given: Any) -> list[str]:
        before = sum(len(row.ids) for row in rows)
        texts = within(ROLLOUT, write, rows, *given)
        phase = GROUNDING if meter.current == GROUNDING else ROLLOUT
        meter.written[phase] += sum(len(row.ids) for row in rows) - before
        return texts

    decoder._states = lambda embeds, *rest: within(PREFILL if embeds.shape[1] > 1 else DECODE, states, embeds, *rest)
    decoder.write, decoder.open = counted, lambda *given: within(ROLLOUT, opened, *given)
    try:
        yield
    finally:
        for name in ("_states", "write", "open"):
            delattr(decoder, name)


def metered_tools(meter: Meter, tools: Tools) -> Tools:
    """The tools, with grounding and searching measured separately."""
    locate, locate_all = (meter.phase(GROUNDING)(f) for f in (tools.grounder.locate, tools.grounder.locate_all))
    text, image = (SimpleNamespace(search=meter.phase(TOOLS)(engine.search)) for engine in (tools.text, tools.image))
    return replace(tools, text=text, image=image, grounder=SimpleNamespace(locate=locate, locate_all=locate_all))


def random_policy(config: Qwen2_5_VLConfig, preset: Preset) -> Policy:
    """A policy in bf16 on the GPU if there is one, with the tiny base's tokenizer."""
    torch.manual_seed(SEED)
    with best_device():  # a copy, for a trainer changes its model's configuration
        model = Qwen2_5_VLForConditionalGeneration._from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    processor = load_processor("tiny")
    if preset.max_pixels:
        processor.image_processor.patch_size = config.vision_config.patch_size
        processor.image_processor.size = {"shortest_edge": preset.max_pixels, "longest_edge": preset.max_pixels}
    return Policy(model.requires_grad_(False).eval(), processor, "random")


def written_turns(policy: Policy, new_tokens: int) -> list[list[int]]:
    """A picture search, two text searches and an answer as tokens, each a third of what a turn may have."""
    turns = []
    for action in EPISODE:
        reason = "I look at it."
        while policy.count_tokens(render_turn(Turn(f"{reason} I look at it.", action))) < new_tokens // 3:
            reason += " I look at it."
        ids = policy.tokenizer(render_turn(Turn(reason, action)), add_special_tokens=False)["input_ids"]
        turns.append([*ids, policy.tokenizer.eos_token_id])
    return turns


def peak_flops() -> tuple[float, str]:
    """Operations a second of the device in bf16, and where that number is from."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if known := rated(name):
        return known[1], f"the vendor's, for {known[0]}, dense bf16"
    side = 8192 if name else 1024
    a, b = (torch.randn(side, side, device=best_device(), dtype=torch.bfloat16) for _ in range(2))
    product = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    best = min(product.blocked_autorange(min_run_time=1).times)
    return 2 * side**3 / best, "measured here, on the product of two square bf16 matrices"


def speed(meter: Meter, weights: dict[str, int], flops: float) -> dict[str, Any]:
    """Seconds a step by phase, positions a second, utilisation. `flops`: the device's, a second.

    The head counts at every position of a training pass, as in 6·N, though TRL skips those without a label.
    """
    seconds, positions, steps = meter.seconds, meter.positions, meter.steps
    scored = positions | {kind: meter.rows[kind] for kind in (ROLLOUT, PREFILL, DECODE)}  # a row's last position alone
    forward = Counter({p: operations(weights, positions[p], scored[p], meter.patches[p]) for p in positions})
    backward = operations(weights, positions[UPDATE], positions[UPDATE])

    def rates(operations: int, taken: float) -> dict[str, float]:
        return {"tokens_per_second": positions[UPDATE] / taken, "mfu": operations / (taken * flops)}

    updates = forward[UPDATE] + forward[REFERENCE] + backward
    rollout = seconds[ROLLOUT] + seconds[PREFILL] + seconds[DECODE]
    return {
        "seconds_per_step": seconds.total() / steps,
        "seconds": {kind: value / steps for kind, value in seconds.items()},
        "positions_per_step": {kind: value / steps for kind, value in positions.items()},
        **rates(forward.total() + backward, seconds.total()),
        "update": rates(updates, seconds[UPDATE]) | {"mfu_6n": rates(3 * backward, seconds[UPDATE])["mfu"]},
    } | ({"rollout": {"new_tokens_per_second": meter.written[ROLLOUT] / rollout}} if rollout else {})


def peaks(stage: Stage, meter: Meter, memory: Memory, size: Preset) -> dict[str, Any]:
    """Bytes at the highest, by phase: measured, and what the arithmetic says for the same shapes."""
    rows, micro = size.sft_batch if stage == "sft" else size.grpo_questions * size.generations, meter.shapes[UPDATE]
    if stage == "grpo":  # a group of rows is a pass there, and several of them are differentiated together
        written = meter.written[ROLLOUT] // meter.steps // rows
        micro = replace(micro, rows=min(size.micro_batch, rows), written=min(size.micro_batch, rows) * written)
    shapes = {UPDATE: micro, ROLLOUT: meter.shapes.get(DECODE, micro)}
    within = {UPDATE: (UPDATE, REFERENCE), ROLLOUT: (ROLLOUT, PREFILL, DECODE)}
    patches = meter.patches[ROLLOUT] // meter.steps or rows * micro.patches // micro.rows  # of a step's pictures
    step = replace(shapes[ROLLOUT], rows=rows, patches=patches)
    return {
        phase: {
            "measured_bytes": max(meter.peaks[part] for part in within[phase]),
            "predicted_bytes": sum(terms.values()),
            "predicted_terms": terms,
            "shape": asdict(shapes[phase]),
        }
        for phase, terms in memory.phases(stage, size, step, micro, cpu=not torch.cuda.is_available()).items()
    }
