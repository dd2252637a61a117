"""The five notebooks against `mmsr serve` and a large model's endpoint, recorded, then replayed with both gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from local_llm import local_llm

from mmsr.live.serve import running
from mmsr.results import read_metrics
from mmsr.runs.ask import SHIPPED
from mmsr.runs.compare import compare, table
from mmsr.runs.runner import run
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.text import LocalTextSearch
from mmsr.world.snapshot import load_world

KIT = Path(__file__).parents[2] / "notebooks"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
SMALLER: dict[str, object] = {
    "data_questions": 24,
    "data_examples": 8,
    "sft_batch": 4,
    "new_tokens": 72,
    "grpo_steps": 1,
    "generations": 2,
    "micro_batch": 4,
    "eval_questions": 10,
    "ablation_questions": 3,
}


@dataclass
class Runs:
    """The recorded run and the replayed one, in a repository of their own."""

    root: Path
    recorded: Path
    replayed: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(KIT, root / "notebooks")
    world = load_world()
    asked: dict[str, object] = SMALLER | {
        "search": "serper",
        "picture_search": "serpapi_lens",
        "judge": "by-letters",
        "rivals": "big/rival",
        "llm_price_in": 1.0,
        "llm_price_out": 2.0,
        "record": str(root / "calls.sqlite"),
    }
    with running(world, LocalTextSearch(world), LocalImageSearch(world)) as web, local_llm() as llm:
        asked |= {"search_url": web, "picture_url": web, "llm_url": llm}
        recorded = five_notebooks(root, "recorded", asked | {"mode": "record"})
    replayed = five_notebooks(root, "replayed", asked | {"mode": "replay"})
    yield Runs(root, recorded, replayed)


def five_notebooks(root: Path, name: str, asked: Mapping[str, object]) -> Path:
    """One run of all five. Its short cold start says nothing yet: the shipped agent takes its place."""
    folder = run(["01", "02"], "smoke", name, 0, asked, root)
    shutil.rmtree(folder / "sft" / "adapter")
    shutil.copytree(SHIPPED, folder / "sft" / "adapter")
    return run(["03", "04", "05"], "smoke", name, 0, asked, root)


def test_a_recorded_run_replays_to_the_last_digit(runs: Runs) -> None:
    assert compare(runs.recorded, runs.replayed) == []
    metrics = read_metrics(runs.recorded)
    for notebook in ("01_build_data", "03_grpo", "04_evaluate", "05_crop_ablation"):
        for engine in ("serper", "serpapi_lens", "page", "judge"):
            assert metrics[f"outside/{notebook}/{engine}/asked"].value > 0, (notebook, engine)


def test_the_web_finds_what_the_local_tools_find(runs: Runs) -> None:
    """Hits bear the world's names, so that recall and evidence are measured over the web too."""
    metrics = read_metrics(runs.recorded)
    assert metrics["ablation/oracle/recall_at_1"].value >= 0.5
    assert metrics["eval/teacher/accuracy"].value >= 0.5 and metrics["eval/teacher/evidence_coverage"].value >= 0.5


def test_the_judge_stands_beside_exact_match(runs: Runs) -> None:
    metrics = read_metrics(runs.recorded)
    for workflow in ("direct", "rag", "prompted", "sft", "grpo", "teacher"):
        accuracy, exact = metrics[f"eval/{workflow}/accuracy"], metrics[f"eval/{workflow}/exact_match"]
        assert accuracy.n == exact.n == 10 and 0 <= metrics[f"eval/{workflow}/judge_unreadable"].value <= 1
    assert metrics["judge/04_evaluate/correct"].value > 0 and metrics["judge/04_evaluate/unreadable"].value > 0
    assert metrics["outside/03_grpo/judge/tokens"].value > 0  # the reward asked it


def test_the_manifest_tells_what_was_asked_and_spent(runs: Runs) -> None:
    recorded, replayed = (
        json.loads((folder / "manifest.json").read_text())["outside"] for folder in (runs.recorded, runs.replayed)
    )
    assert recorded["spent"]["serper"]["calls"] > 0 and recorded["spent"]["judge"]["money"] > 0
    assert "spent" not in replayed  # nothing left the machine
    for manifest in (recorded, replayed):
        judge = manifest["04_evaluate"]["judge"]
        assert len(judge["prompt_sha256"]) == 12 and judge["counts"]["failed"] == 0
        assert manifest["04_evaluate"]["roles"]["judge"]["model"] == "by-letters"


def test_a_rival_is_a_workflow_among_ours(runs: Runs) -> None:
    metrics = read_metrics(runs.recorded)
    for workflow, searches, valid in (("direct", 0, 1), ("rag", 2, 1), ("prompted", 0, 1)):
        name = f"eval/big_rival {workflow}"
        assert metrics[f"{name}/accuracy"].n == 10 and metrics[f"{name}/searches"].value == searches
        assert metrics[f"{name}/valid_turn_rate"].value == valid
        assert f"big_rival {workflow}" in table(runs.recorded)
    spent = json.loads((runs.recorded / "manifest.json").read_text())["outside"]["04_evaluate"]["roles"]
    assert spent["rival big_rival"]["model"] == "big/rival" and spent["rival big_rival"]["tokens"] > 0


def test_every_picture_is_shown(runs: Runs) -> None:
    pictures = {"01_build_data": 4, "02_sft": 4, "03_grpo": 6, "04_evaluate": 8, "05_crop_ablation": 6}
    for name, number in pictures.items():
        cells = nbformat.read(runs.recorded / f"{name}.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        shown = [output for output in outputs if "image/png" in output.get("data", {})]
        assert not any("Loading weights" in output.get("text", "") for output in outputs), name
        assert len(shown) == number, name


def test_a_public_benchmark_is_examined(runs: Runs) -> None:
    with local_llm() as llm:
        asked = {"benchmark": "okvqa", "data_dir": str(FIXTURES / "okvqa"), "adapters": str(runs.recorded)}
        models = {"judge": "by-letters", "summary": "copies", "llm_url": llm}
        folder = run(["04"], "smoke", "okvqa", 0, SMALLER | asked | models, runs.root)
    metrics = read_metrics(folder)
    for workflow in ("direct", "rag", "prompted", "sft", "grpo"):
        for score in ("okvqa/vqa_accuracy", "okvqa/exact_match", "okvqa/judge_accuracy", "accuracy", "searches"):
            assert metrics[f"eval/{workflow}/{score}"].value >= 0, (workflow, score)
    assert metrics["eval/rag/searches"].value == 2
    assert not any(name.startswith("eval/teacher") or "evidence" in name for name in metrics)
    assert (folder / "eval" / "trajectories.html").exists() and (folder / "figures" / "by_type.png").exists()
