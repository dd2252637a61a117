"""The memory of training a Qwen2.5-VL with LoRA, by arithmetic on its configuration: nothing is made or downloaded.

    config = published_config("Qwen/Qwen2.5-VL-7B-Instruct")
    count_weights(config).total                                     # 8,292,166,656
    update_terms(config, Pass(rows=1, positions=5000, patches=2048))   # bytes by term

H, I, kv: width, MLP width and key-value width of a decoder layer. Bytes per position, computing in bf16:

| term | bytes per position |
|---|---|
| checkpoints: the input of every layer | 2·H a layer |
| without them: what a layer with LoRA keeps for its backward pass | 24·H + 4·kv + 8·I a layer |
| one layer backwards, recomputed | 33·H + 4·kv + 14·I |
| one layer forwards in rollouts, where TRL computes LoRA in fp32 | 12·H + 12·I |
| keys and values, in rollouts | 4·kv a layer |
| pictures: the inputs of the vision blocks, which checkpointing keeps, frozen or not | 2·width a block and patch |

The factors were read off the tensors alive in a training step; tests/test_fit.py holds them to measured peaks. TRL
never builds the logits of a batch (0.9 MB a position, at 151,936 words in bf16 and fp32): its head works in tiles of
4,096 positions by 32,768 words, 0.25 GiB whatever the length.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

Device = Literal["cuda", "cpu"]
PATCH = 14  # pixels; two by two patches make a token
TILE = (4096, 32768)  # positions and words of TRL's fused head (trl.kernels.chunked_logprob)
FOLD = 29  # bytes a cell by which a CPU, without Triton, folds a tile: seven fp32 copies and a mask
NF4 = 0.5 + 0.0159  # bytes a weight: 4 bits, and scales that are quantised themselves

_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": PATCH}
_VISION |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
_TEXT = {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "bos_token_id": 151643, "eos_token_id": 151645}
_TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
PUBLISHED = {  # as in each config.json of the hub
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


def published_config(policy: str) -> Qwen2_5_VLConfig:
    """The configuration that the hub publishes for a policy. Raises KeyError for one that is not in `PUBLISHED`."""
    text = deepcopy(_TEXT | PUBLISHED[policy])
    tied = text.pop("tie_word_embeddings")
    vision = deepcopy(_VISION) | {"out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


@dataclass(frozen=True)
class Counts:
    """Numbers of weights: all; of the decoder layers' matrices, which 4 bits can hold; of the head; of the encoder."""

    total: int
    matrices: int
    head: int
    vision: int


def count_weights(config: Qwen2_5_VLConfig) -> Counts:
    """Count the weights of the model that a configuration describes, exactly, without making them."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    logging.set_verbosity(level)
    model.tie_weights()
    matrices = (weight for weight in model.model.language_model.layers.parameters() if weight.dim() == 2)
    parts = (model.parameters(), matrices, model.lm_head.parameters(), model.model.visual.parameters())
    return Counts(*(sum(weight.numel() for weight in part) for part in parts))


def lora_weights(config: Qwen2_5_VLConfig, r: int) -> int:
    """Weights of LoRA of rank `r` on every linear layer of the language model."""
    text = config.get_text_config()
    attention = 4 * text.hidden_size + 2 * (text.hidden_size + _kv(text))
    return r * text.num_hidden_layers * (attention + 3 * (text.hidden_size + text.intermediate_size))


def _kv(text: Any) -> int:
    return text.hidden_size // text.num_attention_heads * text.num_key_value_heads


@dataclass(frozen=True)
class Pass:
    """The shape of a forward pass: rows of so many positions, padding included, and the pictures' patches in all rows.

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
        return self.rows * self.positions**2 if self.padded else 0


def static_terms(
    config: Qwen2_5_VLConfig, counts: Counts, r: int, four_bit: bool = False, reference: bool = False
) -> dict[str, int]:
    """Bytes that stay: bf16 weights; LoRA in fp32 with gradients, AdamW's two moments and a bf16 copy for autocast.

    `reference` adds the frozen copy of the adapter from which GRPO's KL is taken.
    """
    matrices = round(counts.matrices * NF4) if four_bit else 2 * counts.matrices
    return {
        "weights": matrices + 2 * (counts.total - counts.matrices),
        "LoRA and AdamW": lora_weights(config, r) * (18 + 4 * reference),
    }


def update_terms(
    config: Qwen2_5_VLConfig, shape: Pass, checkpoints: bool = True, device: Device = "cuda"
) -> dict[str, int]:
    """Bytes that a forward and backward pass holds at its peak, beside what stays."""
    text, vision = config.get_text_config(), config.vision_config
    hidden, inner, kv, layers = text.hidden_size, text.intermediate_size, _kv(text), text.num_hidden_layers
    repeated = 4 * (hidden - kv) if shape.padded else 0  # with a mask, keys and values are repeated for every head
    if checkpoints:
        kept = {"checkpoints": shape.tokens * 2 * hidden * (layers + 1)}
        kept["pictures"] = shape.patches * 2 * vision.hidden_size * (vision.depth + 1)
        layer = shape.tokens * (33 * hidden + 4 * kv + 14 * inner + repeated) + 2 * shape.square
    else:
        kept = {
            "activations": layers * (shape.tokens * (24 * hidden + 4 * kv + 8 * inner + repeated) + 2 * shape.square)
        }
        layer = shape.tokens * (14 * hidden + 6 * inner)
    head = _head(text, shape, device)
    return kept | {"attention mask": shape.square} | _larger({"one layer backwards": layer, "logits, in tiles": head})


def _head(text: Any, shape: Pass, device: Device) -> int:
    """A tile of logits, and the hidden states with their gradients, were every position scored."""
    rows, words = min(shape.tokens, TILE[0]), TILE[1]
    folding = FOLD * rows * min(words, text.vocab_size) if device == "cpu" else 0
    return 2 * rows * words + folding + 12 * shape.tokens * text.hidden_size


def pixel_bytes(config: Qwen2_5_VLConfig, patches: int) -> int:
    """Of pictures as the processor hands them over, in fp32: three colours, twice, as for two frames of a video."""
    return 4 * patches * 3 * 2 * config.vision_config.patch_size**2


def rollout_terms(config: Qwen2_5_VLConfig, shape: Pass) -> dict[str, int]:
    """Bytes that generating a turn holds at its peak, beside what stays. TRL reads the whole prefix anew each turn."""
    text, vision = config.get_text_config(), config.vision_config
    hidden, inner = text.hidden_size, text.intermediate_size
    inside = max(12 * hidden + 12 * inner, 24 * hidden + 2 * shape.positions * shape.padded)  # MLP, attention
    kept = {"keys and values": shape.tokens * 4 * _kv(text) * text.num_hidden_layers, "attention mask": shape.square}
    return kept | _larger(
        {
            "one layer forwards": shape.tokens * inside,
            "vision encoder": shape.patches * 36 * vision.hidden_size + pixel_bytes(config, shape.patches) // 2,
            "logits of a word": 18 * shape.rows * text.vocab_size,
        }
    )


def _larger(terms: dict[str, int]) -> dict[str, int]:
    """Of terms that are not alive at the same time, the largest."""
    name = max(terms, key=terms.__getitem__)
    return {name: terms[name]}
