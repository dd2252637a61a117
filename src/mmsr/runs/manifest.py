"""What a run was made of: `manifest.json`, small and written last: where there is one, the run is whole."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mmsr
from mmsr.files import write_json
from mmsr.presets import Preset, get_preset
from mmsr.results import METRICS

MANIFEST = "manifest.json"
PACKAGE = Path(mmsr.__file__).parent
SOURCES = {".py", ".toml", ".txt", ".jinja", ".json", ".html", ".css", ".js"}  # of the package, and its texts


def write_manifest(folder: Path, root: Path, state: dict[str, Any]) -> None:
    """Describe the run in `folder`; `state` is the runner's, `root` the repository."""
    from mmsr.gpu.device import device, versions  # loads torch, which the runner needs for nothing else

    sizes = next((record["parameters"].get("sizes") for record in state["notebooks"].values()), None)
    manifest = {
        "mmsr": mmsr.__version__,
        "git": git_state(root),
        "python": platform.python_version(),
        "packages": versions(),
        "device": device(),
        "preset": state["preset"],
        "seed": state["seed"],
        "base_model": base_model(get_preset(state["preset"], sizes), root / "notebooks"),
        "data_card_sha256": {p.parent.name: sha256(p) for p in sorted(folder.glob("*/card.json"))},
        "metrics_sha256": sha256(folder / METRICS),
        "outside": {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("outside/*.json"))},
        "notebooks": state["notebooks"],
        "started": state["started"],
        "ended": now(),
    }
    write_json(folder / MANIFEST, manifest)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256() -> str:
    """Of the package's sources and texts, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit and whether the working tree differs from it, runs and figures left out; None outside git."""
    command = "status --porcelain=v2 --branch -- . :!papermill_runs :!figures".split()
    try:
        done = subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    head, *lines = done.stdout.splitlines()
    return {"commit": head.removeprefix("# branch.oid "), "dirty": not all(line.startswith("#") for line in lines)}


def base_model(preset: Preset, here: Path) -> dict[str, Any]:
    """The shipped base or a folder's (from `here`), with the hashes of its weights; the hub's, with its revision."""
    if preset.policy == "tiny":
        return {"name": "tiny", "sha256": sha256(PACKAGE / "assets" / "tiny" / "model.safetensors")}
    folder = here / preset.policy
    if not folder.is_dir():
        return {"name": preset.policy, "revision": preset.revision}
    hashes = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return {"name": folder.resolve().name, "sha256": hashes}
