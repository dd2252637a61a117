"""The machine and the packages that a number was measured with, for a run's manifest and for `mmsr bench`."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pillow", "bm25s", "papermill")


def versions() -> dict[str, str]:
    """Of the packages on which results hang."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def device() -> dict[str, Any]:
    """The processor, its threads, and the GPU's name where there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_model(), "threads": torch.get_num_threads(), "gpu": gpu}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
