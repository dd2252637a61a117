"""How the tiny base is made: its quick training step is the model's own, and the command makes a base that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr.base import pretrain
from mmsr.base.lessons import PATCH, view_of
from mmsr.base.pretrain import SPECIALS, tiny_config
from mmsr.policy import TINY_DIR, load_policy

POLICY = load_policy("tiny")
TOKENIZER = POLICY.processor.tokenizer
SHORT = pretrain.Phase(length=192, batch=2, peak=1e-4, relays=0.75, warm=1, minutes=0.05)


@pytest.fixture(params=[(640, 640), (800, 600), (300, 600)], ids=["square", "wide", "high"])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [2, 192] and pictures [2, H, W, 3] of one shape, as the first worker draws them."""
    view = view_of(request.param)
    monkeypatch.setattr(pretrain, "lesson_view", lambda rng: view)
    ids, views = next(iter(pretrain.Lessons(TOKENIZER, SHORT, seed=0)))
    assert ids.shape == (2, 192) and views.shape == (2, view[1], view[0], 3)
    return torch.tensor(ids), torch.tensor(views)


def grids(views: torch.Tensor) -> torch.Tensor:
    """Patches of each picture, in time, height and width."""
    return torch.tensor([[1, views.shape[1] // PATCH, views.shape[2] // PATCH]] * len(views))


def fresh_model() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(TINY_DIR, dtype=torch.float32).eval()


def test_patches_are_the_processors(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, views = batch
    pictures = [Image.fromarray(view.numpy()) for view in views]
    theirs = POLICY.processor.image_processor(pictures, do_resize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pretrain.patches(views), theirs, atol=1e-5, rtol=1e-5)


def test_the_step_is_the_models_own_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, views = batch
    model = fresh_model()
    pixels, grid = pretrain.patches(views), grids(views)
    labels = ids.masked_fill(ids == model.config.image_token_id, -100)
    types = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        theirs = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=types,
            labels=labels,
        ).loss
        pretrain.batched_vision_attention(model)
        ours = pretrain.step_loss(model, ids, views, torch.ones(ids.shape))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_all_sequences_have_the_positions_of_the_first(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, views = batch
    model = fresh_model()
    pictured = ids == model.config.image_token_id
    where, _ = model.model.get_rope_index(ids, pictured.int(), image_grid_thw=grids(views))
    assert torch.equal(where, where[:, :1].expand(3, *ids.shape))
    start = int(pictured[0].float().argmax())
    assert pictured[:, start].all() and not pictured[:, :start].any()  # every sequence begins with its picture


def test_answers_bear_the_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, _ = batch
    tokens = {token: TOKENIZER.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "assistant")}
    text = "<|im_start|>user\nlocate: it<|im_end|>\n<|im_start|>assistant\n12,40<|im_end|>\n"
    one = torch.tensor([TOKENIZER(text, add_special_tokens=False)["input_ids"]])
    heavy = TOKENIZER.decode(one[pretrain.answer_weights(one, tokens) == 1.0])
    assert heavy == "\n12,40<|im_end|>"
    torch.manual_seed(0)
    weights = torch.cat([pretrain.answer_weights(ids, tokens) for _ in range(200)])
    quiet = weights[weights != 1.0]
    assert quiet.mean().item() == pytest.approx(pretrain.QUIET_WEIGHT, rel=0.1)
    assert (quiet == 0).float().mean().item() == pytest.approx(1 - pretrain.QUIET_SHARE, rel=0.1)


def test_the_rate_warms_up_holds_and_falls() -> None:
    rates = [pretrain.learning_rate(progress, 1.0) for progress in (0.0, 0.01, 0.02, 0.5, 0.65, 0.825, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_every_weight_is_trained_once_and_the_vision_at_half_the_rate() -> None:
    model = fresh_model()
    groups = pretrain.parameter_groups(model)
    chosen = [id(p) for group in groups for p in group["params"]]
    assert sorted(chosen) == sorted(id(p) for p in model.parameters())
    halved = {id(p) for group in groups if group["share"] == 0.5 for p in group["params"]}
    assert halved == {id(p) for p in model.model.visual.parameters()}


def test_a_deeper_model_begins_by_computing_what_its_base_does(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, views = batch
    base, config = fresh_model(), tiny_config()
    config.text_config.num_hidden_layers += 2
    config.text_config.layer_types += ["full_attention"] * 2
    config.vision_config.depth += 1
    config.vision_config.fullatt_block_indexes = list(range(config.vision_config.depth))
    deep = Qwen2_5_VLForConditionalGeneration(config).eval()
    deep.load_state_dict(pretrain.grown(base, config))
    losses = []
    for model in (base, deep):
        pretrain.batched_vision_attention(model)
        losses.append(pretrain.step_loss(model, ids, views, torch.ones(ids.shape)))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    losses[1].backward()
    copies = [deep.model.language_model.layers[1].mlp.down_proj, deep.model.visual.blocks[1].attn.proj]
    assert all(copy.weight.grad.abs().max() > 0 for copy in copies)  # and what the copies add can be learned


def test_the_shipped_base_has_this_architecture() -> None:
    shipped, made = Qwen2_5_VLConfig.from_pretrained(TINY_DIR), tiny_config()
    assert shipped.text_config.to_diff_dict().keys() >= {"hidden_size"}
    for part in ("text_config", "vision_config"):
        for name in ("hidden_size", "intermediate_size"):
            assert getattr(getattr(shipped, part), name) == getattr(getattr(made, part), name)
    weights = {name: tuple(w.shape) for name, w in Qwen2_5_VLForConditionalGeneration(made).state_dict().items()}
    assert weights == {name: tuple(w.shape) for name, w in fresh_model().state_dict().items()}
    assert {TOKENIZER.decode([TOKENIZER.convert_tokens_to_ids(token)]) for token in SPECIALS} == set(SPECIALS)
    assert TOKENIZER.convert_tokens_to_ids(SPECIALS) == list(range(len(SPECIALS)))
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        assert getattr(made, name) == getattr(shipped, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(made.text_config, name) == getattr(shipped.text_config, name)


def test_the_command_goes_on_from_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setitem(pretrain.LAST, last, SHORT._replace(minutes=60.0))
    monkeypatch.setattr(pretrain, "STEPS", 1)
    out, real, steps = tmp_path / "base", pretrain.step_loss, []

    def stopped(*given: torch.Tensor) -> torch.Tensor:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(real(*given))
        return steps[-1]

    monkeypatch.setattr(pretrain, "step_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(out, workers=0, start=TINY_DIR)
    assert load_policy(str(out / "partial"))  # what a run that is cut short leaves
    left = json.loads((out / "partial" / "recipe.json").read_text())[-1]
    assert left["steps"] == 3 and left["minutes"] > 0
    monkeypatch.setattr(pretrain, "step_loss", real)
    monkeypatch.setitem(pretrain.LAST, last, SHORT._replace(minutes=left["minutes"] + 0.02))
    pretrain.main(out, workers=0, start=TINY_DIR)
    recipe, before = (json.loads((folder / "recipe.json").read_text()) for folder in (out, TINY_DIR))
    assert recipe[:-1] == before and recipe[-1]["steps"] > 3 and recipe[-1]["minutes"] > left["minutes"]
    assert not (out / "partial").exists()
    made, shipped = load_policy(str(out)).model.state_dict(), fresh_model().state_dict()
    moved = [name for name, weight in made.items() if not torch.equal(weight.float(), shipped[name])]
    assert any("visual" in name for name in moved) and any("language_model" in name for name in moved)
