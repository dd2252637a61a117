"""Where a parameter of the command line belongs, of which type it is, and what all of a run must share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import papermill
import pytest
from small_notebooks import write

from mmsr.live.outside import Outside
from mmsr.presets import Preset
from mmsr.runs.notebooks import Notebook, read_notebook
from mmsr.runs.parameters import assign, flat, marked

CELL = """preset = "tiny"
run_dir: "Path" = "../papermill_runs/lab"
seed = 0
sizes = {}  # fields of the preset that change, such as {"grpo_steps": 128}
outside = {}
adapters: "Path" = ""
search_price = 0.0"""


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """A notebook of the kit's shape; the command runs in a folder of its own."""
    (tmp_path / "here" / "qwen").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return read_notebook(write(tmp_path, "03_grpo", CELL))


def values(notebook: Notebook, **given: Any) -> dict[str, Any]:
    """What a notebook is run with beside its defaults."""
    found = assign([notebook], "tiny", given, notebook.path.parent)["03_grpo"]
    defaults = {"sizes": {}, "outside": {}, "adapters": "", "search_price": 0.0}
    assert found.keys() == defaults.keys()
    return {key: value for key, value in found.items() if value != defaults[key]}


def test_each_key_goes_where_it_belongs(notebook: Notebook) -> None:
    found = values(notebook, search="serper", budget_calls="20", grpo_steps="128", search_price="1")
    assert found == {
        "search_price": 1.0,
        "sizes": {"grpo_steps": 128},
        "outside": {"search": "serper", "budget_calls": 20},
    }


@pytest.mark.parametrize("text", ['{"grpo_lr": 1e-5, "four_bit": true}', "{'grpo_lr': 1e-5, 'four_bit': True}"])
def test_a_dictionary_may_be_given_whole_and_is_merged(notebook: Notebook, text: str) -> None:
    merged = {"grpo_steps": 2, "grpo_lr": 1e-5, "four_bit": True}
    assert values(notebook, grpo_steps="2", sizes=text) == {"sizes": merged}
    assert values(notebook, sizes={"prompts": {"rag": "{pages} {question}"}}) == {
        "sizes": {"prompts": {"rag": "{pages} {question}"}}
    }


@pytest.mark.parametrize("text", ['{"max_tokens": 50, "top_p": 0.5}', {"max_tokens": 50, "top_p": 0.5}])
def test_a_roles_own_settings_are_a_dictionary(notebook: Notebook, text: Any) -> None:
    assert values(notebook, judge="m", judge_llm=text)["outside"]["judge_llm"] == {"max_tokens": 50, "top_p": 0.5}
    with pytest.raises(ValueError, match="judge_llm takes a dictionary such as"):
        values(notebook, judge_llm="50")


def test_a_path_is_given_from_here_and_reaches_the_notebook(notebook: Notebook) -> None:
    where = {"mode": "record", "record": "a.sqlite", "search": "milvus", "search_url": "x/world.db"}
    assert values(notebook, policy="qwen", adapters="../runs/a", **where) == {
        "adapters": "../runs/a",
        "sizes": {"policy": "../here/qwen"},
        "outside": where | {"record": "../here/a.sqlite", "search_url": "../here/x/world.db"},
    }
    whole = os.path.abspath("a")
    stays = {"search": "milvus", "search_url": "http://127.0.0.1:19530"}
    assert values(notebook, policy="Qwen/X", adapters=whole, **stays) == {
        "adapters": whole,
        "sizes": {"policy": "Qwen/X"},
        "outside": stays,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"kl": "1"},
            r"no parameter 'kl': there are adapters, search_price; in sizes .*grpo_steps.*; in outside search,",
        ),
        ({"seed": "1"}, "seed is set by --seed"),
        ({"name": "x"}, "cannot change the name of a preset"),
        ({"grpo_steps": "many"}, "sizes: grpo_steps must be a whole number, not 'many'"),
        ({"search": "gogle"}, "outside: search must be 'local'"),
        ({"mode": "record"}, "record names no file"),
        ({"search_price": "nan"}, "03_grpo: search_price must be a finite number"),
        ({"sizes": "{3}"}, "sizes takes a dictionary"),
        ({"outside": {"serch": "x"}}, "outside has no key 'serch'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(notebook: Notebook, given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        values(notebook, **given)
    assert "\n" not in str(refused.value)


def test_fields_say_what_is_alike_and_what_may_change() -> None:
    assert marked(Preset, "alike") == {"policy", "revision", "four_bit"}
    llm = {"llm_url", "llm_max_tokens", "teacher_llm", "judge_llm", "summary_llm", "rivals", "rivals_llm"}
    assert marked(Outside, "loose") == {"budget_calls", "budget_money", "record_days", "teacher_workers"} | llm
    assert marked(Preset, "loose") == {"report_to"}
    first, second = (flat("tiny", {"kl": 0.1, "sizes": sizes}) for sizes in ({}, {"policy": "tiny"}))
    assert first == second and first["kl"] == 0.1 and first["search"] == "local"


def test_papermill_itself_takes_the_dictionaries(notebook: Notebook, tmp_path: Path) -> None:
    done = papermill.execute_notebook(
        str(notebook.path), str(tmp_path / "out.ipynb"), {"sizes": {"grpo_steps": 2}}, prepare_only=True
    )
    assert 'sizes = {"grpo_steps": 2}' in "\n".join(cell.source for cell in done.cells)
