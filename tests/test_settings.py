"""Settings from a dictionary: what is taken, and the one sentence for what is not."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator
from pydantic.dataclasses import dataclass

from mmsr.presets import read_settings


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
