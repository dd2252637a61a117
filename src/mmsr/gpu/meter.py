"""Seconds, bytes and positions of training, split by what it is doing.

    with Meter(model) as meter:
        with meter.phase("rollout"): …      # what happens in here is rollout, the rest is update
    meter.seconds["update"] / meter.steps   # of the steps after the first, which is a warm-up
    meter.peaks["rollout"]                  # bytes

Nothing of the trainers is changed: hooks on decoder, vision encoder and optimiser count. On a GPU the peak is torch's
own; on a CPU all live tensors are counted, operator by operator, in the warm-up alone, for that is slow.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLForConditionalGeneration

from mmsr.gpu.fit import UPDATE, Pass

TOOLS, GROUNDING = "tools", "grounding"
PREFILL, DECODE = "prefill", "decode"  # of a rollout: many new tokens of a row at once, or one
REFERENCE = "reference"  # passes of an update without a gradient: log-probabilities of the frozen adapter


class CudaBytes(contextlib.nullcontext):
    """The bytes of a GPU, as torch keeps account of them."""

    def read_peak(self) -> int:
        """The most bytes since this was last asked; the GPU has then done all that it was given."""
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class LiveTensors(TorchDispatchMode):
    """The bytes of live tensors on a CPU: the model's, and every operator's results.

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
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def read_peak(self) -> int:
        """The most bytes since this was last asked."""
        peak, self.peak = self.peak, self.now
        return peak


class Meter(contextlib.ExitStack):
    """Watches a training of `model`, in a block.

    By phase: seconds, positions and rows that passed the decoder, patches that passed the vision encoder, tokens
    written in rollouts, of `steps` optimiser steps; peaks, in bytes; shapes, the largest pass, what it has in its cache
    included (while bytes are counted).
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self._counts = [Counter() for _ in range(5)]
        self.seconds, self.positions, self.rows, self.patches, self.written = self._counts
        self.peaks, self.shapes, self.steps, self.current = Counter(), {}, -1, UPDATE
        self._pictures = 0  # patches that the encoder has seen for the pass to come
        for hook in (
            model.model.visual.register_forward_pre_hook(self._on_encoder, with_kwargs=True),
            model.model.language_model.register_forward_pre_hook(self._on_decoder, with_kwargs=True),
            model.model.language_model.register_forward_hook(lambda *_: self._after_decoder()),
            register_optimizer_step_post_hook(lambda *_: self._end_step()),
        ):
            self.callback(hook.remove)
        self._counting = self.enter_context(contextlib.ExitStack())
        self._bytes: CudaBytes | LiveTensors | None = CudaBytes() if model.device.type == "cuda" else LiveTensors(model)
        self._counting.enter_context(self._bytes)
        self._bytes.read_peak()
        self._since = time.perf_counter()

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
        if self._bytes:
            self.peaks[self.current] = max(self.peaks[self.current], self._bytes.read_peak())
        now = time.perf_counter()
        self.seconds[self.current] += now - self._since
        self.current, self._since = name, now

    def _end_step(self) -> None:
        self._switch(self.current)
        self.steps += 1
        if self.steps == 0:  # that was the warm-up
            for count in self._counts:
                count.clear()
            if isinstance(self._bytes, LiveTensors):
                self._counting.close()
                self._bytes = None
            self._since = time.perf_counter()

    def _kind(self) -> str:
        return REFERENCE if self.current == UPDATE and not torch.is_grad_enabled() else self.current

    def _after_decoder(self) -> None:
        if self.current == REFERENCE:
            self._switch(UPDATE)

    def _on_encoder(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._pictures = int(kwargs["grid_thw"].prod(-1).sum())
        self.patches[self._kind()] += self._pictures

    def _on_decoder(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kind, (rows, positions) = self._kind(), kwargs["inputs_embeds"].shape[:2]
        if kind == REFERENCE:
            self._switch(kind)
        self.positions[kind] += rows * positions
        self.rows[kind] += rows
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        columns = positions + (cache.get_seq_length() if cache is not None else 0)
        if self._bytes and (kind not in self.shapes or rows * columns > self.shapes[kind].tokens):
            padded = mask["full_attention"] is not None if isinstance(mask, dict) else not (mask is None or mask.all())
            self.shapes[kind] = Pass(rows, columns, self._pictures, bool(padded))
        self._pictures = 0
