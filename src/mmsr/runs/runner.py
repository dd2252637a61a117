"""The papermill runner: notebooks in order into one folder, resumable, refusing what it cannot do before it starts.

    folder = run(["01", "02"], preset="tiny", name="mine", seed=0, parameters={"kl": "0.01"}, root=Path("."))

| in the folder | what |
|---|---|
| 02_sft.ipynb | an executed notebook; `.part.ipynb` while it runs, `.failed.ipynb` where a cell raised |
| state.json | what was asked for and what is finished: an interrupted run goes on from there |
| metrics.json | what the notebooks measured, their seconds, the peak memory |
| manifest.json | what it was made of, written last |
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import psutil
from filelock import Timeout
from pydantic import BaseModel, PositiveInt

import mmsr
from mmsr.benchmarks.registry import check_benchmark, check_training
from mmsr.files import FileDamaged, locked, read_json, sha256, write_json
from mmsr.live.outside import Outside, settings
from mmsr.presets import Preset, get_preset
from mmsr.results import METRICS, STAGES, check_adapter, find_adapter, read_metrics, record_metrics
from mmsr.runs import RunFailed, UsageError, reason, refusing
from mmsr.runs.notebooks import Notebook, Watch, execute, read_notebook
from mmsr.runs.parameters import assign, flat, marked
from mmsr.tools.base import FatalToolError
from mmsr.world.own import check_world

STATE, MANIFEST = "state.json", "manifest.json"
PACKAGE = Path(mmsr.__file__).parent
SOURCES = {".py", ".toml", ".txt", ".jinja", ".json", ".html", ".css", ".js"}  # of the package, and its texts
NEEDS = {"03": ("sft",), "04": ("sft", "grpo"), "05": ("grpo",)}  # adapters, by the notebook's number
GOES_ON = {"01": "funnel", "02": "sft/checkpoints", "03": "grpo/checkpoints"}  # what a notebook goes on from
ALIKE = marked(Preset, "alike")  # a run has one value of these, whichever notebooks it runs when
LOOSE = marked(Outside, "loose") | marked(Preset, "loose")  # these may change when a run goes on
QUIET = {"TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}  # and repeatable
CLOCKS = 5.0  # seconds by which two readings of a process's start may differ


class Record(BaseModel):
    """What is known of one notebook of a run: its sources and the package's, its parameters, cost so far."""

    sha256: str
    code: str = ""
    parameters: dict[str, Any] = {}
    seconds: float = 0.0
    peak_gb: float = 0.0
    finished: bool = False


class State(BaseModel):
    """A run's memory between interruptions: `state.json`. `kernel` is the process that runs now, and since when."""

    preset: str
    seed: int
    started: str
    notebooks: dict[str, Record]
    kernel: tuple[PositiveInt, float] | None = None

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """The state of the run in `folder`, or None where there is none. Raises UsageError for a broken one."""
        file = folder / STATE
        if not file.exists():
            return None
        try:
            state = cls.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError:
            raise UsageError(f"{file} is broken: delete {folder} and begin that run again.") from None
        for name, record in state.notebooks.items():  # where its copy was deleted, a notebook runs again, from nothing
            if record.finished and not (folder / f"{name}.ipynb").exists():
                record.finished, record.seconds, record.peak_gb = False, 0.0, 0.0
        return state

    def save(self, folder: Path) -> None:
        write_json(folder / STATE, self.model_dump(exclude_none=True))


def run(
    notebooks: Sequence[str],
    preset: str,
    name: str | None,
    seed: int,
    parameters: Mapping[str, Any],
    root: Path,
    fresh: bool = False,
    pins: Mapping[str, str] | None = None,
) -> Path:
    """Run notebooks of `root/notebooks` in order into `root/papermill_runs/<name>`, and return that folder.

    notebooks: numbers or names ("02", "02_sft"), all where empty. parameters: text or typed (see `parameters.assign`).
    What a run of that name has finished is not done again, unless `fresh` deletes it first. `pins` replace the
    machine's own (see `mmsr.gpu.device`). Raises UsageError, before anything starts, where the request cannot be met,
    and RunFailed for a failing cell.
    """
    root = root.absolute()
    folder = root / "papermill_runs" / (name or preset)
    with refusing(ValueError, FileNotFoundError, FatalToolError):
        chosen = _choose(notebooks, root / "notebooks")
        values = assign(chosen, preset, parameters, root / "notebooks")
        _check(preset, values, root / "notebooks")
        if not re.fullmatch(r"\w[\w.-]{0,63}", name or preset):
            allowed = "use up to 64 letters, digits, dots, dashes and underscores"
            raise ValueError(f"A run cannot be named {name!r:.80}: {allowed}.")
        _check_adapters(folder, values, root / "notebooks", fresh)
    records = {one.name: Record(sha256=one.sha256, parameters=values[one.name]) for one in chosen}
    with _alone(folder), refusing(FileDamaged):
        with refusing(OSError, saying=f"{folder} cannot be written"):
            state = _begin(folder, State(preset=preset, seed=seed, started=_now(), notebooks=records), fresh)
        machine = _machine(tuple((pins or {}).items()))
        for notebook in chosen:
            _run_one(notebook, folder, state, machine["pins"])
        _write_manifest(folder, root, state, machine)
    return folder


@functools.cache
def _machine(pins: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Packages, device and pins as a kernel has them: reported by a process of its own, which loads torch for it."""
    command, environment = [sys.executable, "-m", "mmsr.gpu.device"], os.environ | dict(pins)
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def _run_one(notebook: Notebook, folder: Path, state: State, pins: Mapping[str, str]) -> None:
    """Run a notebook unless it is finished; its copy bears a temporary name until it is."""
    record = state.notebooks[notebook.name]
    if record.finished:
        print(f"{notebook.name} is already finished (delete its copy to run it again)", flush=True)
        return
    before = record.model_copy()

    def keep(watch: Watch) -> None:
        record.seconds = round(before.seconds + watch.seconds, 2)
        record.peak_gb = round(max(before.peak_gb, watch.peak / 1e9), 3)
        state.kernel = watch.kernel and (watch.kernel.pid, watch.kernel.create_time())
        state.save(folder)

    print(notebook.name, flush=True)
    run_dir = Path(os.path.relpath(folder, notebook.path.parent)).as_posix()
    ours = {"preset": state.preset, "seed": state.seed, "run_dir": run_dir}
    given = {key: ours[key] for key in ours if key in notebook.knobs.__pydantic_fields__} | record.parameters
    part, failed, done = (folder / f"{notebook.name}{kind}.ipynb" for kind in (".part", ".failed", ""))
    try:
        node = execute(notebook, given, part, pins | _environment(state.preset, record.parameters), keep)
    except RunFailed as error:
        part.replace(failed)
        raise RunFailed(f"{str(error).rstrip('.')}. What it did until then is in {failed}.") from error
    paths = {"input_path": notebook.path, "output_path": done}  # of this machine, as papermill notes them
    node.metadata.papermill |= {key: path.relative_to(folder.parents[1]).as_posix() for key, path in paths.items()}
    nbformat.write(node, part)
    part.replace(done)
    failed.unlink(missing_ok=True)
    peak = max(record.peak_gb for record in state.notebooks.values())
    record_metrics(folder, {f"time/{notebook.name}": record.seconds, "memory/peak_gb": peak})
    record.finished = True
    state.save(folder)
    print(f"{notebook.name} finished: {record.seconds:.1f} s, at most {record.peak_gb:.2f} GB", flush=True)


def _environment(preset: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The kernel's, on top of this process's: repeatable, and without the hub where all models are shipped."""
    size, outside = settings(preset, values.get("sizes"), values.get("outside"))
    offline = size.policy == "tiny" and outside.grounder != "dino" and not outside.world  # which may have a model
    found = QUIET | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    if paths := os.environ.get("PYTHONPATH"):  # the kernel starts in another folder
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep))
    return found


def _choose(wanted: Sequence[str], folder: Path) -> list[Notebook]:
    """The notebooks asked for, in the order of their numbers; all where none is named."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(f"There are no notebooks in {folder}: run this within a clone of the repository.")
    for word in wanted:
        if not any(word in (path.stem, path.stem[:2]) for path in paths):
            raise ValueError(f"There is no notebook {word!r}: there are {', '.join(path.stem for path in paths)}.")
    return [read_notebook(p) for p in paths if not wanted or p.stem in wanted or p.stem[:2] in wanted]


def _check(preset: str, values: Mapping[str, Mapping[str, Any]], notebooks: Path) -> None:
    """Raises where keys, a world's or a benchmark's files are missing: better now than after an hour of training."""
    for given in values.values():
        outside = settings(preset, given.get("sizes"), given.get("outside"))[1]
        outside.check_keys()
        if outside.world:
            check_world(notebooks / outside.world)
        asked = (("benchmark", "data_dir", check_benchmark), ("train_benchmark", "train_dir", check_training))
        for name, place, check in asked:
            if given.get(name):
                check(given[name], given[place] and str(notebooks / given[place]), given.get("sample", 0))


def _check_adapters(folder: Path, values: Mapping[str, Mapping[str, Any]], notebooks: Path, fresh: bool) -> None:
    """Raises where an adapter that a notebook needs is not whole in the run or in `adapters`, nor trained before it."""
    state, coming = None if fresh else State.load(folder), set[str]()
    for name, given in values.items():
        if state and name in state.notebooks and state.notebooks[name].finished:
            continue
        adapters = given.get("adapters")
        places = [place for place in (not fresh and folder, adapters and (notebooks / adapters).resolve()) if place]
        for stage in NEEDS.get(name[:2], ()) if adapters is not None else ():
            if stage not in coming:
                check_adapter(find_adapter(stage, places))
        coming |= {stage for stage, number in STAGES.items() if number == name[:2]}


# --- the folder -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`, and ends the kernel that a killed run has left behind."""
    try:
        lock = locked(folder).acquire(timeout=0)
    except Timeout:
        raise UsageError(f"Another run is going on in {folder}: wait for it, or choose another folder.") from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {reason(error)}.") from error
    with lock:
        if (state := State.load(folder)) and state.kernel:
            _end_process(*state.kernel)
        yield


def _end_process(pid: int, began: float) -> None:
    """End a process and its children, unless another bears its number by now, and wait until it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - began) < CLOCKS:
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def _begin(folder: Path, asked: State, fresh: bool) -> State:
    """The state to go on from. Raises UsageError where the folder holds something other than the run asked for.

    What a notebook was to be run with may change until it has left something to go on from.
    """
    state = None if fresh else State.load(folder)
    if state is None:
        _clear(folder, fresh)
        state = asked
    elif (folder / METRICS).exists():
        read_metrics(folder)
    elif any(record.finished for record in state.notebooks.values()):
        remedy = (
            "delete the executed notebooks beside it, and the same command makes it again; what they trained is kept"
        )
        raise UsageError(f"{folder / METRICS} is missing: {remedy}.")
    used = {name: record for name, record in state.notebooks.items() if record.finished or _goes_on(folder, name)}
    with refusing(ValueError, saying=f"{folder / STATE} is of another version: choose another --name, or --fresh"):
        differences = ", ".join(_differences(state.model_copy(update={"notebooks": used}), asked))
    if differences:
        raise UsageError(
            f"{folder} was begun with {differences}: choose another --name, or --fresh to begin it again from nothing."
        )
    code = code_sha256()
    stale = [name for name, record in used.items() if record.finished and record.code != code]
    if stale:
        print(f"Note: the package's code has changed since {', '.join(stale)} ran; --fresh begins again.", flush=True)
    state.preset, state.seed = asked.preset, asked.seed
    state.notebooks = used | {name: state.notebooks.get(name, new) for name, new in asked.notebooks.items()}
    for name, new in asked.notebooks.items():
        record = state.notebooks[name]
        if not record.finished:
            record.sha256, record.code, record.parameters = new.sha256, code, new.parameters
    (folder / MANIFEST).unlink(missing_ok=True)  # written last: its existence means that the run is whole
    state.save(folder)
    return state


def _goes_on(folder: Path, name: str) -> bool:
    """Whether a notebook that was begun goes on from what it has left."""
    return any((folder / GOES_ON.get(name[:2], name)).glob("*"))


def _clear(folder: Path, fresh: bool) -> None:
    """Delete what notebooks have left, run here or not, where that is asked for. UsageError for any other file."""
    if folder.exists() and any(folder.iterdir()):
        ours = any((folder / name).exists() for name in (STATE, MANIFEST, METRICS))
        if not (ours and fresh):
            remedy = "choose another --name" + (", or --fresh to delete them" if ours else "")
            raise UsageError(f"{folder} holds files that this runner did not begin: {remedy}.")
        shutil.rmtree(folder)


def _differences(state: State, asked: State) -> Iterator[str]:
    """How a run that was begun differs from the one asked for, in words."""
    if state.notebooks and (state.preset, state.seed) != (asked.preset, asked.seed):
        yield f"preset {state.preset} and seed {state.seed}, not {asked.preset} and {asked.seed}"
        return
    wanted = {name: flat(asked.preset, record.parameters) for name, record in asked.notebooks.items()}
    shared = {key: value for given in wanted.values() for key, value in given.items() if key in ALIKE}
    for name, record in state.notebooks.items():
        if name in wanted and record.sha256 != asked.notebooks[name].sha256:
            yield f"other sources of {name}"
        kept = flat(state.preset, record.parameters)
        for key, value in wanted.get(name, shared).items():
            if key not in LOOSE and kept.get(key, value) != value:
                again = "" if record.finished else f" (which begins again without {GOES_ON.get(name[:2], name)})"
                yield f"{key} {kept[key]!r}, not {value!r}, in {name}{again}"


# --- the manifest -----------------------------------------------------------------------------------------------------


def _write_manifest(folder: Path, root: Path, state: State, machine: Mapping[str, Any]) -> None:
    """What the run was made of, for `manifest.json`: where there is one, the run is whole."""
    sizes = next((record.parameters.get("sizes") for record in state.notebooks.values()), None)
    manifest = {
        "mmsr": mmsr.__version__,
        "git": _git_state(root),
        "python": platform.python_version(),
        **machine,
        **state.model_dump(include={"preset", "seed", "started", "notebooks"}),
        "base_model": _base_model(get_preset(state.preset, sizes), root / "notebooks"),
        "data_card_sha256": {p.parent.name: sha256(p) for p in sorted(folder.glob("*/card.json"))},
        "metrics_sha256": sha256(folder / METRICS),
        "outside": {p.stem: read_json(p, dict, "delete it") for p in sorted(folder.glob("outside/*.json"))},
        "ended": _now(),
    }
    write_json(folder / MANIFEST, manifest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_sha256() -> str:
    """Of the package's sources and texts, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _git_state(root: Path) -> dict[str, Any] | None:
    """The commit and whether the working tree differs from it, runs and figures left out; None outside git."""
    command = "status --porcelain=v2 --branch -- . :!papermill_runs :!figures".split()
    try:
        done = subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    head, *lines = done.stdout.split("\n")[:-1]
    return {"commit": head.removeprefix("# branch.oid "), "dirty": not all(line.startswith("#") for line in lines)}


def _base_model(preset: Preset, here: Path) -> dict[str, Any]:
    """The shipped base or a folder's (from `here`), with the hashes of its weights; the hub's, with its revision."""
    if preset.policy == "tiny":
        return {"name": "tiny", "sha256": sha256(PACKAGE / "assets" / "tiny" / "model.safetensors")}
    folder = here / preset.policy
    if not folder.is_dir():
        return {"name": preset.policy, "revision": preset.revision}
    hashes = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return {"name": folder.resolve().name, "sha256": hashes}
