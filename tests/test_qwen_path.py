"""The path of the Qwen presets on random models of their classes: files, boxes, LoRA, trainings, notebooks.

The model is the hub's in everything but size (`random_qwen.py`), so what is shown is that the path holds, not what a
trained one would score. On a CPU; nothing here needs the network.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import trl
from PIL import Image
from random_qwen import FAMILIES, hub_copy, matrices, random_qwen
from safetensors.torch import load_file, save_file

from mmsr import grpo
from mmsr.ablation import oracle
from mmsr.data import Example, to_messages
from mmsr.decode import Row
from mmsr.env import SearchEnv, first_messages
from mmsr.evaluate import Exam, agent, direct, judge_rows, rag
from mmsr.grpo import as_rows, grpo_config, train_grpo
from mmsr.lab import open_tools
from mmsr.policy import Policy, add_lora, load_policy, load_processor
from mmsr.presets import Preset, get_preset
from mmsr.results import read_metrics
from mmsr.rollout import as_coordinates
from mmsr.runs.runner import run
from mmsr.sft import sft_config, train_sft
from mmsr.show.watch import progress
from mmsr.task import Task
from mmsr.teacher import Teacher
from mmsr.tools.ground import BaseGrounder
from mmsr.with_trl import EpisodeTrainer
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import load_world

QWEN, PAPER = get_preset("qwen3b"), get_preset("qwen7b_paper")
WORLD = load_world()
QUESTIONS = [q for q in make_questions("train", 40, seed=61) if q.type in ("fact", "one_hop")][:4]
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen(tmp_path_factory.mktemp("qwen") / "random", family=family)


@pytest.fixture(scope="module")
def preset(folder: Path) -> Preset:
    """qwen3b on that model, with few of everything and rates that show within two steps."""
    sizes = {"sft_epochs": 2, "sft_batch": 2, "grpo_steps": 2, "grpo_questions": 1, "generations": 4, "grpo_warmup": 0}
    tokens = {"new_tokens": 64, "observation_tokens": 100, "completion_tokens": 1500}
    return replace(QWEN, policy=str(folder), revision=None, sft_lr=1e-2, grpo_lr=1e-2, **sizes, **tokens)


def load(preset: Preset, adapter: Path | None = None) -> Policy:
    return load_policy(preset.policy, adapter, preset.revision, preset.max_pixels)


@pytest.fixture(scope="module")
def policy(preset: Preset) -> Policy:
    """The base, for tests that only read it."""
    return load(preset)


def conversations(n: int) -> list[tuple[Image.Image, list[dict]]]:
    tasks = [Task.of(question) for question in QUESTIONS[:n]]
    return [(task.picture, first_messages(task, QWEN.prompts)) for task in tasks]


# --- loading ----------------------------------------------------------------------------------------------------------


def inside(name: str) -> str:
    """What transformers calls a weight of the hub's."""
    if name.startswith(("model.language_model.", "model.visual.")):
        return name
    return "model." + name.replace("model.", "language_model.", 1)


def test_files_laid_out_as_the_hubs_load_whole_in_their_class_and_in_bf16(
    folder: Path, family: str, policy: Policy
) -> None:
    kept = load_file(folder / "model.safetensors")
    firsts = {"model", "visual"} if family == "qwen2_5_vl" else {"model"}  # of the hub's names
    assert {name.split(".")[0] for name in kept} == firsts and policy.model.config.model_type == family
    weights = dict(policy.model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert weights.keys() == {*map(inside, kept)}
    assert all(torch.equal(weights[inside(name)], weight) for name, weight in kept.items())
    config, tokenizer = policy.model.config, policy.tokenizer
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert {"<|im_start|>", "<|im_end|>", "<|image_pad|>"} <= {*tokenizer.all_special_tokens}
    assert tokenizer.tokenize("in 1234")[-4:] == ["1", "2", "3", "4"]  # digit by digit, as Qwen's


PRESETS = {"qwen2_5_vl": ("qwen3b", "qwen7b"), "qwen3_vl": ("qwen3vl2b", "qwen3vl4b")}


@pytest.mark.parametrize("family", PRESETS, indirect=True)
def test_the_pinned_state_of_the_hub_is_loaded(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pinned, newer = (random_qwen(tmp_path / f"seed{seed}", seed, family) for seed in (1, 2))
    for name in PRESETS[family]:
        preset = get_preset(name)
        hub_copy(pinned, tmp_path, preset.policy, preset.revision)
        hub_copy(newer, tmp_path, preset.policy, "f" * 40)
        refs = tmp_path / f"models--{preset.policy.replace('/', '--')}" / "refs"
        refs.mkdir()
        (refs / "main").write_text("f" * 40)
        for loaded, source in ((load(preset), pinned), (load_policy(preset.policy), newer)):
            wanted = load_file(source / "model.safetensors")
            assert all(torch.equal(loaded.model.get_parameter(inside(n)), w) for n, w in wanted.items())
        with pytest.raises(OSError):
            load_policy(preset.policy, revision="0" * 40)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("qwen2_vl", "'qwen2_vl'; use a model of the type qwen2_5_vl or qwen3_vl or qwen3_5"),
        ("made_up", "'made_up'; use"),
    ],
)
def test_a_model_of_another_type_is_refused_by_its_name(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"^{tmp_path} is of the type {said}"):
        load_policy(str(tmp_path))


def test_files_that_lack_a_weight_are_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "visual" in name and "merger" in name)
    save_file(
        {name: w for name, w in weights.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"{tmp_path} lack 1 weights, such as {inside(lost)}: get them again"):
        load_policy(str(tmp_path))


def test_a_conversation_opens_as_the_models_own_does(folder: Path, family: str, policy: Policy) -> None:
    ((picture, messages),) = conversations(1)
    own = (json.loads((folder / "tokenizer_config.json").read_text()))["chat_template"]
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    written = policy.processor.apply_chat_template(messages, **settings)
    assert written == policy.tokenizer.apply_chat_template(messages, chat_template=own, **settings)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if family == "qwen2_5_vl" else ""
    assert written.startswith(f"{system}<|im_start|>user\n<|vision_start|>")
    with policy.generating() as decoder:
        (row,) = decoder.open([(picture, messages)], 1)
        decoder.read(row, "a page")
    whole = policy.tokenizer.decode(row.ids)
    assert whole.count("<|im_start|>system") == bool(system)
    thought = "<think>\n\n</think>\n\n" if family == "qwen3_5" else ""
    assert whole.count(f"<|im_start|>assistant\n{thought}") == 2 and whole.count("<think>") == 2 * bool(thought)


THINKS = "{% if add_generation_prompt %}<think>\n{% endif %}"
MAY_THINK = "{% if add_generation_prompt and enable_thinking is not false %}<think>\n{% endif %}"


@pytest.mark.parametrize(
    ("added", "end", "said"),
    [
        (THINKS, "<|im_end|>", "thinks before each turn: use an Instruct model"),
        ("", "</s>", "has turns of another form than Qwen's"),
        (MAY_THINK, "<|im_end|>", None),
    ],
)
def test_a_model_that_must_think_or_has_other_turns_is_refused(
    folder: Path, policy: Policy, added: str, end: str, said: str | None, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps(settings | {"chat_template": settings["chat_template"].replace("<|im_end|>", end) + added})
    )
    if said:
        with pytest.raises(ValueError, match=f"the chat format of {tmp_path} {said}"):
            load_policy(str(tmp_path))
    else:  # it is told not to
        assert load_processor(str(tmp_path)).chat_template == policy.processor.chat_template


def test_another_model_takes_the_settings_and_not_the_revision() -> None:
    other = get_preset("qwen7b", {"policy": "my/qwen"})
    assert (other.policy, other.revision) == ("my/qwen", None)
    assert replace(other, policy=get_preset("qwen7b").policy, revision=get_preset("qwen7b").revision) == get_preset(
        "qwen7b"
    )
    assert get_preset("qwen7b", {"policy": get_preset("qwen7b").policy}) == get_preset("qwen7b")


def installed(monkeypatch: pytest.MonkeyPatch, package: str, whether: bool) -> None:
    """Let a package be found, or not."""
    real, found = importlib.util.find_spec, object() if whether else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: found if name == package else real(name, *rest))


def test_four_bits_without_the_extra_are_refused_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "bitsandbytes", False)
    with pytest.raises(ImportError, match=r"needs bitsandbytes: pip install 'mmsr\[four-bit\]'"):
        load_policy(str(folder), four_bit=True)


def test_a_base_in_four_bits_learns(folder: Path, policy: Policy) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="an extra")
    quantised = load_policy(str(folder), four_bit=True)
    linear = bitsandbytes.nn.Linear4bit
    names = {name for name, module in quantised.model.named_modules() if isinstance(module, linear)}
    assert len(names) == matrices(policy.model.config) and all(".language_model.layers." in name for name in names)
    assert {w.dtype for n, w in quantised.model.named_parameters() if "visual" in n} == {torch.bfloat16}
    trained = add_lora(quantised, r=4, alpha=8)
    picture, messages = conversations(1)[0]
    rendered = trained.processor.apply_chat_template(messages, tokenize=False)
    batch = trained.processor(text=[rendered], images=[[picture]], return_tensors="pt")
    trained.model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(w.grad.abs().sum() > 0 for n, w in trained.model.named_parameters() if "lora_B" in n)
    assert len(quantised.generate(conversations(1), 8)) == 1


# --- pictures and boxes -----------------------------------------------------------------------------------------------

SIZES = [(384, 384), (4000, 120), (90, 2400), (3000, 2000), (31, 57), (20, 20), (1, 150)]


@pytest.mark.parametrize("size", SIZES)
def test_the_frame_is_that_of_the_processor_or_relative(policy: Policy, family: str, size: tuple[int, int]) -> None:
    picture, patch = Image.new("RGB", size), 14 if family == "qwen2_5_vl" else 16
    batch = policy.processor(text=["<|vision_start|><|image_pad|><|vision_end|>"], images=[[picture]])
    _, rows, columns = batch["image_grid_thw"][0].tolist()
    seen = (patch * columns, patch * rows)
    assert policy.frame(picture) == (seen if family == "qwen2_5_vl" else (1000, 1000))
    assert rows % 2 == columns % 2 == 0 and seen[0] * seen[1] <= QWEN.max_pixels
    pads = list(batch["input_ids"][0]).count(policy.model.config.image_token_id)
    assert pads == rows * columns // 4


@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize("form", ['```json\n[\n\t{{"bbox_2d": [{}], "label": "the flag"}}\n]\n```', "{}"])
def test_boxes_in_qwens_frame_come_back_to_the_picture(
    policy: Policy, size: tuple[int, int], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box that Qwen would write, in its own frame, read back to within that frame's resolution."""
    picture = Image.new("RGB", size)
    known = (size[0] // 4, size[1] // 3, size[0] * 3 // 4, size[1] * 4 // 5)
    scale = [side / frame for side, frame in zip(size * 2, policy.frame(picture) * 2)]
    written = ", ".join(str(round(v / s)) for v, s in zip(known, scale))
    asked = []

    def answers(self, conversations, max_new_tokens, *args, **kwargs):
        asked.append((conversations[0][1][0]["content"][-1]["text"], max_new_tokens))
        return [form.format(written)]

    monkeypatch.setattr(Policy, "generate", answers)
    box = BaseGrounder(policy, QWEN.prompts.locate).locate(picture, "the flag on the left")
    assert all(abs(a - b) <= 0.5 + s / 2 for a, b, s in zip(box, known, scale))
    ((question, limit),) = asked
    assert question.startswith("Locate the flag on the left and give its box as JSON: [{")
    answer = '```json\n[\n\t{"bbox_2d": [1204, 1064, 1337, 1187], "label": "the flag on the left"}\n]\n```'
    assert policy.count_tokens(answer) < limit  # the longest answer there is room for


def test_a_crop_by_coordinates_is_in_qwens_frame(policy: Policy) -> None:
    task = Task.of(next(q for q in QUESTIONS if q.box))
    exact = oracle([next(q for q in QUESTIONS if q.box)])
    turn = as_coordinates(policy, exact)("<reason>a</reason>\n<img_search> the flag</img_search>", task)
    env = SearchEnv(open_tools(QWEN, policy), QWEN.prompts, task)
    env.step(turn)
    assert env.trajectory.turns[0].content != ",".join(map(str, task.box))  # 384 pixels are seen as 392, or are 1000
    assert all(abs(a - b) <= 1 for a, b in zip(env.trajectory.turns[0].box, task.box))


# --- generation -------------------------------------------------------------------------------------------------------


def test_greedy_decoding_is_plain_and_keeps_its_cache(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's generation settings ask for sampling and a penalty on repeated tokens; neither counts here."""
    settings = policy.model.generation_config
    assert settings.do_sample and settings.repetition_penalty == 1.05
    lengths, forward = [], policy.model.model.language_model.forward

    def counted(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model.model.language_model, "forward", counted)
    ((picture, messages),) = conversations(1)
    text = policy.generate([(picture, messages)], 12)[0]
    assert lengths[0] > 350 and set(lengths[1:]) == {1}
    rendered = policy.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = policy.processor(text=[rendered], images=[[picture]], return_tensors="pt")
    start = ids["input_ids"].shape[1]
    for _ in range(12):
        best = policy.model(**ids).logits[0, -1].argmax()
        if best == policy.tokenizer.eos_token_id:
            break
        ids["input_ids"] = torch.cat([ids["input_ids"], best.view(1, 1)], 1)
        ids["attention_mask"] = torch.ones_like(ids["input_ids"])
        ids["mm_token_type_ids"] = (ids["input_ids"] == policy.model.config.image_token_id).long()
    assert lengths[0] == start - (not policy.decoder.sums_up)  # what is kept goes up to the last token of the prompt
    written = ids["input_ids"][0, start:]
    assert policy.tokenizer.decode(written, skip_special_tokens=True) == text


def test_an_exam_is_sat_by_the_base_and_by_an_agent(preset: Preset, policy: Policy) -> None:
    exam, size = Exam(tuple(QUESTIONS[:2])), replace(preset, new_tokens=8)
    tools = open_tools(size, policy)
    for played in (direct(policy, exam, size), rag(policy, exam, size, tools), agent(policy, exam, size, tools)):
        rows = judge_rows("a", exam, played, [False] * 2)
        assert [row["question"]["id"] for row in rows] == [question.id for question in exam.questions]
        assert all(row["turns"] for row in rows)


# --- training ---------------------------------------------------------------------------------------------------------


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    """The base's weights under their names, whatever lies over them."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in policy.model.state_dict().items()
        if "lora_" not in name
    }


def test_lora_is_on_the_language_model_in_fp32_and_nothing_else_learns(preset: Preset) -> None:
    tuned = add_lora(load(preset), r=8, alpha=16)
    learning = {name: weight for name, weight in tuned.model.named_parameters() if weight.requires_grad}
    assert all(".language_model.layers." in name and "lora_" in name for name in learning)
    assert {weight.dtype for weight in learning.values()} == {torch.float32}
    assert len(learning) == matrices(tuned.model.config) * 2
    assert not any(weight.requires_grad for name, weight in tuned.model.named_parameters() if "visual" in name)


def test_a_trained_adapter_lists_the_layers_it_lies_on(preset: Preset, cold: tuple[Policy, Path]) -> None:
    trained, folder = cold
    listed = json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    names = {name for name, _ in load(preset).model.named_modules()}
    of_weights = {name.partition(".lora_")[0] for name in load_file(folder / "adapter" / "adapter_model.safetensors")}
    assert listed == sorted({name.removeprefix("base_model.model.") for name in of_weights}) and {*listed} <= names
    for again in (load(preset, folder / "adapter"), add_lora(load(preset), 8, 16)):  # by the list, by the pattern
        learning = {name for name, weight in again.model.named_parameters() if weight.requires_grad}
        assert learning == {name for name, weight in trained.model.named_parameters() if "lora_" in name}


def test_an_update_computes_what_the_whole_model_does_from_pixels(preset: Preset, tmp_path: Path) -> None:
    """Also what Qwen3-VL adds after its first layers, in rows of different lengths, with a gradient."""
    policy = load(preset)
    policy = add_lora(Policy(policy.model.float(), policy.processor, policy.name), 8, 16)
    asked, written = conversations(3), ["<reason>a</reason>", "Kenya", "<answer> Nairobi</answer>"]
    with policy.generating() as decoder:
        rows = decoder.open(asked, 8)
        for row, text in zip(rows, written):
            row.add(ids := policy.tokenizer(text)["input_ids"], [0.0] * len(ids))
    trainer = EpisodeTrainer(
        policy,
        lambda *_: [],
        model=policy.model,
        args=grpo_config(preset, tmp_path, 0, 0.001),
        reward_funcs=[lambda **_: [0.0]],
        train_dataset=as_rows(QUESTIONS[:1]),
        processing_class=policy.processor,
    )
    trainer._rows, width = rows, max(len(row.ids) for row in rows)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    ids = torch.tensor([[0] * (width - len(row.ids)) + [n, *row.ids[1:]] for n, row in enumerate(rows)])
    kept = max(len(row.ids) - row.prompt for row in rows)
    found, _, _ = trainer._get_per_token_logps_and_entropies(policy.model, ids, mask, kept)
    assert found.requires_grad
    for (picture, _), row, ours in zip(asked, rows, found):
        pixels = policy.processor.image_processor(images=[picture], return_tensors="pt")
        whole = torch.tensor([row.ids])
        kinds = (whole == policy.processor.image_token_id).int()
        theirs = policy.model(input_ids=whole, mm_token_type_ids=kinds, **pixels).logits[0, row.prompt - 1 : -1]
        theirs = theirs.log_softmax(-1).gather(1, whole[0, row.prompt :, None])[:, 0]
        torch.testing.assert_close(ours[: len(theirs)], theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", [sft_config(PAPER, Path("x"), 0), grpo_config(PAPER, Path("x"), 0, 0.001)])
def test_the_settings_are_the_papers(config) -> None:
    assert config.gradient_checkpointing and config.learning_rate == (1e-4 if "SFT" in type(config).__name__ else 2e-6)
    if "SFT" in type(config).__name__:
        assert config.lr_scheduler_type == "cosine" and config.warmup_steps == 0.1 and PAPER.sft_epochs == 3
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 8
    else:
        assert (config.beta, config.epsilon, config.warmup_steps, config.num_generations) == (0.001, 0.2, 45, 8)
        assert config.scale_rewards == "none" and config.max_completion_length == 8192
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64


def checkpointed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the layers that are run through gradient checkpointing."""
    calls, real = [], torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    return calls


def watch(patch: pytest.MonkeyPatch, trainer: type) -> list[dict[str, torch.Tensor]]:
    """Notes what each loss of a trainer is computed from."""
    seen, real = [], trainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        seen.append({key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)})
        return real(self, model, inputs, *args, **kwargs)

    patch.setattr(trainer, "compute_loss", watched)
    return seen


@pytest.fixture(scope="module")
def cold(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """A cold start of four steps, on the teacher's conversations in Qwen's prompts."""
    folder = tmp_path_factory.mktemp("sft")
    policy, tasks = load(preset), [Task.of(q) for q in QUESTIONS]
    tools = replace(open_tools(preset, policy), grounder=oracle(QUESTIONS))
    played = [Teacher().play(q, SearchEnv(tools, preset.prompts, task)) for q, task in zip(QUESTIONS, tasks)]
    examples = [Example(q, "search_required", to_messages(q, t, preset.prompts)) for q, t in zip(QUESTIONS, played)]
    differentiated = []
    policy.model.model.visual.register_forward_hook(
        lambda module, args, found: differentiated.append(found.pooler_output.requires_grad)
    )
    with pytest.MonkeyPatch.context() as patch:
        calls, seen = checkpointed(patch), watch(patch, trl.SFTTrainer)
        trained = train_sft(policy, examples, [task.picture for task in tasks], preset, folder, seed=5)
    written = {"".join(m["content"] + "<|im_end|>" for m in e.messages if m["role"] == "assistant") for e in examples}
    learned = {policy.tokenizer.decode(row[row != -100]) for batch in seen for row in batch["labels"]}
    assert calls and learned == written
    assert differentiated and not any(differentiated)  # nothing that is frozen is
    return trained, folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def moved(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> list[bool]:
    """For each LoRA B, whether it is another than before (nought where it was not there)."""
    return [not torch.equal(w, before.get(n, torch.zeros_like(w))) for n, w in after.items() if "lora_B" in n]


def test_sft_with_gradient_checkpointing_teaches_every_lora_weight(cold: tuple[Policy, Path], policy: Policy) -> None:
    trained, folder = cold
    assert all(torch.equal(weight, frozen(policy)[name]) for name, weight in frozen(trained).items())
    assert all(moved(load_file(folder / "adapter" / "adapter_model.safetensors"), {}))
    losses = [float(row["loss"]) for row in rows(folder / "sft.csv")]
    assert len(losses) == 4 and all(float(row["grad_norm"]) > 0 for row in rows(folder / "sft.csv"))
    assert "100 %" in progress(pd.read_csv(folder / "sft.csv"), "epoch", 1)  # two epochs, as the live view counts them


def learn(preset: Preset, cold: Path, folder: Path) -> tuple[Policy, dict[str, torch.Tensor]]:
    policy = load(preset, cold / "adapter")
    trained = train_grpo(policy, QUESTIONS, open_tools(preset, policy), preset, folder, seed=5)
    return trained, load_file(folder / "adapter" / "adapter_model.safetensors")


TURNS = (
    "<reason>I look.</reason>\n<img_search> the flag on the left</img_search>",
    "<reason>I look.</reason>\n<img_search><img_crop>28,56,224,196</img_crop></img_search>",
    "<reason>I look.</reason>\n<text_search> Kenya capital</text_search>",
    "<reason>I know.</reason>\n<answer> Nairobi</answer>",
    "I know it.",
)


def scripted(policy: Policy, seed: int):
    """A `write` that writes one of TURNS for each row, in Qwen's tokens, whatever it is asked."""
    rng, tokenizer = random.Random(seed), policy.tokenizer

    def write(self, rows: list[Row], *_: object) -> list[str]:
        turns = [rng.choice(TURNS) for _ in rows]
        for row, turn in zip(rows, turns):
            ids = tokenizer(turn + "<|im_end|>")["input_ids"]
            row.add(ids, [0.0] * len(ids))
        return turns

    return write


def test_grpo_on_searching_rollouts_teaches_every_lora_weight(
    preset: Preset, cold: tuple[Policy, Path], policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turns are given, for a random model writes none; tools, tokens, rewards, losses and steps are real."""
    calls, seen = checkpointed(monkeypatch), watch(monkeypatch, trl.GRPOTrainer)
    monkeypatch.setattr("mmsr.decode.Decoder.write", scripted(policy, seed=3))
    trained, after = learn(preset, cold[1], tmp_path)
    assert calls and all(moved(after, load_file(cold[1] / "adapter" / "adapter_model.safetensors")))
    assert all(torch.equal(w, frozen(policy)[n]) for n, w in frozen(trained).items())
    table = rows(tmp_path / "grpo.csv")
    assert len(table) == 2 and any(float(row["rewards/searches/mean"]) > 0 for row in table)
    assert any(float(row["rewards/crops/mean"]) > 0 for row in table)
    assert any(float(row["reward_std"]) > 0 for row in table)
    own, outside = set(), ""
    for batch in seen:
        for ids, alive, ours in zip(batch["completion_ids"], batch["completion_mask"], batch["tool_mask"]):
            own |= {*policy.tokenizer.decode(ids[(alive * ours).bool()]).split("<|im_end|>")}
            outside += policy.tokenizer.decode(ids[(alive * (1 - ours)).bool()])
    assert own - {""} <= {*TURNS} and len(own) > 3  # what bears loss is what was generated, to the token
    assert "<information>" in outside and "Above, between <information> and </information>" in outside


def test_on_a_base_in_four_bits_every_entry_of_lora_moves(
    preset: Preset, cold: tuple[Policy, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the paper's rate, less than bf16 can add to most of them; two opposite steps leave one where it was."""
    pytest.importorskip("bitsandbytes", reason="an extra")
    monkeypatch.setattr("mmsr.decode.Decoder.write", scripted(cold[0], seed=3))
    policy = load_policy(preset.policy, cold[1] / "adapter", preset.revision, preset.max_pixels, four_bit=True)
    before = {n: w.detach().clone() for n, w in policy.model.named_parameters() if w.requires_grad}
    slow = replace(preset, four_bit=True, grpo_lr=PAPER.grpo_lr)
    trained = train_grpo(policy, QUESTIONS, open_tools(slow, policy), slow, tmp_path, seed=5)
    after = {n: w for n, w in trained.model.named_parameters() if n in before}
    assert after.keys() == before.keys() and {w.dtype for w in after.values()} == {torch.float32}
    assert min(float((w != before[n]).float().mean()) for n, w in after.items()) > 0.999


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_equal_rewards_teach_nothing_and_break_nothing(
    preset: Preset, cold: tuple[Policy, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grpo.scores
    monkeypatch.setattr(grpo, "scores", lambda *given: [0 * score for score in real(*given)])
    _, after = learn(replace(preset, grpo_steps=1), cold[1], tmp_path)
    assert all(weight.isfinite().all() for weight in after.values())
    assert not any(moved(after, load_file(cold[1] / "adapter" / "adapter_model.safetensors")))
    assert float(rows(tmp_path / "grpo.csv")[0]["frac_reward_zero_std"]) == 1


# --- the notebooks ----------------------------------------------------------------------------------------------------


OTHERS = [("qwen3_vl", "qwen3vl2b"), ("qwen3_5", "qwen3b")]
WALKS = [("qwen2_5_vl", "qwen3b"), *(pytest.param(*walk, marks=pytest.mark.slow) for walk in OTHERS)]


@pytest.mark.parametrize(("family", "name"), WALKS, indirect=["family"])
def test_the_five_notebooks_run_by_the_hubs_name(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of qwen_smoke, and fewer; the policy is found in the hub's cache, at the pinned revision."""
    smoke, big = get_preset("qwen_smoke"), get_preset(name)
    assert (smoke.policy, smoke.revision, smoke.prompts) == (QWEN.policy, QWEN.revision, QWEN.prompts)
    hub_copy(folder, tmp_path / "hub", big.policy, big.revision)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    fewer = {"new_tokens": 8, "data_questions": 24, "eval_questions": 2, "ablation_questions": 1, "grpo_steps": 1}
    given = fewer | {"policy": big.policy, "revision": big.revision}  # random weights never end a turn
    done = run([], "qwen_smoke", "q", 0, given, tmp_path)
    assert len(list(done.glob("0?_*.ipynb"))) == 5
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["base_model"] == {"name": big.policy, "revision": big.revision}
    metrics = read_metrics(done)
    assert {
        f"eval/{name}/accuracy" for name in ("direct", "rag", "prompted", "sft", "grpo", "teacher")
    } <= metrics.keys()
    assert metrics["data/balanced"].value > 0 and metrics["eval/teacher/searches"].value > 0
    adapters = [load_file(done / stage / "adapter" / "adapter_model.safetensors") for stage in ("sft", "grpo")]
    assert all(moved(adapters[0], {})) and all(w.isfinite().all() for w in adapters[1].values())
    played = [json.loads(line) for line in (done / "eval" / "rows.jsonl").read_text().splitlines()]
    boxes = [turn["box"] for row in played for turn in row["trajectory"]["turns"] if turn["box"]]
    assert all(0 <= x1 < x2 <= 384 and 0 <= y1 < y2 <= 384 for x1, y1, x2, y2 in boxes)
