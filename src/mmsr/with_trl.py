"""Where GRPO meets TRL: episodes come from our own loop, and two private methods are overridden (TRL 1.16, as locked).

TRL asks `rollout_func` for the episodes of a step, and keeps of each the token ids, the mask of what the policy wrote
and its log-probabilities. Pictures have no place among these. So the first token of a prompt, the same in all of them,
gives way to the episode's number, by which its row is found again when log-probabilities are computed.

`_get_per_token_logps_and_entropies` is overridden: it takes a picture's features as the rollout left them and
differentiates nothing that is frozen, computes rows of like length together, without padding or a mask, and asks the
head about written tokens alone.

Where tools fail, it is not the policy's fault (OpenSearch-VL's fatal-aware GRPO): what is written after `env.STRANDED`
failures in a row bears no loss, and `_generate_and_score_completions` leaves such an episode no negative advantage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOTrainer

from mmsr.decode import Row, alike, spread
from mmsr.policy import Policy, merged
from mmsr.rollout import Episode

ROWS = 8  # computed on at once, of like length
SHOWN = 10  # steps between two episodes that trackers are shown
Play = Callable[[Sequence[str], Sequence[str]], list[Episode]]  # task identifiers, and a random key for each


class EpisodeTrainer(GRPOTrainer):
    """TRL's GRPO on episodes that `play` gives; what it computes from them is the same."""

    def __init__(self, policy: Policy, play: Play, **settings: Any):
        super().__init__(rollout_func=self._roll, **settings)
        self.policy, self.play, self._rows, self._stranded = policy, play, [], []

    def _roll(self, prompts: list[list[dict]], trainer: GRPOTrainer) -> dict[str, list]:
        """The episodes of a step: a prompt is a task's identifier, repeated for each of its group."""
        tasks = [messages[0]["content"] for messages in prompts]
        first = self.accelerator.process_index * len(tasks)
        keys = [f"{self.args.seed}/{self.state.global_step}/{first + place}" for place in range(len(tasks))]
        episodes = self.play(tasks, keys)
        self._rows = rows = [episode.row for episode in episodes]
        self._stranded = [episode.trajectory.stranded > 0 for episode in episodes]
        self._turns = episodes[0].trajectory.turns
        return {
            "prompt_ids": [[number, *row.ids[1 : row.prompt]] for number, row in enumerate(rows)],
            "completion_ids": [row.ids[row.prompt :] for row in rows],
            "logprobs": [row.logps[row.prompt :] for row in rows],
            "env_mask": [learned_from(episode) for episode in episodes],
            "trajectory": [episode.trajectory for episode in episodes],
        }

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        """What TRL makes of a step; the advantage of an episode that its tools have stranded is at least 0."""
        step = super()._generate_and_score_completions(inputs)
        left = torch.tensor(self._stranded, device=step["advantages"].device)
        return step | {"advantages": torch.where(left, step["advantages"].clamp(min=0), step["advantages"])}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL does; trackers see an episode every few steps, as code, for its tags would be taken for HTML."""
        super().log(logs, start_time)
        trackers = tuple(get_reporting_integration_callbacks(self.args.report_to))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, trackers) and "reward" in logs and self.state.global_step % SHOWN == 1:
                shown = {"episode": "\n".join(["```", *(f"{t.text}\n{t.observation}" for t in self._turns), "```"])}
                callback.on_log(self.args, self.state, self.control, model=self.model, logs=shown)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities and entropies [B, logits_to_keep] of what the policy wrote; 0 elsewhere."""
        firsts = attention_mask.argmax(1, keepdim=True)
        rows = [self._rows[number] for number in input_ids.gather(1, firsts)[:, 0].tolist()]
        found = [torch.zeros(len(rows), logits_to_keep, device=input_ids.device) for _ in range(2)]
        for places in alike(range(len(rows)), min(batch_size or ROWS, ROWS), lambda place: len(rows[place].ids)):
            for place, parts in zip(places, self._score(model, [rows[place] for place in places])):
                row = rows[place]
                own = torch.tensor(row.written[row.prompt :], device=input_ids.device).nonzero()[:, 0]
                for whole, part in zip(found, parts):
                    whole[place, own] = part
        return found[0], found[1] if compute_entropy else None, None

    def _score(self, model: Any, rows: Sequence[Row]) -> list[tuple[torch.Tensor, ...]]:
        """Log-probabilities and entropies of the written tokens of each row."""
        ids, _, positions = spread(rows, [(0, len(row.ids)) for row in rows])
        own = torch.zeros_like(ids, dtype=torch.bool)
        for place, row in enumerate(rows):
            own[place, : len(row.ids)] = torch.tensor(row.written)
        decoder = self.policy.decoder
        with torch.no_grad():
            embeds, added = decoder.embed(ids, rows), decoder.added(ids, rows)
        frozen = contextlib.nullcontext() if torch.is_grad_enabled() else merged(model)
        network, own_tokens = decoder.network.model, own.to(embeds.device)
        with frozen, self.accelerator.autocast(), adding(network, added), states_before(network, own_tokens):
            found = model(
                inputs_embeds=embeds,
                position_ids=positions.to(embeds.device),
                shift_labels=ids[own][None].to(embeds.device),
                fused_lm_head=True,  # TRL's: log-probabilities in tiles, without all logits at once
            )
        counts = own.sum(1).tolist()
        return list(zip(found.log_probs[0].split(counts), found.entropy[0].split(counts)))


def learned_from(episode: Episode) -> list[int]:
    """1 for each token after the prompt that the policy wrote before its tools stranded it; else 0."""
    written = episode.row.written[episode.row.prompt :]
    turns = accumulate(own and not before for before, own in zip([False, *written], written))
    last = episode.trajectory.stranded or len(written)
    return [int(own and turn <= last) for own, turn in zip(written, turns)]


@contextlib.contextmanager
def adding(network: Any, added: dict[str, Any]) -> Iterator[None]:
    """In this block `added` (of the decoder's) goes to the language model; the full model would make it from pixels."""

    def add(module: Any, args: tuple, given: dict[str, Any]) -> tuple:
        return args, given | added

    hook = network.language_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def states_before(network: Any, own: torch.Tensor) -> Iterator[None]:
    """In this block the model's last states are those before the tokens `own` [B, W], in one row."""

    def select(module: Any, args: tuple, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][own[:, 1:]][None]
        return output

    hook = network.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()
