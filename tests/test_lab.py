"""The tools that a notebook's parameters name: local ones, web engines aimed at the served world, large models."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_llm import local_llm
from safetensors.torch import load_file, save_file
from small_fvqa import write
from small_policy import tiny

from mmsr.env import Tools
from mmsr.files import SEAL, FileDamaged, seal, write_rows
from mmsr.lab import Lab, open_tools
from mmsr.live.outside import connect, settings
from mmsr.live.roles import Shortened
from mmsr.live.serve import running
from mmsr.policy import TINY_DIR, load_policy
from mmsr.presets import get_preset
from mmsr.results import check_adapter
from mmsr.runs.ask import SHIPPED
from mmsr.tools.base import Hit
from mmsr.tools.ground import BaseGrounder
from mmsr.tools.image import LocalImageSearch
from mmsr.tools.summary import ExtractiveSummariser
from mmsr.tools.text import LocalTextSearch
from mmsr.world.snapshot import load_world

WORLD, PRESET = load_world(), get_preset("smoke")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(WORLD, LocalTextSearch(WORLD), LocalImageSearch(WORLD)) as url:
        yield url


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def tools(**values: object) -> Tools:
    return open_tools(PRESET, tiny(), connect(settings("smoke", outside=values)[1]))


def test_without_parameters_everything_is_local() -> None:
    for found in (tools(), open_tools(PRESET, tiny())):
        assert isinstance(found.text, LocalTextSearch) and isinstance(found.image, LocalImageSearch)
        assert isinstance(found.grounder, BaseGrounder) and isinstance(found.text_summary, ExtractiveSummariser)


@pytest.mark.parametrize("engine", ["serper", "serpapi", "searxng", "searchr1"])
@pytest.mark.parametrize("read_pages", [False, True])
def test_a_served_world_is_searched_as_the_local_one_without_keys(address: str, engine: str, read_pages: bool) -> None:
    found = tools(search=engine, search_url=address, read_pages=read_pages).text.search("Kenya capital", 5)
    local = LocalTextSearch(WORLD).search("Kenya capital", 5)
    assert [hit.id for hit in found] == [hit.id for hit in local]
    assert all(at.text in hit.text for hit, at in zip(found, local))
    assert all(hit.url.startswith(address) for hit in found)


def test_a_crop_is_uploaded_and_its_hits_are_the_worlds(address: str) -> None:
    found = tools(picture_search="serpapi_lens", picture_url=address + "/").image.search(WORLD.flag("ke"), 5)
    assert found[0].id == "ke" and found[0].title == "Flag of Kenya"
    assert {hit.id for hit in found} <= {flag.iso for flag in WORLD.flags}


def test_large_models_summarise_within_the_policys_budget() -> None:
    with local_llm() as llm:
        found = tools(summary="copies", llm_url=llm)
        hits = [Hit(str(n), f"Title {n}", "Nairobi is the capital. " * 12, 1.0) for n in range(3)]
        text = found.text_summary.summarise("What is the capital?", "Kenya capital", hits)
        assert text.startswith("Title 0 Nairobi is the capital.") and text.endswith("capital.")
        assert 0.7 * PRESET.observation_tokens < tiny().count_tokens(text) <= PRESET.observation_tokens


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(99, "One two. Three four five. Six."), (5, "One two. Three four five."), (4, "One two."), (1, "One"), (0, "")],
)
def test_a_summary_is_cut_at_a_sentence_or_at_least_at_a_word(budget: int, kept: str) -> None:
    class Says:
        def summarise(self, question: str, query: str, hits: object) -> str:
            return "One two. Three four five. Six."

    assert Shortened(Says(), lambda text: len(text.split()), budget).summarise("", "", []) == kept


def test_adapters_are_this_runs_or_else_another_runs(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    with pytest.raises(FileNotFoundError, match="run notebook 02 first, or give adapters=RUN"):
        Lab(mine).adapter("sft")
    shutil.copytree(TINY_DIR / "agent", other / "sft" / "adapter")
    assert Lab(mine, adapters=other).adapter("sft") == other / "sft" / "adapter"
    shutil.copytree(TINY_DIR / "agent", mine / "sft" / "adapter")
    assert Lab(mine, adapters=str(other)).adapter("sft") == mine / "sft" / "adapter"
    with pytest.raises(FileNotFoundError, match="adapter is not there: run notebook 03 first"):
        Lab(mine, adapters=other).adapter("grpo")


@pytest.mark.parametrize(
    ("sizes", "outside", "said"),
    [
        ({"grpo_step": 2}, {}, "sizes has no key 'grpo_step': it has "),
        ({"grpo_steps": "many"}, {}, "sizes: grpo_steps must be a whole number, not 'many'."),
        ({"grpo_steps": True}, {}, "sizes: grpo_steps must be a number, not True."),
        ({"grpo_steps": 0}, {}, "sizes: grpo_steps must be greater than or equal to 1, not 0."),
        (
            {"report_to": "paper"},
            {},
            "sizes: report_to must be 'none', 'tensorboard', 'trackio' or 'wandb', not 'paper'.",
        ),
        ({"report_to": "wandb"}, {}, "report_to=wandb needs its package: pip install wandb."),
        ({}, {"serch": "serper"}, "outside has no key 'serch': it has search, "),
        ({}, {"read_pages": "perhaps"}, "outside: read_pages must be true or false, not 'perhaps'."),
        ({}, {"search": "altavista"}, "outside: search must be 'local', 'milvus', 'serper', "),
        ({}, ["search"], "outside must be a dictionary of settings, not "),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_before_anything_runs(
    tmp_path: Path, sizes: dict, outside: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr.presets.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^" + re.escape(said)) as refused:
        Lab(tmp_path / "run", "smoke", 0, sizes, outside)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_every_field_of_a_preset_can_be_changed_also_by_text() -> None:
    size, outside = settings("tiny", {"grpo_steps": "8", "sft_lr": "1e-4", "four_bit": "true"}, {"budget_calls": "20"})
    assert (size.grpo_steps, size.sft_lr, size.four_bit, outside.budget_calls) == (8, 1e-4, True, 20)
    size = settings("qwen3b", {"policy": "/data/mine", "prompts": {"locate": "where is {expression}?"}})[0]
    assert size.revision is None and size.prompts.locate.startswith("where") and "reason" in size.prompts.first_turn


def test_another_runs_folder_without_adapters_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapters=.*typo holds neither sft/adapter nor grpo/adapter: give a trained"):
        Lab(tmp_path / "run", adapters=tmp_path / "typo")


def test_a_policy_with_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sft" / "adapter"
    shutil.copytree(TINY_DIR / "agent", folder)
    lab = Lab(tmp_path)
    assert lab.policy("sft").name == "tiny"
    seal(folder)
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000:] = bytes(1000)
    weights.write_bytes(data)
    for open_it in (lab.policy, lab.adapter):  # notebook 04 asks for the second before it plays anything
        with pytest.raises(
            FileDamaged, match=r"adapter_model\.safetensors is damaged: train it again, or give another\."
        ):
            open_it("sft")


# --- a benchmark's own splits -----------------------------------------------------------------------------------------

SMALL = {"data_questions": 30, "grpo_steps": 4, "grpo_questions": 5, "eval_questions": 30}  # ten to validate on


def on_fvqa(run: Path, files: Path, seed: int = 0, sizes: dict = SMALL, adapters: str | Path = "") -> Lab:
    return Lab(run, "smoke", seed, sizes, {}, adapters, "fvqa_train", files)


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A run whose cold start has learned from thirty of sixty questions."""
    write(tmp_path / "fvqa" / "fvqa_train.parquet", range(60))
    asked = Lab(tmp_path / "taught", "smoke", 0, SMALL).questions("fvqa_train", tmp_path / "fvqa")
    write_rows(tmp_path / "taught" / "data" / "data.jsonl", [{"question": question.as_dict()} for question in asked])
    shutil.copytree(TINY_DIR / "agent", tmp_path / "taught" / "sft" / "adapter")
    return tmp_path


def test_cold_start_grpo_and_validation_share_no_question_of_a_benchmark(taught: Path) -> None:
    lab = on_fvqa(taught / "taught", taught / "fvqa")
    learned = {question.id for question in lab.questions("fvqa_train", taught / "fvqa")}
    asked, played = {q.id for q in lab.validation}, {question.id for question in lab.grpo_questions}
    assert (len(learned), len(asked), len(played)) == (30, 10, 20) and len(learned | asked | played) == 60
    assert all(q.draw().size == (64, 48) and q.answer.startswith("colour") for q in lab.grpo_questions)
    again, other = (on_fvqa(taught / "taught", taught / "fvqa", seed) for seed in (0, 1))
    assert [question.id for question in again.grpo_questions] == [question.id for question in lab.grpo_questions]
    assert {q.id for q in other.validation} != asked and not {q.id for q in other.validation} & learned
    with pytest.raises(ValueError, match="A step of GRPO asks 5 questions, but 1 are left to ask"):
        _ = on_fvqa(taught / "taught", taught / "fvqa", sizes=SMALL | {"eval_questions": 29 * 3}).grpo_questions


def test_what_another_runs_cold_start_has_learned_is_not_asked_either(taught: Path) -> None:
    own, other = on_fvqa(taught / "taught", taught / "fvqa"), taught / "other"
    assert [question.id for question in on_fvqa(other, taught / "fvqa", adapters=taught / "taught").grpo_questions] == [
        question.id for question in own.grpo_questions
    ]
    with pytest.raises(FileNotFoundError, match=r"data\.jsonl is not there: run notebook 01 first"):
        _ = on_fvqa(other, taught / "fvqa").grpo_questions


def test_a_validation_is_judged_by_the_model_that_is_named(tmp_path: Path) -> None:
    with local_llm() as url:
        lab = Lab(tmp_path, "smoke", outside={"judge": "by-letters", "llm_url": url})
        rows = lab.validate("sft", load_policy("tiny", SHIPPED))
    assert len(rows) == 10 and any(row["verdict"] == "correct" for row in rows)


def keep(lab: Lab, step: int, spoilt: bool = False) -> Path:
    """The shipped adapter as one that GRPO has kept; a spoilt one does nothing."""
    folder = lab.folder / "grpo" / "kept" / str(step)
    shutil.copytree(SHIPPED, folder)
    if spoilt:
        file = folder / "adapter_model.safetensors"
        save_file({name: torch.zeros_like(weight) for name, weight in load_file(file).items()}, file)
    seal(folder)
    return folder


@pytest.mark.parametrize(("spoilt", "best"), [((False, True), 1), ((True, False), 2), ((False, False), 2)])
def test_the_kept_adapter_that_validates_best_is_the_agent(
    spoilt: tuple[bool, bool], best: int, tmp_path: Path
) -> None:
    lab, policy = Lab(tmp_path, "smoke"), load_policy("tiny", SHIPPED)
    kept = [keep(lab, step, bad) for step, bad in zip((1, 2), spoilt)]
    rows, measured = lab.choose(policy)
    agent = check_adapter(lab.adapter("grpo"))
    assert measured["grpo/chosen_step"].value == best
    assert (agent / SEAL).read_text() == (kept[best - 1] / SEAL).read_text()
    right = [measured[f"grpo/val/{step}/accuracy"] for step in (1, 2)]
    assert [accuracy.value == 0 for accuracy in right] == [*spoilt] and all(accuracy.n == 10 for accuracy in right)
    assert right[best - 1].value == sum(row["correct"] for row in rows) / len(rows)
    again = lab.validate("grpo", policy)  # the policy carries it
    assert [row["answer"] for row in again] == [row["answer"] for row in rows]


def test_a_kept_adapter_that_is_missing_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "smoke")
    keep(lab, 1)
    with pytest.raises(FileNotFoundError, match=r"kept/2/adapter_config\.json is not there: train it again"):
        lab.choose(load_policy("tiny", SHIPPED))


def test_a_policy_is_validated_on_a_benchmark(taught: Path) -> None:
    rows = on_fvqa(taught / "taught", taught / "fvqa").validate("sft", tiny())
    assert len(rows) == 10 and {row["evidence"] for row in rows} == {None}
    assert all(Path(row["question"]["picture"]).is_file() for row in rows)


def test_a_benchmark_to_train_on_is_looked_for_at_once(tmp_path: Path) -> None:
    for name, said in (
        ("fvqa_train", "the files of fvqa_train: '.*nowhere' is not one"),
        ("okvqq", "no benchmark 'okvqq'"),
    ):
        with pytest.raises(ValueError, match=said):
            Lab(tmp_path, train_benchmark=name, train_dir=tmp_path / "nowhere")
