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
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmsr.exam import check_benchmark
from mmsr.live.outside import Sources
from mmsr.presets import get_preset
from mmsr.results import METRICS, record_metrics, write_json
from mmsr.runs.manifest import MANIFEST, code_sha256, now, write_manifest
from mmsr.runs.notebooks import Cost, Launch, Notebook, NotebookError, NotebookFailed, execute, read_notebook, tidy
from mmsr.tools.base import FatalToolError

STATE = "state.json"
RUNS = "papermill_runs"
OURS = {"preset": "--preset", "seed": "--seed", "run_dir": "--name"}  # parameters that the runner itself sets
PATHS = ("record", "data_dir", "train_dir", "adapters")  # given from where the command runs, read from the notebooks
LOOSE = ("budget_calls", "budget_money", "teacher_workers", "llm_url")  # may change for a run that goes on
ALIKE = ("model", "four_bit")  # parameters of which a run has one value, whatever notebooks it runs when
PATIENCE = 15.0  # seconds to wait for the kernel of a killed run to notice


class RunError(Exception):
    """A run that cannot begin: the request is at fault."""


class RunFailed(Exception):
    """A run whose notebook failed."""


@dataclass
class Record:
    """What is known of one notebook of a run: its sources and the package's, its parameters, cost so far."""

    sha256: str
    parameters: dict[str, Any]
    code: str
    seconds: float = 0.0
    peak_gb: float = 0.0
    finished: bool = False


@dataclass
class State:
    """A run's memory between interruptions: `state.json`."""

    preset: str
    seed: int
    started: str
    notebooks: dict[str, Record]

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """The state of the run in `folder`, or None where there is none."""
        if not (folder / STATE).exists():
            return None
        kept = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return cls(**kept | {"notebooks": {name: Record(**record) for name, record in kept["notebooks"].items()}})

    def save(self, folder: Path) -> None:
        """Write it, whole."""
        write_json(folder / STATE, asdict(self))


def run(
    notebooks: Sequence[str],
    preset: str,
    name: str | None,
    seed: int,
    parameters: Mapping[str, Any],
    root: Path,
    fresh: bool = False,
) -> Path:
    """Run notebooks of `root/notebooks` in order into `root/papermill_runs/<name>`, and return that folder.

    notebooks: numbers or names ("02", "02_sft"), all where empty. name: the preset's by default. parameters: text or
    typed; each notebook gets those it has. What a run of that name has finished is not done again, unless `fresh`
    deletes it first. Raises RunError, before anything starts, where the request cannot be met, and RunFailed for a
    failing cell.
    """
    parameters = _found(parameters, root / "notebooks")
    policy = _checked(get_preset, preset, str(parameters.get("model", ""))).policy
    chosen = _choose(notebooks, root / "notebooks")
    values = _assign(chosen, parameters)
    _check(values, root / "notebooks")
    folder = root / RUNS / _checked(_folder_name, name or preset)
    with _alone(folder) as lock:
        if fresh:
            _clear(folder)
        state = _begin(folder, preset, seed, chosen, values)
        ours = {"preset": preset, "seed": seed, "run_dir": os.path.relpath(folder, root / "notebooks")}
        shipped = policy == "tiny" and parameters.get("grounder") != "dino"
        launch = Launch(_environment(shipped), root / "notebooks", (lock,))
        for notebook in chosen:
            given = {key: value for key, value in ours.items() if key in notebook.defaults}
            _run_one(notebook, given | values[notebook.name], folder, state, launch)
        write_manifest(folder, root, asdict(state))
    return folder


def _run_one(notebook: Notebook, values: dict[str, Any], folder: Path, state: State, launch: Launch) -> None:
    """Run a notebook unless it is finished; its copy bears a temporary name until it is."""
    record = state.notebooks[notebook.name]
    if record.finished:
        print(f"{notebook.name} was finished before", flush=True)
        return
    before = Record(**asdict(record))

    def keep(cost: Cost) -> None:
        record.seconds = round(before.seconds + cost.seconds, 2)
        record.peak_gb = round(max(before.peak_gb, cost.peak / 1e9), 3)
        state.save(folder)

    print(notebook.name, flush=True)
    part = folder / f"{notebook.name}.part.ipynb"
    failed = folder / f"{notebook.name}.failed.ipynb"
    try:
        execute(notebook, values, part, launch, keep)
    except NotebookFailed as error:
        part.replace(failed)
        raise RunFailed(f"{error}. What it did until then is in {failed}.") from error
    tidy(
        part, notebook.path.relative_to(folder.parents[1]), (folder / notebook.path.name).relative_to(folder.parents[1])
    )
    part.replace(folder / notebook.path.name)
    failed.unlink(missing_ok=True)
    record_metrics(folder, {f"time/{notebook.name}": record.seconds, "memory/peak_gb": _peak(state)})
    record.finished = True
    state.save(folder)
    print(f"{notebook.name} finished: {record.seconds:.1f} s, at most {record.peak_gb:.2f} GB", flush=True)


def _peak(state: State) -> float:
    return max(record.peak_gb for record in state.notebooks.values())


def _found(parameters: Mapping[str, Any], notebooks: Path) -> Mapping[str, Any]:
    """The parameters with `model`, where it is a folder, as the notebooks reach it from theirs."""
    model = str(parameters.get("model", ""))
    return {**parameters, "model": os.path.relpath(model, notebooks)} if model and Path(model).is_dir() else parameters


def _checked(make: Any, *values: Any) -> Any:
    """`make(*values)`, with a ValueError as a RunError."""
    try:
        return make(*values)
    except ValueError as error:
        raise RunError(str(error)) from error


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"A run cannot be named {name!r}: use letters, digits, points, dashes and underscores.")
    return name


def _choose(wanted: Sequence[str], folder: Path) -> list[Notebook]:
    """The notebooks asked for, in the order of their numbers; all where none is named."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise RunError(f"There are no notebooks in {folder}: run this within a clone of the repository.")
    for word in wanted:
        if not any(path.stem == word or path.stem.split("_")[0] == word for path in paths):
            raise RunError(f"There is no notebook {word!r}: there are {', '.join(path.stem for path in paths)}.")
    chosen = [p for p in paths if not wanted or p.stem in wanted or p.stem.split("_")[0] in wanted]
    return [_checked(read_notebook, path) for path in chosen]


def _assign(notebooks: Sequence[Notebook], parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each notebook's values: defaults, but for what was asked. RunError for a parameter that none has or is ours."""
    known = sorted({key for notebook in notebooks for key in notebook.defaults} - set(OURS))
    for key in parameters:
        if key in OURS:
            raise RunError(f"The parameter {key} is set by {OURS[key]}.")
        if key not in known:
            raise RunError(f"None of these notebooks has a parameter {key!r}: there are {', '.join(known) or 'none'}.")
    try:
        return {
            notebook.name: {
                key: _placed(key, notebook.typed(key, parameters[key]), notebook) if key in parameters else default
                for key, default in notebook.defaults.items()
                if key not in OURS
            }
            for notebook in notebooks
        }
    except NotebookError as error:
        raise RunError(str(error)) from error


def _placed(key: str, value: Any, notebook: Notebook) -> Any:
    """A path as the notebook reaches it; any other value as it is. A Milvus may lie in a file or at an address."""
    in_file = key in ("search_url", "picture_url") and value.endswith(".db") and "://" not in value
    if not (key in PATHS or in_file) or not value or os.path.isabs(value):
        return value
    return os.path.relpath(os.path.expanduser(value), notebook.path.parent)


def _check(values: Mapping[str, Mapping[str, Any]], notebooks: Path) -> None:
    """RunError where tools, models or the benchmark cannot be had: better now than after an hour of training."""
    for name, given in values.items():
        try:
            Sources.of(given).check_keys()
            if given.get("benchmark"):
                folder = given["data_dir"] and str(notebooks / given["data_dir"])
                check_benchmark(given["benchmark"], folder, given["sample"])
        except (ValueError, FatalToolError) as error:
            raise RunError(f"{name}: {error}") from error


def _begin(
    folder: Path, preset: str, seed: int, chosen: Sequence[Notebook], values: dict[str, dict[str, Any]]
) -> State:
    """The state to go on from. RunError where the folder holds something else than this run."""
    state = State.load(folder)
    if state is None:
        if folder.exists() and any(folder.iterdir()):
            remedy = "choose another --name" + (", or --fresh to delete them" if _is_run(folder) else "")
            raise RunError(f"{folder} holds files that this runner did not begin: {remedy}.")
        folder.mkdir(parents=True, exist_ok=True)
        state = State(preset, seed, now(), {})
    if differences := list(_differences(state, preset, seed, chosen, values)):
        raise RunError(
            f"{folder} was begun with {', '.join(differences)}: choose another --name, or --fresh to begin it again "
            "from nothing."
        )
    code = code_sha256()
    stale = [name for name, record in state.notebooks.items() if record.finished and record.code != code]
    if stale:
        print(f"Note: the package's code has changed since {', '.join(stale)} ran; --fresh begins again.", flush=True)
    for notebook in chosen:
        record = state.notebooks.setdefault(notebook.name, Record(notebook.sha256, values[notebook.name], code))
        if not record.finished:
            record.code, record.parameters = code, values[notebook.name]
    (folder / MANIFEST).unlink(missing_ok=True)  # written last: its existence means that the run is whole
    state.save(folder)
    return state


def _differences(
    state: State, preset: str, seed: int, chosen: Sequence[Notebook], values: dict[str, dict[str, Any]]
) -> Iterator[str]:
    if state.preset != preset:
        yield f"preset {state.preset}, not {preset}"
    if state.seed != seed:
        yield f"seed {state.seed}, not {seed}"
    for notebook in chosen:
        record = state.notebooks.get(notebook.name)
        if record is None:
            continue
        if record.sha256 != notebook.sha256:
            yield f"other sources of {notebook.name}"
        for key, value in values[notebook.name].items():
            if key not in LOOSE and record.parameters.get(key, value) != value:
                yield f"{key} {record.parameters[key]!r}, not {value!r}, in {notebook.name}"
    asked = {key: value for given in values.values() for key, value in given.items() if key in ALIKE}
    for name in state.notebooks.keys() - values.keys():
        for key, value in asked.items():
            kept = state.notebooks[name].parameters.get(key, value)
            if kept != value:
                yield f"{key} {kept!r}, not {value!r}, in {name}"


def _is_run(folder: Path) -> bool:
    """Whether notebooks have written here, run by this runner or by hand."""
    return any((folder / name).exists() for name in (STATE, MANIFEST, METRICS))


def _clear(folder: Path) -> None:
    """Delete a run. RunError where the folder is none."""
    if folder.exists() and any(folder.iterdir()) and not _is_run(folder):
        raise RunError(f"{folder} is not the folder of a run, and is not deleted: choose another --name.")
    if folder.exists():
        shutil.rmtree(folder)


def _environment(shipped: bool) -> dict[str, str]:
    """The kernel's: repeatable, without windows or progress bars, and without the hub where all models are shipped."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}
    if shipped:
        environment |= {"HF_HUB_OFFLINE": "1"}
    if paths := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep))
    return environment


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keeps other runs out of `folder`; the kernel holds the lock too, so a killed run's kernel is waited for."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunError(
                        f"Another run is going on in {folder}: wait for it, or choose another --name."
                    ) from None
                time.sleep(0.5)
        yield handle
    finally:
        os.close(handle)
