"""A Qwen2.5-VL, Qwen3-VL or Qwen3.5 with random weights, laid out file by file as the hub lays out the Instruct models.

    folder = random_qwen(tmp_path / "qwen", family="qwen3_vl")
    load_policy(str(folder), max_pixels=get_preset("qwen3b").max_pixels)

The class, the processor, the pre-tokenizer, the added tokens, the chat format, the shape of `config.json`
and the names of the weights are the hub's; narrow are the layers, their number and the vocabulary. So it exercises
whatever a download would, but for the size, and never answers right.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mmsr.presets import get_preset
from mmsr.world.snapshot import load_world

VOCABULARY = 2048  # before the added tokens; Qwen's has 151,643
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
ADDED = (
    *("<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
THOUGHT = ("<think>", "</think>")  # added to Qwen3.5's
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
QWEN3 = {  # of pictures and of videos
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
PICTURES = {  # preprocessor_config.json of the hub, as it stands
    "qwen2_5_vl": {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
    "qwen3_vl": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        **QWEN3,
        "image_processor_type": "Qwen2VLImageProcessorFast",
    },
}
PICTURES["qwen3_5"] = PICTURES["qwen3_vl"]
VIDEOS = {  # video_preprocessor_config.json of the hub's Qwen3-VL and Qwen3.5
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    **QWEN3,
    "video_processor_type": "Qwen3VLVideoProcessor",
}
TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"  # TRL's copies of the hub's
TEMPLATE = {"qwen2_5_vl": "qwen2_5_vl.jinja", "qwen3_vl": "qwen3_vl.jinja", "qwen3_5": "qwen3_5_think.jinja"}


def random_qwen(folder: Path, seed: int = 0, family: str = "qwen2_5_vl") -> Path:
    """Write the model, its tokenizer and its processor into `folder`, about 1 MB, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(added := (*ADDED, *(THOUGHT if family == "qwen3_5" else ())))
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = {"qwen2_5_vl": _config, "qwen3_vl": _config_3, "qwen3_5": _config_3_5}[family](ids)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**copy.deepcopy(config))).to(torch.bfloat16)
    model.save_pretrained(folder)  # under the hub's names: of Qwen2.5-VL "model.layers…", "visual…"
    _write(folder / "config.json", config)
    template = (TEMPLATES / TEMPLATE[family]).read_text(encoding="utf-8")
    _write(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, added) | {"chat_template": template})
    _write(folder / "preprocessor_config.json", PICTURES[family])
    _write(folder / "generation_config.json", _generation(ids))
    if family != "qwen2_5_vl":
        _write(folder / "video_preprocessor_config.json", VIDEOS)
    return folder


def matrices(config: PreTrainedConfig) -> int:
    """Linear layers of the language model that a configuration describes: those of attention and the three after it."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return sum({"linear_attention": 5, "full_attention": 4}[kind] + 3 for kind in kinds)


def hub_copy(folder: Path, cache: Path, name: str, revision: str) -> None:
    """Put a folder into a hub cache, as if the model of that name had been downloaded at that revision and no other."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / revision, dirs_exist_ok=True)


def _write(path: Path, settings: dict) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _tokenizer(added: Sequence[str]) -> Qwen2Tokenizer:
    """Byte-level BPE learned from the prompts and some pages, with Qwen's pre-tokenizer and added tokens."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learned.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    learned.decoder = decoders.ByteLevel()
    pages = list(load_world().pages.values())[::20]
    prompts = get_preset("qwen3b").prompts
    texts = 20 * [prompts.first_turn, prompts.after_image, prompts.after_text]
    texts += [f"{page.title}: {page.text}" for page in pages]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    learned.train_from_iterator(texts, trainer)
    bpe = json.loads(learned.to_str())["model"]
    tokenizer = Qwen2Tokenizer(bpe["vocab"], [tuple(merge) for merge in bpe["merges"]])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


def _tokenizer_config(tokenizer: Qwen2Tokenizer, added: Sequence[str]) -> dict:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        tokenizer.convert_tokens_to_ids(token): {"content": token, **plain, "special": token in SPECIAL}
        for token in (*SPECIAL, *added)
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": dict(sorted(decoder.items())),
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _config(ids: dict[str, int]) -> dict:
    """The hub's `config.json`, flat as it is there; the commented numbers are its own."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,  # 2048
        "initializer_range": 0.02,
        "intermediate_size": 128,  # 11008
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": 2,  # 16
        "num_hidden_layers": 2,  # 36
        "num_key_value_heads": 1,  # 2
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},  # 16, 24, 24
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY + 64,  # 151936: more rows than tokens, as there
        "vision_config": {
            "depth": 2,  # 32
            "hidden_act": "silu",
            "hidden_size": 32,  # 1280
            "intermediate_size": 64,  # 3420
            "num_heads": 2,  # 16
            "in_chans": 3,
            "out_hidden_size": 64,  # 2048
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],  # 7, 15, 23, 31
        },
    }


def _config_3(ids: dict[str, int]) -> dict:
    """The same of Qwen/Qwen3-VL-2B-Instruct, nested as it is there."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": "bfloat16",
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 48,  # 128; other than hidden_size / num_attention_heads, as in the 4B
            "hidden_act": "silu",
            "hidden_size": 64,  # 2048
            "initializer_range": 0.02,
            "intermediate_size": 128,  # 6144
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 2,  # 16
            "num_hidden_layers": 2,  # 28
            "num_key_value_heads": 1,  # 8
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [10, 7, 7],
                "rope_type": "default",
            },  # 24, 20, 20
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": VOCABULARY + 64,  # 151936
        },
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 1],  # 5, 11, 17
            "depth": 2,  # 24
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,  # 1024
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 64,  # 4096
            "model_type": "qwen3_vl",
            "num_heads": 2,  # 16
            "num_position_embeddings": 2304,
            "out_hidden_size": 64,  # 2048
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _config_3_5(ids: dict[str, int]) -> dict:
    """The same of Qwen/Qwen3.5-4B: three layers of linear attention, then one that looks at every token."""
    numbers = _config_3(ids)
    text, vision = numbers["text_config"], numbers["vision_config"]
    del text["rope_scaling"], text["rope_theta"], vision["deepstack_visual_indexes"]
    text |= {
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 32,  # 256, of which a quarter is rotated
        "layer_types": [*3 * ["linear_attention"], "full_attention"],  # 8 times
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,  # 128
        "linear_num_key_heads": 2,  # 16
        "linear_num_value_heads": 4,  # 32
        "linear_value_head_dim": 16,  # 128
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 4,  # 32
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],  # 11, 11, 10
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
    }
    return numbers | {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "vision_config": vision | {"model_type": "qwen3_5"},
    }


def _generation(ids: dict[str, int]) -> dict:
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }
