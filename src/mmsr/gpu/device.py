"""The machine and the packages that a number was measured with, for a run's manifest and for `mmsr bench`."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pillow", "bm25s", "papermill")


def versions() -> dict[str, str]:
    """Of the packages on which results hang."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def device() -> dict[str, Any]:
    """The processor, its threads, and the GPU's name where there is one."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    cpu = models[0].strip() if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu}
