"""Real steps of SFT and GRPO: LoRA of the language model moves alone, outside text bears no loss, runs resume."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from safetensors.torch import load_file
from stub_tools import Engine

from mmsr import grpo
from mmsr.ablation import oracle
from mmsr.data import Example, to_messages
from mmsr.env import SearchEnv, env_factory
from mmsr.grpo import first_and_last, train_grpo
from mmsr.lab import open_tools
from mmsr.live.limits import BudgetSpent
from mmsr.policy import Policy, load_policy, load_processor
from mmsr.presets import get_preset
from mmsr.protocol import Answer, ImageSearch, TextSearch, Turn, render_turn
from mmsr.sft import train_sft
from mmsr.task import Task
from mmsr.teacher import Teacher
from mmsr.training import StepCSV
from mmsr.with_trl import ThriftyTrainer, install_parser, pictures_of, read_turn
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
    tasks = [Task.of(q) for q in QUESTIONS]
    tools = open_tools(PRESET, load_policy("tiny"))
    env = env_factory(replace(tools, grounder=oracle(QUESTIONS)), PRESET.prompts, tasks)()
    teacher = Teacher()
    return [Example(q, "search_required", to_messages(q, teacher.play(q, env), PRESET.prompts)) for q in QUESTIONS]


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
    folder, tasks = tmp_path_factory.mktemp("grpo"), [Task.of(q) for q in QUESTIONS]
    real = grpo.scores

    def favouring_length(trajectories, *args):
        lengths = [sum(len(turn.text) for turn in trajectory.turns) for trajectory in trajectories]
        return [score + 0.01 * length for score, length in zip(real(trajectories, *args), lengths)]

    def train() -> Policy:
        policy = load_policy("tiny", adapter=cold.folder / "adapter")
        new_env = env_factory(open_tools(PRESET, policy), PRESET.prompts, tasks)
        return train_grpo(policy, tasks, new_env, PRESET, folder, seed=5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr.grpo.scores", favouring_length)
        yield interrupted("grpo", grpo.ThriftyTrainer, "grpo.csv", folder, train)


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


def test_the_saved_adapter_is_the_trained_policy(reinforced: Trained) -> None:
    loaded = load_policy("tiny", adapter=reinforced.folder / "adapter")
    asked = [(QUESTIONS[0].scene().picture, [{"role": "user", "content": [{"type": "image"}]}])]
    assert loaded.generate(asked, 16) == reinforced.policy.generate(asked, 16)


# --- what bears loss ------------------------------------------------------------------------------------------------


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


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "name"), [("cold", "sft.csv"), ("reinforced", "grpo.csv")])
def test_a_resumed_training_continues_its_table(stage: str, name: str, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(stage)
    table = rows(trained.folder / name)
    assert [row["step"] for row in trained.before] == [row["step"] for row in table] == ["1", "2"]
    assert table[0] == trained.before[0]
    assert all(row["loss"] for row in table) and not list(trained.folder.glob("*.part"))


def test_a_resumed_sft_is_the_one_that_was_not_cut(cold: Trained, examples: list[Example], tmp_path: Path) -> None:
    whole = sft(examples, tmp_path).model.state_dict()
    resumed = cold.policy.model.state_dict()
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)


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


def test_a_spent_budget_ends_grpo(cold: Trained, tmp_path: Path) -> None:
    """TRL tells the policy of an error of its tool and goes on; where the error is final, the training must not."""

    class Searching(SearchEnv):
        def step(self, turn: str) -> str:
            """Search by text, whatever the policy wrote.

            Args:
                turn: The whole text of the turn, as generated.

            Returns:
                The observation.
            """
            return super().step(render_turn(Turn("a", TextSearch("b"))))

    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    tasks = [Task.of(q) for q in QUESTIONS]
    spent = replace(open_tools(PRESET, policy), text=Engine(error=BudgetSpent("The budget is spent.")))
    by_id = {task.id: task for task in tasks}
    with pytest.raises(BudgetSpent, match="The budget is spent"):
        train_grpo(policy, tasks, lambda: Searching(spent, PRESET.prompts, by_id), PRESET, tmp_path, seed=5)


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run notebook 01 with more questions"):
        train_sft(load_policy("tiny"), [], [], PRESET, tmp_path, seed=0)


# --- thrift -----------------------------------------------------------------------------------------------------------


def test_rollouts_computed_by_length_give_what_they_give_padded(
    cold: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities, entropies and, through them, gradients are TRL's own, row for row."""
    policy = load_policy("tiny", adapter=cold.folder / "adapter")
    tasks = [Task.of(question) for question in QUESTIONS[:4]]
    ours, seen = ThriftyTrainer._get_per_token_logps_and_entropies, []

    def both(
        self: ThriftyTrainer, model: Any, ids: torch.Tensor, mask: torch.Tensor, kept: int, *args: Any, **inputs: Any
    ):
        found = ours(self, model, ids, mask, kept, *args, **inputs)
        with torch.no_grad():
            plain = trl.GRPOTrainer._get_per_token_logps_and_entropies(self, model, ids, mask, kept, *args, **inputs)
        seen.append((mask, kept, [x if x is None else x.detach() for x in found], plain))
        return found

    monkeypatch.setattr(ThriftyTrainer, "_get_per_token_logps_and_entropies", both)
    monkeypatch.setattr("mmsr.with_trl.ROWS", 3)  # several groups, the last of another size
    new_env = env_factory(open_tools(PRESET, policy), PRESET.prompts, tasks)
    train_grpo(policy, tasks, new_env, replace(PRESET, grpo_steps=1), tmp_path, seed=5)
    assert len({int(length) for length in seen[0][0].sum(1)}) > 1  # otherwise there is no padding to save
    for mask, kept, found, plain in seen:
        written = mask[:, -kept:].bool()
        for mine, theirs in zip(found[:2], plain[:2]):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine[written], theirs[written], atol=1e-4, rtol=1e-4)
                assert not mine[~written].any()


@pytest.mark.parametrize(
    ("inputs", "message"), [({"image_sizes": [1]}, "image_sizes"), ({"num_images": [1, 2]}, "exactly one picture")]
)
def test_what_cannot_be_divided_by_rows_is_refused(inputs: dict, message: str) -> None:
    given = {"num_images": [1, 1], "image_grid_thw": torch.ones(2, 3), "pixel_values": torch.ones(2, 8)} | inputs
    with pytest.raises(ValueError, match=message):
        pictures_of(torch.tensor([0]), given, 0, 4)


# --- how turns are read ---------------------------------------------------------------------------------------------

SEARCHES = [render_turn(Turn("a", action)) for action in (TextSearch("b"), ImageSearch("b"), ImageSearch())]
ANSWER = render_turn(Turn("a", Answer("Lima")))
BROKEN = ["", "Lima", "<answer>Lima</answer>", ANSWER + "so", f"{ANSWER}{ANSWER}", "<reason>a</reason>"]


def called(message: dict) -> str | None:
    """The turn with which `step` is called, if it is."""
    if "tool_calls" not in message:
        return None
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["function"]["name"] == "step"
    return call["function"]["arguments"]["turn"]


@pytest.mark.parametrize("text", [*SEARCHES, *BROKEN])
def test_searches_and_broken_turns_are_calls_and_cut_off_ones_are_not(text: str) -> None:
    assert called(read_turn(text, finished=True)) == text
    assert read_turn(text, finished=False) == {"role": "assistant", "content": text}


def test_an_answer_ends() -> None:
    assert read_turn(ANSWER, finished=True) == read_turn(ANSWER, finished=False)
    assert read_turn(ANSWER, finished=True) == {"role": "assistant", "content": ANSWER}


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_parser_reads_generated_tokens(as_tensor: bool) -> None:
    tokenizer = load_processor("tiny").tokenizer
    install_parser(tokenizer)

    def parse(text: str) -> dict:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.parse_response(torch.tensor(ids) if as_tensor else ids)

    assert tokenizer.response_template
    for text in (*SEARCHES, *BROKEN):
        assert called(parse(f"{text}<|im_end|>")) == text == parse(f"{text}<|im_end|><|endoftext|>")["content"]
        assert called(parse(text)) is None
    assert called(parse(f"{ANSWER}<|im_end|>")) is None
