"""Does training a preset fit a GPU, and with which settings? Arithmetic: nothing is made or downloaded.

    mmsr fit --preset qwen7b --gpu-gb 24 [--json]
    fit(get_preset("qwen7b"), 24)["grpo"]["changes"]                                # what to give up
    memory_of("Qwen/Qwen2.5-VL-7B-Instruct").update(Pass(1, 5000, patches=2048))    # bytes by term

Lengths are the longest that the preset's budgets allow, for it is the longest batch that runs out of memory. GRPO's
peak lies in its rollouts: TRL generates all of a step together and reads their whole prefixes again at every turn. The
factors are for bf16 with checkpointing, read off the tensors alive in a step; tests/gpu holds them to measured peaks.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import tomllib
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jinja2 import Template
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr.policy import TINY_DIR
from mmsr.presets import ASSETS, Preset, presets

Stage = Literal["sft", "grpo"]
STAGES: tuple[Stage, ...] = ("sft", "grpo")
UPDATE, ROLLOUT = "update", "rollout"  # the phases of a stage that have a peak of their own
GIB = 2**30
USABLE = 0.92  # of a card's nominal memory: a T4 or A10G reports 92 %, an H100 99 %
CONTEXT = GIB // 2  # CUDA, cuBLAS and compiled kernels
FRAGMENTS = 0.10  # of all but the weights: what the caching allocator cannot use. An allowance, not measured
CHARACTERS_PER_TOKEN = 3.5  # English in Qwen's tokens; a little low, so that lengths come out a little long
SEARCHES, TURN_TOKENS = 3, 150  # of the teacher's longest episode, which SFT learns
COMPLETIONS = (6144, 4096)  # shorter ones; with fewer than three searches and their results an agent cannot work

PATCH = 14  # pixels; two by two patches make a token
TILE = (4096, 32768)  # positions and words of TRL's fused head (trl.kernels.chunked_logprob)
FOLD = 29  # bytes a cell by which a CPU, without Triton, folds a tile: seven fp32 copies and a mask
NF4 = 0.5 + 0.0159  # bytes a weight: 4 bits, and scales that are quantised themselves

PUBLISHED = tomllib.loads((ASSETS / "gpu" / "models.toml").read_text(encoding="utf-8"))  # sizes by policy


def published_config(policy: str) -> Qwen2_5_VLConfig:
    """The published sizes, with the numbers of the tiny base's special tokens, in which `bench` writes."""
    sizes, tiny = copy.deepcopy(PUBLISHED[policy]), json.loads((TINY_DIR / "config.json").read_text(encoding="utf-8"))
    for to, numbers in ((sizes, tiny), (sizes["text_config"], tiny["text_config"])):
        to |= {name: number for name, number in numbers.items() if name.endswith("_token_id")}
    return Qwen2_5_VLConfig(**sizes)


@dataclass(frozen=True)
class Pass:
    """A forward pass: rows of so many positions, padding included, and the patches of all their pictures.

    `padded`: rows differ in length, so an attention mask is built, of `square` cells. `tokens`: positions in all rows.
    """

    rows: int
    positions: int
    patches: int
    padded: bool = True

    @property
    def tokens(self) -> int:
        return self.rows * self.positions

    @property
    def square(self) -> int:
        return self.tokens * self.positions if self.padded else 0


class Memory:
    """Of the model that a configuration describes; every method gives bytes, most of them by term.

    `weights` are counted without being made: all (a tied head once), the decoder layers' matrices, which 4 bits can
    hold and LoRA adapts, the head, the vision encoder.
    """

    def __init__(self, config: Qwen2_5_VLConfig):
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(config)
        model.tie_weights()
        layers = model.model.language_model.layers
        matrices = [weight for weight in layers.parameters() if weight.dim() == 2]
        parts = {"total": model.parameters(), "matrices": matrices, "head": model.lm_head.parameters()}
        parts["vision"] = model.model.visual.parameters()
        self.weights = {name: sum(weight.numel() for weight in part) for name, part in parts.items()}
        self.config, self.vision, text = config, config.vision_config, config.get_text_config()
        self.hidden, self.inner, self.words = text.hidden_size, text.intermediate_size, text.vocab_size
        self.kv, self.layers = layers[0].self_attn.k_proj.out_features, len(layers)
        self._sides = sum(sum(matrix.shape) for matrix in matrices)

    def lora(self, r: int) -> int:
        """Weights, not bytes, of LoRA of rank `r` on every linear layer of the language model."""
        return r * self._sides

    def static(self, r: int, four_bit: bool = False, reference: bool = False) -> dict[str, int]:
        """What stays: bf16 weights; LoRA in fp32 with gradients, AdamW's two moments and a bf16 copy for autocast.

        `reference` adds the frozen copy of the adapter from which GRPO's KL is taken.
        """
        matrices = self.weights["matrices"]
        saved = 2 * matrices - round(matrices * NF4) if four_bit else 0
        return {"weights": 2 * self.weights["total"] - saved, "LoRA and AdamW": self.lora(r) * (18 + 4 * reference)}

    def update(self, shape: Pass, cpu: bool = False) -> dict[str, int]:
        """What a forward and backward pass holds at its peak, beside what stays.

        Checkpoints are the inputs of every layer, and of the vision blocks, frozen as they are. The logits of a batch
        are never whole: TRL's head works in tiles. With a mask, keys and values are repeated for every head.
        """
        hidden, tokens, rows = self.hidden, shape.tokens, min(shape.tokens, TILE[0])
        repeated = 4 * (hidden - self.kv) if shape.padded else 0
        folding = FOLD * rows * min(TILE[1], self.words) if cpu else 0
        kept = {
            "checkpoints": tokens * 2 * hidden * (self.layers + 1),
            "pictures": shape.patches * 2 * self.vision.hidden_size * (self.vision.depth + 1),
            "attention mask": shape.square,
        }
        moments = {
            "one layer backwards": tokens * (33 * hidden + 4 * self.kv + 14 * self.inner + repeated) + 2 * shape.square,
            "logits, in tiles": 2 * rows * TILE[1] + folding + 12 * tokens * hidden,  # and all states and gradients
        }
        return kept | _largest(moments)

    def rollout(self, shape: Pass) -> dict[str, int]:
        """What generating a turn holds at its peak, beside what stays; TRL computes LoRA in fp32 there."""
        mlp, attention = 12 * self.hidden + 12 * self.inner, 24 * self.hidden + 2 * shape.positions * shape.padded
        moments = {
            "one layer forwards": shape.tokens * max(mlp, attention),
            "vision encoder": shape.patches * 36 * self.vision.hidden_size + self.pixels(shape.patches) // 2,
            "logits of a word": 18 * shape.rows * self.words,
        }
        kept = {"keys and values": shape.tokens * 4 * self.kv * self.layers, "attention mask": shape.square}
        return kept | _largest(moments)

    def pixels(self, patches: int) -> int:
        """Of pictures as the processor hands them over, in fp32: three colours, twice, as for two frames of a video."""
        return 4 * patches * 3 * 2 * self.vision.patch_size**2

    def phases(self, stage: Stage, preset: Preset, step: Pass, micro: Pass, cpu: bool) -> dict[str, dict[str, int]]:
        """Bytes by term at the highest of each phase: `step` has all rows at once, `micro` those of a backward pass."""
        stays = self.static(preset.lora_r, preset.four_bit, reference=stage == "grpo")
        stays["pixels"] = self.pixels(step.patches)
        rollout = {ROLLOUT: stays | self.rollout(step)} if stage == "grpo" else {}
        return {UPDATE: stays | self.update(micro, cpu)} | rollout


def _largest(moments: dict[str, int]) -> dict[str, int]:
    """Of terms that are not alive at the same time."""
    name = max(moments, key=moments.get)
    return {name: moments[name]}


@functools.cache
def memory_of(policy: str) -> Memory:
    """The memory of a policy. Raises ValueError for one whose sizes are not known here."""
    if policy not in PUBLISHED:
        known = ", ".join(name for name, preset in presets().items() if preset.policy in PUBLISHED)
        raise ValueError(f"the sizes of {policy!r} are not known here: use one of the presets {known}.")
    return Memory(published_config(policy))


def longest(stage: Stage, preset: Preset) -> tuple[Pass, Pass]:
    """All rows of a step at once, as GRPO's rollouts go, and one micro-batch of its update, at their longest."""
    patches = preset.max_pixels // PATCH**2
    prompts = preset.prompts.first_turn, preset.prompts.after_text
    turn, follow_up = (round(len(text) / CHARACTERS_PER_TOKEN) + 50 for text in prompts)
    taught = SEARCHES * (preset.observation_tokens + follow_up) + (SEARCHES + 1) * TURN_TOKENS
    rollouts = preset.grpo_questions * preset.generations
    rows, written = (preset.sft_batch, taught) if stage == "sft" else (rollouts, preset.completion_tokens)
    positions, few = turn + patches // 4 + written, min(rows, preset.micro_batch)
    return Pass(rows, positions, rows * patches), Pass(few, positions, few * patches, few > 1)


def needed(stage: Stage, preset: Preset, cpu: bool = False) -> dict[str, int]:
    """Bytes by term, largest first, of the worst moment of a stage, allowances for the device included."""
    memory, (step, micro) = memory_of(preset.policy), longest(stage, preset)
    phases = memory.phases(stage, preset, step, micro, cpu)
    terms = max(phases.values(), key=lambda phase: sum(phase.values()))
    if preset.four_bit:
        terms["a matrix unpacked"] = 2 * memory.hidden * memory.inner
    terms["allocator, CUDA"] = CONTEXT + round(FRAGMENTS * (sum(terms.values()) - terms["weights"]))
    return dict(sorted(terms.items(), key=lambda term: -term[1]))


def plan(
    stage: Stage, preset: Preset, capacity: int, four_bit: bool = True, cpu: bool = False
) -> tuple[Preset, dict[str, Any]]:
    """The settings nearest to the preset that fit into `capacity` bytes or, where none do, the leanest; what they take.

    The last of the choices are given up first; fewer rows a backward pass cost nothing.
    """
    grpo, shorter = stage == "grpo", [length for length in COMPLETIONS if length < preset.completion_tokens]
    questions, rows = (  # the number, its half, and so on down to 1
        [size >> times for times in range(size.bit_length())] for size in (preset.grpo_questions, preset.micro_batch)
    )
    choices = {
        "completion_tokens": [preset.completion_tokens, *(shorter if grpo else [])],
        "max_pixels": [preset.max_pixels, preset.max_pixels // 2],
        "four_bit": [False, True] if four_bit and not preset.four_bit else [preset.four_bit],
        "grpo_questions": questions if grpo else questions[:1],
        "micro_batch": rows,
    }
    for values in itertools.product(*choices.values()):
        settings = replace(preset, **dict(zip(choices, values)))
        terms = needed(stage, settings, cpu)
        if sum(terms.values()) <= capacity:
            break
    peak, before = sum(terms.values()), [getattr(preset, key) for key in choices]
    changes = {key: {"from": old, "to": new} for key, old, new in zip(choices, before, values) if old != new}
    return settings, {"fits": peak <= capacity, "peak_bytes": peak, "terms_bytes": terms, "changes": changes}


def fit(preset: Preset, gpu_gb: float) -> dict[str, Any]:
    """What SFT and GRPO take on a GPU of `gpu_gb` GiB, in bytes, and what of the preset must change for it.

    Raises ValueError for a policy of unknown sizes.
    """
    memory, usable = memory_of(preset.policy), round(USABLE * gpu_gb * GIB)
    weights = memory.weights | {"lora": memory.lora(preset.lora_r)}
    found = {"preset": preset.name, "policy": preset.policy, "weights": weights, "usable_bytes": usable}
    return found | {stage: plan(stage, preset, usable)[1] for stage in STAGES}


def as_table(found: dict[str, Any], gpu_gb: float) -> str:
    """What `fit` found as a small table, and what to change: assets/gpu/fit.txt, filled in."""
    text = (ASSETS / "gpu" / "fit.txt").read_text(encoding="utf-8")
    table = Template(text, trim_blocks=True, lstrip_blocks=True)
    return table.render(found, plans={stage: found[stage] for stage in STAGES}, gpu_gb=gpu_gb, usable=USABLE, gib=GIB)
