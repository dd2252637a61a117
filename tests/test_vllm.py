"""Why rollouts by vLLM are left out: two faults of the TRL that is installed. A test that fails says: it is mended."""

from __future__ import annotations

import collections
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from small_policy import tiny
from transformers import Qwen2_5_VLForConditionalGeneration
from trl import GRPOTrainer
from trl.generation import vllm_generation

from mmsr.policy import TINY_DIR, lora_config
from mmsr.world.questions import make_questions

VLLM = vllm_generation.VLLMGeneration


def test_weights_that_are_sent_are_merged_in_place_and_the_base_drifts() -> None:
    torch.manual_seed(0)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(TINY_DIR, dtype=torch.bfloat16)
    model = get_peft_model(base, lora_config(8, 16))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    sender = VLLM.__new__(VLLM)
    sender.model = model
    sender._dist = SimpleNamespace(gather_params=lambda weights: contextlib.nullcontext(), is_fsdp=False)
    frozen = {name: weight for name, weight in model.named_parameters() if "base_layer.weight" in name}
    before = {name: weight.clone() for name, weight in frozen.items()}
    for _ in range(5):
        collections.deque(sender._iter_named_params(), maxlen=0)
    drifted = torch.cat([(frozen[name] != before[name]).flatten() for name in before]).float().mean()
    assert drifted > 0.01


def test_a_picture_is_sent_beside_the_tokens_that_already_stand_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM makes as many tokens of a picture's mark as it takes, and TRL has done so before."""
    processor, picture = tiny().processor, make_questions("val", 1, seed=0)[0].draw()
    prompt = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Whose?"}]}]
    asking = {"_is_vlm": True, "environment_factories": None, "tools": None, "chat_template": None}
    trainer = SimpleNamespace(**asking, processing_class=processor, chat_template_kwargs={})
    ids, pictures, _ = GRPOTrainer._tokenize_prompts(trainer, [prompt])
    sent: list[dict[str, Any]] = []

    class Sent(Exception):
        pass

    def generate(prompts: list[dict[str, Any]], **_: Any) -> None:
        sent.extend(prompts)
        raise Sent

    monkeypatch.setattr(vllm_generation, "SamplingParams", dict, raising=False)
    names = ("accelerator", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
    settings = dict.fromkeys((*names, "logprobs", "structured_outputs_regex")) | {"model": tiny().model}
    settings |= {"mode": "colocate", "enable_sleep_mode": False, "tensor_parallel_size": 1, "generation_kwargs": {}}
    with pytest.raises(Sent):
        VLLM.generate(SimpleNamespace(**settings, llm=SimpleNamespace(generate=generate)), ids, pictures, 1)
    [row] = sent
    assert row["prompt_token_ids"].count(processor.image_token_id) > 1 and row["multi_modal_data"] == {"image": picture}
