"""Weights are counted exactly, the arithmetic of memory is held to live tensors at the true widths, plans are sound."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from small_policy import tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from mmsr.decode import Decoder, Row
from mmsr.gpu.fit import (
    GIB,
    GROUP,
    STAGES,
    USABLE,
    Memory,
    Pass,
    fit,
    longest,
    memory_of,
    needed,
    plan,
    published_config,
)
from mmsr.gpu.meter import LiveTensors
from mmsr.grpo import as_rows, grpo_config
from mmsr.policy import Policy, load_processor, lora_config
from mmsr.presets import Preset, get_preset
from mmsr.runs import command as cli
from mmsr.runs.notebooks import read_notebook
from mmsr.runs.parameters import assign
from mmsr.sft import sft_config
from mmsr.with_trl import ROWS, EpisodeTrainer
from mmsr.world.questions import make_questions

QWEN3B, QWEN7B, PAPER = (get_preset(name) for name in ("qwen3b", "qwen7b", "qwen7b_paper"))
QWEN3 = get_preset("qwen3vl2b"), get_preset("qwen3vl4b")
POLICIES = [preset.policy for preset in (QWEN3B, QWEN7B, *QWEN3)]
QWEN2, WIDE = POLICIES[:2], POLICIES[3]  # of Qwen3-VL-4B all heads are wider than the hidden states

# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "total"), zip(POLICIES, (3_754_622_976, 8_292_166_656, 2_127_532_032, 4_437_815_808))
)
def test_weights_are_as_many_as_the_hub_says(policy: str, total: int) -> None:
    assert memory_of(policy).weights["total"] == total


def test_counting_agrees_with_a_model_that_exists() -> None:
    model = tiny().model
    memory = Memory(model.config)
    assert memory.weights["total"] == sum(p.numel() for p in model.parameters())
    assert memory.weights["head"] == model.lm_head.weight.numel()  # tied: counted once in the total
    adapted = get_peft_model(AutoModelForImageTextToText.from_config(model.config), lora_config(4, 8))
    assert memory.lora(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_four_bits_hold_the_matrices_alone() -> None:
    memory = memory_of(QWEN7B.policy)
    total, matrices, head, vision = memory.weights.values()
    whole, packed = (memory.static(8, four_bit)["weights"] for four_bit in (False, True))
    assert whole == 2 * total
    assert packed == pytest.approx(0.5159 * matrices + 2 * (total - matrices))
    assert matrices + vision + 2 * head == pytest.approx(total, rel=1e-3)


# --- activations, at the true widths ----------------------------------------------------------------------------------


def few_layers(policy: str, layers: int = 2) -> PreTrainedConfig:
    """A published configuration with few layers and words."""
    config = published_config(policy)
    config.text_config.num_hidden_layers, config.vision_config.depth = layers, 1
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = config.text_config.layer_types[:layers]
    config.text_config.vocab_size = 512
    config.text_config.bos_token_id = config.text_config.eos_token_id = None
    return config


def unmade(config: PreTrainedConfig) -> Any:
    """A model in bf16 with LoRA, whose weights have shapes alone."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
        return get_peft_model(model, lora_config(8, 16))


def live_bytes(config: PreTrainedConfig, shape: Pass) -> int:
    """The peak of a forward and backward pass through the decoder, from tensors that have shapes and no contents."""
    model = unmade(config).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        inputs = torch.zeros(shape.rows, shape.positions, config.text_config.hidden_size, dtype=torch.bfloat16)
        mask = torch.ones(shape.rows, 1, shape.positions, shape.positions, dtype=torch.bool) if shape.padded else None
        with LiveTensors(model) as live:
            before = live.now
            with torch.autocast("cpu", dtype=torch.bfloat16):
                inputs = inputs.clone().requires_grad_()  # stands for the embeddings
                mask = mask.clone() if shape.padded else None
                with pytest.MonkeyPatch.context() as patch:  # without contents there is no telling that none is needed
                    modeling = f"transformers.models.{config.model_type}.modeling_{config.model_type}"
                    patch.setattr(f"{modeling}.create_causal_mask", lambda **_: mask)
                    states = model.get_base_model().model.language_model(inputs_embeds=inputs, use_cache=False)
            states.last_hidden_state.sum().backward()
    return live.peak - before


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: other tests' models and modes would change what is counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("policy", [*QWEN2, WIDE])
@pytest.mark.parametrize("shape", [Pass(1, 3000, 0, padded=False), Pass(2, 2000, 0)])
def test_a_pass_holds_what_is_predicted(policy: str, shape: Pass, apart: ProcessPoolExecutor) -> None:
    config = few_layers(policy)
    memory = Memory(config)
    terms = memory.update(shape)
    assert "one layer backwards" in terms
    predicted = sum(terms.values()) + 6 * memory.lora(8)  # a bf16 copy and gradients
    live = apart.submit(live_bytes, config, shape).result()
    assert live == pytest.approx(predicted, rel=0.03)


aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.mm.out),
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class WithoutProducts(TorchDispatchMode):
    """Leaves out what takes the time, matrix products and attention: their results are zeros of the right shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        if "out" in kwargs:
            return kwargs["out"]
        with _disable_current_modes():
            found = func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args), **kwargs)
        return tree_map_only(torch.Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), found)


def conversation(config: PreTrainedConfig, length: int, written: int = 0, cached: int = 0) -> Row:
    """A row of so many tokens, the last of them `written` by the policy."""
    text, mine = config.text_config, [False] * (length - written) + [True] * written
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = torch.zeros(text.num_hidden_layers, 2, text.num_key_value_heads, cached, size, dtype=torch.bfloat16)
    row = Row([100] * length, 8, torch.zeros(3, 8, dtype=torch.long), 0, torch.zeros(0, text.hidden_size), mine, [])
    row.logps, row.cache = [0.0] * length, cache if cached else None
    return row


def turn_bytes(config: PreTrainedConfig, step: Pass, writing: int, read: int, computed: bool = False) -> int:
    """The peak of a turn by the decoder: `read` tokens are new, and a quarter of the rows ends two words early."""
    products, new = contextlib.nullcontext() if computed else WithoutProducts(), 6
    model = unmade(config).to_empty(device="cpu").eval()
    decoder = Decoder(model, load_processor("tiny"))
    decoder.ends = set()  # turns end by their limits
    with LiveTensors(model) as live, products, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before, length = live.now, step.positions - new
        rows = [conversation(config, length, cached=length - read) for _ in range(step.rows)]
        limits = [new - 2 * (writing > 1 and 4 * (place % writing) < writing) for place in range(step.rows)]
        decoder.write(rows, limits, 0.0, (), writing)
    return live.peak - before


SHAPES = [
    (Pass(4, 700, 0), 4, 300, 2, "one layer forwards"),
    (Pass(3, 1500, 0), 1, 600, 2, "one layer forwards"),
    (Pass(8, 4000, 0), 4, 60, 2, "all heads' keys and values"),
    (Pass(8, 1000, 0), 4, 4, 14, "rows that go on"),
]


@pytest.mark.parametrize(
    ("policy", "step", "writing", "read", "layers", "largest"),
    [(policy, *shape) for policy in QWEN2 for shape in SHAPES] + [(WIDE, *shape) for shape in SHAPES[1:3]],
)
def test_a_turn_of_a_rollout_holds_what_is_predicted(
    policy: str, step: Pass, writing: int, read: int, layers: int, largest: str, apart: ProcessPoolExecutor
) -> None:
    config = few_layers(policy, layers)
    memory = Memory(config)
    terms = memory.rollout(step, writing, read)
    assert largest in terms
    predicted = sum(terms.values()) + 2 * memory.lora(8)  # a bf16 copy, which autocast keeps
    assert apart.submit(turn_bytes, config, step, writing, read).result() == pytest.approx(predicted, rel=0.05)


def test_products_left_out_change_no_byte(apart: ProcessPoolExecutor) -> None:
    config = few_layers(QWEN3B.policy)
    config.text_config.hidden_size, config.text_config.intermediate_size = 256, 512
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 2, 1
    counted = [apart.submit(turn_bytes, config, Pass(4, 200, 0), 2, 80, computed) for computed in (False, True)]
    assert counted[0].result() == counted[1].result() > Memory(config).weights["head"]


def update_bytes(config: PreTrainedConfig, shape: Pass, folder: Path) -> int:
    """The peak of GRPO's own forward and backward pass: log-probabilities of what rows wrote, and their gradients."""
    model, rows = unmade(config).to_empty(device="cpu").train(), shape.rows
    size = replace(QWEN3B, micro_batch=rows, grpo_questions=1, generations=max(rows, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr.training.in_bf16", lambda device: True)
        settings = grpo_config(size, folder, 0, 0.001)
    trainer = EpisodeTrainer(
        Policy(model, load_processor("tiny"), "random"),
        lambda *_: [],
        model=model,
        args=settings,
        reward_funcs=[lambda **_: [0.0]],
        train_dataset=as_rows(make_questions("val", 1, seed=3)),
        processing_class=load_processor("tiny"),
    )
    model.gradient_checkpointing_enable()  # as `train` does
    written = shape.written // rows
    trainer._rows = {i: conversation(config, shape.positions, written) for i in range(rows)}
    for row in trainer._rows.values():
        row.prompt = shape.positions - written
        row.positions = torch.zeros(3, row.prompt, dtype=torch.long)
    ids = torch.tensor([[number, *row.ids[1:]] for number, row in trainer._rows.items()])
    with LiveTensors(model) as live, WithoutProducts():
        before = live.now
        compute = trainer._get_per_token_logps_and_entropies
        logps, _, _ = compute(model, ids, torch.ones_like(ids), written, compute_entropy=True)
        logps.sum().backward()
    return live.peak - before


@pytest.mark.parametrize(
    ("policy", "rows", "positions"),
    [(policy, *shape) for policy in QWEN2 for shape in ((1, 1000), (2, 400), (12, 80))] + [(WIDE, 2, 400)],
)
def test_an_update_of_grpo_holds_what_is_predicted(
    policy: str, rows: int, positions: int, apart: ProcessPoolExecutor, tmp_path: Path
) -> None:
    config, shape = few_layers(policy), Pass(rows, positions, 0, False, rows * 64)
    memory = Memory(config)
    terms = memory.update(shape, cpu=True, group=GROUP)
    assert "one layer backwards" in terms and not terms["attention mask"] and not terms["pictures"]
    predicted = sum(terms.values()) + 6 * memory.lora(8)  # a bf16 copy and gradients
    assert apart.submit(update_bytes, config, shape, tmp_path).result() == pytest.approx(predicted, rel=0.06)


def test_rows_of_an_update_are_computed_together_as_the_trainer_does() -> None:
    assert GROUP == ROWS


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_keeps_to_its_memory_and_gives_up_no_more_than_it_must() -> None:
    last = None
    for gpu in (16, 24, 48, 80, 400):
        usable = round(USABLE * gpu * GIB)
        planned = {stage: plan(stage, QWEN7B, usable) for stage in STAGES}
        assert {stage: found for stage, (_, found) in planned.items()}.items() <= fit(QWEN7B, gpu).items()
        for stage, (settings, found) in planned.items():
            assert found["fits"] == (found["peak_bytes"] <= usable)
            assert found["terms_bytes"] == needed(stage, settings)
            assert settings == replace(QWEN7B, **{key: change["to"] for key, change in found["changes"].items()})
        settings, grpo = planned["grpo"]
        kept = [settings.grpo_questions, settings.max_pixels, not settings.four_bit]
        kept += [settings.rollout_rows, settings.micro_batch]  # what is given up first stands last
        assert last is None or not last[1]["fits"] or kept >= last[0]
        last = kept, grpo
    assert not planned["sft"][1]["changes"] and not grpo["changes"]  # on the largest nothing is given up


def test_a_plan_without_hope_names_the_leanest_settings() -> None:
    settings, lean = plan("grpo", QWEN7B, GIB)
    assert not lean["fits"] and settings.four_bit
    assert (settings.grpo_questions, settings.rollout_rows, settings.micro_batch) == (1, 1, 1)
    assert lean["changes"]["four_bit"] == {"from": False, "to": True}
    tried = [plan("grpo", QWEN7B, size * GIB)[1]["peak_bytes"] for size in (8, 24)]
    assert lean["peak_bytes"] == tried[0] <= tried[1]


def test_a_base_stays_in_16_bits_where_4_may_not_be_chosen_and_in_4_where_the_preset_says_so() -> None:
    assert not plan("grpo", QWEN7B, GIB, four_bit=False)[0].four_bit
    settings, found = plan("grpo", replace(QWEN7B, four_bit=True), 400 * GIB)
    assert settings.four_bit and not found["changes"] and "a matrix unpacked" in found["terms_bytes"]


def test_the_shapes_are_those_that_the_trainers_are_given(tmp_path: Path) -> None:
    for preset in (QWEN3B, QWEN7B):
        rollouts, update = longest("grpo", preset)
        config = grpo_config(preset, tmp_path, 0, 0.001)
        assert rollouts.rows == config.generation_batch_size  # TRL asks for all of them at once
        assert update.rows == config.per_device_train_batch_size
        assert update.positions == rollouts.positions > config.max_completion_length == preset.completion_tokens
        assert config.gradient_checkpointing and sft_config(preset, tmp_path, 0).gradient_checkpointing


def test_every_lever_lowers_the_peak() -> None:
    def peak(stage: str = "grpo", **changes: int) -> int:
        return sum(needed(stage, replace(QWEN3B, **changes)).values())

    for lever in (
        {"four_bit": True},
        {"rollout_rows": 8},
        {"grpo_questions": 4},
        {"max_pixels": 256 * 28 * 28},
    ):
        assert peak(**lever) < peak()
    assert peak("sft", micro_batch=1) < peak("sft")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_table_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--preset", "qwen7b", "--gpu-gb", "24"]) == 0
    shown = capsys.readouterr().out
    assert "8.29 billion weights" in shown and "sft   fits" in shown and "four_bit False → True" in shown
    assert cli.main(["fit", "--preset", "qwen7b", "--gpu-gb", "6"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("does not fit") == 2 and "it takes a GPU of" in shown and "mmsr run" not in shown


GIVEN = ["-p", "search=serper", "-p", "record=a b", "-p", "mode=record"]


def resolved(line: str) -> dict[str, dict[str, Any]]:
    """What `mmsr run` makes of a printed command, by notebook, before any of them runs."""
    options = cli.parser().parse_args(shlex.split(line)[1:])
    assert options.action == "run"
    paths = sorted((cli.repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [read_notebook(path) for path in paths if not options.notebooks or path.stem[:2] in options.notebooks]
    return assign(chosen, options.preset, cli.parameters(options.parameters), paths[0].parent)


@pytest.mark.parametrize("preset", [QWEN3B, QWEN7B, PAPER], ids=lambda preset: preset.name)
@pytest.mark.parametrize("gpu", [12, 16, 24, 48, 80, 400])
def test_the_command_it_prints_is_one_that_run_takes_and_what_it_sets_fits(
    preset: Preset, gpu: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fit", "--preset", preset.name, "--gpu-gb", str(gpu), *GIVEN])
    shown = capsys.readouterr().out
    printed = [line.strip() for line in shown.splitlines() if "mmsr run" in line]
    found = fit(preset, gpu)
    if not found["sft"]["fits"]:
        assert not printed and "takes, about" not in shown
        return
    assert ("03_grpo" in shown) == found["grpo"]["fits"] and re.search(r"\n02_sft +\d+\.\d +\d+ +\d+\.\d\d\n", shown)
    (line,) = printed
    values = resolved(line)
    stages = ["sft", "grpo"] if found["grpo"]["fits"] else ["sft"]
    assert {*values} >= {"01_build_data", "02_sft"} and ("03_grpo" in values) == ("grpo" in stages)
    for stage in stages:
        outside, sizes = (values["02_sft" if stage == "sft" else "03_grpo"][name] for name in ("outside", "sizes"))
        assert outside["search"] == "serper" and outside["record"].endswith("a b")
        assert sizes.keys() == {key for one in stages for key in found[one]["changes"]}
        assert sum(needed(stage, get_preset(preset.name, sizes)).values()) <= round(USABLE * gpu * GIB)


@pytest.mark.parametrize("wrong", ["-p rollout_row=4", "-p four_bit=perhaps", "-p preset=tiny"])
def test_a_command_that_run_does_not_take_would_be_noticed(wrong: str) -> None:
    with pytest.raises(ValueError):
        resolved(f"mmsr run --preset qwen7b {wrong}")


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--preset", "qwen3b", "--gpu-gb", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"]["total"] == 3_754_622_976 and found["usable_bytes"] == round(USABLE * 24 * GIB)
    for stage in ("sft", "grpo"):
        assert found[stage]["peak_bytes"] == sum(found[stage]["terms_bytes"].values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "huge", "--gpu-gb", "24"], "no preset 'huge'"),
        (
            ["--preset", "tiny", "--gpu-gb", "24"],
            "the sizes of 'tiny' are not known here: use one of the presets qwen3b",
        ),
        (["--preset", "qwen3b", "--gpu-gb", "0"], "--gpu-gb takes the memory of a GPU in GB"),
        (["--preset", "qwen3b", "--gpu-gb", "nan"], "--gpu-gb takes the memory of a GPU in GB"),
        (["--preset", "qwen3b", "--gpu-gb", "8", "--gpu", "TPU"], "'TPU' is not known here: use one of H200, H100"),
        (["--preset", "qwen3b", "--gpu-gb", "24", "-p", "kl=1"], "There is no parameter 'kl'"),
    ],
)
def test_what_cannot_be_said(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", *options]) == 2
    assert said in capsys.readouterr().err


PAGE = (Path(__file__).parents[2] / "docs" / "outside.md").read_text(encoding="utf-8")
SAID = {"four_bit": "4-bit", "grpo_questions": "{} questions a step", "rollout_rows": "{} at once"}


@pytest.mark.parametrize("gigabytes", [16, 24, 48, 80])
def test_the_docs_say_what_fits(gigabytes: int) -> None:
    cells = re.search(rf"^\| {gigabytes} GB \| (.+) \|$", PAGE, re.MULTILINE)[1].split(" | ")
    found = [fit(preset, gigabytes)[stage]["changes"] for preset in (QWEN3B, QWEN7B) for stage in STAGES]
    assert all(changes.keys() <= SAID.keys() for changes in found)
    assert cells == [
        ", ".join(SAID[key].format(changes[key]["to"]) for key in SAID if key in changes) or "fits" for changes in found
    ]
