"""The fault bench's one undisturbed run."""

from __future__ import annotations

import pytest
from broken_runs import Bench, make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("bench"))
