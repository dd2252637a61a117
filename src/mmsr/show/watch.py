"""Training as it goes on, in a notebook's cell: how far it is, how long it will take, its curves, and what it plays.

    with watching(lab.folder, "grpo", lab.size.grpo_steps):
        policy = lab.grpo(policy, weights, kl)

It reads what the training writes, a table and GRPO's latest episode, and touches nothing: a run's digits do not know
whether anybody looked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, DisplayHandle, display

from mmsr.files import read_json
from mmsr.grpo import LATEST
from mmsr.show import figures
from mmsr.show.charts import read
from mmsr.show.transcript import picture_of
from mmsr.show.viewer import trajectory_html

STAGES = {"sft": ("epoch", figures.sft_curve), "grpo": ("step", figures.grpo_curves)}  # what grows, and the curves
PACE = 10  # rows over which it is measured


@contextlib.contextmanager
def watching(run: Path, stage: str, total: float = 1, every: float = 15.0) -> Iterator[None]:
    """Show the training of "sft" (all its epochs) or "grpo" (`total` steps) in this block, updated `every` seconds.

    Outside a notebook nothing is shown.
    """
    if get_ipython() is None:
        yield
        return
    shown = [display(HTML(text), display_id=True) for text in ("Waiting for the first step.", "", "")]
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, stage, total, shown, over, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for place in shown[1:]:
            place.update(HTML(""))  # the figure of the next cell is the whole


def _watch(
    run: Path, stage: str, total: float, shown: list[DisplayHandle], over: threading.Event, every: float
) -> None:
    seen, ended = 0, False
    while not ended:
        ended = over.wait(every)  # a last time after the end
        table = read(run, f"{stage}/{stage}.csv") if (run / stage / f"{stage}.csv").exists() else ()
        if len(table) > seen:
            seen = len(table)
            shown[0].update(HTML(progress(table, STAGES[stage][0], total)))
            shown[1].update(STAGES[stage][1](run))
            if (latest := run / stage / LATEST).exists():
                row = read_json(latest, dict[str, Any], "delete it")
                shown[2].update(HTML(trajectory_html(row, picture_of(row))))


def progress(table: pd.DataFrame, column: str, total: float) -> str:
    """A bar and a line on a training's table, whose `column` grows to `total`."""
    last, latest = table.iloc[-1], table.iloc[-PACE:]
    share = min(1.0, last[column] / total)
    gained, took = (latest[name].iloc[-1] - latest[name].iloc[0] for name in (column, "seconds"))
    told = [f"step {last['step']:.0f}", f"{100 * share:.0f} %"]
    told += [f"{name} {last[key]:.3f}" for name, key in (("reward", "reward"), ("loss", "loss")) if key in table][:1]
    if share < 1 and gained > 0 and took > 0:
        told.append(f"about {(total - last[column]) * took / gained / 60:.0f} min left")
    return f'<progress value="{share:.4f}"></progress> ' + "  ·  ".join(told)
