"""Weights are counted exactly, the arithmetic of memory is held to live tensors at the true widths, plans are sound."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from small_policy import tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr.gpu.fit import GIB, STAGES, USABLE, Memory, Pass, fit, longest, memory_of, needed, plan, published_config
from mmsr.gpu.meter import LiveTensors
from mmsr.grpo import grpo_config
from mmsr.policy import lora_config
from mmsr.presets import get_preset
from mmsr.runs import command as cli
from mmsr.sft import sft_config

QWEN3B, QWEN7B = get_preset("qwen3b"), get_preset("qwen7b")

# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "total"), [(QWEN3B, 3_754_622_976), (QWEN7B, 8_292_166_656)])
def test_weights_are_as_many_as_the_hub_says(preset, total: int) -> None:
    assert memory_of(preset.policy).weights["total"] == total


def test_counting_agrees_with_a_model_that_exists() -> None:
    model = tiny().model
    memory = Memory(model.config)
    assert memory.weights["total"] == sum(p.numel() for p in model.parameters())
    assert memory.weights["head"] == model.lm_head.weight.numel()  # tied: counted once in the total
    adapted = get_peft_model(Qwen2_5_VLForConditionalGeneration(model.config), lora_config(4, 8))
    assert memory.lora(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_four_bits_hold_the_matrices_alone() -> None:
    memory = memory_of(QWEN7B.policy)
    total, matrices, head, vision = memory.weights.values()
    whole, packed = (memory.static(8, four_bit)["weights"] for four_bit in (False, True))
    assert whole == 2 * total
    assert packed == pytest.approx(0.5159 * matrices + 2 * (total - matrices))
    assert matrices + vision + 2 * head == pytest.approx(total, rel=1e-3)


# --- activations, at the true widths ----------------------------------------------------------------------------------


def two_layers(policy: str) -> Qwen2_5_VLConfig:
    """A published configuration with two layers and few words."""
    config = published_config(policy)
    config.text_config.num_hidden_layers, config.vision_config.depth = 2, 1
    config.text_config.layer_types = config.text_config.layer_types[:2]
    config.text_config.vocab_size = 512
    config.text_config.bos_token_id = config.text_config.eos_token_id = None
    return config


def live_bytes(config: Qwen2_5_VLConfig, shape: Pass) -> int:
    """The peak of a forward and backward pass through the decoder, from tensors that have shapes and no contents."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
        model = get_peft_model(model, lora_config(8, 16)).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        inputs = torch.zeros(shape.rows, shape.positions, config.text_config.hidden_size, dtype=torch.bfloat16)
        mask = torch.ones(shape.rows, 1, shape.positions, shape.positions, dtype=torch.bool) if shape.padded else None
        with LiveTensors(model) as live:
            before = live.now
            with torch.autocast("cpu", dtype=torch.bfloat16):
                inputs = inputs.clone().requires_grad_()  # stands for the embeddings
                mask = {"full_attention": mask.clone() if shape.padded else None}
                states = model.get_base_model().model.language_model(
                    inputs_embeds=inputs, attention_mask=mask, use_cache=False
                )
            states.last_hidden_state.sum().backward()
    return live.peak - before


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: other tests' models and modes would change what is counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("policy", [QWEN3B.policy, QWEN7B.policy])
@pytest.mark.parametrize("shape", [Pass(1, 3000, 0, padded=False), Pass(2, 2000, 0)])
def test_a_pass_holds_what_is_predicted(policy: str, shape: Pass, apart: ProcessPoolExecutor) -> None:
    config = two_layers(policy)
    memory = Memory(config)
    terms = memory.update(shape)
    assert "one layer backwards" in terms
    predicted = sum(terms.values()) + 6 * memory.lora(8)  # a bf16 copy and gradients
    live = apart.submit(live_bytes, config, shape).result()
    assert live == pytest.approx(predicted, rel=0.03)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_keeps_to_its_memory_and_gives_up_no_more_than_it_must() -> None:
    last = None
    for gpu in (16, 24, 48, 80, 400):
        usable = round(USABLE * gpu * GIB)
        planned = {stage: plan(stage, QWEN7B, usable) for stage in STAGES}
        assert {stage: found for stage, (_, found) in planned.items()}.items() <= fit(QWEN7B, gpu).items()
        for stage, (settings, found) in planned.items():
            assert found["fits"] == (found["peak_bytes"] <= usable)
            assert found["terms_bytes"] == needed(stage, settings)
            assert settings == replace(QWEN7B, **{key: change["to"] for key, change in found["changes"].items()})
        settings, grpo = planned["grpo"]
        given_up = [settings.completion_tokens, not settings.four_bit, settings.grpo_questions]
        assert last is None or not last[1]["fits"] or given_up >= last[0]
        last = given_up, grpo
    assert not planned["sft"][1]["changes"] and not grpo["changes"]  # on the largest nothing is given up


def test_a_plan_without_hope_names_the_leanest_settings() -> None:
    settings, lean = plan("grpo", QWEN7B, GIB)
    assert not lean["fits"] and settings.grpo_questions == 1 and settings.four_bit
    assert lean["changes"]["four_bit"] == {"from": False, "to": True}
    tried = [plan("grpo", QWEN7B, size * GIB)[1]["peak_bytes"] for size in (8, 24)]
    assert lean["peak_bytes"] == tried[0] <= tried[1]


def test_a_base_stays_in_16_bits_where_4_may_not_be_chosen_and_in_4_where_the_preset_says_so() -> None:
    assert not plan("grpo", QWEN7B, GIB, four_bit=False)[0].four_bit
    settings, found = plan("grpo", replace(QWEN7B, four_bit=True), 400 * GIB)
    assert settings.four_bit and not found["changes"] and "a matrix unpacked" in found["terms_bytes"]


def test_the_shapes_are_those_that_the_trainers_are_given(tmp_path: Path) -> None:
    for preset in (QWEN3B, QWEN7B):
        rollouts, update = longest("grpo", preset)
        config = grpo_config(preset, tmp_path, 0, 0.001)
        assert rollouts.rows == config.generation_batch_size  # TRL generates all of them at once
        assert update.rows == config.per_device_train_batch_size
        assert update.positions == rollouts.positions > config.max_completion_length == preset.completion_tokens
        assert config.gradient_checkpointing and sft_config(preset, tmp_path, 0).gradient_checkpointing


def test_every_lever_lowers_the_peak() -> None:
    def peak(stage: str = "grpo", **changes: int) -> int:
        return sum(needed(stage, replace(QWEN3B, **changes)).values())

    for lever in (
        {"four_bit": True},
        {"grpo_questions": 4},
        {"completion_tokens": 6144},
        {"max_pixels": 256 * 28 * 28},
    ):
        assert peak(**lever) < peak()
    assert peak("sft", micro_batch=1) < peak("sft")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_table_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--preset", "qwen7b", "--gpu-gb", "24"]) == 0
    shown = capsys.readouterr().out
    assert "8.29 billion weights" in shown and "sft   fits" in shown and "four_bit False → True" in shown
    assert cli.main(["fit", "--preset", "qwen7b", "--gpu-gb", "6"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("does not fit") == 2 and "it takes a GPU of" in shown


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--preset", "qwen3b", "--gpu-gb", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"]["total"] == 3_754_622_976 and found["usable_bytes"] == round(USABLE * 24 * GIB)
    for stage in ("sft", "grpo"):
        assert found[stage]["peak_bytes"] == sum(found[stage]["terms_bytes"].values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "huge", "--gpu-gb", "24"], "no preset 'huge'"),
        (
            ["--preset", "tiny", "--gpu-gb", "24"],
            "the sizes of 'tiny' are not known here: use one of the presets qwen3b",
        ),
        (["--preset", "qwen3b", "--gpu-gb", "0"], "--gpu-gb takes the memory of a GPU in GB"),
        (["--preset", "qwen3b", "--gpu-gb", "nan"], "--gpu-gb takes the memory of a GPU in GB"),
    ],
)
def test_what_cannot_be_said(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", *options]) == 2
    assert said in capsys.readouterr().err
