"""What a run takes: counted calls and prices, a card's operations as bench counts them, where a budget ends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmsr.gpu.cost import LAUNCHED, RUN, TERAFLOPS, WAIT, operations, rated, told, unit_costs
from mmsr.gpu.fit import longest, memory_of
from mmsr.lab import WORKERS
from mmsr.live.outside import Outside
from mmsr.presets import Preset, get_preset
from mmsr.runs import command as cli

QWEN3B, QWEN7B = get_preset("qwen3b"), get_preset("qwen7b")
WEB = {"search": "serper", "picture_search": "serpapi_lens", "judge": "m", "llm_price_in": 2.0, "llm_price_out": 10.0}
HALF_A_QUADRILLION = 5e14


def units(preset: Preset = QWEN3B, flops: float = HALF_A_QUADRILLION, **outside: Any) -> dict[str, Any]:
    return unit_costs(preset, Outside(**outside), flops)


def notebooks(**outside: Any) -> dict[str, Any]:
    found = told(QWEN3B, Outside(**WEB | outside), "", 80)
    return {name: cost for name, cost in found["costs"].items() if name in RUN} | {"stop": found["stop"]}


def test_a_step_asks_and_pays_what_its_episodes_ask() -> None:
    _, calls, dollars = units(**WEB)["grpo"]
    rows = QWEN3B.grpo_questions * QWEN3B.generations
    assert calls == rows * (2 * (1 + 5) + (2 + 5) + 1)  # text with five pages, twice; the picture goes first; a verdict
    assert dollars == pytest.approx(rows * (2 * 0.001 + 2 * 0.0075 + (500 * 2 + 100 * 10) / 1e6))
    assert units(**WEB | {"read_pages": False})["grpo"][1] == rows * (2 + 2 + 1)
    assert units()["grpo"][1:].tolist() == [0, 0]


def test_prices_and_tokens_are_those_of_the_role() -> None:
    alike = units(**WEB, teacher="t", summary="s")
    dearer = units(**WEB, teacher="t", summary="s", teacher_llm={"price_in": 4.0, "price_out": 20.0})
    assert dearer["judged"].tolist() == alike["judged"].tolist() and dearer["grpo"][2] == alike["grpo"][2]
    searched = alike["searched"][2]
    assert dearer["taught"][2] - searched == pytest.approx(2 * (alike["taught"][2] - searched))
    assert searched > units(**WEB)["searched"][2]


def test_a_slow_engine_is_waited_for_and_more_workers_help_until_its_pace() -> None:
    fast, slow = units(search="serper"), units(search="brave")  # five calls a second, and one
    assert slow["searched"][0] == pytest.approx(2 * 1.0)
    assert fast["searched"][0] == pytest.approx(2 * WAIT / WORKERS)
    taught = [units(teacher="t", llm_price_in=1.0, teacher_workers=n)["taught"][0] for n in (1, 8, 80)]
    assert taught[0] == pytest.approx(8 * taught[1]) and taught[1] > taught[2]


def test_a_card_twice_as_fast_halves_what_passes_and_not_what_decodes() -> None:
    one, two = units(), units(flops=2 * HALF_A_QUADRILLION)
    assert one["sft"][0] == pytest.approx(2 * two["sft"][0])
    steps = 4 * QWEN3B.new_tokens * 36 * LAUNCHED  # all 64 rows at once
    assert one["grpo"][0] - steps == pytest.approx(2 * (two["grpo"][0] - steps))
    fewer = units(replace(QWEN3B, rollout_rows=8))
    assert fewer["grpo"][0] - one["grpo"][0] == pytest.approx(7 * steps)
    assert units(QWEN7B)["sft"][0] > 1.5 * one["sft"][0]


def test_operations_are_two_a_weight_and_position() -> None:
    weights = memory_of(QWEN3B.policy).weights
    every = operations(weights, 10, 10, 10)
    assert every == 20 * (weights["matrices"] + weights["head"] + weights["vision"])
    positions = QWEN3B.sft_batch * longest("sft", QWEN3B)[0].positions
    least = 2 * operations(weights, positions, positions) / HALF_A_QUADRILLION  # at full use
    assert 4 * least < units()["sft"][0] < 5 * least  # a quarter of it, and the vision encoder


def test_a_budget_that_does_not_reach_the_end_is_said_with_its_step() -> None:
    costs = notebooks()
    dollars = [costs[name]["dollars"] for name in RUN]
    assert costs["stop"] == notebooks(budget_money=sum(dollars) + 0.01)["stop"] == ""
    assert notebooks(budget_money=sum(dollars) - 0.01)["stop"] == "05_crop_ablation"
    assert notebooks(budget_money=dollars[0] / 2)["stop"] == "01_build_data"
    half = notebooks(budget_money=sum(dollars[:2]) + dollars[2] / 2)["stop"]
    assert half.startswith("03_grpo, at step ") and half.endswith(" of 200") and 100 <= int(half.split()[3]) < 115
    nearly = notebooks(budget_money=sum(dollars[:3]) - 0.01)["stop"]
    assert nearly == "03_grpo, at step 200 of 200"


def test_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = [pair for name, value in WEB.items() for pair in ("-p", f"{name}={value}")]
    asked = ["fit", "--preset", "qwen3b", "--gpu-gb", "40", "--gpu", "NVIDIA A100-SXM4-40GB", *given]
    assert cli.main([*asked, "-p", "budget_money=300"]) == 0
    shown = capsys.readouterr().out
    assert "an A100 takes, about" in shown and "budget_money does not last to the end: it is spent in 03_grpo" in shown
    assert "a step of grpo" in shown and "budget_money=300" in shown.split("mmsr run")[1].splitlines()[0]
    assert cli.main(asked) == 0
    assert "does not last" not in capsys.readouterr().out


def test_a_card_is_known_by_the_longest_of_its_names() -> None:
    assert rated("NVIDIA H100 PCIe")[0] == "H100 PCIe" and rated("NVIDIA H100 80GB HBM3")[0] == "H100"
    assert rated("Radeon") is None and rated("NVIDIA L40S") == ("L40S", TERAFLOPS["L40S"] * 1e12)
