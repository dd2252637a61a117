"""A run as one page to read or to send: `mmsr report RUN` writes `RUN/report.html`, as a run of all notebooks does.

    write_report(Path("papermill_runs/tiny"))

Results, figures, ten episodes worth reading, where the data came from, what it was run with. The page is
self-contained, and its template, `assets/show/report.html`, escapes whatever policies and pages have written.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr.evaluate import HABITS
from mmsr.files import read_json, read_rows, write_whole
from mmsr.results import METRICS
from mmsr.runs.compare import tables
from mmsr.show.transcript import Row, picture_of
from mmsr.show.viewer import CARD_STYLE, ENVIRONMENT, NAMES, data_url

REPORT = "report.html"
TEMPLATE = ENVIRONMENT.get_template("report.html", globals=NAMES)
FIRST = ("workflows", "habits", "before_after", "crops")  # of the figures; the others after them, by name

Chosen = Callable[[Row, Row], bool]  # of the agent's row after GRPO and after SFT, on the same question


def _kind(row: Row) -> str:
    return row["question"]["type"]


def _support(row: Row) -> str:
    return (row.get("support") or {}).get("label", "")


def _habit(name: str) -> Chosen:
    habit = HABITS[name]
    return lambda grpo, sft: (
        _kind(grpo) == habit.type and grpo["correct"] and habit.shown(grpo) and not habit.shown(sft)
    )


TELLING: dict[str, Chosen] = {
    "Learned under the reward: a wording that no page has is searched for in the page's own words.": _habit("rewords"),
    "Learned under the reward: after a search that found nothing it asks again.": _habit("tries_again"),
    "Learned under the reward: it goes on from the first country to the second.": _habit("goes_on"),
    "Learned under the reward: a fact is looked up instead of remembered.": _habit("looks_up"),
    "Lost under the reward: the cold start had this right.": lambda grpo, sft: sft["correct"] and not grpo["correct"],
    "The crop shows another flag, and all that follows is about another country.": (
        lambda grpo, sft: grpo["recall_at_1"] is False and not grpo["correct"]
    ),
    "The right country, the wrong answer: a page misread.": (
        lambda grpo, sft: grpo["recall_at_1"] and not grpo["correct"] and _support(grpo) == "supported"
    ),
    "An answer found on no page that was read.": lambda grpo, sft: _support(grpo) == "unsupported",
    "A needless search: it could have answered without.": lambda grpo, sft: grpo["needless"],
    "No search at all: the picture is enough.": lambda grpo, sft: _kind(grpo) == "visual" and grpo["correct"],
}


def telling(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Why an episode of the trained agent is worth reading, and the episode: the first of each kind that there is."""
    sft, grpo = ({row["question"]["id"]: row for row in rows if row["workflow"] == name} for name in ("sft", "grpo"))
    pairs, found = [(row, sft[name]) for name, row in grpo.items() if name in sft], {}
    for why, fits in TELLING.items():
        row = next((row for row, before in pairs if row["question"]["id"] not in found and fits(row, before)), None)
        if row:
            found[row["question"]["id"]] = (why, row)
    return list(found.values())


def write_report(run: Path) -> Path:
    """Write the page of a run and return its path. Raises FileNotFoundError for a run without `metrics.json`.

    What a run has not made is left out: figures, episodes, data card, manifest.
    """
    measured = tables(run)
    rows = run / "eval" / "rows.jsonl"
    chosen = telling(read_rows(rows, "run notebook 04 again")) if rows.exists() else []
    pictures = [picture_of(row) for _, row in chosen]
    drawn = {path.stem: path for path in sorted((run / "figures").glob("*.png"))}
    html = TEMPLATE.render(
        name=run.name,
        tables=measured,
        figures={name: _png(drawn[name]) for name in dict.fromkeys((*FIRST, *drawn)) if name in drawn},
        episodes=[(why, row, picture, data_url(picture)) for (why, row), picture in zip(chosen, pictures)],
        data=_flat(_known(run / "data" / "card.json")),
        made=_flat(_known(run / "manifest.json")),
        style=CARD_STYLE,
    )
    write_whole(run / REPORT, html)
    return run / REPORT


def _png(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _known(path: Path) -> Mapping[str, Any]:
    return read_json(path, dict, f"delete it, or run again what wrote {METRICS}") if path.exists() else {}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A dictionary of dictionaries as one, its names joined; notebooks' hashes and outputs are left to the file."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name} · ") if name != "notebooks" else {}
        elif value not in (None, "", [], {}):
            found[before + name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found
