"""The same surroundings for every test: no network for the hub, no windows, few threads."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"  # `make test` runs two files at a time
os.environ.setdefault("OMP_NUM_THREADS", threads)  # read when torch is imported, here and in what tests start
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on a busy machine, threads that spin while they wait stand in the way

LONGEST = ("test_record_replay_run.py", "test_qwen_path.py", "test_bench.py")  # begun first, so that none is left over


def pytest_collection_modifyitems(items: list) -> None:
    """The files that take minutes come first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each file of the fault bench. It is here, as pytest-xdist's controller reads no other conftest."""
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
