"""The runner, over small notebooks of its own."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from damage import DAMAGES, damage
from small_notebooks import OURS, write

from mmsr.results import read_metrics, record_metrics
from mmsr.runs import RunFailed, UsageError, runner
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.runner import run

SHIPPED = runner.PACKAGE / "assets" / "tiny" / "agent"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of two notebooks, each of which adds a line to `log` in the run's folder."""
    log = "from pathlib import Path\nwith (Path(run_dir) / 'log').open('a') as log:\n    print({}, file=log)"
    write(tmp_path, "01_first", OURS + "size = 3\n", log.format("'first', preset, seed, size"))
    write(tmp_path, "02_second", OURS + "rate = 0.5\nnote = 'a b'\n", log.format("'second', preset, seed, rate, note"))
    return tmp_path


def go(root: Path, *notebooks: str, **changes: object) -> Path:
    options = {"preset": "tiny", "name": "r", "seed": 0, "parameters": {}} | changes
    return run(notebooks, root=root, **options)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


# --- a run that works -------------------------------------------------------------------------------------------------


def test_each_notebook_gets_its_own_parameters(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = go(root, seed=5, parameters={"size": "4", "rate": "2", "note": "x=y=z"})
    assert log(folder) == ["first tiny 5 4", "second tiny 5 2.0 x=y=z"]
    assert folder == root / "papermill_runs" / "r"
    shown = capsys.readouterr().out
    assert "02_second finished" in shown
    assert "\x1b" not in shown and "\r" not in shown  # no terminal, no tricks
    assert {p.name for p in folder.glob("*.ipynb")} == {"01_first.ipynb", "02_second.ipynb"}


def test_executed_notebooks_name_no_folder_of_this_machine(root: Path) -> None:
    copy = go(root, "01") / "01_first.ipynb"
    assert str(root) not in copy.read_text()
    papermill = nbformat.read(copy, as_version=4).metadata.papermill
    assert papermill.input_path == "notebooks/01_first.ipynb"
    assert papermill.output_path == "papermill_runs/r/01_first.ipynb"


def test_what_a_run_leaves(root: Path) -> None:
    folder = go(root, "01_first", name=None, parameters={"size": 9})
    assert folder.name == "tiny"
    assert set(read_metrics(folder)) == {"time/01_first", "memory/peak_gb"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebooks"]["01_first"]["parameters"] == {"size": 9}
    assert manifest["notebooks"]["01_first"]["sha256"] == read_notebook(root / "notebooks" / "01_first.ipynb").sha256
    assert manifest["seed"] == 0 and manifest["preset"] == "tiny" and manifest["git"] is None
    assert re.fullmatch("[0-9a-f]{64}", manifest["base_model"]["sha256"])
    assert manifest["packages"]["trl"] and manifest["device"]["threads"] > 0
    assert manifest["started"] <= manifest["ended"]


def test_another_policy_is_found_from_the_notebooks_and_named_in_the_manifest(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = "from pathlib import Path\nassert Path(sizes['policy'], 'a.safetensors').exists()"
    for name in ("01_first", "02_second"):
        write(root, name, OURS + "sizes = {}\n", look)
    (root / "here" / "qwen").mkdir(parents=True)
    (root / "here" / "qwen" / "a.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(root / "here")
    folder = go(root, "01", preset="qwen3b", parameters={"policy": "qwen"})
    assert str(root) not in (folder / "01_first.ipynb").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["base_model"]["name"] == "qwen" and list(manifest["base_model"]["sha256"]) == ["a.safetensors"]
    with pytest.raises(UsageError, match=r"policy '\.\./here/qwen', not 'Qwen/Qwen2\.5-VL-3B-Instruct', in 01_first"):
        go(root, "02", preset="qwen3b")
    assert go(root, "02", preset="qwen3b", parameters={"policy": "../here/qwen"}) == folder


def test_manifest_tells_the_commit_and_whether_the_tree_is_dirty(root: Path) -> None:
    def git(*command: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(root), *name, *command], check=True, capture_output=True)

    git("init")
    git("add", "notebooks")
    git("commit", "-m", "notebooks")
    found = json.loads((go(root, "01") / "manifest.json").read_text())["git"]
    assert re.fullmatch("[0-9a-f]{40}", found["commit"]) and found["dirty"] is False
    (root / "notebooks" / "notes.txt").write_text("new")
    assert json.loads((go(root, "02") / "manifest.json").read_text())["git"]["dirty"] is True


def test_printed_lines_and_finished_cells_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "01_talks", OURS, "# Training\nprint('step 1/2')\nprint('step 2/2')")
    go(tmp_path)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "step 1/2" in lines and "step 2/2" in lines
    assert any(line.endswith("[3/3] # Training") for line in lines)


def test_peak_memory_is_the_kernels(tmp_path: Path) -> None:
    write(tmp_path, "01_big", OURS, "import time\nkept = bytearray(b'x') * 400_000_000\ntime.sleep(1.5)")
    folder = go(tmp_path)
    assert 0.4 < read_metrics(folder)["memory/peak_gb"].value < 1.0
    assert read_metrics(folder)["time/01_big"].value >= 1.5


# --- the kernel -------------------------------------------------------------------------------------------------------


def test_kernel_is_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["/usr/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    look = "import json, os, sys\nfrom pathlib import Path\n(Path(run_dir) / 'seen').write_text(json.dumps("
    write(tmp_path, "01_look", OURS, look + "[sys.executable, dict(os.environ), os.getcwd()]))")
    executable, environment, cwd = json.loads((go(tmp_path) / "seen").read_text())
    assert executable == sys.executable
    assert Path(cwd) == tmp_path / "notebooks"
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["PYTHONHASHSEED"] == "0"
    assert environment["TOKENIZERS_PARALLELISM"] == "false" and environment["MPLBACKEND"] == "agg"
    manifest = json.loads((tmp_path / "papermill_runs" / "r" / "manifest.json").read_text())
    assert manifest["pins"].items() <= environment.items()


def test_only_the_shipped_policy_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "src")
    for preset, outside in (("qwen3b", {}), ("tiny", {"grounder": "dino"})):
        assert "HF_HUB_OFFLINE" not in runner._environment(preset, {"outside": outside})
    assert runner._environment("tiny", {})["HF_HUB_OFFLINE"] == "1"
    assert Path(runner._environment("tiny", {})["PYTHONPATH"]).is_absolute()  # the kernel starts in another folder


def test_pins_that_are_given_hold_in_the_kernel_and_are_named(tmp_path: Path) -> None:
    look = "import json, torch\nfrom pathlib import Path\n(Path(run_dir) / 'seen').write_text(json.dumps("
    write(tmp_path, "01_look", OURS, look + "[torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]))")
    folder = go(tmp_path, pins={"OMP_NUM_THREADS": "3", "ATEN_CPU_CAPABILITY": "default"})
    manifest = json.loads((folder / "manifest.json").read_text())
    seen = json.loads((folder / "seen").read_text())
    assert seen == [manifest["device"]["threads"], manifest["device"]["used"]]
    if manifest["pins"]:  # there is AVX2 and no GPU
        assert seen == [3, "DEFAULT"] and manifest["pins"]["OMP_NUM_THREADS"] == "3"


# --- refused before anything starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {"sise": "4"}}, "'sise': there are note, rate, size"),
        ({"parameters": {"grpo_steps": "4"}}, "'grpo_steps': there are note, rate, size"),  # they have no sizes
        ({"parameters": {"seed": "4"}}, "set by --seed"),
        ({"parameters": {"run_dir": "x"}}, "set by the run's name"),
        ({"parameters": {"size": "4.5"}}, "01_first: size must be a whole number, not '4.5'"),
        ({"parameters": {"rate": "nan"}}, "02_second: rate must be a finite number, not 'nan'"),
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"name": "../out"}, "cannot be named '../out'"),
        ({"name": ".."}, "cannot be named '..'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(root: Path, changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        go(root, **changes)
    assert not (root / "papermill_runs").exists()


def test_a_parameter_of_a_notebook_that_is_not_chosen_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="'rate': there are size"):
        go(root, "01", parameters={"rate": "1"})


def test_an_unknown_notebook_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no notebook '03': there are 01_first, 02_second"):
        go(root, "01", "03")
    with pytest.raises(UsageError, match="no notebooks in"):
        go(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "folder"), [("benchmark", "data_dir"), ("train_benchmark", "train_dir")])
def test_a_benchmark_without_its_files_is_refused_before_anything_starts(root: Path, name: str, folder: str) -> None:
    write(root, "01_first", f"{OURS}{name} = ''\n{folder}: 'Path' = ''\nsample = 0\n")
    with pytest.raises(UsageError, match="must be the folder with the files of fvqa_train: '' is not one"):
        go(root, "01", parameters={name: "fvqa_train"})
    assert not (root / "papermill_runs").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 65, "ß\n"])
def test_a_name_that_no_folder_can_bear_is_refused(root: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be named .*: use up to 64 letters, digits, dots, dashes"):
        go(root, name=name)
    assert not (root / "papermill_runs").exists()


def test_a_folder_that_cannot_be_written_is_refused(root: Path) -> None:
    (root / "papermill_runs").write_text("a file")
    with pytest.raises(UsageError, match=r"papermill_runs/r cannot be written: (File exists|Not a directory)\.$"):
        go(root)
    (root / "papermill_runs").unlink()
    folder = go(root, "01")
    (folder / "state.json.part").mkdir()
    with pytest.raises(UsageError, match=r"papermill_runs/r cannot be written: Is a directory\.$"):
        go(root, "02")


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def kit(root: Path) -> Path:
    """The repository with notebooks of the kit's numbers beside the two, and another run that has trained."""
    for name in ("02_sft", "03_grpo"):
        stage = name.partition("_")[2]
        work = f"import shutil\nshutil.copytree({str(SHIPPED)!r}, f'{{run_dir}}/{stage}/adapter')"
        write(root, name, OURS + ("" if stage == "sft" else 'adapters: "Path" = ""\n'), work)
    for name in ("04_evaluate", "05_crop_ablation"):
        write(root, name, OURS + 'adapters: "Path" = ""\n', "print(adapters)")
    for stage in ("sft", "grpo"):
        shutil.copytree(SHIPPED, root / "papermill_runs" / "other" / stage / "adapter")
    return root


@pytest.mark.parametrize(
    ("notebooks", "spoil", "said"),
    [
        (
            ["04"],
            "typo",
            "typo/grpo/adapter is not there|typo/sft/adapter is not there: run notebook 02 first, or give",
        ),
        (["05"], "typo", "typo/grpo/adapter is not there: run notebook 03 first, or give adapters=RUN"),
        (["03"], "other/sft", "other/sft/adapter is not there: run notebook 02 first"),
        (["04"], "other/grpo", "other/grpo/adapter is not there: run notebook 03 first"),
        (
            ["04"],
            "other/grpo/adapter/adapter_model.safetensors",
            "adapter_model.safetensors is not there: train it again",
        ),
    ],
)
def test_adapters_that_are_not_there_are_refused_before_anything_starts(
    kit: Path, notebooks: list[str], spoil: str, said: str
) -> None:
    place = kit / "papermill_runs" / spoil
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    adapters = kit / "papermill_runs" / ("typo" if spoil == "typo" else "other")
    with pytest.raises(UsageError, match=said):
        go(kit, *notebooks, parameters={"adapters": str(adapters)})
    assert not (kit / "papermill_runs" / "r").exists()


def test_adapters_of_this_run_and_of_another_are_found(kit: Path) -> None:
    with pytest.raises(UsageError, match="sft/adapter is not there: run notebook 02 first, or give adapters=RUN"):
        go(kit, "04")
    folder = go(kit, "04", parameters={"adapters": str(kit / "papermill_runs" / "other")})
    assert (folder / "manifest.json").exists()
    assert go(kit, "02", "03", "04", name="all").name == "all"  # trained before they are needed
    assert go(kit, "05", name="all").name == "all"
    with pytest.raises(UsageError, match="sft/adapter is not there"):
        go(kit, "04", name="all", fresh=True)  # which would delete them first
    assert (kit / "papermill_runs" / "all" / "sft" / "adapter").exists()


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_failing_notebook_keeps_its_copy_and_names_its_cell(root: Path) -> None:
    write(root, "02_second", OURS, "before = 'kept'\nprint(before)", "# Divide\n1 / 0", "print('never')")
    with pytest.raises(RunFailed) as failure:
        go(root)
    folder = root / "papermill_runs" / "r"
    assert "02_second, cell [4] (# Divide) failed with ZeroDivisionError: division by zero" in str(failure.value)
    assert str(folder / "02_second.failed.ipynb") in str(failure.value)
    copy = (folder / "02_second.failed.ipynb").read_text()
    assert "kept" in copy and "ZeroDivisionError" in copy
    assert {p.name for p in folder.glob("*.ipynb")} == {"01_first.ipynb", "02_second.failed.ipynb"}
    assert not (folder / "manifest.json").exists()


def test_a_failed_notebook_runs_again(tmp_path: Path) -> None:
    flag = "from pathlib import Path\nflag = Path(run_dir) / 'flag'\nonce = flag.exists()\nflag.touch()\nassert once"
    write(tmp_path, "01_moody", OURS, flag)
    with pytest.raises(RunFailed, match="AssertionError"):
        go(tmp_path)
    folder = go(tmp_path)
    assert {p.name for p in folder.glob("*.ipynb")} == {"01_moody.ipynb"}


def test_a_kernel_that_dies_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, "01_dies", OURS, "import os\nos._exit(9)")
    with pytest.raises(RunFailed, match=r"01_dies, cell \[3\] \(import os\) failed: .*[Kk]ernel"):
        go(tmp_path)


def test_a_broken_state_is_one_sentence(root: Path) -> None:
    folder = root / "papermill_runs" / "r"
    folder.mkdir(parents=True)
    whole = {"preset": "tiny", "seed": 0, "started": "", "notebooks": {}}
    for broken in ("", "{", "[]", '{"preset": "tiny"}', "\0" * 9, json.dumps(whole | {"kernel": [-1, 0.0]})):
        (folder / "state.json").write_text(broken)
        with pytest.raises(UsageError, match=r"state\.json is broken: delete .*r and begin that run again\.$"):
            go(root)


# --- interrupted ------------------------------------------------------------------------------------------------------

KILLED = "import sys, pathlib; from mmsr.runs.runner import run; run([], 'tiny', 'r', 0, {}, pathlib.Path(sys.argv[1]))"


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if Path("/proc").exists():
        return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_run_goes_on_from_the_unfinished_notebook(root: Path) -> None:
    slow = "import os, time\nbegun = Path(run_dir) / 'begun'\nif not begun.exists():\n"
    slow += "    begun.write_text(str(os.getpid()))\n    time.sleep(100)"
    last = "from pathlib import Path\nwith (Path(run_dir) / 'log').open('a') as log:\n    print('second', file=log)"
    write(root, "02_second", OURS, last, slow)
    folder = root / "papermill_runs" / "r"
    runner_process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.DEVNULL)
    wait_for(folder / "begun")
    time.sleep(5.5)  # long enough for the state to be kept
    runner_process.send_signal(signal.SIGKILL)
    runner_process.wait()
    kernel = int((folder / "begun").read_text())
    assert (folder / "02_second.part.ipynb").exists() and not (folder / "manifest.json").exists()

    assert go(root) == folder
    assert not alive(kernel)  # the runner waited for it
    assert log(folder) == ["first tiny 0 3", "second", "second"]
    assert {p.name for p in folder.glob("*.ipynb")} == {"01_first.ipynb", "02_second.ipynb"}
    assert read_metrics(folder)["time/02_second"].value > 5  # both parts count
    assert (folder / "manifest.json").exists()


def test_a_finished_run_is_not_done_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (go(root) / "metrics.json").read_bytes()
    folder = go(root)
    assert len(log(folder)) == 2
    assert "01_first is already finished" in capsys.readouterr().out
    assert (folder / "metrics.json").read_bytes() == before


def test_notebooks_may_be_run_one_after_another(root: Path) -> None:
    go(root, "01")
    assert log(go(root, "02", "01_first")) == ["first tiny 0 3", "second tiny 0 0.5 a b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {"size": "4"}}, "size 3, not 4, in 01_first"),
        ({"seed": 1}, "preset tiny and seed 0, not tiny and 1"),
        ({"preset": "smoke"}, "preset tiny and seed 0, not smoke and 0"),
    ],
)
def test_another_request_under_the_same_name_is_refused(root: Path, changes: dict, said: str) -> None:
    go(root, "01")
    with pytest.raises(UsageError, match=f"begun with {said}: choose another --name, or --fresh"):
        go(root, **changes)
    assert len(log(go(root, "01", **changes, fresh=True))) == 1


def test_other_sources_are_refused(root: Path) -> None:
    go(root, "01")
    write(root, "01_first", OURS, "print('edited')")
    with pytest.raises(UsageError, match="begun with other sources of 01_first"):
        go(root)


def test_changed_code_of_the_package_is_mentioned(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(root, "01")
    monkeypatch.setattr(runner, "code_sha256", lambda: "other")
    go(root)
    assert "code has changed since 01_first ran" in capsys.readouterr().out


def test_the_package_is_its_sources_and_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PACKAGE", tmp_path)
    seen = {runner.code_sha256()}
    for name in ("a.py", "presets.toml", "prompt.txt", "chat_template.jinja"):
        (tmp_path / name).write_text("1")
        seen.add(runner.code_sha256())
    (tmp_path / "a.pyc").write_text("no source")
    assert len(seen) == 5 and runner.code_sha256() in seen


def test_a_folder_that_is_no_run_is_left_alone(root: Path) -> None:
    folder = root / "papermill_runs" / "r"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="choose another --name"):
            go(root, fresh=fresh)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_run_made_by_hand_is_replaced_only_when_asked(root: Path) -> None:
    folder = root / "papermill_runs" / "r"
    record_metrics(folder, {"x": 1})
    with pytest.raises(UsageError, match="did not begin: choose another --name, or --fresh to delete them"):
        go(root, "01")
    assert "x" not in read_metrics(go(root, "01", fresh=True))


def test_what_may_change_may_change_when_a_run_goes_on(root: Path) -> None:
    write(root, "01_first", OURS + "sizes = {}\noutside = {}\n", "print(outside)")
    folder = go(root, "01", parameters={"budget_calls": "3", "revision": "none"})
    assert json.loads((folder / "state.json").read_text())["notebooks"]["01_first"]["finished"]
    go(root, "01", parameters={"budget_calls": "5", "revision": "none"})
    with pytest.raises(UsageError, match="grpo_steps 64, not 2, in 01_first"):
        go(root, "01", parameters={"grpo_steps": "2", "revision": "none"})


def test_what_a_notebook_has_not_yet_used_may_change(kit: Path) -> None:
    """A mistyped address stops notebook 03; the corrected command goes on, and keeps what 01 and 02 have done."""
    look = "assert outside['search_url'].endswith(':1'), 'no such host'"
    for name in ("01_first", "02_second"):
        write(
            kit,
            name,
            OURS + "outside = {}\n",
            "from pathlib import Path\n(Path(run_dir) / 'done').open('a').write('1')",
        )
    write(kit, "03_grpo", OURS + "outside = {}\n", look)
    folder = go(kit, "01_first", "02_second")
    wrong, right = ({"search": "searxng", "search_url": f"http://127.0.0.1:{port}"} for port in (2, 1))
    with pytest.raises(RunFailed, match="no such host"):
        go(kit, "03", parameters=wrong)
    assert go(kit, "03", parameters=right) == folder and (folder / "done").read_text() == "11"
    asked = json.loads((folder / "manifest.json").read_text())["notebooks"]["03_grpo"]["parameters"]["outside"]
    assert asked["search_url"] == right["search_url"]
    with pytest.raises(
        UsageError, match=r"search_url 'http://127.0.0.1:1', not 'http://127.0.0.1:2', in 03_grpo: choose"
    ):
        go(kit, "03", parameters=wrong)  # it has finished


def test_what_a_training_has_used_may_not_change_and_how_it_begins_again_is_said(kit: Path) -> None:
    write(kit, "03_grpo", OURS + "kl = 0.1\n", "from pathlib import Path", "assert kl == 0.3")
    with pytest.raises(RunFailed, match="AssertionError"):
        go(kit, "03")
    folder = kit / "papermill_runs" / "r"
    (folder / "grpo" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    said = r"begun with kl 0\.1, not 0\.3, in 03_grpo \(which begins again without grpo/checkpoints\): choose"
    with pytest.raises(UsageError, match=said):
        go(kit, "03", parameters={"kl": "0.3"})
    shutil.rmtree(folder / "grpo" / "checkpoints")
    assert go(kit, "03", seed=4, parameters={"kl": "0.3"}) == folder  # nothing was used, so the seed may change, too
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 4


def test_a_notebook_whose_copy_was_deleted_runs_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = go(root)
    state = json.loads((folder / "state.json").read_text())
    state["notebooks"]["01_first"]["seconds"] = 1000.0
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "01_first.ipynb").unlink()
    go(root)
    assert log(folder) == ["first tiny 0 3", "second tiny 0 0.5 a b", "first tiny 0 3"]
    assert "02_second is already finished (delete its copy to run it again)" in capsys.readouterr().out
    assert json.loads((folder / "state.json").read_text())["notebooks"]["01_first"]["seconds"] < 1000  # of the new one


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_metrics_are_refused_before_anything_starts(root: Path, how: str) -> None:
    folder = go(root, "01")
    damage(folder / "metrics.json", how)
    with pytest.raises(UsageError, match=r"metrics\.json is damaged: delete it and the executed notebooks"):
        go(root, "02")
    assert len(log(folder)) == 1
    for name in ("metrics.json", "01_first.ipynb"):
        (folder / name).unlink()
    assert set(read_metrics(go(root))) >= {"time/01_first", "time/02_second"}  # as it is told to do


def test_missing_metrics_of_finished_notebooks_are_told(root: Path) -> None:
    folder = go(root, "01")
    (folder / "metrics.json").unlink()
    with pytest.raises(UsageError, match=r"metrics\.json is missing: delete the executed notebooks"):
        go(root, "02")
    (folder / "01_first.ipynb").unlink()
    assert set(read_metrics(go(root))) >= {"time/01_first", "time/02_second"}


def test_after_a_full_disk_a_run_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(runner, "record_metrics", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            go(root, "01")
    assert len(log(go(root, "01"))) == 2


def test_a_damaged_account_of_a_notebook_is_named(root: Path) -> None:
    account = root / "papermill_runs" / "r" / "outside" / "01_first.json"
    write(root, "01_first", OURS, f"import os\nos.makedirs({str(account.parent)!r})\nopen({str(account)!r}, 'w')")
    with pytest.raises(UsageError, match=r"01_first\.json is damaged: delete it\.$"):
        go(root, "01")


def test_a_process_that_took_the_number_of_a_kernel_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        began = psutil.Process(other.pid).create_time()
        runner._end_process(other.pid, began - 100)
        assert other.poll() is None
        runner._end_process(other.pid, began)
        assert not psutil.pid_exists(other.pid)
    runner._end_process(other.pid, began)  # it has gone


def test_two_runs_in_one_folder_are_refused(root: Path) -> None:
    with runner._alone(root / "papermill_runs" / "r"), pytest.raises(UsageError, match="Another run is going on"):
        go(root)
