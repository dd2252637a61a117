"""Launched by test_launch.py on several processes: `mmsr grpo`, cut small, keeping what each process saw and became.

A policy after two steps of SFT earns nothing, and equal rewards teach nothing: so longer turns earn a little here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mmsr import grpo
from mmsr.presets import get_preset, presets
from mmsr.runs import command as cli

MICRO = replace(get_preset("smoke"), name="micro", grpo_questions=1, new_tokens=16, completion_tokens=96)
real, seen, trainers = grpo.scores, [], []


class Spy(grpo.EpisodeTrainer):
    """The trainer, noting what each loss is computed from."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        trainers.append(self)

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append({name: inputs[name].clone() for name in ("advantages", "completion_ids")})
        return super().compute_loss(model, inputs, *args, **kwargs)


def favouring_length(episodes, *args) -> list[float]:
    written = [sum(len(turn.text) for turn in episode.turns) for episode in episodes]
    return [reward + 0.01 * length for reward, length in zip(real(episodes, *args), written)]


if __name__ == "__main__":
    run = Path(sys.argv[1])
    presets()["micro"] = MICRO
    grpo.EpisodeTrainer, grpo.scores = Spy, favouring_length
    code = cli.main(["grpo", "--preset", "micro", "--run", str(run), *sys.argv[2:]])
    weights = {n: p.detach().clone() for n, p in trainers[0].model.named_parameters() if ".default." in n}
    torch.save({"seen": seen, "weights": weights}, run / f"rank{os.environ['RANK']}.pt")
    sys.exit(code)
