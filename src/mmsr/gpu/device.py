"""The machine and the packages that a number was measured with, and what is pinned so that another machine agrees.

Floating-point sums depend on their order, and the libraries choose it by processor. `PINS`, put into the environment
of a process before it computes, takes that choice from them on an x86-64 processor with AVX2 and without a GPU:

| pinned | of | what differs without it |
|---|---|---|
| OMP_NUM_THREADS, MKL_DYNAMIC | all | how a long sum is divided; MKL takes no more threads than there are cores |
| ATEN_CPU_CAPABILITY | PyTorch | softmax, SiLU, layer norm, attention, AdamW, normal numbers: width of a vector |
| ONEDNN_MAX_CPU_ISA | oneDNN | GELU and the convolution that cuts a picture into patches |
| OPENBLAS_CORETYPE | NumPy | cosines of the picture search |
| MKL_CBWR | MKL | every matrix product of the policy: into how many blocks its sums are cut |
| MALLOC_… | glibc | no digit, but time: see below |

MKL_CBWR holds among Intel's processors: on others MKL takes AVX2 for AUTO, its own choice there. COMPATIBLE alone is
promised to be the same on all, at 3.3 times the seconds of the tiny policy's forward and backward pass: not the rule,
but what the smoke reference is made with. With it, 79 of 82 digests of the policy's operations are the same on an AMD
EPYC with AVX2 (torch 2.13) and an Intel Xeon with AVX-512 and AMX (torch 2.11), its logits, loss and gradients among
them; unfused AdamW's square root and NumPy's exp in fp64 are not. Without it 37 differ, from the first product on
(papermill_runs/measured/digits). The other pins cost nothing that could be measured on the EPYC. What is already set in
the environment stays.

Left alone, glibc gives a large block back to the system as soon as it is free, and the next tensor waits for every page
of it anew: a tenth to a sixth of a step of tiny's GRPO, for a tenth more memory. A process reads this as it starts, so
it holds for the notebooks' kernels and not for the process that pins itself.
https://intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/2025-1/get-started-with-conditional-num-reproducibility.html

    python -m mmsr.gpu.device                       # packages, device and pins of a process that is pinned, as JSON
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pillow", "bm25s", "papermill")
PINS = {
    "OMP_NUM_THREADS": "2",
    "MKL_DYNAMIC": "FALSE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_CBWR": "AVX2",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),  # bytes
}


def versions() -> dict[str, str]:
    """Of the packages on which results depend."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def pins() -> dict[str, str]:
    """What is pinned on this machine, by the user or by us: nothing with a GPU or on a processor without AVX2."""
    able = torch.cpu.get_capabilities().get("avx2") and not torch.cuda.is_available()
    return {name: os.environ.get(name) or value for name, value in PINS.items()} if able else {}


def pin() -> None:
    """Pin this process, which has computed nothing yet. OpenMP has read its threads by now, so PyTorch is told."""
    if found := pins():
        os.environ.update(found)
        torch.set_num_threads(int(found["OMP_NUM_THREADS"].split(",")[0]))


def device() -> dict[str, Any]:
    """The processor, the largest vectors it has and those that this process uses, threads, the GPU's name if any."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    able = torch.cpu.get_capabilities()
    best = "AVX512" if able.get("avx512_f") else "AVX2" if able.get("avx2") else able["architecture"]
    return {
        "cpu": models[0].strip() if models else platform.processor() or platform.machine(),
        "best": best,
        "used": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


if __name__ == "__main__":
    pin()
    print(json.dumps({"packages": versions(), "device": device(), "pins": pins()}))
