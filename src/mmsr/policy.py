"""The policy: a Qwen2.5-VL, Qwen3-VL or Qwen3.5, tiny or from the hub, its processor, LoRA, and batched generation.

    policy = load_policy("tiny")                                   # shipped in the package, under 8M parameters
    policy = load_policy("Qwen/Qwen2.5-VL-3B-Instruct", revision=…) # the same class, the same code
    policy = load_policy("Qwen/Qwen3-VL-2B-Instruct", revision=…)   # the class that its configuration names
    add_lora(policy, r=8)                                           # on the language model alone; vision stays frozen
    policy.generate([(picture, messages), …], max_new_tokens=64)
    with policy.base(): …                                           # the frozen base, LoRA switched off

The boxes that a model writes are in its type's own frame (`FRAMES`); `to_picture` scales them back.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.utils import logging

from mmsr.decode import Conversation, Decoder, Row
from mmsr.protocol import Box

# transformers 5.23 warns of a name that it, PEFT and TRL still use themselves
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)

TINY_DIR = Path(__file__).parent / "assets" / "tiny"
CHAT_TEMPLATE = (TINY_DIR.parent / "chat_template.jinja").read_text(encoding="utf-8")
LORA_TARGETS = r".*language_model.*\.((q|k|v|o|gate|up|down|out)_proj|in_proj_(qkv|z|a|b))"
FRAMES = {"qwen2_5_vl": None, "qwen3_vl": (1000, 1000), "qwen3_5": (1000, 1000)}  # of boxes; None: the resized picture
NO_THOUGHT = "<think>\n\n</think>\n\n"  # what stands before each turn of a model that is told not to think


class PictureProcessor(Qwen2_5_VLProcessor):
    """The processor of Qwen2.5-VL and its successors, for pictures alone, through PIL, with or without torchvision.

    The stock classes also build a video processor, which needs torchvision.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, with pixels and grids as tensors, for TRL's own tool loop (gpu.stock)."""
        batch = super().__call__(*args, **kwargs)
        for key in ("pixel_values", "image_grid_thw"):
            if key in batch and not isinstance(batch[key], torch.Tensor):
                batch[key] = torch.as_tensor(batch[key])
        return batch

    def _adjust_assistant_masks_indices(self, processed_dict: dict, generation_indices: list) -> dict:
        """As the parent's, which walks token by token: on a tensor, that took a sixth of an SFT step's time."""
        processed_dict["offset_mapping"] = [np.asarray(spans).tolist() for spans in processed_dict["offset_mapping"]]
        return super()._adjust_assistant_masks_indices(processed_dict, generation_indices)


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bf16(device: torch.device) -> bool:
    """Whether a policy computes in bf16: on a GPU, never on a CPU.

    In bf16 a run's digits depend on the processor, padding moves log-probabilities by up to 0.2, and a step of GRPO was
    slower than in fp32 even where there are matrix tiles for it (16.4 s against 13.1 s).
    """
    return device.type == "cuda"


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """LoRA added into fp32 weights in this block, for generation; they are put back bit for bit.

    Nothing is done to a base in bf16 or 4 bits, which would round LoRA away, nor where LoRA is switched off.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)] if isinstance(model, PeftModel) else []
    weights = [layer.base_layer.weight for layer in layers]
    if any(layer.disable_adapters for layer in layers) or any(weight.dtype != torch.float32 for weight in weights):
        layers = weights = []
    kept = [weight.detach().clone() for weight in weights]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept):
            layer.unmerge()
            weight.data.copy_(before)


def scaled(box: Sequence[float], old: tuple[int, int], new: tuple[int, int]) -> Box:
    """A box in a frame of another width and height."""
    sx, sy = new[0] / old[0], new[1] / old[1]
    return tuple(round(v * s) for v, s in zip(box, (sx, sy, sx, sy)))


class Answering(Protocol):
    """What answers without the protocol: a policy, or a large model (`live.roles.Rival`)."""

    def ask(self, asked: Sequence[tuple[Image.Image, list[dict]]], batch_size: int = 64) -> list[str]:
        """What it answers in each conversation, as `Policy.ask`."""


@dataclass
class Policy:
    """A model with its processor. `model` may be wrapped by LoRA; `name` is what it was loaded from.

    Episodes side by side may ask it, as grounder or for the length of a text: it serves one at a time.
    """

    model: Any
    processor: PictureProcessor
    name: str
    _alone: Any = field(default_factory=threading.RLock, repr=False)  # neither model nor tokenizer is thread-safe

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def count_tokens(self, text: str) -> int:
        """Length of a text in this policy's tokens."""
        with self._alone:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def frame(self, picture: Image.Image) -> tuple[int, int]:
        """Width and height of the frame in which this policy writes boxes: its type's, or the picture as it sees it."""
        if frame := FRAMES[self.model.config.model_type]:
            return frame
        processor = self.processor.image_processor
        height, width = smart_resize(
            picture.height,
            picture.width,
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        return width, height

    def to_picture(self, box: Sequence[float], picture: Image.Image) -> Box:
        """Scale a box from this policy's frame to pixels of the picture."""
        return scaled(box, self.frame(picture), picture.size)

    def to_frame(self, box: Sequence[float], picture: Image.Image) -> Box:
        """Scale a box from pixels of the picture to this policy's frame: the inverse of `to_picture`."""
        return scaled(box, picture.size, self.frame(picture))

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """The base model as it was before LoRA, in this block, which has the policy to itself."""
        lora = isinstance(self.model, PeftModel)
        with self._alone, self.model.disable_adapter() if lora else contextlib.nullcontext():
            yield

    def ask(
        self, asked: Sequence[tuple[Image.Image, list[dict]]], batch_size: int = 64, max_new_tokens: int = 32
    ) -> list[str]:
        """What the frozen base answers in each conversation (of `protocol.conversation`), without tools."""
        with self.base():
            return [answer.strip() for answer in self.generate(asked, max_new_tokens, batch_size=batch_size)]

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int, batch_size: int = 64) -> list[str]:
        """What the policy writes next in each conversation, greedily: (picture, messages) in, texts out, in order."""
        with self.generating() as decoder:
            rows = decoder.open(conversations, batch_size)
            return decoder.write(rows, [max_new_tokens] * len(rows), 0.0, (), batch_size)

    @contextlib.contextmanager
    def generating(self) -> Iterator[Decoder]:
        """The decoder, in a block that has the policy to itself: LoRA merged where it can be, no gradients."""
        training, bf16 = self.model.training, in_bf16(self.device)
        with self._alone, torch.no_grad(), merged(self.model), torch.autocast(self.device.type, torch.bfloat16, bf16):
            self.model.eval()
            try:
                yield self.decoder
            finally:
                self.model.train(training)

    def read(self, row: Row, observation: str) -> None:
        """Append what a tool gave back, and the opening of the next turn, to a row of the decoder's."""
        with self._alone:
            self.decoder.read(row, observation)

    def replace_turn(self, row: Row, written: str, wanted: str) -> str:
        """Replace the turn that a row ends with, unless the text is the same; returns the new text."""
        if wanted != written:
            with self._alone:
                self.decoder.replace_turn(row, wanted)
        return wanted

    @functools.cached_property
    def decoder(self) -> Decoder:
        """What reads and writes for this policy, and remembers its pictures."""
        return Decoder(self.model, self.processor)


def load_processor(name: str, revision: str | None = None, max_pixels: int | None = None) -> PictureProcessor:
    """The processor of "tiny", a local folder or a hub name, with the protocol's chat template.

    Raises ValueError for a tokenizer whose special tokens `protocol.sanitise` would not keep out of a conversation, and
    as `own_format` does.
    """
    tokenizers, source = (PreTrainedTokenizerFast, TINY_DIR) if name == "tiny" else (AutoTokenizer, name)
    tokenizer = tokenizers.from_pretrained(source, revision=revision)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(source, revision=revision)
    if plain := [token for token in tokenizer.all_special_tokens if "<" not in token and ">" not in token]:
        raise ValueError(f"{name} has the special token {plain[0]!r}, which a page could spell: use another model.")
    if max_pixels:
        image_processor.size["longest_edge"] = max_pixels
    before, thought = map(json.dumps, own_format(tokenizer, name))
    tokenizer.chat_template = f"{{%- set opening, thought = {before}, {thought} -%}}\n{CHAT_TEMPLATE}"
    tokenizer.padding_side = "left"
    return PictureProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def own_format(tokenizer: Any, name: str) -> tuple[str, str]:
    """What a model's own chat format writes before the first question (a system turn or nothing), and before each of
    the model's turns (an empty thought or nothing).

    Raises ValueError where its turns are not Qwen's, or where it thinks before each of them and cannot be told not to.
    """
    if not tokenizer.chat_template:  # like the tiny base, which has learnt no format of its own
        return "", ""
    asked, settings = [{"role": "user", "content": "?"}], {"tokenize": False, "add_generation_prompt": True}
    written = tokenizer.apply_chat_template(asked, enable_thinking=False, **settings)
    before, turns, thought = written.partition("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")
    if not turns or thought not in ("", NO_THOUGHT):
        why = "thinks before each turn" if turns else "has turns of another form than Qwen's"
        raise ValueError(f"the chat format of {name} {why}: use an Instruct model of Qwen2.5-VL or Qwen3-VL.")
    return before, thought


def load_policy(
    name: str,
    adapter: Path | None = None,
    revision: str | None = None,
    max_pixels: int | None = None,
    four_bit: bool = False,
) -> Policy:
    """Load a policy on the GPU if there is one: "tiny", a name on the hub, or a local folder.

    `adapter` is a folder of LoRA weights, kept trainable. `four_bit` keeps the language model's weights in 4 bits.
    Raises OSError, from transformers, where the model or the adapter cannot be found, ImportError for a missing extra,
    ValueError for a model of another type, one whose files lack weights, and as `load_processor` does.
    """
    device = best_device()
    source, dtype = (TINY_DIR, torch.float32) if name == "tiny" else (name, torch.bfloat16)
    kind = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if kind not in FRAMES:
        raise ValueError(f"{name} is of the type {kind!r}; use a model of the type {' or '.join(FRAMES)}.")
    processor = load_processor(name, revision, max_pixels)
    extra = {"quantization_config": four_bit_config(), "device_map": {"": device}} if four_bit else {}
    extra |= {"revision": revision, "dtype": dtype, "output_loading_info": True}
    logging.disable_progress_bar()  # an executed notebook would keep "Loading weights: 0 %"
    model, found = AutoModelForImageTextToText.from_pretrained(source, **extra)
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(f"the files of {name} lack {len(lacking)} weights, such as {lacking[0]}: get them again.")
    model = model if four_bit else model.to(device)
    for module in model.modules() if four_bit else ():  # CPUs that compute in bf16 would pack the layers when they
        module.support_avx512bf16_for_cpu = False  # first generate, and packed ones have no gradient
    model.requires_grad_(False)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return Policy(model.eval(), processor, name)


def four_bit_config() -> BitsAndBytesConfig:
    """QLoRA's base: NF4, doubly quantised, arithmetic in bf16. Vision, projector and head stay as they are."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("a 4-bit base needs bitsandbytes: pip install 'mmsr[four-bit]', or leave four_bit off")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def lora_config(r: int, alpha: int) -> LoraConfig:
    """LoRA on every linear layer of the language model and on nothing else (paper §4.1)."""
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")


def put_on(policy: Policy, adapter: Path) -> None:
    """Load an adapter's weights into a policy's LoRA, which has the same shape."""
    set_peft_model_state_dict(policy.model, load_peft_weights(str(adapter), device=str(policy.device)))


def list_targets(model: PeftModel) -> None:
    """Let an adapter's settings name the layers it lies on, in order: the pattern above is read by PEFT alone."""
    layers = sorted(name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer))
    model.peft_config["default"].target_modules = layers


def add_lora(policy: Policy, r: int, alpha: int) -> Policy:
    """A policy whose language model carries fresh LoRA weights; they start as no change at all."""
    return Policy(get_peft_model(policy.model, lora_config(r, alpha)), policy.processor, policy.name)
