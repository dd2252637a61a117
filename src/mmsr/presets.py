"""Sizes of a run, and prompts. A preset changes numbers, names and prompts, never a branch of the notebooks.

    size = get_preset("tiny")
    size = get_preset("qwen3b", {"policy": "/data/my-qwen", "grpo_steps": 128})     # any field may be changed
    read_prompt("after_text_search", advice="…")                                    # assets/prompts/, parts filled in

The presets are in `assets/presets.toml`, with the arithmetic and the sources of their numbers: smoke and tiny on the
shipped policy, the others on Qwen2.5-VL or Qwen3-VL. The prompts of the large policies and of large models are text in
`assets/prompts/`, in our own words (paper §3.1 and §3.3: what each has to say, not how).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mmsr.protocol import Prompts

ASSETS = Path(__file__).parent / "assets"
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
ALIKE = {"alike": True}  # a run has one value of it, in all its notebooks
LOOSE = {"loose": True}  # it may change when a run goes on
PATH = {"path": True}  # a folder where one of that name exists, relative to where the command runs
# What pydantic calls a type at the start of an error's name, in words.
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that a size of run sets. Token counts are in the policy's own tokens; rates are per optimiser step."""

    name: str
    policy: str = field(metadata=ALIKE | PATH)  # "tiny", a name on the hub, or a folder
    revision: str | None = field(default=None, metadata=ALIKE)
    four_bit: bool = field(default=False, metadata=ALIKE)  # the language model's frozen weights in 4 bits
    max_pixels: Count | None = None
    prompts: Prompts
    new_tokens: Count  # per turn
    observation_tokens: Count
    lora_r: Count
    lora_alpha: Count
    data_questions: Count  # played by the teacher
    data_examples: Count  # kept after balancing
    sft_epochs: Count
    sft_batch: Count
    sft_lr: Positive
    sft_aliases: Annotated[float, Field(ge=0, le=1)]  # share of the rows with searches whose countries are renamed
    grpo_steps: Count
    grpo_questions: Count  # per step; times `generations` gives the rollouts
    generations: Annotated[int, Field(ge=2)]
    grpo_lr: Positive
    grpo_warmup: Annotated[int, Field(ge=0)]
    temperature: Positive
    micro_batch: Count  # rollouts per backward pass
    completion_tokens: Count
    eval_questions: Count
    rollout_rows: Count
    ablation_questions: Count
    checkpoint_steps: Count
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = field(default="none", metadata=LOOSE)

    @property
    def validation_questions(self) -> int:
        """Asked after the cold start, before GRPO, and of each adapter that GRPO keeps."""
        return max(10, self.eval_questions // 3)

    def check_tracker(self) -> None:
        """Raises ValueError where the package that `report_to` names is not installed."""
        if self.report_to != "none" and find_spec(self.report_to) is None:
            raise ValueError(f"report_to={self.report_to} needs its package: pip install {self.report_to}.")


def read_settings(kind: type[Settings], values: Mapping[str, Any], name: str) -> Settings:
    """A pydantic model or dataclass from `values`, which messages call `name`; text is read as a field's type.

    Raises ValueError, in one sentence, for an unknown key, a value of the wrong type, or one that a validator refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a dictionary of settings, not {values!r}.")
    known = kind.__pydantic_fields__
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{name} has no key {key!r}: it has {', '.join(known)}.")
        if isinstance(value, bool) and known[key].annotation in (int, float):  # pydantic would take True for 1
            raise ValueError(f"{name}: {key} must be a number, not {value!r}.")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0], name)) from None


def _sentence(error: Mapping[str, Any], name: str) -> str:
    """One error of pydantic as a sentence; what a validator of ours raised stands as it is."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{name} lacks the key {key!r}."
    wanted = TYPES.get(error["type"].partition("_")[0]) or error["msg"].removeprefix("Input should be ")
    return f"{name}: {key} must be {wanted}, not {error['input']!r}."


def read_prompt(name: str, advice: str = "") -> str:
    """A prompt from `assets/prompts/`; one for a turn says what a turn may be, and adds `advice` where given."""
    text = _text(name)
    return text.replace("{turn}", _text("turn")).replace("{advice}", f"{advice}\n\n" if advice else "")


def _text(name: str) -> str:
    return (ASSETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    found: dict[str, Preset] = {}
    for name, given in tomllib.loads((ASSETS / "presets.toml").read_text(encoding="utf-8")).items():
        prompts = {
            key: read_prompt(text[1:]) if text[0] == "@" else text for key, text in given.get("prompts", {}).items()
        }
        values = {**vars(found[given["like"]])} if "like" in given else {}
        values |= {key: value for key, value in given.items() if key != "like"} | {"name": name}
        found[name] = read_settings(Preset, values | ({"prompts": prompts} if prompts else {}), f"the preset {name}")
    return found


def get_preset(name: str, sizes: Mapping[str, Any] | None = None) -> Preset:
    """The preset of that name, with the fields that `sizes` changes; text is read as the field's type.

    `prompts` may be given in part. A policy of another name has no pinned revision unless one is given. Raises
    ValueError, in one sentence, for an unknown preset or field and for a value that a field cannot have.
    """
    if name not in presets():
        raise ValueError(f"there is no preset {name!r}: use one of {', '.join(presets())}.")
    known, changes = presets()[name], sizes or {}
    if not isinstance(changes, Mapping):
        raise ValueError(f"sizes must be a dictionary of settings, not {changes!r}.")
    if "name" in changes:
        raise ValueError("sizes cannot change the name of a preset: give preset=NAME.")
    changes = dict(changes)
    if isinstance(changes.get("prompts"), Mapping):
        changes["prompts"] = asdict(known.prompts) | changes["prompts"]
    if changes.get("policy", known.policy) != known.policy:
        changes.setdefault("revision", None)
    return read_settings(Preset, vars(known) | changes, "sizes")
