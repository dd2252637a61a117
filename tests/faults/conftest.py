"""The fault bench's one undisturbed run, and its count of what was tried and what was lost."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from broken_runs import Bench, make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("bench"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each file of the bench."""
    tried, lost = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for kind in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(kind, []):
            folder, _, name = report.nodeid.partition("::")[0].rpartition("/")
            if folder.endswith("tests/faults"):
                tried[name].add(report.nodeid)
                lost[name] |= {report.nodeid} if kind != "passed" else set()
    for name in sorted(tried):
        what = name.removeprefix("test_").removesuffix(".py")
        terminalreporter.write_line(f"fault bench, {what}: tried {len(tried[name])}, lost {len(lost[name])}")
