"""What the tiny base is made of: tokenizer, architecture, picture processor (used by pretrain.py).

    tokenizer = train_tokenizer(seed=0)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer))

The architecture is that of Qwen2.5-VL (arXiv 2502.13923) at its smallest useful size: `assets/base/architecture.toml`.
"""

from __future__ import annotations

import random
import tomllib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmsr.base.lessons import VIEW, lesson_scene, scene_lessons, text_lesson
from mmsr.base.reading import PLAIN_WORDS
from mmsr.presets import ASSETS

SIZES = tomllib.loads((ASSETS / "base" / "architecture.toml").read_text(encoding="utf-8"))
PATCH, MERGE = SIZES["vision"]["patch_size"], SIZES["vision"]["spatial_merge_size"]
GRID = VIEW // PATCH
PICTURE_TOKENS = (GRID // MERGE) ** 2
SPECIALS: list[str] = SIZES["tokenizer"]["specials"]


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,560 tokens, trained on lessons: train countries and invented words alone."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = [" ".join(PLAIN_WORDS), "user\nassistant\n"] * 400
    for _ in range(20_000):
        texts += text_lesson(rng, copying=0.1)
    for _ in range(150):
        for lesson in scene_lessons(lesson_scene(rng), rng):
            texts += lesson
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(SIZES["tokenizer"]["split"]), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    size, chars = SIZES["text"]["vocab_size"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, initial_alphabet=chars, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[s for s in SPECIALS if s not in {"<|im_end|>", "<|endoftext|>"}],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL of about 5M parameters: 4 language layers of 256, 4 vision layers of 128, 8-pixel patches."""
    ends, ids = (
        {name: tokenizer.convert_tokens_to_ids(token) for name, token in SIZES[part].items()}
        for part in ("text_tokens", "picture_tokens")
    )
    return Qwen2_5_VLConfig(
        text_config=SIZES["text"] | ends | {"bos_token_id": None},
        vision_config=SIZES["vision"] | {"window_size": VIEW},
        tie_word_embeddings=True,
        **ids,
    )


def picture_processor() -> Qwen2VLImageProcessorPil:
    """Every picture is brought to about 96×96 pixels, in steps of 16."""
    size = {"shortest_edge": VIEW * VIEW, "longest_edge": VIEW * VIEW}
    return Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, size=size)
