"""How long a run takes on a card, and what it asks and pays outside: `mmsr fit` says so before anything starts.

    told(get_preset("qwen3b"), Outside(search="serper", budget_money=20), "A100", 80)["costs"]["03_grpo"]

Estimates: episodes are the teacher's longest, each turn of a batch as long as it may be, and every call is made, though
a record answers what was asked before. What a card computes is counted as in bench.py. The rest is assumed: UTILISED of
its peak where many positions pass (tiny: 0.17 to 0.23 of two cores, measured/bench_tiny.json); LAUNCHED seconds a layer
in a step of decoding, which waits for its kernels (49 ms for the 36 layers of a 3B on an H200); WAIT seconds for an
answer from outside, where several are asked side by side and none faster than it allows.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict
from typing import Any

import numpy as np

from mmsr.env import Rules
from mmsr.gpu.fit import CHARACTERS_PER_TOKEN, SEARCHES, TURN_TOKENS, longest, memory_of, read_at_once
from mmsr.lab import WORKERS
from mmsr.live.engines import MAX_CHARS
from mmsr.live.outside import Outside
from mmsr.presets import ASSETS, Preset

UTILISED, LAUNCHED, WAIT = 0.25, 1.4e-3, 2.0
SAID, SUMMED, JUDGED = 60, 400, (500, 100)  # tokens of a bare answer or box; of a summary; read and written by a judge
SNIPPET = 500  # characters of a hit whose page is not read
TERAFLOPS, RUN = (tomllib.loads((ASSETS / "gpu" / f"{name}.toml").read_text("utf-8")) for name in ("teraflops", "run"))
CARDS = {140: "H200", 80: "H100", 48: "L40S", 24: "RTX 4090", 0: "RTX 4080"}  # assumed from that many GB up
COST, Cost = ("seconds", "calls", "dollars"), np.ndarray


def rated(name: str) -> tuple[str, float] | None:
    """A GPU as teraflops.toml knows it, with its operations a second in bf16; None for one that it does not know."""
    return next(((known, value * 1e12) for known, value in TERAFLOPS.items() if known in name), None)


def operations(weights: dict[str, int], positions: int, scored: int, patches: int = 0) -> int:
    """Of a forward pass, two a weight: the head sees `scored` positions, the vision encoder patches."""
    return 2 * (weights["matrices"] * positions + weights["head"] * scored + weights["vision"] * patches)


def unit_costs(preset: Preset, outside: Outside, flops: float) -> dict[str, Cost]:
    """What run.toml counts: a step of a stage, an episode of policy or teacher, a bare answer, searches, a verdict."""
    memory, (rollouts, _), turns = memory_of(preset.policy), longest("grpo", preset), SEARCHES + 1
    prompt, length = rollouts.positions - preset.completion_tokens, longest("sft", preset)[0].positions
    writing, patches = turns * preset.new_tokens, rollouts.patches // rollouts.rows
    *texts, picture = outside.engines()
    pages = Rules.k * (outside.read_pages and any((*texts, picture)))

    def passed(positions: int, times: int = 1, steps: float = 0) -> Cost:
        """A row is read, picture and all, or passes so many times to be learnt from; then steps of decoding follow."""
        done = operations(memory.weights, times * positions, times * positions * (times > 1), patches)
        return np.array([done / (flops * UTILISED) + steps * memory.layers * LAUNCHED, 0, 0])

    def call(rate: float, price: float, workers: int = WORKERS) -> Cost:
        return np.array([max(1 / rate, WAIT / workers), 1, price])

    def asked(role: str, read: float, written: float, workers: int = WORKERS) -> Cost:
        """A call of a large model, in tokens."""
        if not (model := outside.models().get(role)):
            return np.zeros(3)
        return call(model.rate, (read * model.price_in + written * model.price_out) / 1e6, workers)

    searched = SEARCHES * asked("summary", (pages * MAX_CHARS or Rules.k * SNIPPET) / CHARACTERS_PER_TOKEN, SUMMED)
    for engine, number in ((picture, 1), *((text, SEARCHES - 1) for text in texts)):
        if engine:
            sent = 1 + (engine.service.name == "serpapi_lens")  # to which the picture goes first
            searched += number * (sent * call(engine.service.rate, engine.service.price) + [0, pages, 0])
    known = prompt + SEARCHES / 2 * (read_at_once(preset) + TURN_TOKENS)  # to a teacher in the middle of an episode
    judged = asked("judge", *JUDGED)
    answered, read = (asked("rivals", tokens, SAID) for tokens in (prompt, prompt + read_at_once(preset)))
    rivals = searched + turns * asked("rivals", known, TURN_TOKENS) + answered + searched + read + 3 * judged
    rollout = searched + judged + passed(length, steps=writing / min(rollouts.rows, preset.rollout_rows))
    return {
        "sft": preset.sft_batch * passed(length, 2),
        "grpo": rollouts.rows * (rollout + passed(length, 3)),  # once more for the reference
        "played": searched + judged + passed(length, steps=writing / preset.rollout_rows),
        "taught": searched + turns * asked("teacher", known, TURN_TOKENS, outside.teacher_workers),
        "said": passed(prompt, steps=SAID / preset.rollout_rows),
        "searched": searched,
        "judged": judged,
        "rivals": len(outside.rivals.split()) * rivals,
    }


def told(preset: Preset, outside: Outside, gpu: str, gpu_gb: float) -> dict[str, Any]:
    """Costs on the named GPU, or a usual one, and where `budget_money` is spent. ValueError for an unknown GPU."""
    if not (card := rated(gpu or next(card for least, card in CARDS.items() if gpu_gb >= least))):
        raise ValueError(f"the speed of --gpu {gpu!r} is not known here: use one of {', '.join(TERAFLOPS)}.")
    units, size, left, stop = unit_costs(preset, outside, card[1]), asdict(preset), outside.budget_money, ""
    size["sft_steps"] = math.ceil(preset.data_examples * preset.sft_epochs / preset.sft_batch)
    size["validation"] = preset.validation_questions
    notebooks = {name: sum(times * size[key] * units[unit] for unit, key, times in RUN[name]) for name in RUN}
    for name, (_, _, dollars) in notebooks.items() if left else ():
        if dollars > left:
            step = min(preset.grpo_steps, 1 + int(left / max(units["grpo"][2], 1e-9)))
            stop = f"{name}, at step {step} of {preset.grpo_steps}" if name == "03_grpo" else name
            break
        left -= dollars
    plain = {name: dict(zip(COST, cost.tolist())) for name, cost in (units | notebooks).items()}
    return {"gpu": card[0], "costs": plain, "stop": stop}
