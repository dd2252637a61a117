"""What the tiny base is made of: tokenizer, architecture, picture processor (used by pretrain.py).

    tokenizer = train_tokenizer(seed=0)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer))

The architecture is that of Qwen2.5-VL (arXiv 2502.13923) at its smallest useful size.
"""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmsr.base.lessons import VIEW, lesson_scene, scene_lessons, text_lesson
from mmsr.base.reading import PLAIN_WORDS

VOCABULARY = 2560
PATCH, MERGE = 8, 2
GRID = VIEW // PATCH
PICTURE_TOKENS = (GRID // MERGE) ** 2
SPECIALS = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
# Qwen's own splitting of text into words, single digits and runs of punctuation
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
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
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": 256,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": VIEW,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def picture_processor() -> Qwen2VLImageProcessorPil:
    """Every picture is brought to about 96×96 pixels, in steps of 16."""
    size = {"shortest_edge": VIEW * VIEW, "longest_edge": VIEW * VIEW}
    return Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, size=size)
