"""The report shows what a run has made, chooses episodes that tell something, and trusts nothing that they hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sample_run import HOSTILE, write_run

from mmsr.files import read_rows, write_rows
from mmsr.results import read_metrics
from mmsr.runs.report import REPORT, TELLING, telling, write_report
from mmsr.show import figures


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sample")


def rows_of(run: Path) -> list[dict]:
    return read_rows(run / "eval" / "rows.jsonl", "")


def test_it_holds_results_figures_episodes_data_and_settings(run: Path) -> None:
    figures.workflows(run)
    page = write_report(run).read_text()
    assert f"{100 * read_metrics(run)['eval/grpo/accuracy'].value:.1f} %" in page and "Run sample" in page
    assert page.count('<img src="data:image/png;base64,') == len(list((run / "figures").glob("*.png"))) == 1
    assert page.count("<article") == len(telling(rows_of(run))) > 2
    assert "Where the data came from" in page and not re.search(r'(src|href)="(?!data:|https?://)', page)


def test_an_episode_is_chosen_once_and_for_the_reason_that_is_said(run: Path) -> None:
    rows = rows_of(run)
    sft = {row["question"]["id"]: row for row in rows if row["workflow"] == "sft"}
    chosen = telling(rows)
    assert len({row["question"]["id"] for _, row in chosen}) == len({why for why, _ in chosen}) == len(chosen)
    for why, row in chosen:
        assert row["workflow"] == "grpo" and TELLING[why](row, sft[row["question"]["id"]])


def test_what_a_run_has_not_made_is_left_out_and_no_run_is_told(run: Path, tmp_path: Path) -> None:
    for path in ("eval/rows.jsonl", "data/card.json"):
        (run / path).unlink()
    page = write_report(run).read_text()
    assert "<article" not in page and "Figures" not in page and "Where the data came from" not in page
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        write_report(tmp_path / "none")
    told = subprocess.run(
        [sys.executable, "-m", "mmsr", "report", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert told.returncode and "metrics.json" in told.stderr and "Traceback" not in told.stderr


def test_nothing_that_an_episode_holds_becomes_markup(run: Path) -> None:
    rows = rows_of(run)
    for row in rows:
        row["answer"] = row["question"]["text"] = HOSTILE
    write_rows(run / "eval" / "rows.jsonl", rows)
    page = (write_report(run).parent / REPORT).read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
