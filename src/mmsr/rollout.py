"""The one loop: a policy plays episodes in lockstep, in training, evaluation and ablation alike.

    trajectories = play(policy, tasks, tools, preset.prompts, Sampling.of(preset))
    episodes = roll(policy, tasks, tools, preset.prompts, Sampling.of(preset, temperature=1.0), keys)   # with tokens
    answers = answer_directly(policy, tasks, preset.prompts, batch_size=64)     # the frozen base, without any tool

Turn by turn: every open episode writes a turn (decode.py keeps what was computed), the crops of all are grounded in one
batch, their searches run side by side, and an episode that has its answer, three broken turns or no tokens left leaves
at once. A turn that is cut off at its limit of tokens is a turn like any other, though usually a broken one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from mmsr.decode import Row
from mmsr.env import SearchEnv, Tools, Trajectory, TurnRecord, first_messages
from mmsr.policy import Answering, Policy
from mmsr.presets import Preset
from mmsr.protocol import ImageSearch, Prompts, ProtocolError, Turn, conversation, parse_turn, render_turn
from mmsr.task import Task
from mmsr.tools.base import Grounder, in_parallel

Rewrite = Callable[[str, Task], str]
OnTurn = Callable[[TurnRecord, int], None]
SURE = math.log(0.9)  # a token that the policy gave less is noted, for the viewer to show


@dataclass(frozen=True)
class Sampling:
    """The most tokens of a turn, and of an episode after its prompt; rows at once; temperature 0 decodes greedily."""

    turn_tokens: int
    episode_tokens: int
    rows: int
    temperature: float = 0.0

    @classmethod
    def of(cls, preset: Preset, temperature: float = 0.0) -> Sampling:
        return cls(preset.new_tokens, preset.completion_tokens, preset.rollout_rows, temperature)

    def left(self, row: Row) -> int:
        """Tokens that the next turn of an episode may have."""
        return min(self.turn_tokens, self.episode_tokens - (len(row.ids) - row.prompt))


@dataclass
class Episode:
    """What was played, and its tokens: `row.written` marks the policy's own, `row.logps` their log-probabilities."""

    trajectory: Trajectory
    row: Row


def play(
    policy: Policy,
    tasks: Sequence[Task],
    tools: Tools,
    prompts: Prompts,
    sampling: Sampling,
    rewrite: Rewrite | None = None,
    on_turn: OnTurn = lambda record, number: None,
) -> list[Trajectory]:
    """All tasks' trajectories, in order. `rewrite` may change a turn before it counts; `on_turn` hears of each."""
    trajectories = []
    for start in range(0, len(tasks), sampling.rows):  # an open episode keeps its cache: no more of them at once
        some = tasks[start : start + sampling.rows]
        keys = [task.id for task in some]
        episodes = roll(policy, some, tools, prompts, sampling, keys, rewrite, on_turn)
        for episode in episodes:
            note_doubts(policy, episode)
        trajectories += [episode.trajectory for episode in episodes]
    return trajectories


def roll(
    policy: Policy,
    tasks: Sequence[Task],
    tools: Tools,
    prompts: Prompts,
    sampling: Sampling,
    keys: Sequence[str],
    rewrite: Rewrite | None = None,
    on_turn: OnTurn = lambda record, number: None,
) -> list[Episode]:
    """Play every task to its end. Sampling in an episode depends on its key alone, whichever tool answers first.

    An episode's row ends with the last token that the policy wrote. Raises FatalToolError, as tools do.
    """
    envs = [SearchEnv(tools, prompts, task, on_turn=on_turn) for task in tasks]
    with policy.generating() as decoder:
        rows = decoder.open([(task.picture, first_messages(task, prompts)) for task in tasks], sampling.rows)
    episodes = [Episode(env.trajectory, row) for env, row in zip(envs, rows)]
    chances = [random.Random(key) for key in keys]
    active = list(range(len(tasks)))
    while active:
        texts = write(policy, [rows[i] for i in active], [chances[i] for i in active], sampling)
        if rewrite:
            changed = [rewrite(text, tasks[i]) for i, text in zip(active, texts)]
            texts = [policy.replace_turn(rows[i], *turn) for i, *turn in zip(active, texts, changed)]
        crops = [(tasks[i].picture, described_crop(text)) for i, text in zip(active, texts)]
        tools.grounder.locate_all([pair for pair in crops if pair[1]])  # in one batch: the environments ask one by one
        turns = [(envs[i], text) for i, text in zip(active, texts)]
        observations = in_parallel(lambda turn: turn[0].step(turn[1]), turns, tools.workers)
        active = [i for i, seen in zip(active, observations) if goes_on(policy, episodes[i], seen, sampling)]
    return episodes


def write(policy: Policy, rows: Sequence[Row], chances: Sequence[random.Random], sampling: Sampling) -> list[str]:
    """The next turn of every row, each drawn by its own chance."""
    limits = [sampling.left(row) for row in rows]
    draws = [[chance.random() for _ in range(limit)] for chance, limit in zip(chances, limits)]
    with policy.generating() as decoder:
        return decoder.write(rows, limits, sampling.temperature, draws, sampling.rows)


def goes_on(policy: Policy, episode: Episode, observation: str, sampling: Sampling) -> bool:
    """Whether an episode writes another turn, now that it has read what came back; else its row is closed."""
    row, length = episode.row, len(episode.row.ids)
    if not episode.trajectory.end:
        policy.read(row, observation)
        if sampling.left(row) > 0:
            return True
        row.rewind(length)  # what no further turn will read is not part of it
    row.cache = None
    return False


def note_doubts(policy: Policy, episode: Episode) -> None:
    """Write into each turn where the policy was less than sure of what it wrote; nothing where a turn was replaced."""
    row, turns = episode.row, episode.trajectory.turns
    runs = itertools.groupby(zip(row.ids, row.logps, row.written), itemgetter(2))
    written = [list(tokens) for own, tokens in runs if own]
    for turn, tokens in zip(turns, written) if len(written) == len(turns) else ():
        ids = [token for token, _, _ in tokens]
        for place, (_, logp, _) in enumerate(tokens):
            if logp < SURE:
                start, end = _length(policy, ids[:place]), _length(policy, ids[: place + 1])
                turn.doubts += [(start, end, round(math.exp(logp), 3))] * (start < end)  # an end token has no text


def _length(policy: Policy, ids: list[int]) -> int:
    """How many characters tokens decode to; a last one that is still incomplete does not count."""
    return len(policy.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd"))


def described_crop(text: str) -> str:
    """The referring expression of a valid image search, else nothing."""
    try:
        action = parse_turn(text).action
    except ProtocolError:
        return ""
    return action.expression if isinstance(action, ImageSearch) else ""


def as_coordinates(policy: Policy, grounder: Grounder) -> Rewrite:
    """A rewrite of a described crop into one by coordinates, in the policy's frame, as `grounder` gives them."""

    def rewrite(text: str, task: Task) -> str:
        expression = described_crop(text)
        box = grounder.locate(task.picture, expression) if expression else None
        if box is None:
            return text
        turn = parse_turn(text)
        return render_turn(Turn(turn.reason, ImageSearch(box=policy.to_frame(box, task.picture))))

    return rewrite


def answer_directly(policy: Answering, tasks: Sequence[Task], prompts: Prompts, batch_size: int) -> list[str]:
    """The frozen base's answers without any tool: the knowledge boundary, and the direct workflow."""
    asked = [(task.picture, conversation(prompts.direct, question=task.question)) for task in tasks]
    return policy.ask(asked, batch_size)
