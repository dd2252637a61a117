"""pyproject.toml, requirements.lock, environment.yml, the imports and what is installed all say the same."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
OPTIONAL, DEV = (
    {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"][extra])}
    for extra in ("milvus", "dev")  # both are in the lock: the tests need them
)
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}
GPU = re.compile("nvidia-|triton$|cuda-")  # torch's own, which pip adds on machines that have a use for them
NOT_IMPORTED = {
    "jupyterlab": "make lab",
    "lxml-html-clean": "trafilatura's cleaner",
    "milvus-lite": "Milvus in a file, which pymilvus opens",
    "pytest-xdist": "make test",
    "python-multipart": "starlette's reader of uploaded pictures",
    "ruff": "make lint",
}


def test_lock_pins_everything_exactly() -> None:
    assert list(LOCK) == sorted(LOCK)
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
    assert not [name for name in LOCK if GPU.match(name)]


@pytest.mark.parametrize("name", sorted(NEEDED | OPTIONAL | DEV))
def test_lock_holds_what_the_project_asks_for(name: str) -> None:
    assert (NEEDED | OPTIONAL | DEV)[name].specifier.contains(LOCK[name])


def test_lock_holds_what_that_asks_for_in_turn() -> None:
    """Every requirement, of every requirement, on this machine."""
    todo, seen = [*NEEDED.values(), *OPTIONAL.values(), *DEV.values()], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen or GPU.match(name):
            continue
        seen.add((name, *requirement.extras))
        assert name in LOCK, f"{name} is needed and not in requirements.lock"
        assert requirement.specifier.contains(LOCK[name], prereleases=True), requirement
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)
    assert not set(LOCK) - {name for name, *_ in seen}, "these are in requirements.lock and nothing needs them"


@pytest.mark.parametrize("name", sorted(LOCK))
def test_installed_is_what_is_locked(name: str) -> None:
    assert importlib.metadata.version(name).partition("+")[0] == LOCK[name]


def test_conda_environment_is_python_pip_and_the_lock() -> None:
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    assert lines[lines.index("dependencies:") + 1 :] == [
        "- python=3.11",
        "- pip",
        "- pip:",
        "- -r requirements.lock",
        "- -e .",
    ]
    assert "name: mmsr" in lines
    assert PROJECT["requires-python"] == ">=3.11"


# --- imports ----------------------------------------------------------------------------------------------------------


def imported(sources: Iterable[str]) -> set[str]:
    """Distributions that the sources import, without the standard library and what lies beside them."""
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    modules -= set(sys.stdlib_module_names) | {"mmsr"} | {path.stem for path in scripts()}
    owners = importlib.metadata.packages_distributions()
    missing = sorted(module for module in modules if module not in owners)
    assert not missing, f"imported and not installed: {missing}"
    return {canonicalize_name(owners[module][0]) for module in modules}


def package() -> list[str]:
    return [path.read_text() for path in (ROOT / "src").rglob("*.py")]


def notebooks() -> list[str]:
    cells = [cell for path in (ROOT / "notebooks").glob("*.ipynb") for cell in json.loads(path.read_text())["cells"]]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def scripts() -> list[Path]:
    """The tests, their helpers, and what draws or measured something beside what it made."""
    return [path for place in ("tests", "figures", "papermill_runs/measured") for path in (ROOT / place).rglob("*.py")]


def checks() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in scripts()]


def test_every_import_is_declared() -> None:
    assert imported(package() + notebooks()) <= set(NEEDED | OPTIONAL)
    assert imported(checks()) <= set(NEEDED | OPTIONAL | DEV)


def test_every_declared_dependency_is_imported() -> None:
    used = imported(package() + notebooks() + checks())
    assert set(NEEDED | OPTIONAL | DEV) == used | set(NOT_IMPORTED)


# --- make -------------------------------------------------------------------------------------------------------------


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # the tests' own make
    command = ["make", "--file", str(ROOT / "Makefile"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=alone)


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "requirements.lock").touch()
    done = make(tmp_path, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"mmsr needs Python 3.11 or newer as {old}" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_is_redone_only_where_the_lock_is_newer(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").touch()
    stamp = tmp_path / ".venv" / ".installed"
    assert "requirements.lock" in make(tmp_path, "--dry-run", "run").stdout
    stamp.parent.mkdir()  # as an interrupted set-up leaves it
    assert "--clear" in make(tmp_path, "--dry-run", "test").stdout
    stamp.touch()
    assert make(tmp_path, "--dry-run", "run", "ARGS=--seed 1").stdout.strip() == ".venv/bin/mmsr run --seed 1"
