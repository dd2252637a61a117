"""Windows has no `fcntl`: everything imports without it, and the first notebook runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmsr

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mmsr.__file__).parent
BLOCK = "import sys\nsys.modules['fcntl'] = None\n"  # `import fcntl` then raises ImportError, as on Windows


def without_fcntl(folder: Path) -> dict[str, str]:
    """The environment of a Python that has no fcntl from its start; kernels inherit it."""
    (folder / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def test_every_module_imports_without_fcntl(tmp_path: Path) -> None:
    files = [path.relative_to(PACKAGE.parent).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    names = sorted({".".join(file.parts).removesuffix(".__init__") for file in files} - {"mmsr.__main__"})
    assert len(names) > 50
    code = f"import importlib, sys\nassert sys.modules['fcntl'] is None\nfor n in {names}: importlib.import_module(n)"
    done = subprocess.run([sys.executable, "-c", code], env=without_fcntl(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_notebook_runs_without_fcntl(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    command = [sys.executable, "-m", "mmsr", "run", "01", "--preset", "smoke", "--name", "desk"]
    done = subprocess.run(command, cwd=tmp_path, env=without_fcntl(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "papermill_runs" / "desk" / "data" / "card.json").exists()
