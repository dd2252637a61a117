"""Does training a preset fit a GPU, and with which settings? Arithmetic: nothing is made or downloaded.

    mmsr fit --preset qwen7b --gpu-gb 24 -p search=serper [--gpu "RTX 3090"] [--json]
    fit(get_preset("qwen7b"), 24)["grpo"]["changes"]                                # what to give up
    fit(get_preset("qwen7b"), 24)["run"]                                            # the command that does so
    memory_of("Qwen/Qwen2.5-VL-7B-Instruct").update(Pass(1, 5000, patches=2048))    # bytes by term

Lengths are the longest that the preset's budgets allow, for it is the longest batch that runs out of memory. GRPO's
peak mostly lies in the last turn of its rollouts (decode.py): every open row of the step keeps its keys and values from
turn to turn, and `rollout_rows` of them write at a time, on a copy. What comes before is smaller and not counted: the
vision encoder and the prompts, when no row has read a page yet; crops, which are located in an episode's first turns;
the reference's pass, an update without gradients; what Qwen3-VL adds to pictures in its first layers. The factors are
for bf16 with checkpointing, read off the tensors alive in a step; tests/gpu holds them to measured peaks.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jinja2 import Template
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from mmsr.decode import PICTURES
from mmsr.env import MAX_TURNS
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

GROUP = 8  # rows of a GRPO update that are computed together: with_trl.ROWS, named here to leave TRL unloaded
TILE = (4096, 32768)  # positions and words of TRL's fused head (trl.kernels.chunked_logprob)
FOLD = 29  # bytes a cell by which a CPU, without Triton, folds a tile: seven fp32 copies and a mask
NF4 = 0.5 + 0.0159  # bytes a weight: 4 bits, and scales that are quantised themselves

PUBLISHED = tomllib.loads((ASSETS / "gpu" / "models.toml").read_text(encoding="utf-8"))  # sizes by policy


def published_config(policy: str) -> PreTrainedConfig:
    """The published sizes, with the numbers of the tiny base's special tokens, in which `bench` writes."""
    sizes, tiny = copy.deepcopy(PUBLISHED[policy]), json.loads((TINY_DIR / "config.json").read_text(encoding="utf-8"))
    for to, numbers in ((sizes, tiny), (sizes["text_config"], tiny["text_config"])):
        to |= {name: number for name, number in numbers.items() if name.endswith("_token_id")}
    return AutoConfig.for_model(**sizes)


@dataclass(frozen=True)
class Pass:
    """A forward pass: rows of so many positions, padding included, and the patches of all their pictures.

    `padded`: rows differ in length, so an attention mask is built, of `square` cells. `tokens`: positions in all rows.
    `written`: how many of them the head sees; all where it is None.
    """

    rows: int
    positions: int
    patches: int
    padded: bool = True
    written: int | None = None

    @property
    def tokens(self) -> int:
        return self.rows * self.positions

    @property
    def square(self) -> int:
        return self.tokens * self.positions if self.padded else 0


class Memory:
    """The memory of the model that a configuration describes; every method gives bytes, most of them by term.

    `weights` are counted without being made: all (a tied head once), the decoder layers' matrices, which 4 bits can
    hold and LoRA adapts, the head, the vision encoder.
    """

    def __init__(self, config: PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        model.tie_weights()
        layers = model.model.language_model.layers
        matrices = [weight for weight in layers.parameters() if weight.dim() == 2]
        parts = {"total": model.parameters(), "matrices": matrices, "head": model.lm_head.parameters()}
        parts["vision"] = model.model.visual.parameters()
        self.weights = {name: sum(weight.numel() for weight in part) for name, part in parts.items()}
        self.config, self.vision, text = config, config.vision_config, config.get_text_config()
        self.hidden, self.inner, self.words = text.hidden_size, text.intermediate_size, text.vocab_size
        attention, self.layers = layers[0].self_attn, len(layers)
        self.queries, self.kv = attention.q_proj.out_features, attention.k_proj.out_features
        self.normed = hasattr(attention, "q_norm")  # queries and keys, as Qwen3-VL does
        self.parts = 1 + len(getattr(self.vision, "deepstack_visual_indexes", ()))  # of a picture's features
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

    def update(self, shape: Pass, cpu: bool = False, group: int | None = None) -> dict[str, int]:
        """What a forward and backward pass holds at its peak, beside what stays; `group` rows go through together.

        Checkpoints are the inputs of every layer, and of the vision blocks, frozen as they are. The logits of a batch
        are never whole: TRL's head works in tiles. With a mask, keys and values are repeated for every head.
        """
        hidden, seen = self.hidden, shape.tokens if shape.written is None else shape.written
        scored = min(seen, TILE[0])
        heads = (5 * self.queries + 4 * self.kv) * (1 + self.normed)
        repeated = 4 * (self.queries - self.kv) if shape.padded else 0
        folding = FOLD * scored * min(TILE[1], self.words) if cpu else 0
        kept = {
            "checkpoints": shape.tokens * 2 * hidden * (self.layers + 1),
            "pictures": shape.patches * 2 * self.vision.hidden_size * (self.vision.depth + 1),
            "attention mask": shape.square,
        }
        tokens = min(shape.rows, group or shape.rows) * shape.positions
        moments = {
            "one layer backwards": tokens * (28 * hidden + heads + 14 * self.inner + repeated) + 2 * shape.square,
            "logits, in tiles": 2 * scored * TILE[1] + folding + 12 * seen * hidden,  # and their states and gradients
        }
        return kept | _largest(moments)

    def rollout(self, step: Pass, writing: int, read: int) -> dict[str, int]:
        """What the last turn of the longest episodes holds at its peak, beside what stays.

        All rows of the `step` hold their keys and values; those `writing` have a copy with room for the turn. First
        `read` tokens of each pass a layer at once, and its keys and values are repeated for every head; the rows do not
        hold theirs of these tokens yet. Later a quarter of the rows has ended, and what the others hold is copied.
        """
        cache, columns, new = 4 * self.kv * self.layers, writing * step.positions, writing * read
        mask, heads = new * step.positions, 6 * self.hidden + 4 * self.queries
        moments = {
            "one layer forwards": new * (12 * self.hidden + 8 * self.inner - cache) + mask,
            "all heads' keys and values": columns * 4 * self.queries + new * (heads - cache) + 3 * mask,
            "rows that go on": writing * 3 // 4 * step.positions * cache,
        }
        kept = {"keys and values": step.tokens * cache, "those of rows that write": columns * cache}
        return kept | _largest(moments)

    def pixels(self, patches: int) -> int:
        """Of pictures as the processor hands them over, in fp32: three colours, twice, as for two frames of a video."""
        return 4 * patches * 3 * 2 * self.vision.patch_size**2

    def features(self, preset: Preset, patches: int) -> int:
        """Of the pictures that the decoder remembers, so many patches each; four of them make a token."""
        pictures = min(PICTURES, preset.grpo_questions * preset.grpo_steps)
        return pictures * patches // 4 * 2 * self.hidden * self.parts

    def phases(self, stage: Stage, preset: Preset, step: Pass, micro: Pass, cpu: bool) -> dict[str, dict[str, int]]:
        """Bytes by term at the highest of each phase: `step` has all rows at once, `micro` those of a backward pass.

        GRPO's update takes pictures as features, and needs neither the vision encoder nor a mask.
        """
        stays = self.static(preset.lora_r, preset.four_bit, reference=stage == "grpo")
        if stage == "sft":
            return {UPDATE: stays | {"pixels": self.pixels(step.patches)} | self.update(micro, cpu)}
        stays["features of pictures"] = self.features(preset, step.patches // step.rows)
        update = self.update(replace(micro, patches=0, padded=False), cpu, GROUP)
        rollout = self.rollout(step, min(step.rows, preset.rollout_rows), read_at_once(preset))
        return {UPDATE: stays | update, ROLLOUT: stays | rollout}


def _largest(moments: dict[str, int]) -> dict[str, int]:
    """The largest of terms that are not alive at the same time."""
    name = max(moments, key=moments.get)
    return {name: moments[name]}


@functools.cache
def memory_of(policy: str) -> Memory:
    """The memory of a policy. Raises ValueError for one whose sizes are not known here."""
    if policy not in PUBLISHED:
        known = ", ".join(name for name, preset in presets().items() if preset.policy in PUBLISHED)
        raise ValueError(f"the sizes of {policy!r} are not known here: use one of the presets {known}.")
    return Memory(published_config(policy))


def prompt_tokens(text: str) -> int:
    """Tokens of a prompt, with what is filled in and the special tokens of a turn."""
    return round(len(text) / CHARACTERS_PER_TOKEN) + 50


def read_at_once(preset: Preset) -> int:
    """Tokens of the longest observation, and of the prompt that follows it."""
    return preset.observation_tokens + prompt_tokens(preset.prompts.after_text)


def longest(stage: Stage, preset: Preset) -> tuple[Pass, Pass]:
    """All rows of a step, and those of one backward pass, at their longest."""
    patches = preset.max_pixels // memory_of(preset.policy).vision.patch_size ** 2
    prompt = prompt_tokens(preset.prompts.first_turn) + patches // 4
    if stage == "sft":
        rows, positions = preset.sft_batch, prompt + SEARCHES * read_at_once(preset) + (SEARCHES + 1) * TURN_TOKENS
        few = min(rows, preset.micro_batch)
        return Pass(rows, positions, rows * patches), Pass(few, positions, few * patches, few > 1)
    rows, positions = preset.grpo_questions * preset.generations, prompt + preset.completion_tokens
    few, written = min(rows, preset.micro_batch), min(preset.completion_tokens, MAX_TURNS * preset.new_tokens)
    return Pass(rows, positions, rows * patches), Pass(few, positions, 0, padded=False, written=few * written)


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

    The last of the choices are given up first. Fewer rows at once, in rollouts and in a backward pass, cost time and
    change nothing but rounding. Then comes the base in 4 bits, then half of a picture's pixels: these change slightly
    what the policy is and sees. The paper's batch of questions, from which every step's gradient is taken, is halved
    only after them. Episodes are not shortened: with fewer searches a different task is learnt.
    """
    grpo = stage == "grpo"
    choices = {
        "grpo_questions": halves(preset.grpo_questions) if grpo else [preset.grpo_questions],
        "max_pixels": [preset.max_pixels, preset.max_pixels // 2],
        "four_bit": [False, True] if four_bit and not preset.four_bit else [preset.four_bit],
        "rollout_rows": halves(preset.rollout_rows) if grpo else [preset.rollout_rows],
        "micro_batch": halves(preset.micro_batch),
    }
    for values in itertools.product(*choices.values()):
        settings = replace(preset, **dict(zip(choices, values)))
        terms = needed(stage, settings, cpu)
        if sum(terms.values()) <= capacity:
            break
    peak, before = sum(terms.values()), [getattr(preset, key) for key in choices]
    changes = {key: {"from": old, "to": new} for key, old, new in zip(choices, before, values) if old != new}
    return settings, {"fits": peak <= capacity, "peak_bytes": peak, "terms_bytes": terms, "changes": changes}


def halves(size: int) -> list[int]:
    """A number, its half, and so on down to 1."""
    return [size >> times for times in range(size.bit_length())]


def fit(preset: Preset, gpu_gb: float, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What SFT and GRPO take on a GPU of `gpu_gb` GiB, in bytes, what of the preset must change, and the `run` for it.

    `given` are the run's other parameters. Raises ValueError for a policy of unknown sizes.
    """
    memory, usable = memory_of(preset.policy), round(USABLE * gpu_gb * GIB)
    weights = memory.weights | {"lora": memory.lora(preset.lora_r)}
    found = {"preset": preset.name, "policy": preset.policy, "weights": weights, "usable_bytes": usable}
    plans = {stage: plan(stage, preset, usable)[1] for stage in STAGES}
    fitting = list(itertools.takewhile(lambda stage: plans[stage]["fits"], STAGES))
    values: dict[str, Any] = {}  # a run has one value of each: where stages differ the leaner, which fits both
    for key, change in (pair for stage in fitting for pair in plans[stage]["changes"].items()):
        values[key] = min(change["to"], values.get(key, change["to"]))  # a base is changed to 4 bits, never from them
    asked = dict(given or {}) | {key: str(value).lower() for key, value in values.items()}
    pairs = "".join(f" -p {shlex.quote(f'{key}={value}')}" for key, value in asked.items())
    run = f"mmsr run{'' if len(fitting) == len(STAGES) else ' 01 02'} --preset {preset.name}{pairs}" if fitting else ""
    return found | plans | {"settings": values, "run": run}


def as_table(found: dict[str, Any], gpu_gb: float) -> str:
    """What `fit` and `cost.told` found as small tables, and what to change: assets/gpu/fit.txt, filled in."""
    text = (ASSETS / "gpu" / "fit.txt").read_text(encoding="utf-8")
    table = Template(text, trim_blocks=True, lstrip_blocks=True)
    return table.render(found, plans={stage: found[stage] for stage in STAGES}, gpu_gb=gpu_gb, usable=USABLE, gib=GIB)
