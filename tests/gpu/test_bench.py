"""Bench goes through the real trainers, tells rollout, tools and update apart, and bears out the arithmetic of fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from mmsr.gpu import against, bench, fit
from mmsr.gpu.meter import LiveTensors
from mmsr.policy import TINY_DIR, load_processor
from mmsr.presets import get_preset
from mmsr.protocol import Answer, ImageSearch, TextSearch, parse_turn
from mmsr.runs import command as cli

SIZES = {"sft_batch": 2, "micro_batch": 2, "grpo_questions": 1, "generations": 2, "completion_tokens": 800}
SMALL = replace(get_preset("tiny"), new_tokens=66, lora_r=4, **SIZES)
QWEN = replace(get_preset("qwen3b"), max_pixels=65 * 28 * 28, observation_tokens=120, **SIZES)
TOLERANCE = 0.06  # of predicted against measured peaks


@pytest.fixture(scope="module", autouse=True)
def bf16() -> Any:
    """Arithmetic in bf16, as on a GPU, whatever this CPU is best at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr.training.in_bf16", lambda device: True)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One measured step of each stage, by the command."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr.gpu.bench.get_preset", lambda name: SMALL)
        assert cli.main(["bench", "--model", "tiny", "--steps", "1", "--out", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize(("stage", "phase"), [("sft", "update"), ("grpo", "update"), ("grpo", "rollout")])
def test_measured_peaks_are_as_predicted(stage: str, phase: str, report: dict[str, Any]) -> None:
    peak = report[stage]["peaks"][phase]
    lora = fit.Memory(Qwen2_5_VLConfig.from_pretrained(TINY_DIR)).lora(SMALL.lora_r)
    later = (
        12 * lora if phase == "rollout" else 0
    )  # gradients and moments, which the first step's rollouts have not yet
    assert peak["measured_bytes"] == pytest.approx(peak["predicted_bytes"] - later, rel=TOLERANCE)


def narrow_qwen() -> Qwen2_5_VLConfig:
    """The published 3B with few and narrow layers and few words."""
    config = fit.published_config(QWEN.policy)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.vocab_size = 2, 256, 1024, 2560
    text.num_attention_heads, text.layer_types = 4, text.layer_types[:2]
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 2, 128, 256, 4
    vision.out_hidden_size, vision.fullatt_block_indexes = 256, [1]
    return config


def test_a_qwen_preset_goes_the_same_way_and_its_layers_weigh_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 128)  # so that layers outweigh logits
    monkeypatch.setattr(fit, "TILE", (fit.TILE[0], 128))
    found = bench.measure("sft", QWEN, fit.Memory(narrow_qwen()), 1e9, steps=1)
    peak = found["peaks"]["update"]
    assert "one layer backwards" in peak["predicted_terms"] and peak["predicted_terms"]["pictures"]
    assert peak["shape"]["patches"] == QWEN.micro_batch * (8 * 2) ** 2  # the largest square of whole tokens
    assert peak["measured_bytes"] == pytest.approx(peak["predicted_bytes"], rel=TOLERANCE)


def test_seconds_are_told_apart(report: dict[str, Any]) -> None:
    sft, grpo = report["sft"], report["grpo"]
    parts = {"rollout", "prefill", "decode", "grounding", "tools", "reference", "update"}
    assert set(sft["seconds"]) == {"update"} and set(grpo["seconds"]) == parts
    for stage in (sft, grpo):
        assert stage["steps"] == 1 and stage["seconds_per_step"] == pytest.approx(sum(stage["seconds"].values()))
        assert all(seconds > 0 for seconds in stage["seconds"].values())


def test_rollouts_search_and_answer(report: dict[str, Any]) -> None:
    """Four turns are written, so the update reads more than a prompt and one turn: what searches found is in it."""
    shapes = {phase: peak["shape"] for phase, peak in report["grpo"]["peaks"].items()}
    policy = bench.random_policy(Qwen2_5_VLConfig.from_pretrained(TINY_DIR), SMALL)
    written = sum(map(len, bench.written_turns(policy, SMALL.new_tokens)))
    assert shapes["update"]["rows"] == SMALL.micro_batch and shapes["rollout"]["rows"] == SMALL.generations
    assert shapes["rollout"]["positions"] > written + 2 * 40
    assert shapes["rollout"]["patches"] == shapes["update"]["patches"] == 0  # their features are kept
    positions = report["grpo"]["positions_per_step"]
    assert positions.keys() == {"prefill", "decode", "grounding", "update", "reference"}
    assert positions["prefill"] + positions["decode"] < positions["update"]  # two rollouts read one prompt once


def test_utilisation_counts_what_lora_saves(report: dict[str, Any]) -> None:
    assert report["device_flops"]["value"] > 1e8 and "measured" in report["device_flops"]["source"]
    for stage in ("sft", "grpo"):
        assert report[stage]["mfu"] > 0 and report[stage]["tokens_per_second"] > 0
    update = report["sft"]["update"]
    assert 1.3 < update["mfu_6n"] / update["mfu"] <= 1.5  # 6·N over 4·N and the vision encoder's forward pass
    assert report["grpo"]["rollout"]["new_tokens_per_second"] > 0


def test_turns_are_written_in_the_protocol() -> None:
    policy = bench.random_policy(Qwen2_5_VLConfig.from_pretrained(TINY_DIR), SMALL)
    tokenizer = load_processor("tiny").tokenizer
    turns = bench.written_turns(policy, 120)
    assert all(20 < len(ids) <= 41 and ids[-1] == tokenizer.eos_token_id for ids in turns)
    actions = [parse_turn(tokenizer.decode(ids[:-1])).action for ids in turns]
    assert [type(action) for action in actions] == [ImageSearch, TextSearch, TextSearch, Answer]


def test_live_tensors_are_counted_while_they_live() -> None:
    model = torch.nn.Linear(1000, 100, bias=False)
    with LiveTensors(model) as live:
        assert live.now == 400_000
        x = torch.ones(1000, 1000)
        view = x.t()
        assert live.now == 4_400_000 and view.shape == x.shape  # a view takes nothing
        y = model(x)
        assert live.now == 4_800_000
        del x, view
        assert live.now == 4_800_000  # kept for the backward pass
        del y
        assert live.now == 400_000 and live.peak == 4_800_000


def test_the_report_is_printed_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mmsr.gpu.bench.bench", lambda model, steps: {"model": model, "steps": steps})
    assert cli.main(["bench"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "tiny", "steps": 3}


# --- what cannot be measured ------------------------------------------------------------------------------------------


def test_a_model_too_large_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*_: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr("mmsr.gpu.bench.random_policy", made)
    free = type("Free", (), {"available": 4 * 2**30})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["bench", "--model", "qwen7b"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mmsr: sft of qwen7b takes at least") and "4.0 free" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--steps", "0"], "--steps takes a number of at least 1"), (["--out", "nowhere/b.json"], "no folder nowhere")],
)
def test_what_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", *options]) == 2
    assert said in capsys.readouterr().err


# --- against TRL ------------------------------------------------------------------------------------------------------


def test_both_loops_are_measured_on_the_same_questions_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "ROUNDS", 1)
    monkeypatch.setattr("mmsr.training.in_bf16", lambda device: False)
    sizes = {"grpo_questions": 1, "generations": 2, "micro_batch": 2}
    monkeypatch.setattr(against, "get_preset", lambda name, more: get_preset(name, more | sizes))
    real = against.make_questions
    monkeypatch.setattr(against, "make_questions", lambda part, n, seed: real(part, min(n, 27), seed))
    monkeypatch.setattr(against, "EVALUATED", {"tiny": 3, "layers12": 1})
    found = against.against("tiny", 1)
    stock, ours = found["grpo"]["stock"], found["grpo"]["ours"]
    assert found["grpo"]["ratio"]["median"] == pytest.approx(stock["seconds_per_step"] / ours["seconds_per_step"])
    assert found["evaluation"]["questions"] == 3 and found["evaluation"]["ratio"]["low"] > 0
    assert {"rollout", "update", "reference"} <= stock["seconds"].keys() and "decode" in ours["seconds"]
    read = {
        name: sum(side["positions_per_step"][part] for part in parts)
        for name, side, parts in (("stock", stock, ["rollout"]), ("ours", ours, ["prefill", "decode"]))
    }
    assert read["ours"] < read["stock"] and min(stock["peak_bytes"], ours["peak_bytes"]) > 2e7


@pytest.mark.parametrize("options", [["--model", "qwen3b", "--against", "trl"], ["--model", "layers12"]])
def test_what_is_for_the_comparison_alone(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *options]) == 2
    assert "--against takes the models tiny and layers12" in capsys.readouterr().err
