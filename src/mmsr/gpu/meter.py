"""Seconds, bytes and positions of a training, told apart by what it is doing.

    meter = Meter(policy.model)
    with meter.phase("rollout"): …              # what happens in here is rollout, the rest is update
    meter.laps[1].seconds["update"]             # in the second step
    meter.peaks["rollout"]                      # bytes

Nothing of the trainers is changed: one hook on the decoder counts positions, one on the vision encoder patches, one on
the optimiser ends a lap. On a GPU the peak is torch's own. A CPU keeps no such account, so there the bytes of all live
tensors are counted, operator by operator, during the first lap alone: that is slow, and the first is a warm-up anyway.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmsr.gpu.memory import Pass

UPDATE = "update"
REFERENCE = "reference"  # passes of an update without a gradient: log-probabilities of the frozen adapter


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of live tensors on a CPU: the model's, and every operator's results.

    What an operator allocates and frees within itself is not seen.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self._known: dict[int, weakref.ref] = {}
        self.now = self.peak = 0
        for tensor in (*model.parameters(), *model.buffers()):
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


@dataclass
class Lap:
    """One optimiser step, by phase: seconds; positions and rows that passed the decoder, patches the vision encoder."""

    seconds: Counter[str] = field(default_factory=Counter)
    positions: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    patches: Counter[str] = field(default_factory=Counter)


class Meter:
    """Watches a training of `model`, from when it is made until `close`.

    laps: one a step. peaks: bytes by phase. shapes: the largest pass of each phase, while bytes are counted.
    """

    def __init__(self, model: torch.nn.Module):
        self.laps: list[Lap] = []
        self.peaks: dict[str, int] = {}
        self.shapes: dict[str, Pass] = {}
        self.current = UPDATE
        self._cuda = next(model.parameters()).device.type == "cuda"
        self._tensors = None if self._cuda else LiveTensors(model)
        self._pictures = 0  # patches that the encoder has seen for the pass to come
        modules = dict(model.named_modules())
        decoder, encoder = (
            next(module for name, module in modules.items() if name.endswith(end))
            for end in ("model.language_model", "model.visual")
        )
        self._hooks = [
            decoder.register_forward_pre_hook(self._on_decoder, with_kwargs=True),
            encoder.register_forward_pre_hook(self._on_encoder, with_kwargs=True),
            register_optimizer_step_post_hook(lambda *_: self._end_lap()),
        ]
        if self._tensors is not None:
            self._tensors.__enter__()
        self._read_peak()
        self._lap, self._since = Lap(), self._now()

    def close(self) -> None:
        """Take the hooks away."""
        self._stop_counting()
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens in this block is `name`; a block within a block counts for itself alone."""
        before = self.current
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> None:
        now = self._now()
        self._lap.seconds[self.current] += now - self._since
        if (peak := self._read_peak()) is not None:
            self.peaks[self.current] = max(peak, self.peaks.get(self.current, 0))
        self.current, self._since = name, now

    def _end_lap(self) -> None:
        self._switch(self.current)
        self._stop_counting()
        self.laps.append(self._lap)
        self._lap, self._since = Lap(), self._now()

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _read_peak(self) -> int | None:
        """The most bytes since this was last asked; None where they are no longer counted."""
        if self._cuda:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return peak
        if self._tensors is None:
            return None
        peak, self._tensors.peak = self._tensors.peak, self._tensors.now
        return peak

    def _stop_counting(self) -> None:
        if self._tensors is not None:
            self._tensors.__exit__(None, None, None)
            self._tensors = None

    def _kind(self) -> str:
        return REFERENCE if self.current == UPDATE and not torch.is_grad_enabled() else self.current

    def _on_encoder(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._pictures = int(kwargs["grid_thw"].prod(-1).sum())
        self._lap.patches[self._kind()] += self._pictures

    def _on_decoder(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kind, (rows, positions) = self._kind(), kwargs["inputs_embeds"].shape[:2]
        self._lap.positions[kind] += rows * positions
        self._lap.rows[kind] += rows
        watched = self._cuda or self._tensors is not None
        if watched and (kind not in self.shapes or rows * positions > self.shapes[kind].tokens):
            padded = _builds_mask(kwargs.get("attention_mask"))
            self.shapes[kind] = Pass(rows, positions, self._pictures, padded)
        self._pictures = 0


def _builds_mask(mask: Any) -> bool:
    """Whether a pass needs a mask of every pair of positions: `generate` has made it, or rows are padded."""
    if isinstance(mask, dict):
        return mask["full_attention"] is not None
    return mask is not None and not bool(mask.all())
