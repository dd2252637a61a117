"""The prompts of the Qwen policies' turns show the protocol, with and without a teacher's advice."""

from __future__ import annotations

import re

import pytest

from mmsr.presets import get_preset, read_prompt
from mmsr.protocol import UNABLE, parse_turn

TURNS = ("first_turn", "after_image_search", "after_text_search")


@pytest.mark.parametrize("advice", ["", "teacher_advice"])
@pytest.mark.parametrize("name", TURNS)
def test_turn_prompts_show_the_protocol(name: str, advice: str) -> None:
    prompt = read_prompt(name, advice and read_prompt(advice)).format(question="Whose {flag} is it?")
    assert "Whose {flag} is it?" in prompt and ("smaller model" in prompt) is bool(advice)
    assert ("<information>" in prompt) is (name != "first_turn") and "{" not in prompt.replace("{flag}", "")
    actions = re.findall(r"^<(?:text_search|img_search|answer)>.*", prompt, re.MULTILINE)
    assert len(actions) == 4
    for action in actions:
        parse_turn(f"<reason>why</reason>{action}")
    assert UNABLE in prompt or name == "first_turn"


def test_the_large_policies_read_them() -> None:
    prompts = get_preset("qwen7b").prompts
    assert [prompts.first_turn, prompts.after_image, prompts.after_text] == [read_prompt(name) for name in TURNS]
    assert prompts.locate.format(expression="the flag").endswith('"label": "…"}]')
