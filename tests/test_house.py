"""The house stays as built: arrows go down, the core knows no satellite, rooms stay small, README tells the truth."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mmsr"
CORE = {path.stem for path in PACKAGE.glob("*.py")} | {"world", "tools"}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def floors() -> list[str]:
    """The layers of the contract, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return next(contract["layers"] for contract in contracts if contract["type"] == "layers")


def readme_floors() -> str:
    """README's table of them."""
    rows = [" ".join(f"`{room.strip()}`" for room in floor.split("|")) for floor in floors()]
    numbered = (f"| {len(rows) - n} | {row} |" for n, row in enumerate(rows))
    return "\n".join(["<!-- floors -->", "| floor | rooms |", "|---|---|", *numbered, "<!-- /floors -->"])


def test_imports_keep_the_contracts() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == EXIT_STATUS_SUCCESS


def test_readme_shows_the_floors_of_the_contract() -> None:
    assert readme_floors() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_rooms_stay_small() -> None:
    sizes = {path.relative_to(PACKAGE).as_posix(): len(lines(path)) for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 22
    assert len([folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()]) <= 8
    core = sum(size for name, size in sizes.items() if name.removesuffix(".py").split("/")[0] in CORE)
    assert core <= 6_015 and sum(sizes.values()) <= 14_945


def test_no_ten_lines_stand_twice() -> None:
    seen = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        code = [line.strip() for line in lines(path)]
        code = [line for line in code if len(line) > 3 and not line.startswith(("import ", "from ", "#"))]
        for start in range(len(code) - 9):
            seen["\n".join(code[start : start + 10])].add((path.name, start))
    assert {run: places for run, places in seen.items() if len(places) > 1} == {}


if __name__ == "__main__":
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split("<!-- floors -->")
    (ROOT / "README.md").write_text(before + readme_floors() + rest.split("<!-- /floors -->")[1], encoding="utf-8")
