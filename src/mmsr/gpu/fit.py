"""Does training a preset fit a GPU, and with which settings? Said before anything is downloaded.

    mmsr fit --preset qwen7b --gpu-gb 24 [--json]
    estimates = fit(get_preset("qwen7b"), 24)       # of SFT and of GRPO

The arithmetic is memory.py's. Lengths are the longest that the preset's budgets allow, for it is the longest batch that
runs out of memory: SFT on the teacher's longest episodes, GRPO with every completion at its limit. TRL generates all
rollouts of a step together and reads their whole prefixes again at every turn; there lies GRPO's peak.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from transformers import Qwen2_5_VLConfig

from mmsr.gpu.memory import (
    PATCH,
    PUBLISHED,
    Counts,
    Device,
    Pass,
    count_weights,
    lora_weights,
    pixel_bytes,
    published_config,
    rollout_terms,
    static_terms,
    update_terms,
)
from mmsr.presets import PRESETS, Preset

Stage = Literal["sft", "grpo"]
GIB = 2**30
USABLE = 0.92  # of a card's nominal memory: a T4 or A10G reports 92 %, an H100 99 %
CONTEXT = GIB // 2  # CUDA, cuBLAS and compiled kernels
FRAGMENTS = 0.10  # of all but the weights: what the caching allocator cannot use. An allowance, not measured
CHARACTERS_PER_TOKEN = 3.5  # English in Qwen's tokens; a little low, so that lengths come out a little long
SEARCHES = 3  # of the teacher's longest episode, which SFT learns
TURN_TOKENS = 150  # of a turn in it
LEAST_COMPLETION = 4096  # tokens: three searches and their results; with less an agent cannot work


@functools.cache
def sizes(policy: str) -> tuple[Qwen2_5_VLConfig, Counts]:
    """The published configuration of a policy and its weights. Raises ValueError for one that is not known here."""
    if policy not in PUBLISHED:
        known = ", ".join(name for name, preset in PRESETS.items() if preset.policy in PUBLISHED)
        raise ValueError(f"the sizes of {policy!r} are not known here: use one of the presets {known}.")
    config = published_config(policy)
    return config, count_weights(config)


def sft_pass(preset: Preset) -> Pass:
    """One micro-batch of the teacher's longest episodes."""
    prompt, patches = _prompt(preset)
    observation = preset.observation_tokens + _tokens(preset.prompts.after_text) + 50
    rows = min(preset.sft_batch, preset.micro_batch)
    positions = prompt + SEARCHES * observation + (SEARCHES + 1) * TURN_TOKENS
    return Pass(rows, positions, rows * patches, rows > 1)


def grpo_passes(preset: Preset) -> tuple[Pass, Pass]:
    """All rollouts of a step, and one micro-batch of its update, every completion at its limit."""
    prompt, patches = _prompt(preset)
    positions, rollouts = prompt + preset.completion_tokens, preset.grpo_questions * preset.generations
    rows = min(rollouts, preset.micro_batch)
    return Pass(rollouts, positions, rollouts * patches), Pass(rows, positions, rows * patches, rows > 1)


def _prompt(preset: Preset) -> tuple[int, int]:
    """Positions of the first prompt with its picture, at their most, and the picture's patches."""
    patches = preset.max_pixels // PATCH**2
    return _tokens(preset.prompts.first_turn) + 50 + patches // 4, patches


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class Estimate:
    """What a stage takes: bytes by term, largest first, and the settings, with what of the preset they change."""

    stage: Stage
    fits: bool
    terms: dict[str, int]
    settings: Preset
    changes: dict[str, tuple[Any, Any]]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.terms.values())


def needed(
    stage: Stage, preset: Preset, four_bit: bool = False, checkpoints: bool = True, device: Device = "cuda"
) -> dict[str, int]:
    """Bytes by term, largest first, of the worst moment of a stage, allowances for the device included."""
    config, counts = sizes(preset.policy)
    if stage == "sft":
        pictures, moments = preset.sft_batch, [update_terms(config, sft_pass(preset), checkpoints, device)]
    else:
        rollouts, update = grpo_passes(preset)
        pictures = rollouts.rows
        moments = [rollout_terms(config, rollouts), update_terms(config, update, checkpoints, device)]
    terms = static_terms(config, counts, preset.lora_r, four_bit, stage == "grpo")
    terms |= max(moments, key=lambda moment: sum(moment.values()))
    terms["pixels"] = pixel_bytes(config, pictures * preset.max_pixels // PATCH**2)
    if four_bit:
        text = config.get_text_config()
        terms["a matrix unpacked"] = 2 * text.hidden_size * text.intermediate_size
    terms["allocator, CUDA"] = CONTEXT + round(FRAGMENTS * (sum(terms.values()) - terms["weights"]))
    return dict(sorted(terms.items(), key=lambda term: -term[1]))


def plan(stage: Stage, preset: Preset, capacity: int, bases: tuple[bool, ...], device: Device = "cuda") -> Estimate:
    """The settings nearest to the preset that fit into `capacity` bytes or, where none do, the leanest.

    Given up in this order: rows a backward pass (which costs nothing), questions a step, the base in 16 bits where
    `bases` (of `four_bit`) has another, half of the pixels, length of completions.
    """
    sizes(preset.policy)
    choices = {
        "completion_tokens": [preset.completion_tokens],
        "max_pixels": [preset.max_pixels, preset.max_pixels // 2],
        "four_bit": bases,
        "grpo_questions": [preset.grpo_questions],
        "micro_batch": _halves(preset.micro_batch),
    }
    if stage == "grpo":
        choices["completion_tokens"] += [n for n in (6144, LEAST_COMPLETION) if n < preset.completion_tokens]
        choices["grpo_questions"] = _halves(preset.grpo_questions)
    asked = {key: values[0] for key, values in choices.items()}
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values))
        settings = replace(preset, **{key: value for key, value in chosen.items() if key != "four_bit"})
        terms = needed(stage, settings, chosen["four_bit"], device=device)
        if sum(terms.values()) <= capacity:
            break
    changes = {key: (asked[key], value) for key, value in chosen.items() if value != asked[key]}
    return Estimate(stage, sum(terms.values()) <= capacity, terms, settings, changes)


def _halves(number: int) -> list[int]:
    """The number, its half, and so on down to 1."""
    return [number] if number == 1 else [number, *_halves(number // 2)]


def fit(preset: Preset, gpu_gb: float) -> list[Estimate]:
    """SFT and GRPO of a preset on a GPU of `gpu_gb` GiB. Raises ValueError for a policy of unknown sizes."""
    return [plan(stage, preset, round(USABLE * gpu_gb * GIB), (False, True)) for stage in ("sft", "grpo")]


def as_table(preset: Preset, gpu_gb: float, estimates: list[Estimate]) -> str:
    """The estimates as a small table, and what to change."""
    total = sizes(preset.policy)[1].total / 1e9
    lines = [
        f"{preset.name}: {preset.policy}, {total:.2f} billion weights",
        f"a GPU of {gpu_gb:g} GB, of which {USABLE * gpu_gb:.1f} GiB are counted on",
        "",
        f"{'':6}{'':16}{'peak GiB':>8}   of which",
    ]
    for e in estimates:
        answer = "does not fit" if not e.fits else "fits if changed" if e.changes else "fits"
        parts = " · ".join(f"{name} {size / GIB:.1f}" for name, size in list(e.terms.items())[:4])
        lines.append(f"{e.stage:6}{answer:16}{e.peak / GIB:8.1f}   {parts}")
    lines += ["", *(line for e in estimates if (line := _advice(e)))]
    return "\n".join([*lines, "This is arithmetic; mmsr bench sets it beside a measured peak."])


def _advice(e: Estimate) -> str:
    changes = ", ".join(f"{key} {old} → {new}" for key, (old, new) in e.changes.items())
    if e.fits:
        return f"{e.stage}: {changes}" if changes else ""
    card = math.ceil(e.peak / (USABLE * GIB))
    return f"{e.stage}: even with {changes} it takes a GPU of {card} GB"


def as_dict(preset: Preset, gpu_gb: float, estimates: list[Estimate]) -> dict[str, Any]:
    """The same for machines; sizes in bytes."""
    config, counts = sizes(preset.policy)
    found = {
        "preset": preset.name,
        "policy": preset.policy,
        "weights": asdict(counts) | {"lora": lora_weights(config, preset.lora_r)},
        "usable_bytes": round(USABLE * gpu_gb * GIB),
    }
    for e in estimates:
        unchecked = needed(e.stage, e.settings, "four_bit" in e.changes, checkpoints=False)
        found[e.stage] = {
            "fits": e.fits,
            "peak_bytes": e.peak,
            "terms_bytes": e.terms,
            "changes": {key: {"from": old, "to": new} for key, (old, new) in e.changes.items()},
            "peak_bytes_without_checkpoints": sum(unchecked.values()),
        }
    return found
