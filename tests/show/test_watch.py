"""The view of a training that goes on: in place, right, and without a hand in it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from sample_run import eval_rows, write_run

from mmsr.files import write_json
from mmsr.grpo import LATEST
from mmsr.show import watch
from mmsr.show.watch import progress, watching


class Shown:
    """Stands for a place in a notebook's cell."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.changed = threading.Event()

    def update(self, what: Any) -> None:
        self.seen.append(what)
        self.changed.set()


@pytest.mark.parametrize(("stage", "total"), [("sft", {}), ("grpo", {"total": 40})])
def test_bar_curves_and_an_episode_are_shown_as_rows_come_and_the_bar_alone_stays(
    stage: str, total: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, places = write_run(tmp_path / "run"), [Shown(), Shown(), Shown()]
    waiting = iter(places)
    monkeypatch.setattr(watch, "get_ipython", lambda: "a shell")
    monkeypatch.setattr(watch, "display", lambda what, display_id: next(waiting))
    table = run / stage / f"{stage}.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.unlink()
    row = next(row for row in eval_rows(2) if row["workflow"] == "grpo")
    write_json(run / "grpo" / LATEST, row)
    with watching(run, stage, **total, every=0.01):
        for number in (3, len(lines)):
            places[1].changed.clear()
            table.write_text("".join(lines[:number]))
            assert places[1].changed.wait(60)
    bars, curves, episodes = (place.seen for place in places)
    assert len(bars) == 2 and "step 2" in bars[0].data and f"step {len(lines) - 1}" in bars[1].data
    assert "100 %" in bars[1].data
    assert all(isinstance(shown, Figure) for shown in curves[:2]) and curves[-1].data == ""
    assert [bool(shown.data) for shown in episodes] == ([True, True, False] if stage == "grpo" else [False])
    assert all(row["question"]["text"] in shown.data for shown in episodes[:-1])


def test_progress_tells_the_share_and_the_minutes_left() -> None:
    table = pd.DataFrame({"step": range(1, 21), "seconds": [30.0 * n for n in range(1, 21)], "reward": 0.5})
    assert "step 20  ·  25 %  ·  reward 0.500  ·  about 30 min left" in progress(table, "step", 80)
    assert "100 %" in progress(table, "step", 20) and "left" not in progress(table, "step", 20)
    resumed = table.assign(seconds=[900.0] * 19 + [5.0])  # a training that goes on counts its seconds anew
    assert "left" not in progress(resumed, "step", 80)


def test_an_error_of_the_training_is_raised_and_outside_a_notebook_nothing_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), watching(tmp_path, "sft", 1):
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""
