"""What `-p key=value` sets: a knob of a notebook, a size of the preset, or a setting of `outside`.

    given = {"kl": "0.01", "grpo_steps": "128", "search": "serper"}
    assign([notebook], "tiny", given, Path("notebooks"))["03_grpo"]
    # {"kl": 0.01, …, "sizes": {"grpo_steps": 128}, "outside": {"search": "serper"}}

The notebooks' `parameters` cells, `Preset` and `Outside` say what there is and of which type, and in the metadata of
their fields what is a path, what all notebooks of a run share, and what may change when a run is resumed.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr.live.outside import Outside, settings
from mmsr.presets import Preset, read_settings
from mmsr.runs.notebooks import Notebook

OURS = {"preset": "--preset", "seed": "--seed", "run_dir": "the run's name or folder"}  # what -p does not set
SETTINGS = {"sizes": Preset, "outside": Outside}  # the dictionaries among the knobs, and whose fields they change


def assign(
    notebooks: Sequence[Notebook], preset: str, given: Mapping[str, Any], folder: Path
) -> dict[str, dict[str, Any]]:
    """Each notebook's values by its name: its defaults, but for what is given, as text or typed.

    A path relative to where the command runs becomes relative to `folder`. Raises ValueError, in one sentence, for a
    key that no notebook has, a value of another type and values that do not go together.
    """
    asked, found = sort(given, {name for notebook in notebooks for name in notebook.knobs.__pydantic_fields__}), {}
    for notebook in notebooks:
        mine = {name: value for name, value in asked.items() if name in notebook.knobs.__pydantic_fields__}
        values = read_settings(notebook.knobs, mine, notebook.name).model_dump(exclude=set(OURS))
        for name, typed in zip(SETTINGS, settings(preset, values.get("sizes"), values.get("outside"))):
            if name in values:  # a preset's prompts, given in part, stay partial
                as_typed = {k: v if isinstance(v, Mapping) else getattr(typed, k) for k, v in values[name].items()}
                values[name] = _reached(as_typed, SETTINGS[name], folder)
        others = {name: values[name] for name in mine if name not in SETTINGS}
        found[notebook.name] = values | _reached(others, notebook.knobs, folder)
    return found


def _reached(values: Mapping[str, Any], kind: type, folder: Path) -> dict[str, Any]:
    """Fields of a settings class, paths relative to `folder`; what is absolute, an address or on the hub stays."""
    found = dict(values)
    for key in marked(kind, "path") & values.keys():
        text, path = values[key], Path(values[key]).expanduser()
        if not text or "://" in text or Path(text).is_absolute() or (kind is Preset and not path.is_dir()):
            continue
        try:
            found[key] = Path(os.path.relpath(path, folder)).as_posix()
        except ValueError:  # on two drives of Windows
            found[key] = str(path.absolute())
    return found


def sort(given: Mapping[str, Any], knobs: Collection[str]) -> dict[str, Any]:
    """What is given, by the knob that it sets: itself, or the dictionary with a field of that name.

    Raises ValueError for what sets none of the knobs, is set elsewhere, or is not a dictionary where one is needed.
    """
    values: dict[str, Any] = {}
    settings = {name: kind.__pydantic_fields__ for name, kind in SETTINGS.items() if name in knobs}
    dictionaries = {*settings, *marked(Outside, "dictionary")}
    for key, value in given.items():
        home = key if key in knobs else next((name for name, fields in settings.items() if key in fields), "")
        if key in OURS:
            raise ValueError(f"The parameter {key} is set by {OURS[key]}.")
        if home in settings:
            value = _dictionary(key, value) if key in dictionaries else value
            values[home] = values.get(home, {}) | (value if key == home else {key: value})
        elif home:
            values[key] = value
        else:
            there = [", ".join(sorted({*knobs} - {*OURS, *SETTINGS})) or "none"]
            there += [f"in {name} {', '.join(fields)}" for name, fields in settings.items()]
            raise ValueError(f"There is no parameter {key!r}: there are {'; '.join(there)}.")
    return values


def _dictionary(key: str, value: Any) -> Mapping[str, Any]:
    """A dictionary, or the text of one in JSON or Python."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            value = read(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} takes a dictionary such as '{{\"a\": 1}}', not {value!r}.")
    return value


def flat(preset: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All that a notebook is run with, by name: the fields of its sizes and its outside, and its other knobs."""
    size, outside = settings(preset, values.get("sizes"), values.get("outside"))
    knobs = {key: value for key, value in values.items() if key not in SETTINGS}
    return dataclasses.asdict(size) | outside.model_dump() | knobs


def marked(kind: type, mark: str) -> set[str]:
    """The fields of a settings class whose metadata have this mark: "path", "alike", "loose"."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind) if field.metadata.get(mark)}
    return {name for name, field in kind.__pydantic_fields__.items() if (field.json_schema_extra or {}).get(mark)}
