"""What a run was made of: `manifest.json`, small and written last: where there is one, the run is whole."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mmsr
from mmsr.presets import Preset, get_preset
from mmsr.results import METRICS, write_json

MANIFEST = "manifest.json"
PACKAGE = Path(mmsr.__file__).parent
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pillow", "bm25s", "papermill")


def write_manifest(folder: Path, root: Path, state: dict[str, Any]) -> None:
    """Describe the run in `folder`; `state` is the runner's, `root` the repository."""
    given = (record["parameters"].get("model") for record in state["notebooks"].values())
    preset = get_preset(state["preset"], next(filter(None, given), ""))
    manifest = {
        "mmsr": mmsr.__version__,
        "git": git_state(root),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device(),
        "preset": state["preset"],
        "seed": state["seed"],
        "base_model": base_model(preset, root / "notebooks"),
        "data_card_sha256": {p.parent.name: sha256(p) for p in sorted(folder.glob("*/card.json"))},
        "metrics_sha256": sha256(folder / METRICS),
        "outside": outside(folder),
        "notebooks": state["notebooks"],
        "started": state["started"],
        "ended": now(),
    }
    write_json(folder / MANIFEST, manifest)


def outside(folder: Path) -> dict[str, Any]:
    """What the run asked for outside, by notebook, and what it spent: models, tokens, judge's prompt and labels."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outside/*.json"))}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256() -> str:
    """Of the package's sources, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit and whether the working tree differs from it, runs and figures left out; None outside git."""
    status = ["status", "--porcelain", "--", ".", ":!papermill_runs", ":!figures"]
    try:
        commit, changes = (_git(root, *command) for command in (["rev-parse", "HEAD"], status))
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def device() -> dict[str, Any]:
    """The processor, its threads, and the GPU's name where there is one."""
    import torch  # takes seconds, and the runner needs it for nothing else

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_model(), "threads": torch.get_num_threads(), "gpu": gpu}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def base_model(preset: Preset, here: Path) -> dict[str, Any]:
    """The shipped base or a folder's (its path is from `here`) with the hash of its weights, or the hub's with its
    revision."""
    if preset.policy == "tiny":
        return {"name": "tiny", "sha256": sha256(PACKAGE / "assets" / "tiny" / "model.safetensors")}
    folder = here / preset.policy
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        return {"name": folder.resolve().name, "sha256": {path.name: sha256(path) for path in weights}}
    return {"name": preset.policy, "revision": preset.revision}
