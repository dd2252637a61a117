"""Settings from a dictionary: what is taken, and the one sentence for what is not."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field, field_validator
from pydantic.dataclasses import dataclass
from transformers import get_constant_schedule_with_warmup

from mmsr.presets import get_preset, presets, read_settings


@pytest.mark.parametrize("name", ["qwen3b", "qwen7b", "qwen7b_paper"])
def test_what_a_preset_lets_an_entry_of_a_lora_move(name: str) -> None:
    """By about the rate a step, as Adam does; the sums that assets/presets.toml tells."""
    size = get_preset(name)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=size.grpo_lr)
    schedule = get_constant_schedule_with_warmup(optimiser, size.grpo_warmup)
    moved = 0.0
    for _ in range(size.grpo_steps):
        moved += optimiser.param_groups[0]["lr"]
        optimiser.step()
        schedule.step()
    of_a_matrix = size.lora_alpha / size.lora_r * size.lora_r**0.5 * moved / (3 * 2048) ** 0.5
    if name == "qwen7b_paper":
        assert moved == pytest.approx(177 * 2e-6) and 13 < moved / of_a_matrix < 14
    else:
        assert moved == pytest.approx(194.5e-5) and of_a_matrix == pytest.approx(2.0e-4, rel=0.02)


def test_presets_that_are_like_another_leave_it_as_it_was() -> None:
    names = ("new_tokens", "lora_r", "lora_alpha", "grpo_lr", "grpo_warmup", "completion_tokens", "checkpoint_steps")
    tiny, paper, smoke = (presets()[name] for name in ("tiny", "qwen7b_paper", "qwen_smoke"))
    assert [getattr(tiny, name) for name in names] == [72, 32, 64, 1e-4, 2, 512, 5]
    assert [getattr(paper, name) for name in names] == [512, 8, 16, 2e-6, 45, 8192, 10]
    assert smoke.grpo_lr == presets()["qwen3b"].grpo_lr and smoke.completion_tokens == 2048


class Model(BaseModel, frozen=True, extra="forbid"):
    steps: int = 1
    rate: Annotated[float, Field(ge=0)] = 0.5
    pages: bool = True
    name: str = ""
    mode: Literal["live", "replay"] = "live"

    @field_validator("name")
    @classmethod
    def lower(cls, name: str) -> str:
        if name != name.lower():
            raise ValueError(f"name must be in small letters, not {name!r}.")
        return name


@dataclass(frozen=True)
class Data:
    name: str
    steps: int = 1
    revision: str | None = None


def test_text_is_taken_where_it_reads_as_the_type() -> None:
    given = {"steps": "20", "rate": "1e-5", "pages": "false", "name": "20"}
    assert read_settings(Model, given, "sizes") == Model(steps=20, rate=1e-5, pages=False, name="20")
    assert read_settings(Data, {"name": "a", "steps": "3"}, "sizes") == Data("a", 3)
    assert read_settings(Model, {}, "sizes") == Model()


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Model, {"stepps": 1}, "sizes has no key 'stepps': it has steps, rate, pages, name, mode."),
        (Data, {"name": "a", "stepps": 1}, "sizes has no key 'stepps': it has name, steps, revision."),
        (Model, {"steps": "many"}, "sizes: steps must be a whole number, not 'many'."),
        (Model, {"steps": 2.5}, "sizes: steps must be a whole number, not 2.5."),
        (Model, {"steps": None}, "sizes: steps must be a whole number, not None."),
        (Model, {"steps": True}, "sizes: steps must be a number, not True."),
        (Model, {"rate": "fast"}, "sizes: rate must be a number, not 'fast'."),
        (Model, {"rate": -1}, "sizes: rate must be greater than or equal to 0, not -1."),
        (Model, {"pages": "maybe"}, "sizes: pages must be true or false, not 'maybe'."),
        (Model, {"name": 3}, "sizes: name must be text, not 3."),
        (Model, {"mode": "lve"}, "sizes: mode must be 'live' or 'replay', not 'lve'."),
        (Model, {"name": "Big"}, "name must be in small letters, not 'Big'."),
        (Data, {}, "sizes lacks the key 'name'."),
        (Model, "steps", "sizes must be a dictionary of settings, not 'steps'."),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(kind: type, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        read_settings(kind, values, "sizes")
