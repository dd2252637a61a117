"""Our loop against TRL's own, in one process, in turn, on the same questions and weights.

    mmsr bench --against trl --model tiny --steps 2 --out against.json
    against("tiny", steps=2)["grpo"]["ratio"]           # seconds of a step, TRL's over ours: median, low, high

`tiny` is the shipped agent, which writes episodes of its own; `layers12` is a random Qwen2.5-VL of twelve layers that
looks at 512-pixel pictures and is made to write given turns. Evaluation is greedy, on test questions of the world,
against a loop that reads every conversation anew at each turn, as ours did until it kept its cache.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig

from mmsr.ablation import needing_crop
from mmsr.gpu.bench import SEED, Steered, metered_tools, our_grpo, peak_flops, random_policy, speed, written_turns
from mmsr.gpu.device import device, versions
from mmsr.gpu.fit import ROLLOUT, Memory
from mmsr.gpu.meter import Meter
from mmsr.gpu.stock import forgetful_play, stock_grpo
from mmsr.lab import open_tools
from mmsr.policy import TINY_DIR, Policy, add_lora, in_bf16, load_policy
from mmsr.presets import Preset, get_preset
from mmsr.rollout import Sampling, play
from mmsr.task import Task
from mmsr.world.questions import Question, make_questions

ROUNDS = 3
EVALUATED = {"tiny": 400, "layers12": 8}  # questions of an evaluation
Side = Callable[[Policy, Sequence[Question], Preset, Path, Meter], None]


def subject(model: str, steps: int) -> tuple[Preset, Callable[[], Policy]]:
    """The sizes of a subject, and what makes it afresh with its LoRA weights."""
    config = Qwen2_5_VLConfig.from_pretrained(TINY_DIR)
    size = get_preset("tiny", {"grpo_steps": steps + 1, "checkpoint_steps": steps + 2})
    if model == "tiny":
        return size, lambda: load_policy("tiny", TINY_DIR / "agent")
    config.text_config.num_hidden_layers, config.text_config.layer_types = 12, ["full_attention"] * 12
    config.vision_config.patch_size = 14
    size = replace(size, policy="random", max_pixels=512 * 512, micro_batch=8, rollout_rows=32, grpo_questions=2)

    def steered() -> Policy:
        bare = random_policy(config, size)
        if not in_bf16(bare.device):
            bare.model.float()  # as every policy computes there
        policy = add_lora(bare, size.lora_r, size.lora_alpha)
        policy.decoder = Steered(policy.model, policy.processor, written_turns(bare, size.new_tokens))
        return policy

    return size, steered


def against(model: str, steps: int) -> dict[str, Any]:
    """Seconds, positions, tokens and peaks of a GRPO step and of an evaluation, ours and stock, and their ratios."""
    size, make = subject(model, steps)
    number = size.grpo_questions * size.grpo_steps
    questions = needing_crop(make_questions("train", 3 * number + 24, SEED + 1000), number)
    asked = make_questions("test", EVALUATED[model], SEED)
    sides: dict[str, Side] = {"stock": stock, "ours": our_grpo}
    grpo: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    evaluation: dict[str, list[float]] = {name: [] for name in sides}
    flops, _ = peak_flops()
    for times in range(ROUNDS):
        for name in sorted(sides, reverse=times % 2 == 0):  # in turn, and not the same one first each time
            grpo[name].append(trained(make(), sides[name], questions, size, flops))
            evaluation[name].append(evaluated(make(), name, asked, size))
            step, whole = grpo[name][-1]["seconds_per_step"], evaluation[name][-1]
            print(f"{name}: {step:.1f} s a step of GRPO, evaluation {whole:.1f} s", file=sys.stderr)
    taken = {name: [found["seconds_per_step"] for found in rounds] for name, rounds in grpo.items()}
    return {
        "model": model,
        "device": device(),
        "versions": versions(),
        "steps": steps,
        "rounds": ROUNDS,
        "grpo": {name: rounds[-1] | {"rounds": taken[name]} for name, rounds in grpo.items()} | {"ratio": ratio(taken)},
        "evaluation": {"questions": len(asked), "seconds": evaluation, "ratio": ratio(evaluation)},
    }


def ratio(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Stock over ours, round by round: median, lowest, highest."""
    found = [stock / ours for stock, ours in zip(seconds["stock"], seconds["ours"])]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def trained(policy: Policy, side: Side, questions: Sequence[Question], size: Preset, flops: float) -> dict[str, Any]:
    """Steps of GRPO after one to warm up, measured. `flops`: the device's, a second."""
    network = policy.model.get_base_model()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), Meter(network) as meter:
        side(policy, questions, size, Path(folder), meter)
    return speed(meter, Memory(network.config).weights, flops) | {"peak_bytes": max(meter.peaks.values())}


def stock(policy: Policy, questions: Sequence[Question], size: Preset, folder: Path, meter: Meter) -> None:
    """GRPO by TRL alone; what it generates is measured separately, and steered where our decoder is."""
    network = policy.model.get_base_model()
    real, turns = network.generate, getattr(policy.decoder, "turns", None)
    longest = written = 0

    def generate(*args: Any, **kwargs: Any) -> Any:
        nonlocal longest, written
        length = kwargs["input_ids"].shape[1]
        written, longest = written + 1 if length > longest else 0, length  # a prefix that is short again: a new step
        if turns:
            turn = turns[min(written, len(turns) - 1)]
            kwargs["prefix_allowed_tokens_fn"] = lambda row, ids: [turn[len(ids) - length]]
        with meter.phase(ROLLOUT):
            ids = real(*args, **kwargs)
        meter.written[ROLLOUT] += int((ids[:, length:] != policy.tokenizer.pad_token_id).sum())
        return ids

    network.generate = generate
    policy.decoder.turns = None
    tasks = [Task.of(question) for question in questions]
    stock_grpo(policy, tasks, metered_tools(meter, open_tools(size, policy)), size, folder, SEED)


def evaluated(policy: Policy, name: str, questions: Sequence[Question], size: Preset) -> float:
    """Seconds that a policy takes to answer questions, greedily, with all tools."""
    tasks, tools, sampling = [Task.of(q) for q in questions], open_tools(size, policy), Sampling.of(size)
    began = time.perf_counter()
    if name == "ours":
        play(policy, tasks, tools, size.prompts, sampling)
    else:
        forgetful_play(policy, tasks, tools, size, sampling)
    return time.perf_counter() - began
