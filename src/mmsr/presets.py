"""Sizes of a run. A preset changes numbers, names and prompts, never a branch: the notebooks are the same for all.

    preset = get_preset("tiny")
    preset = get_preset("qwen3b", model="/data/my-qwen")    # another Qwen2.5-VL, by name or folder, in its settings

| preset | policy | where |
|---|---|---|
| smoke | tiny, a few steps of everything | tests, under four minutes |
| tiny | tiny, the whole experiment | a laptop, minutes |
| qwen3b, qwen7b | Qwen2.5-VL-3B/7B-Instruct | one GPU |
| qwen_smoke | qwen3b with the counts of smoke | minutes on that GPU, before its hours |

Where the paper gives a number (§4.1, App. D), the Qwen presets keep it; where it contradicts itself the choice is said
here. GRPO's batch: §4.1 says 512, App. D 256 with mini-batches of 64; on one GPU 64 rollouts a step are kept, and the
number of steps stands in for its 20 or 30 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from mmsr.live.prompts import AFTER_IMAGE_SEARCH, AFTER_TEXT_SEARCH, FIRST_TURN
from mmsr.protocol import Prompts

TINY_PROMPTS = Prompts(
    first_turn="{question}\nReason, then search or answer.",
    after_image="{question}",
    after_text="{question}",
    locate="locate: {expression}",
    direct="{question}",
    rag="{pages}\n{question}",
)
QWEN_PROMPTS = Prompts(
    first_turn=FIRST_TURN,
    after_image=AFTER_IMAGE_SEARCH,
    after_text=AFTER_TEXT_SEARCH,
    locate='Locate {expression} and give its box as JSON: [{{"bbox_2d": [x1, y1, x2, y2], "label": "…"}}]',
    direct="{question}\nAnswer in as few words as it takes.",
    rag="Search results:\n{pages}\n\nQuestion: {question}\nAnswer in as few words as it takes.",
)


@dataclass(frozen=True)
class Preset:
    """Everything that a size of run sets. Token counts are in the policy's own tokens; rates are per optimiser step."""

    name: str
    policy: str
    revision: str | None
    max_pixels: int | None
    prompts: Prompts
    new_tokens: int  # per turn
    observation_tokens: int
    lora_r: int
    lora_alpha: int
    data_questions: int  # played by the teacher
    data_examples: int  # kept after balancing
    sft_epochs: int
    sft_batch: int
    sft_lr: float
    sft_aliases: float  # share of the rows with searches whose countries go by invented names
    grpo_steps: int
    grpo_questions: int  # per step; times `generations` gives the rollouts
    generations: int
    grpo_lr: float
    grpo_warmup: int
    temperature: float
    micro_batch: int  # rollouts per backward pass
    completion_tokens: int
    eval_questions: int
    eval_batch: int
    ablation_questions: int
    checkpoint_steps: int


_TINY = Preset(
    name="tiny",
    policy="tiny",
    revision=None,
    max_pixels=None,
    prompts=TINY_PROMPTS,
    new_tokens=72,
    observation_tokens=80,
    lora_r=32,
    lora_alpha=64,
    data_questions=1600,
    data_examples=1400,
    sft_epochs=1,
    sft_batch=8,
    sft_lr=1.5e-3,
    sft_aliases=0.7,
    grpo_steps=64,
    grpo_questions=4,
    generations=8,
    grpo_lr=2e-4,
    grpo_warmup=2,
    temperature=1.0,
    micro_batch=32,
    completion_tokens=512,
    eval_questions=400,
    eval_batch=100,
    ablation_questions=100,
    checkpoint_steps=5,
)


def _changed(preset: Preset, **changes: object) -> Preset:
    return Preset(**({f.name: getattr(preset, f.name) for f in fields(Preset)} | changes))


_SMOKE = _changed(
    _TINY,
    name="smoke",
    new_tokens=40,
    data_questions=60,
    data_examples=24,
    sft_epochs=1,
    grpo_steps=2,
    grpo_questions=2,
    generations=4,
    micro_batch=8,
    eval_questions=12,
    ablation_questions=4,
    checkpoint_steps=1,
)
_QWEN3B = _changed(
    _TINY,
    name="qwen3b",
    policy="Qwen/Qwen2.5-VL-3B-Instruct",
    revision="66285546d2b821cf421d4f5eb2576359d3770cd3",
    max_pixels=512 * 28 * 28,
    prompts=QWEN_PROMPTS,
    new_tokens=512,
    observation_tokens=900,
    lora_r=8,
    lora_alpha=16,
    data_questions=4000,
    data_examples=2000,
    sft_epochs=3,
    sft_batch=8,
    sft_lr=1e-4,
    sft_aliases=0.0,
    grpo_steps=200,
    grpo_questions=8,
    grpo_lr=2e-6,
    grpo_warmup=45,
    micro_batch=2,
    completion_tokens=8192,
    eval_batch=16,
    ablation_questions=400,
    checkpoint_steps=20,
)
_QWEN7B = _changed(
    _QWEN3B,
    name="qwen7b",
    policy="Qwen/Qwen2.5-VL-7B-Instruct",
    revision="cc594898137f460bfe9f0759e9844b3ce807cfb5",
    micro_batch=1,
    eval_batch=8,
)
_QWEN_SMOKE = _changed(
    _QWEN3B,
    name="qwen_smoke",
    new_tokens=96,
    observation_tokens=200,
    data_questions=40,
    data_examples=16,
    sft_epochs=2,
    sft_batch=4,
    grpo_steps=2,
    grpo_questions=2,
    generations=2,
    grpo_warmup=1,
    completion_tokens=2048,
    eval_questions=8,
    eval_batch=8,
    ablation_questions=2,
    checkpoint_steps=1,
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (_SMOKE, _TINY, _QWEN3B, _QWEN7B, _QWEN_SMOKE)}


def get_preset(name: str, model: str = "") -> Preset:
    """The preset of that name, for another policy where `model` names one on the hub or is a local folder.

    Raises ValueError, naming the presets there are, for an unknown one.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: use one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return replace(preset, policy=model, revision=None) if model and model != preset.policy else preset
