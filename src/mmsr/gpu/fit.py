"""Does training a preset fit a GPU, and with which settings? Arithmetic: nothing is made or downloaded.

    mmsr fit --preset qwen7b --gpu-gb 24 [--json]
    fit(get_preset("qwen7b"), 24)["grpo"]["changes"]                                # what to give up
    memory_of("Qwen/Qwen2.5-VL-7B-Instruct").update(Pass(1, 5000, patches=2048))    # bytes by term

Lengths are the longest that the preset's budgets allow, for it is the longest batch that runs out of memory: SFT on the
teacher's longest episodes, GRPO with every completion at its limit. TRL generates all rollouts of a step together and
reads their whole prefixes again at every turn; there lies GRPO's peak.

H, I, kv: width, MLP width and key-value width of a decoder layer. Computing in bf16:

| term | bytes per position |
|---|---|
| checkpoints: the input of every layer | 2·H a layer |
| without them: what a layer with LoRA keeps for its backward pass | 24·H + 4·kv + 8·I a layer |
| one layer backwards, recomputed | 33·H + 4·kv + 14·I |
| one layer forwards in rollouts, where TRL computes LoRA in fp32 | 12·H + 12·I |
| keys and values, in rollouts | 4·kv a layer |
| pictures: the inputs of the vision blocks, which checkpointing keeps, frozen or not | 2·width a block and patch |

The factors were read off the tensors alive in a training step; tests/gpu holds them to measured peaks. TRL never builds
the logits of a batch (0.9 MB a position, at 151,936 words in bf16 and fp32): its head works in tiles, 0.25 GiB each.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr.policy import TINY_DIR
from mmsr.presets import PRESETS, Preset

Stage = Literal["sft", "grpo"]
STAGES: tuple[Stage, ...] = ("sft", "grpo")
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

WIDTHS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
PUBLISHED = {  # WIDTHS, the words, and whether head and embedding are one: as in each config.json of the hub
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 18944, 28, 28, 4, 152064, False),
}

# --- the memory of a model --------------------------------------------------------------------------------------------


def published_config(policy: str) -> Qwen2_5_VLConfig:
    """The published sizes, with the numbers of the tiny base's special tokens, in which `bench` writes."""

    def tokens(config: dict[str, Any]) -> dict[str, int | None]:
        return {name: number for name, number in config.items() if name.endswith("_token_id")}

    *widths, words, tied = PUBLISHED[policy]
    tiny = json.loads((TINY_DIR / "config.json").read_text(encoding="utf-8"))
    text = tokens(tiny["text_config"]) | dict(zip(WIDTHS, widths)) | {"vocab_size": words}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"hidden_size": 1280, "out_hidden_size": text["hidden_size"]}  # the rest is the library's default
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens(tiny))


@dataclass(frozen=True)
class Pass:
    """A forward pass: rows of so many positions, padding included, and the patches of all their pictures.

    `padded`: rows differ in length, so an attention mask is built.
    """

    rows: int
    positions: int
    patches: int
    padded: bool = True

    @property
    def tokens(self) -> int:
        """Positions in all rows."""
        return self.rows * self.positions

    @property
    def square(self) -> int:
        """Cells of the attention mask."""
        return self.tokens * self.positions if self.padded else 0


class Memory:
    """Of the model that a configuration describes; every method gives bytes, most of them by term.

    `weights` are counted without being made: all; the decoder layers' matrices, which 4 bits can hold and LoRA adapts;
    the head, counted once in all where it is the embedding too; the vision encoder.
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
        total, matrices = self.weights["total"], self.weights["matrices"]
        held = round(matrices * NF4) if four_bit else 2 * matrices
        return {"weights": held + 2 * (total - matrices), "LoRA and AdamW": self.lora(r) * (18 + 4 * reference)}

    def update(self, shape: Pass, checkpoints: bool = True, cpu: bool = False) -> dict[str, int]:
        """What a forward and backward pass holds at its peak, beside what stays."""
        hidden, inner, kv, tokens = self.hidden, self.inner, self.kv, shape.tokens
        repeated = 4 * (hidden - kv) if shape.padded else 0  # with a mask, keys and values are repeated for every head
        if checkpoints:
            kept = {"checkpoints": tokens * 2 * hidden * (self.layers + 1)}
            kept["pictures"] = shape.patches * 2 * self.vision.hidden_size * (self.vision.depth + 1)
            layer = tokens * (33 * hidden + 4 * kv + 14 * inner + repeated) + 2 * shape.square
        else:
            inside = tokens * (24 * hidden + 4 * kv + 8 * inner + repeated) + 2 * shape.square
            kept, layer = {"activations": self.layers * inside}, tokens * (14 * hidden + 6 * inner)
        rows, words = min(tokens, TILE[0]), TILE[1]
        folding = FOLD * rows * min(words, self.words) if cpu else 0
        head = 2 * rows * words + folding + 12 * tokens * hidden  # a tile; hidden states and gradients of all positions
        kept["attention mask"] = shape.square
        return kept | _largest({"one layer backwards": layer, "logits, in tiles": head})

    def rollout(self, shape: Pass) -> dict[str, int]:
        """What generating a turn holds at its peak, beside what stays."""
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


def _largest(moments: dict[str, int]) -> dict[str, int]:
    """Of terms that are not alive at the same time."""
    name = max(moments, key=moments.__getitem__)
    return {name: moments[name]}


@functools.cache
def memory_of(policy: str) -> Memory:
    """The memory of a policy. Raises ValueError for one whose sizes are not known here."""
    if policy not in PUBLISHED:
        known = ", ".join(name for name, preset in PRESETS.items() if preset.policy in PUBLISHED)
        raise ValueError(f"the sizes of {policy!r} are not known here: use one of the presets {known}.")
    return Memory(published_config(policy))


# --- the memory of a preset -------------------------------------------------------------------------------------------


def longest(stage: Stage, preset: Preset) -> tuple[Pass, Pass]:
    """All rows of a step at once, as GRPO's rollouts go, and one micro-batch of its update, at their longest."""
    patches = preset.max_pixels // PATCH**2
    turn, follow_up = (
        round(len(text) / CHARACTERS_PER_TOKEN) + 50 for text in (preset.prompts.first_turn, preset.prompts.after_text)
    )
    taught = SEARCHES * (preset.observation_tokens + follow_up) + (SEARCHES + 1) * TURN_TOKENS
    rollouts = preset.grpo_questions * preset.generations
    rows, written = (preset.sft_batch, taught) if stage == "sft" else (rollouts, preset.completion_tokens)
    positions, few = turn + patches // 4 + written, min(rows, preset.micro_batch)
    return Pass(rows, positions, rows * patches), Pass(few, positions, few * patches, few > 1)


def needed(stage: Stage, preset: Preset, checkpoints: bool = True, cpu: bool = False) -> dict[str, int]:
    """Bytes by term, largest first, of the worst moment of a stage, allowances for the device included."""
    memory, (step, micro) = memory_of(preset.policy), longest(stage, preset)
    moments = [memory.update(micro, checkpoints, cpu)]
    if stage == "grpo":
        moments.append(memory.rollout(step))
    terms = memory.static(preset.lora_r, preset.four_bit, reference=stage == "grpo")
    terms |= max(moments, key=lambda moment: sum(moment.values()))
    terms["pixels"] = memory.pixels(step.patches)
    if preset.four_bit:
        terms["a matrix unpacked"] = 2 * memory.hidden * memory.inner
    terms["allocator, CUDA"] = CONTEXT + round(FRAGMENTS * (sum(terms.values()) - terms["weights"]))
    return dict(sorted(terms.items(), key=lambda term: -term[1]))


def plan(
    stage: Stage, preset: Preset, capacity: int, four_bit: bool = True, cpu: bool = False
) -> tuple[Preset, dict[str, Any]]:
    """The settings nearest to the preset that fit into `capacity` bytes or, where none do, the leanest; what they take.

    Given up in this order: rows a backward pass (which costs nothing), questions a step, the base in 16 bits if
    `four_bit` may be chosen, half of the pixels, length of completions.
    """
    choices = {
        "completion_tokens": [preset.completion_tokens],
        "max_pixels": [preset.max_pixels, preset.max_pixels // 2],
        "four_bit": [False, True] if four_bit and not preset.four_bit else [preset.four_bit],
        "grpo_questions": [preset.grpo_questions],
        "micro_batch": _halves(preset.micro_batch),
    }
    if stage == "grpo":
        choices["completion_tokens"] += [length for length in COMPLETIONS if length < preset.completion_tokens]
        choices["grpo_questions"] = _halves(preset.grpo_questions)
    for values in itertools.product(*choices.values()):
        settings = replace(preset, **dict(zip(choices, values)))
        terms = needed(stage, settings, cpu=cpu)
        if fits := sum(terms.values()) <= capacity:
            break
    changes = {key: {"from": getattr(preset, key), "to": getattr(settings, key)} for key in choices}
    return settings, {
        "fits": fits,
        "peak_bytes": sum(terms.values()),
        "terms_bytes": terms,
        "changes": {key: change for key, change in changes.items() if change["from"] != change["to"]},
        "peak_bytes_without_checkpoints": sum(needed(stage, settings, checkpoints=False).values()),
    }


def _halves(number: int) -> list[int]:
    """The number, its half, and so on down to 1."""
    return [number] if number == 1 else [number, *_halves(number // 2)]


def fit(preset: Preset, gpu_gb: float) -> dict[str, Any]:
    """What SFT and GRPO take on a GPU of `gpu_gb` GiB, in bytes, and what of the preset must change for it.

    Raises ValueError for a policy of unknown sizes.
    """
    memory, usable = memory_of(preset.policy), round(USABLE * gpu_gb * GIB)
    weights = memory.weights | {"lora": memory.lora(preset.lora_r)}
    found = {"preset": preset.name, "policy": preset.policy, "weights": weights, "usable_bytes": usable}
    return found | {stage: plan(stage, preset, usable)[1] for stage in STAGES}


def as_table(found: dict[str, Any], gpu_gb: float) -> str:
    """What `fit` found as a small table, and what to change."""
    lines = [
        f"{found['preset']}: {found['policy']}, {found['weights']['total'] / 1e9:.2f} billion weights",
        f"a GPU of {gpu_gb:g} GB, of which {USABLE * gpu_gb:.1f} GiB are counted on",
        "",
        f"{'':6}{'':16}{'peak GiB':>8}   of which",
    ]
    advice = []
    for stage in STAGES:
        fits, peak, terms, changes, _ = found[stage].values()
        answer = "does not fit" if not fits else "fits if changed" if changes else "fits"
        parts = " · ".join(f"{name} {size / GIB:.1f}" for name, size in list(terms.items())[:4])
        lines.append(f"{stage:6}{answer:16}{peak / GIB:8.1f}   {parts}")
        said = ", ".join(f"{key} {change['from']} → {change['to']}" for key, change in changes.items())
        if not fits:
            said = f"even with {said} it takes a GPU of {math.ceil(peak / (USABLE * GIB))} GB"
        if said:
            advice.append(f"{stage}: {said}")
    return "\n".join([*lines, "", *advice, "This is arithmetic; mmsr bench sets it beside a measured peak."])
