"""The notebooks in a real JupyterLab, in a real browser: run to the end, the player's seat used, nothing complains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browser import Browser, needs_chromium

from mmsr.runs.ask import SHIPPED

pytestmark = needs_chromium

KIT = Path(__file__).parents[2] / "notebooks"
FEW = {"data_questions": 24, "data_examples": 8, "eval_questions": 6}
PANEL = "[...jupyterapp.shell.widgets('main')][0]"
CELLS = f"{PANEL}.content.model.sharedModel.toJSON().cells"
BUTTON = "[...document.querySelectorAll('button')].find((b) => b.textContent === '{}')"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks with the sizes of a try, and beside them a run that has both adapters."""
    root = tmp_path_factory.mktemp("desk")
    for stage in ("sft", "grpo"):
        shutil.copytree(SHIPPED, root / "trained" / stage / "adapter")
    (root / "notebooks").mkdir()
    for path in KIT.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source += f'\npreset, run_dir, sizes = "smoke", "{root.as_posix()}/run", {FEW}'
        cell.source += f'\nadapters = "{root.as_posix()}/trained"' if "adapters" in cell.source else ""
        nbformat.write(notebook, root / "notebooks" / path.name)
    return root


@pytest.fixture(scope="module")
def lab(desk: Path) -> Iterator[str]:
    """The address of a JupyterLab on that desk, as `make lab` starts one."""
    own = {name: str(desk / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        "--port-retries=50",
        "--IdentityProvider.token=",
    ]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (desk / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=desk, env=os.environ | own, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not (found := list(Path(own["JUPYTER_RUNTIME_DIR"]).glob("jpserver-*.json"))):
            assert time.monotonic() < end and server.poll() is None, (desk / "server.log").read_text()
            time.sleep(0.2)
        yield json.loads(found[0].read_text())["url"]
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser(patience=300) as found:
        yield found


def run_all(browser: Browser, lab: str, name: str) -> str:
    """Open a notebook, run all its cells, and give what they printed. No cell may have failed."""
    browser.open(f"{lab}lab/tree/notebooks/{name}.ipynb?reset")
    browser.wait_for(f"window.jupyterapp && {PANEL}?.context?.isReady")
    browser.wait_for(f"{PANEL}.sessionContext.session?.kernel?.status === 'idle'")
    browser.run(f"jupyterapp.shell.activateById({PANEL}.id)")
    browser.run("jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = [cell for cell in browser.run(CELLS) if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    failed = [output for output in outputs if output["output_type"] == "error"]
    assert not failed and all(cell["execution_count"] for cell in cells)
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_notebook_1_runs_and_its_seat_is_played(browser: Browser, lab: str) -> None:
    told = run_all(browser, lab, "01_build_data")
    assert "search-free" in told or "must search" in told
    for name in ("search a crop", "play the turn"):
        browser.run(f"{BUTTON.format(name)}.click()")
        browser.wait_for("document.querySelector('.jupyter-widgets textarea').value.includes('img_search')")
    browser.wait_for("[...document.querySelectorAll('iframe')].some((f) => f.srcdoc.includes('Flag of '))")
    assert browser.errors == []


def test_notebook_4_runs_on_another_runs_adapters(browser: Browser, lab: str, desk: Path) -> None:
    told = run_all(browser, lab, "04_evaluate")
    assert "grpo − sft" in told and (desk / "run/eval/trajectories.html").exists()
    assert browser.errors == []
