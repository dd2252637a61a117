"""The machine that a number was measured on, and what is pinned on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from mmsr.gpu import device


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in device.PINS:
        monkeypatch.delenv(name, raising=False)
    assert device.pins() == device.PINS
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert device.pins() == device.PINS | {"OMP_NUM_THREADS": "7"}


@pytest.mark.parametrize(("avx2", "gpu"), [(False, False), (True, True)])
def test_nothing_is_pinned_beside_a_gpu_or_on_another_processor(
    avx2: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": avx2, "architecture": "aarch64"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert device.pins() == {}


def test_a_process_is_pinned_after_torch_has_been_loaded() -> None:
    look = "import json; from mmsr.gpu.device import device, pin; pin(); print(json.dumps(device()))"
    pins = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": ""}
    done = subprocess.run(
        [sys.executable, "-c", look], env=os.environ | pins, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["best"] == device.device()["best"]
    if device.pins():
        assert (found["used"], found["threads"]) == ("DEFAULT", 2)


def test_the_module_tells_of_its_process() -> None:
    command = [sys.executable, "-m", "mmsr.gpu.device"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"]["threads"] > 0 and found["pins"] == device.pins()
