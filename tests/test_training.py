"""Real steps of SFT and GRPO: LoRA of the language model moves alone, outside text bears no loss, runs resume."""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import os
import re
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from damage import DAMAGES, cut_at_a_line, damage
from PIL import Image
from safetensors.torch import load_file
from stub_tools import Engine
from transformers import TrainerState

from mmsr import grpo
from mmsr.ablation import oracle
from mmsr.data import Example, load_examples, save_examples, to_messages
from mmsr.decode import Row
from mmsr.env import STRANDED, SearchEnv
from mmsr.files import SEAL, FileDamaged, read_json
from mmsr.grpo import LATEST, STEPS, Outage, first_and_last, kept_steps, train_grpo
from mmsr.lab import open_tools
from mmsr.live.limits import BudgetSpent
from mmsr.policy import Policy, load_policy, put_on
from mmsr.presets import get_preset
from mmsr.reward import RewardWeights
from mmsr.sft import as_rows, learned_tokens, train_sft
from mmsr.task import FileQuestion, Task
from mmsr.teacher import Teacher
from mmsr.tools.base import FatalToolError, ToolError
from mmsr.tools.picture import read_picture
from mmsr.training import StepCSV, last_checkpoint
from mmsr.with_trl import EpisodeTrainer
from mmsr.world.questions import make_questions

PRESET = replace(
    get_preset("smoke"),
    sft_batch=4,
    sft_epochs=1,
    sft_aliases=0.0,  # what was learned is compared with the examples word for word
    lora_r=4,
    lora_alpha=8,
    new_tokens=24,
    completion_tokens=400,
)
QUESTIONS = [q for q in make_questions("train", 40, seed=61) if q.type in ("fact", "one_hop")][:8]


class Killed(Exception):
    """Stands for a run that is cut off."""


@dataclass
class Trained:
    """What a training left: the policy, its folder, what was in each loss, and the CSV of the half before the cut."""

    policy: Policy
    folder: Path
    seen: list[dict[str, torch.Tensor]]
    before: list[dict[str, str]]


def spy(trainer: type, seen: list[dict[str, torch.Tensor]]) -> type:
    """The trainer, noting what each loss is computed from."""

    class Spy(trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append({k: v.detach().clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Spy


def cut_at(step: int) -> Callable:
    """A CSV callback after whose row of that step the run is killed, before its checkpoint."""

    class Cut(StepCSV):
        def on_log(self, args, state, control, logs=None, **kwargs):
            super().on_log(args, state, control, logs, **kwargs)
            if state.global_step == step:
                raise Killed

    return Cut


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def interrupted(module: str, trainer: type, name: str, folder: Path, train: Callable[[], Policy]) -> Trained:
    """Train, be killed at the second step, and train again."""
    seen: list[dict[str, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"mmsr.{module}.{trainer.__name__}", spy(trainer, seen))
        patch.setattr(f"mmsr.{module}.StepCSV", cut_at(2))
        with pytest.raises(Killed):
            train()
        before = rows(folder / name)
        patch.setattr(f"mmsr.{module}.StepCSV", StepCSV)
        return Trained(train(), folder, seen, before)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Conversations of the teacher, with real searches in them."""
    tools = replace(open_tools(PRESET, load_policy("tiny")), grounder=oracle(QUESTIONS))
    played = [Teacher().play(q, SearchEnv(tools, PRESET.prompts, Task.of(q))) for q in QUESTIONS]
    return [Example(q, "search_required", to_messages(q, t, PRESET.prompts)) for q, t in zip(QUESTIONS, played)]


def sft(examples: list[Example], folder: Path) -> Policy:
    """Two steps over the eight examples."""
    pictures = [e.question.scene().picture for e in examples]
    return train_sft(load_policy("tiny"), examples, pictures, PRESET, folder, seed=5)


@pytest.fixture(scope="module")
def cold(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """SFT, cut off and resumed."""
    folder = tmp_path_factory.mktemp("sft")
    return interrupted("sft", trl.SFTTrainer, "sft.csv", folder, lambda: sft(examples, folder))


@pytest.fixture(scope="module")
def reinforced(cold: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """GRPO from there, cut off and resumed.

    A policy after two steps of SFT earns nothing, and equal rewards teach nothing: so longer turns earn a little.
    """
    folder = tmp_path_factory.mktemp("grpo")
    real = grpo.scores

    def favouring_length(trajectories, *args):
        lengths = [sum(len(turn.text) for turn in trajectory.turns) for trajectory in trajectories]
        return [score + 0.01 * length for score, length in zip(real(trajectories, *args), lengths)]

    def train() -> Policy:
        policy = load_policy("tiny", adapter=cold.folder / "adapter")
        return train_grpo(policy, QUESTIONS, open_tools(PRESET, policy), PRESET, folder, seed=5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr.grpo.scores", favouring_length)
        yield interrupted("grpo", grpo.EpisodeTrainer, "grpo.csv", folder, train)


# --- what moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["cold", "reinforced"])
def test_lora_of_the_language_model_moves_and_nothing_else(stage: str, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(stage)
    base = load_policy("tiny").model.state_dict()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in trained.policy.model.state_dict().items()
        if "lora_" not in name
    }
    assert after.keys() == base.keys() and all(torch.equal(after[name], base[name]) for name in base)
    adapter = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    assert adapter and all("language_model" in name and "lora_" in name for name in adapter)
    start = (
        {}
        if stage == "cold"
        else load_file(request.getfixturevalue("cold").folder / "adapter/adapter_model.safetensors")
    )
    moved = [not torch.equal(adapter[n], start.get(n, torch.zeros_like(adapter[n]))) for n in adapter if "lora_B" in n]
    assert all(moved)
    layers = trained.policy.model.config.get_text_config().num_hidden_layers
    assert len(moved) == layers * 7  # every linear layer


def test_lora_learns_in_fp32_whatever_it_was_made_in(
    cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL makes it bf16 on a 4-bit base, where a step of 2e-6 left 99 of 100 entries of lora_A as they were."""
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    for weight in policy.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.bfloat16()
    before = {n: w.detach().float().clone() for n, w in policy.model.named_parameters() if "lora_A.default" in n}
    preset = replace(PRESET, grpo_lr=2e-6, grpo_warmup=0)
    monkeypatch.setattr(grpo, "reward_functions", lambda *given: ([length_reward], [1.0]))
    trained = train_grpo(policy, QUESTIONS, open_tools(PRESET, policy), preset, tmp_path, seed=5)
    after = {n: w for n, w in trained.model.named_parameters() if "lora_A.default" in n}
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    moved = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert moved.float().mean() > 0.99


def length_reward(trajectory: list, **_: Any) -> list[float]:
    """A reward that differs from episode to episode, whatever a policy writes."""
    return [0.01 * sum(len(turn.text) for turn in episode.turns) for episode in trajectory]


def test_the_saved_adapter_is_the_trained_policy(reinforced: Trained) -> None:
    loaded = load_policy("tiny", adapter=reinforced.folder / "adapter")
    asked = [(QUESTIONS[0].scene().picture, [{"role": "user", "content": [{"type": "image"}]}])]
    assert loaded.generate(asked, 16) == reinforced.policy.generate(asked, 16)


def test_an_episode_of_the_newest_step_is_left_for_who_watches(reinforced: Trained) -> None:
    row = read_json(reinforced.folder / LATEST, dict, "")
    asked = {question.id: question.text for question in QUESTIONS}
    assert row["trajectory"]["turns"] and row["question"]["text"] == asked[row["trajectory"]["task_id"]]


def test_adapters_are_kept_as_they_were_on_the_way(reinforced: Trained) -> None:
    kept = [reinforced.folder / "kept" / step for step in ("1", "2")]
    assert sorted((reinforced.folder / "kept").iterdir()) == kept
    half, whole = (load_file(folder / "adapter_model.safetensors") for folder in kept)
    assert any(not torch.equal(half[name], whole[name]) for name in half)
    for folder, weights in zip(kept, (half, whole)):
        put_on(reinforced.policy, folder)
        worn = {n.replace(".default", ""): w for n, w in reinforced.policy.model.named_parameters()}
        assert all(torch.equal(worn[name], weight) for name, weight in weights.items())
    assert (kept[1] / SEAL).read_text() == (reinforced.folder / "adapter" / SEAL).read_text()


@pytest.mark.parametrize(("steps", "kept"), [(64, [16, 32, 48, 64]), (10, [3, 5, 8, 10]), (2, [1, 2]), (1, [1])])
def test_an_adapter_is_kept_after_each_quarter(steps: int, kept: list[int]) -> None:
    assert kept_steps(steps) == kept


# --- who watches ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package trackio that keeps what it is told."""
    kept = SimpleNamespace(begun=[], logged=[], ended=0)
    module = ModuleType("trackio")
    module.__spec__, module.__version__, module.config = ModuleSpec("trackio", None), "0.30", {}
    nowhere = SimpleNamespace(get=lambda: None)
    module.context_vars = SimpleNamespace(current_space_id=nowhere, current_run=nowhere)
    module.config = type("Config", (dict,), {"update": lambda self, values, **_: None})()
    module.init = lambda **given: kept.begun.append(given)
    module.log = lambda values, step=None: kept.logged.append(values)
    module.finish = lambda: setattr(kept, "ended", kept.ended + 1)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr("trl.extras.profiling.trackio", module, raising=False)  # which looked for it when it was loaded
    return kept


def test_a_tracker_is_told_the_columns_of_the_table_and_an_episode_now_and_then(
    cold: Trained, examples: list[Example], tracker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr.with_trl.SHOWN", 2)  # at the first step, the third, the fifth
    watched = replace(PRESET, report_to="trackio", grpo_steps=3, grpo_questions=1, generations=2)
    watched.check_tracker()
    pictures = [e.question.scene().picture for e in examples]
    train_sft(load_policy("tiny"), examples, pictures, watched, tmp_path / "run" / "sft", seed=5)
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    train_grpo(policy, QUESTIONS, open_tools(PRESET, policy), watched, tmp_path / "run" / "grpo", seed=5)
    assert [given["name"] for given in tracker.begun] == ["run-sft", "run-grpo"] and tracker.ended == 2
    for stage in ("sft", "grpo"):
        table = rows(tmp_path / "run" / stage / f"{stage}.csv")
        told = {name for row in tracker.logged for name in row}
        assert {f"train/{name}" for name in table[0]} - {"train/step", "train/seconds"} <= told
        assert not any("episode" in name for name in table[0])
    shown = [row for row in tracker.logged if "train/episode" in row]
    assert [row["train/global_step"] for row in shown] == [1, 3]
    assert all(row["train/episode"].startswith("```") and len(row["train/episode"]) > 20 for row in shown)


class Counting:
    """Reads pictures, and knows how many of them were alive at once."""

    def __init__(self) -> None:
        self.read: list[weakref.ref[Image.Image]] = []
        self.most = 0

    def __call__(self, data: bytes) -> Image.Image:
        picture = read_picture(data)
        self.read.append(weakref.ref(picture))
        self.most = max(self.most, sum(one() is not None for one in self.read))
        return picture


def test_decoded_pictures_never_pile_up(cold: Trained, examples: list[Example], tmp_path: Path) -> None:
    """Of what is read for three epochs, one picture at a time is alive."""
    save_examples(examples, tmp_path, {})
    reader = Counting()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("data", "tools.picture"):
            patch.setattr(f"mmsr.{module}.read_picture", reader)
        loaded, pictures = load_examples(tmp_path)
        table = as_rows(loaded, pictures, epochs=3, aliases=0.0, seed=0)
        seen = [row["images"][0].tobytes() for row in table]
    assert len(seen) == 3 * len(examples) and {*seen} == {e.question.draw().tobytes() for e in examples}
    assert reader.most <= 2


def test_grpo_holds_the_pictures_of_one_step(cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Counting()
    monkeypatch.setattr("mmsr.task.read_picture", reader)
    asked = []
    for question in QUESTIONS:
        question.draw().save(path := tmp_path / f"{question.id}.png")
        asked.append(FileQuestion(id=question.id, type="file", text=question.text, answer="x", picture=str(path)))
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    preset = replace(PRESET, grpo_steps=4, new_tokens=8, completion_tokens=120)
    train_grpo(policy, asked, open_tools(PRESET, policy), preset, tmp_path / "grpo", seed=5)
    assert len(reader.read) == 4 * preset.grpo_questions and reader.most <= 2 * preset.grpo_questions


# --- what bears loss ------------------------------------------------------------------------------------------------


def test_the_tokens_shown_as_learned_are_those_that_the_trainer_learns(cold: Trained, examples: list[Example]) -> None:
    learned = set()
    for batch in cold.seen:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"]):
            learned.add((tuple(ids[mask.bool()].tolist()), tuple((labels != -100)[mask.bool()].tolist())))
    shown = [learned_tokens(cold.policy, e, e.question.draw()) for e in examples]
    assert {(tuple(ids), tuple(marks)) for ids, marks in shown} == learned


def test_sft_learns_what_the_policy_writes_alone(cold: Trained, examples: list[Example]) -> None:
    tokenizer = cold.policy.tokenizer
    expected = {"".join(m["content"] + "<|im_end|>" for m in e.messages if m["role"] == "assistant") for e in examples}
    learned = set()
    for batch in cold.seen:
        for ids, labels in zip(batch["input_ids"], batch["labels"]):
            marked = labels != -100
            assert torch.equal(ids[marked], labels[marked])
            assert "<information>" in tokenizer.decode(ids[~marked])
            learned.add(tokenizer.decode(ids[marked]))
    assert learned == expected and not any("<information>" in text for text in learned)


def test_grpo_learns_nothing_that_was_retrieved(reinforced: Trained) -> None:
    tokenizer, outside = reinforced.policy.tokenizer, 0
    for batch in reinforced.seen:
        for ids, alive, own in zip(batch["completion_ids"], batch["completion_mask"], batch["tool_mask"]):
            written, read = (
                tokenizer.decode(ids[(alive * own).bool()]),
                tokenizer.decode(ids[(alive * (1 - own)).bool()]),
            )
            assert "did not count" not in written
            outside += "did not count" in read
    assert outside


def test_the_loss_by_hand_is_the_trainers(cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, advantages and loss of every batch of two steps, on policy, and again as if drawn by another policy."""
    policy, pairs, chance = load_policy("tiny", adapter=cold.folder / "adapter"), [], torch.Generator().manual_seed(0)

    class Spy(EpisodeTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            own = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            found = [
                self._rows[number] for number in inputs["prompt_ids"][inputs["prompt_mask"].cumsum(1) == 1].tolist()
            ]
            now = [grpo.log_probabilities(policy, row) for row in found]
            assert [len(logps) for logps in now] == own.sum(1).tolist()
            drawn = [logps.detach() + 0.4 * torch.randn(len(logps), generator=chance) for logps in now]
            other = torch.zeros(own.shape)
            other[own] = torch.cat(drawn)
            for old, given in (([x.detach() for x in now], {}), (drawn, {"old_per_token_logps": other})):
                parts = zip(now, old, inputs["ref_per_token_logps"], own, inputs["advantages"].tolist())
                by_hand = [grpo.loss(x, y, reference[mask], a, 0.5) for x, y, reference, mask, a in parts]
                value = super().compute_loss(model, inputs | given, *args, **kwargs)
                pairs.append((sum(by_hand) / len(by_hand), value * self.current_gradient_accumulation_steps))
            return value

    monkeypatch.setattr(grpo, "EpisodeTrainer", Spy)
    monkeypatch.setattr(grpo, "reward_functions", lambda *given: ([length_reward], [1.0]))
    preset = replace(PRESET, micro_batch=4)
    train_grpo(policy, QUESTIONS, open_tools(PRESET, policy), preset, tmp_path, seed=5, kl=0.5)
    assert len(pairs) == 2 * 2 * 2 and max(abs((x - y).item()) for x, y in pairs) < 1e-6
    assert max(abs(y.item()) for _, y in pairs) > 1e-3


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain"), [(1.5, 1, 1.2), (1.5, -1, -1.5), (0.5, 1, 0.5), (0.5, -1, -0.8), (1.1, 2, 2.2)]
)
def test_the_clip_by_hand(ratio: float, advantage: float, gain: float) -> None:
    drawn = torch.tensor([-1.0])
    now = drawn + torch.tensor([ratio]).log()
    assert float(grpo.loss(now, drawn, now, advantage, kl=0.1)) == pytest.approx(-gain)
    assert float(grpo.loss(drawn, drawn, now, 0.0, 0.1)) == pytest.approx(0.1 * (ratio - 1 - math.log(ratio)), abs=1e-6)


def test_a_group_by_hand_is_left_as_it_was(cold: Trained) -> None:
    """Its episodes follow from the seed, advantages have no mean, the rewarded becomes likelier, LoRA is put back."""
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    tools, tasks = open_tools(PRESET, policy), [Task.of(q) for q in QUESTIONS[:2]]
    groups = [grpo.play_groups(policy, tasks, tools, PRESET, 3, RewardWeights()) for _ in range(2)]
    assert [[e.row.ids for e in g.episodes] for g in groups[0]] == [[e.row.ids for e in g.episodes] for g in groups[1]]
    group = replace(groups[0][0], rewards=[1.0, *[0.0] * (PRESET.generations - 1)])
    assert sum(group.advantages) == pytest.approx(0) and group.spread > 0
    drawn, once, twice = grpo.update_by_hand(policy, group, 1e-3, 0.001, times=2)
    assert [logps.tolist() for logps in drawn] == [
        pytest.approx([x for x, own in zip(e.row.logps, e.row.written) if own], abs=1e-4) for e in group.episodes
    ]
    assert drawn[0].mean() < once[0].mean() < twice[0].mean()
    after = policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "name"), [("cold", "sft.csv"), ("reinforced", "grpo.csv")])
def test_a_resumed_training_continues_its_table(stage: str, name: str, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(stage)
    table = rows(trained.folder / name)
    assert [row["step"] for row in trained.before] == [row["step"] for row in table] == ["1", "2"]
    assert table[0] == trained.before[0] and table[1]["num_tokens"] == trained.before[1]["num_tokens"]
    assert 0 < float(table[0]["seconds"]) < float(table[1]["seconds"])
    assert all(row["loss"] for row in table) and not list(trained.folder.glob("*.part"))


def test_a_resumed_sft_is_the_one_that_was_not_cut(cold: Trained, examples: list[Example], tmp_path: Path) -> None:
    whole = sft(examples, tmp_path).model.state_dict()
    resumed = cold.policy.model.state_dict()
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)


@pytest.mark.skipif(os.name != "posix", reason="limits of files are POSIX")
def test_a_disk_without_room_for_weights_is_told_as_other_errors_of_files_are(
    examples: list[Example], tmp_path: Path
) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # a table has room, an adapter has none
    try:
        with pytest.raises(OSError, match="cannot be written or read"):
            sft(examples, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sft(examples, tmp_path).name == "tiny"  # with room again it goes on


def test_the_table_has_rewards_and_habits(reinforced: Trained) -> None:
    row = rows(reinforced.folder / "grpo.csv")[0]
    names = ("reward", "accuracy", "searches", "crops", "valid_turns")
    values = {name: float(row[f"rewards/{name}/mean"]) for name in names}
    assert float(row["reward"]) == pytest.approx(values["reward"])  # the others are watched, not paid for
    assert all(0 <= values[name] <= 1 for name in ("accuracy", "crops", "valid_turns"))
    assert {"kl", "completions/mean_length", "seconds", "step"} <= row.keys()


def test_first_and_last_tenth(tmp_path: Path) -> None:
    columns = ["reward", *(f"rewards/{name}/mean" for name in ("searches", "accuracy", "valid_turns"))]
    lines = [",".join(["step", *columns])] + [",".join(map(str, [n, n, n / 2, 0, 1])) for n in range(1, 31)]
    (tmp_path / "grpo.csv").write_text("\n".join(lines))
    found = {name: (i.value, i.n) for name, i in first_and_last(tmp_path / "grpo.csv").items()}
    assert found["grpo/reward_first"] == (2, 3) and found["grpo/reward_last"] == (29, 3)
    assert found["grpo/searches_last"] == (14.5, 3) and found["grpo/valid_turns_first"] == (1, 3)


def test_a_spent_budget_ends_grpo(cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    monkeypatch.setattr(SearchEnv, "_play", lambda env, text: env._search_text(text, "Kenya"))
    spent = replace(open_tools(PRESET, policy), text=Engine(error=BudgetSpent("The budget is spent.")))
    with pytest.raises(BudgetSpent, match="The budget is spent"):
        train_grpo(policy, QUESTIONS, spent, PRESET, tmp_path, seed=5)


@dataclass
class Searching:
    """A policy whose every turn is a text search, by an engine that answers or fails, and what its losses are of."""

    cold: Trained
    text: Engine
    seen: list[dict[str, torch.Tensor]]

    def train(self, folder: Path, steps: int) -> None:
        policy = load_policy("tiny", adapter=self.cold.folder / "adapter")
        preset = replace(PRESET, grpo_steps=steps, grpo_questions=1, completion_tokens=300)
        tools = replace(open_tools(PRESET, policy), text=self.text)
        train_grpo(policy, QUESTIONS, tools, preset, folder, seed=5)


@pytest.fixture
def searching(cold: Trained, monkeypatch: pytest.MonkeyPatch) -> Searching:
    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(SearchEnv, "_play", lambda env, text: env._search_text(text, "Kenya"))
    monkeypatch.setattr(grpo, "EpisodeTrainer", spy(EpisodeTrainer, seen))
    monkeypatch.setattr(grpo, "reward_functions", lambda *given: ([in_order], [1.0]))
    return Searching(cold, Engine("a"), seen)


def in_order(trajectory: list, **_: Any) -> list[float]:
    """Rewards that differ within every group."""
    return [0.1 * place for place in range(len(trajectory))]


def runs_of(own: torch.Tensor) -> int:
    """How many turns of a row bear loss."""
    return int((own[1:] > own[:-1]).sum() + own[0])


@pytest.mark.parametrize("error", [None, ToolError("The engine is down.")], ids=["answers", "fails"])
def test_an_episode_that_its_tools_left_is_learned_from_up_to_there_and_not_blamed(
    error: ToolError | None, searching: Searching, tmp_path: Path
) -> None:
    searching.text.error = error
    searching.train(tmp_path, steps=1)
    [step] = searching.seen
    turns = [runs_of(own * alive) for own, alive in zip(step["tool_mask"], step["completion_mask"])]
    assert max(turns) == STRANDED if error else max(turns) > STRANDED
    assert step["advantages"].max() > 0 and (step["advantages"].min() < 0) == (error is None)


def test_a_training_whose_searches_fail_ends_with_what_to_do_and_goes_on(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "STEPS", 2)
    searching.text.error = ToolError("The engine is down.")
    said = r"(\d+) of \1 searches of the last 2 steps failed \(the last said: The engine is down\): mend that, and the "
    with pytest.raises(FatalToolError, match=said + r"same command goes on from the last checkpoint\.$"):
        searching.train(tmp_path, steps=3)
    assert len(searching.seen) == 2 and (tmp_path / "checkpoints" / "checkpoint-1").is_dir()
    searching.text.error = None
    searching.train(tmp_path, steps=3)
    assert [row["step"] for row in rows(tmp_path / "grpo.csv")] == ["1", "2", "3"]


def counted(outage: Outage, steps: int) -> None:
    for _ in range(steps):
        outage.on_step_end(None, None, None)


@pytest.mark.parametrize(("vain", "ended"), [(0, False), (1, False), (2, True)])
def test_a_training_ends_where_fewer_than_95_of_100_verdicts_are_had(vain: int, ended: bool) -> None:
    counts = dict.fromkeys(("correct", "incorrect", "not_attempted", "unreadable", "failed", "exact"), 0)
    outage = Outage(SimpleNamespace(counts=lambda: dict(counts)))
    counted(outage, STEPS - 1)
    counts |= {"correct": 20 - vain, "failed": vain, "exact": 7}
    told = "2 of 20 verdicts of the last 5 steps failed of the judge: mend that"
    with pytest.raises(FatalToolError, match=told) if ended else contextlib.nullcontext():
        counted(outage, 1)
    if not ended:  # what was long ago counts no more
        counts["failed"] += 1
        counts["correct"] += 19
        counted(outage, STEPS)


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run notebook 01 with more questions"):
        train_sft(load_policy("tiny"), [], [], PRESET, tmp_path, seed=0)


# --- what a kill or a disk has spoilt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "save_to_json"])
def test_a_kill_in_the_middle_of_a_save_goes_on_from_the_checkpoint_before_it(
    point: str, cold: Trained, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = TrainerState if point == "save_to_json" else trl.SFTTrainer
    real = getattr(owner, point)

    def killed(self, place, *args, **kwargs):
        if "checkpoint-2" in str(place):
            if point == "save_to_json":
                Path(place).write_text('{"global_st')
            raise Killed
        return real(self, place, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, point, killed)
        with pytest.raises(Killed):
            sft(examples, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    left = {path.name for path in checkpoints.glob("checkpoint-*")}
    assert left == {"checkpoint-1"} | ({"checkpoint-2"} if point != "save_model" else set())
    resumed, whole = sft(examples, tmp_path).model.state_dict(), cold.policy.model.state_dict()
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
    assert ("checkpoint-2 is not whole: removed, to go on from checkpoint-1" in capsys.readouterr().out) == (
        len(left) > 1
    )
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    assert [row["step"] for row in rows(tmp_path / "sft.csv")] == ["1", "2"]


def copied(cold: Trained, folder: Path, *steps: int) -> list[Path]:
    """A folder of checkpoints of these steps, all whole."""
    [real] = (cold.folder / "checkpoints").glob("checkpoint-*")
    return [shutil.copytree(real, folder / f"checkpoint-{step}") for step in steps]


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "rng_state.pth", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_unless_a_whole_one_lies_beside_it(
    name: str, how: str, cold: Trained, tmp_path: Path
) -> None:
    older, newer = copied(cold, tmp_path, 9, 10)
    damage(newer / name, how)
    assert last_checkpoint(tmp_path) == str(older) and not newer.exists()
    damage(older / name, how)
    with pytest.raises(
        FileDamaged, match=f"{name} is damaged: delete {re.escape(str(older))}, and the training begins"
    ):
        last_checkpoint(tmp_path)
    assert older.exists()


def test_a_first_checkpoint_that_is_half_saved_is_removed(cold: Trained, tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    [half] = copied(cold, tmp_path, 1)
    (half / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) is None and not half.exists()


def test_a_checkpoint_without_hashes_is_gone_on_from(cold: Trained, tmp_path: Path) -> None:
    [plain] = copied(cold, tmp_path, 7)
    (plain / "sha256.json").unlink()  # an older version saved it
    assert last_checkpoint(tmp_path) == str(plain)


@pytest.mark.parametrize("how", [*DAMAGES, "cut at a line", "gone"])
def test_a_table_without_the_steps_before_the_checkpoint_is_named(how: str, cold: Trained, tmp_path: Path) -> None:
    table = Path(shutil.copy(cold.folder / "sft.csv", tmp_path))
    args, state = SimpleNamespace(output_dir="sft/checkpoints"), SimpleNamespace(global_step=2)
    StepCSV(table).on_train_begin(args, state, None)
    if how == "gone":
        table.unlink()
    else:
        (cut_at_a_line if how == "cut at a line" else functools.partial(damage, how=how))(table)
    with pytest.raises(
        (FileDamaged, FileNotFoundError), match=r"sft\.csv is .*: delete sft/checkpoints, and the train"
    ):
        StepCSV(table).on_train_begin(args, state, None)


def test_the_mean_rewards_of_a_damaged_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "grpo.csv").write_text("step,loss\n1,0.5\n")
    with pytest.raises(FileDamaged, match=r"grpo\.csv is damaged: delete it and the checkpoints beside it"):
        first_and_last(tmp_path / "grpo.csv")


# --- thrift -----------------------------------------------------------------------------------------------------------


def test_log_probabilities_of_a_step_are_those_of_the_rollout_and_trls_own(
    cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the update computes for a token is what it was sampled with, and what the whole model says, padded."""
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    ours, seen = EpisodeTrainer._get_per_token_logps_and_entropies, []

    def both(
        self: EpisodeTrainer, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, *args: Any, **more: Any
    ):
        found = ours(self, model, ids, mask, kept, *args, **more)
        if torch.is_grad_enabled():
            rows = [self._rows[number] for number in ids.gather(1, mask.argmax(1, keepdim=True))[:, 0].tolist()]
            seen.append(([x.detach() for x in found[:2]], rows, [plainly(policy, row) for row in rows]))
        return found

    monkeypatch.setattr(EpisodeTrainer, "_get_per_token_logps_and_entropies", both)
    monkeypatch.setattr("mmsr.with_trl.ROWS", 3)  # several groups, the last of another size
    preset = replace(PRESET, grpo_steps=1)
    train_grpo(policy, QUESTIONS[:4], open_tools(PRESET, policy), preset, tmp_path, seed=5)
    lengths = {len(row.ids) for _, rows, _ in seen for row in rows}
    assert len(lengths) > 1 and max(sum(row.written) for _, rows, _ in seen for row in rows) > PRESET.new_tokens
    for (logps, entropies), rows, plain in seen:
        for mine, spread, row, (theirs, their_spread) in zip(logps, entropies, rows, plain):
            own = torch.tensor(row.written[row.prompt :])
            mine, spread = mine[: len(own)], spread[: len(own)]
            assert not mine[~own].any() and not spread[~own].any()
            torch.testing.assert_close(mine[own], torch.tensor(row.logps[row.prompt :])[own], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(mine[own], theirs[own], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(spread[own], their_spread[own], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def plainly(policy: Policy, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of a row's tokens after its prompt, by the whole model with its picture."""
    ids, picture = torch.tensor([row.ids]), None
    for question in QUESTIONS:
        seen = policy.processor.image_processor(images=[question.scene().picture], return_tensors="pt")
        found = policy.decoder.network.model.get_image_features(**seen).pooler_output[0]
        picture = seen if torch.allclose(found, row.features, atol=1e-5) else picture
    kinds = (ids == policy.processor.image_token_id).int()
    logps = (
        policy.model(input_ids=ids, mm_token_type_ids=kinds, **picture).logits[0, row.prompt - 1 : -1].log_softmax(-1)
    )
    own = logps.gather(1, ids[0, row.prompt :, None])[:, 0]
    return own, -(logps.exp() * logps).sum(-1)
