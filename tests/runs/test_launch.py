"""SFT and GRPO as commands: on two processes they do what they do on one, and each error is one sentence."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damage import cut_at_a_line, damage
from safetensors.torch import load_file
from small_fvqa import write
from small_policy import tiny
from torch.nn.functional import cosine_similarity

from mmsr.ablation import oracle
from mmsr.benchmarks.registry import training_questions
from mmsr.data import Example, load_examples, save_examples, to_messages
from mmsr.env import SearchEnv, Trajectory
from mmsr.grpo import LATEST
from mmsr.lab import open_tools
from mmsr.policy import TINY_DIR, load_policy
from mmsr.presets import get_preset
from mmsr.protocol import Answer, Turn, render_turn
from mmsr.results import read_metrics
from mmsr.runs import command as cli
from mmsr.runs import runner
from mmsr.runs.ask import SHIPPED
from mmsr.runs.runner import State
from mmsr.sft import train_sft
from mmsr.task import Task
from mmsr.teacher import Teacher
from mmsr.training import split_batch
from mmsr.world.questions import make_questions

PRESET = get_preset("smoke")
MOVED = "adapter/adapter_model.safetensors"
LOSS, COSINE = 1e-5, 0.9999  # products of other shapes round otherwise, and Adam's first step is the gradient's sign


def build_data(run: Path) -> Path:
    """A run's folder as notebook 01 leaves it: two batches of the teacher's conversations."""
    questions = [q for q in make_questions("train", 60, seed=61) if q.type in ("fact", "one_hop")]
    questions = questions[: 2 * PRESET.sft_batch]
    tools = replace(open_tools(PRESET, tiny()), grounder=oracle(questions))
    played = [(q, Teacher().play(q, SearchEnv(tools, PRESET.prompts, Task.of(q)))) for q in questions]
    examples = [Example(q, "search_required", to_messages(q, t, PRESET.prompts)) for q, t in played]
    save_examples(examples, run / "data", {})
    return run


def on_two(*command: str) -> str:
    """Launch a command on two CPU processes and return what they printed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(port), *command]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def rows(path: Path) -> list[dict[str, float]]:
    """The numbers of a CSV."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cold start on one process."""
    run = build_data(tmp_path_factory.mktemp("one"))
    assert cli.main(["sft", "--preset", "smoke", "--run", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two."""
    run = build_data(tmp_path_factory.mktemp("two"))
    said = on_two("-m", "mmsr", "sft", "--preset", "smoke", "--run", str(run))
    assert said.count("sft/val/accuracy") == 1 and said.count("step 2/2") == 1
    return run


@pytest.fixture(scope="module")
def ranks(two: Path) -> list[dict]:
    """What each of two processes saw and became in GRPO: one question a step, its four rollouts divided."""
    said = on_two(str(Path(__file__).parents[1] / "helpers" / "rank_probe.py"), str(two), "-p", "search_price=0.01")
    assert said.count("grpo/reward_last") == 1
    return [torch.load(two / f"rank{rank}.pt") for rank in (0, 1)]


# --- SFT --------------------------------------------------------------------------------------------------------------


def alike(first: Path, second: Path) -> bool:
    """Whether two folders hold the same cold start: steps, tokens, losses, gradients, adapter."""
    a, b = rows(first / "sft.csv"), rows(second / "sft.csv")
    assert [row["step"] for row in a] == [row["step"] for row in b] == [1, 2]
    for name, tolerance in (("num_tokens", 0), ("learning_rate", 0), ("loss", LOSS), ("grad_norm", LOSS)):
        assert [row[name] for row in a] == pytest.approx([row[name] for row in b], rel=tolerance), name
    one, other = load_file(first / MOVED), load_file(second / MOVED)
    assert one.keys() == other.keys() and all(weight.any() for weight in one.values())
    return all(cosine_similarity(one[n].flatten(), other[n].flatten(), dim=0) > COSINE for n in one)


def test_sft_on_two_processes_is_the_sft_of_one(one: Path, two: Path) -> None:
    assert alike(one / "sft", two / "sft")


def test_sft_in_several_passes_a_step_is_the_sft_of_one(one: Path, tmp_path: Path) -> None:
    examples, pictures = load_examples(one / "data")
    train_sft(load_policy("tiny"), examples, pictures, replace(PRESET, micro_batch=2), tmp_path, seed=0)
    assert alike(one / "sft", tmp_path)


def test_sft_leaves_what_notebook_02_leaves(one: Path, two: Path) -> None:
    names = {f"sft/val/{name}" for name in ("accuracy", "valid_turn_rate", "searches")}
    for run in (one, two):
        assert {path.name for path in (run / "sft").iterdir()} == {"adapter", "checkpoints", "sft.csv"}
        assert {path.name for path in (run / "sft/adapter").iterdir()} >= {"adapter_config.json", Path(MOVED).name}
        found = read_metrics(run)
        assert set(found) >= names and all(found[name].n == 10 for name in names)


# --- GRPO -------------------------------------------------------------------------------------------------------------


def test_processes_end_grpo_with_the_same_weights(two: Path, ranks: list[dict]) -> None:
    first, second = (rank["weights"] for rank in ranks)
    assert first and all(torch.equal(first[name], second[name]) for name in first)
    saved = load_file(two / "grpo" / MOVED)
    assert {n.replace(".default", ""): w for n, w in first.items()}.keys() == saved.keys()
    assert all(torch.equal(weight, saved[name.replace(".default", "")]) for name, weight in first.items())
    start = load_file(two / "sft" / MOVED)
    assert any(not torch.equal(saved[name], start[name]) for name in saved)


def test_an_advantage_is_taken_from_the_mean_of_a_group_on_both_processes(ranks: list[dict]) -> None:
    steps = [torch.stack([rank["seen"][step]["advantages"] for rank in ranks]) for step in (0, 1)]
    assert all(len(rank["seen"]) == 2 for rank in ranks)
    assert all(step.shape == (2, 2) for step in steps)  # half a group each
    assert all(step.sum().item() == pytest.approx(0, abs=1e-5) for step in steps)
    assert any(step[0].sum().abs() > 1e-3 for step in steps)  # a mean of its own half would leave nothing


def test_processes_sample_different_rollouts(ranks: list[dict]) -> None:
    first, second = ([row.tolist() for row in rank["seen"][0]["completion_ids"]] for rank in ranks)
    assert not any(row in second for row in first)


def test_grpo_writes_its_table_once(two: Path, ranks: list[dict]) -> None:
    assert [row["step"] for row in rows(two / "grpo/grpo.csv")] == [1, 2]
    assert {path.name for path in (two / "grpo").iterdir()} == {"adapter", "checkpoints", "grpo.csv", "kept", LATEST}
    recorded = ("reward_first", "reward_last", "searches_last", "chosen_step", "val/1/accuracy", "val/2/searches")
    assert {f"grpo/{name}" for name in recorded} <= set(read_metrics(two))


# --- a benchmark's own questions --------------------------------------------------------------------------------------


def test_sft_and_grpo_on_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, run = write(tmp_path / "fvqa" / "fvqa_train.parquet", range(60)), tmp_path / "run"
    write(files / "fvqa_test.parquet", [7, 50], split="test")
    asked = training_questions("fvqa_train", files, 8, seed=0)
    said = [{"role": "assistant", "content": render_turn(Turn("So.", Answer(q.answer)))} for q in asked]
    told = [[*to_messages(q, Trajectory(q.id), PRESET.prompts), turn] for q, turn in zip(asked, said)]
    save_examples([Example(q, "search_free", messages) for q, messages in zip(asked, told)], run / "data", {})
    for command in (["sft"], ["grpo", "-p", "grpo_steps=1"]):
        parameters = ["-p", "train_benchmark=fvqa_train", "-p", f"train_dir={files}"]
        assert cli.main([*command, "--preset", "smoke", "--run", str(run), *parameters]) == 0
    found = read_metrics(run)
    assert found["sft/val/accuracy"].n == 10 and found["grpo/reward_last"].n == 1
    write(files / "fvqa_test.parquet", range(1, 60), split="test")  # all but one
    assert cli.main(["grpo", "--preset", "smoke", "--run", str(run), *parameters]) == 2
    assert "10 of 10 questions of fvqa_train are refused: " in capsys.readouterr().err
    (files / "fvqa_train.parquet").write_bytes(b"no table")
    assert cli.main(["grpo", "--preset", "smoke", "--run", str(run), *parameters]) == 2
    assert "fvqa_train.parquet: expected a parquet file that is whole" in capsys.readouterr().err


# --- what is divided, and what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "batch", "micro", "expected"),
    [(1, 8, 32, (8, 1)), (1, 64, 32, (32, 2)), (2, 8, 32, (4, 1)), (4, 64, 2, (2, 8)), (2, 12, 4, (3, 2))],
)
def test_the_batch_of_a_step_is_kept(
    number: int, batch: int, micro: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr.training.processes", lambda: type("Group", (), {"num_processes": number}))
    assert split_batch(batch, micro) == expected
    assert expected[0] * expected[1] * number == batch and expected[0] <= micro


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr.training.processes", lambda: type("Group", (), {"num_processes": 3}))
    with pytest.raises(ValueError, match="batch of 8 cannot be divided among 3 processes"):
        split_batch(8, 4)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sft"], "holds no finished data set: run notebook 01 first"),
        (["sft", "--preset", "huge"], "no preset 'huge': use one of tiny, smoke"),
        (["sft", "-p", "kl=0"], "There is no parameter 'kl': there are train_benchmark, train_dir; in sizes name"),
        (["sft", "-p", "train_benchmark=okvqa", "-p", "train_dir=."], "okvqa is for testing, not for training"),
        (["grpo"], "is not there: run notebook 02 first"),
        (["grpo", "-p", "seed=1"], "The parameter seed is set by --seed"),
        (["grpo", "-p", "kl=much"], "03_grpo: kl must be a number, not 'much'"),
        (["grpo", "-p", "sft_batch=0"], "sizes: sft_batch must be greater than or equal to 1, not '0'"),
    ],
)
def test_a_training_that_cannot_begin_says_why(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--run", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("mmsr: ") and shown.count("\n") == 1 and said in shown
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    State(preset="tiny", seed=3, started="", notebooks={}).save(tmp_path)
    assert cli.main(["sft", "--preset", "tiny", "--run", str(tmp_path)]) == 2
    assert "was begun with preset tiny and seed 3" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_folder_in_which_a_run_goes_on_is_left_alone(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    shutil.copytree(SHIPPED, run / "sft" / "adapter")
    with runner._alone(run):
        assert cli.main([stage, "--preset", "smoke", "--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"Another run is going on in {run}: wait for it" in said and said.count("\n") == 1
    assert [path.name for path in run.iterdir()] == ["sft"]


def test_a_folder_that_cannot_be_named_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--preset", "smoke", "--run", "x" * 300]) == 1
    said = capsys.readouterr().err
    assert "File name too long; mend that, and" in said and said.count("\n") == 1


def test_damaged_data_and_adapters_are_one_sentence(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one / "data", tmp_path / "data")
    shutil.copytree(SHIPPED, tmp_path / "sft" / "adapter")
    cut_at_a_line(tmp_path / "data" / "data.jsonl")
    damage(tmp_path / "sft" / MOVED, "cut")
    for stage, name in (("sft", "data.jsonl"), ("grpo", "adapter_model.safetensors")):
        assert cli.main([stage, "--preset", "smoke", "--run", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert f"{name} is damaged: " in said and said.startswith("mmsr: ") and said.count("\n") == 1


def test_tools_that_cannot_be_had_are_told_before_training(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one / "data", tmp_path / "data")
    milvus = ["-p", "search=milvus", "-p", f"search_url={tmp_path / 'none' / 'world.db'}"]
    assert cli.main(["sft", "--preset", "smoke", "--run", str(tmp_path), *milvus]) == 2
    assert "world.db cannot be opened" in capsys.readouterr().err and not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed ZeRO-3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}, "DeepSpeed ZeRO-3"),
    ],
)
def test_grpo_refuses_weights_that_are_gathered_for_every_turn(
    variables: dict[str, str],
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(TINY_DIR / "agent", tmp_path / "sft" / "adapter")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["grpo", "--run", str(tmp_path)]) == 2
    assert f"GRPO does not run under {refused}" in capsys.readouterr().err
