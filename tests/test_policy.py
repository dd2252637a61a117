"""The policy generates the same alone and in a batch, switches LoRA off, and hands tensors to the trainers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_policy import tiny

from mmsr.decode import Decoder
from mmsr.policy import TINY_DIR, Policy, add_lora, in_bf16, load_policy, load_processor, merged
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import load_world

WORLD = load_world()


def asked(n: int) -> list[tuple[Image.Image, list[dict]]]:
    """Conversations of different lengths."""
    found = []
    for i, q in enumerate(make_questions("train", n, seed=41)):
        text = f"locate: {q.expression}" if i % 2 and q.expression else q.text
        content = [{"type": "image"}, {"type": "text", "text": text}]
        found.append((q.scene().picture, [{"role": "user", "content": content}]))
    return found


def test_the_tiny_base_is_small_whole_and_frozen() -> None:
    model = tiny().model
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert sum(path.stat().st_size for path in TINY_DIR.iterdir()) < 16_000_000


def test_every_cpu_computes_in_fp32_and_every_gpu_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not in_bf16(torch.device("cpu")) and in_bf16(torch.device("cuda"))


def test_one_by_one_is_as_all_at_once() -> None:
    conversations = asked(9)
    together = tiny().generate(conversations, 24)
    assert tiny().generate(conversations, 24) == together
    assert tiny().generate(conversations, 24, batch_size=3) == together
    assert tiny().generate(conversations, 24, batch_size=1) == together
    assert [tiny().generate([c], 24)[0] for c in conversations[::3]] == together[::3]
    assert len({*together}) > 4 and all(text and "<|" not in text for text in together)


def test_merged_weights_compute_the_same_and_are_put_back_bit_for_bit() -> None:
    policy = shaken(load_policy("tiny"))
    ids = torch.tensor([policy.tokenizer("Flag of Kenya, and what is the capital of Kenya?")["input_ids"]])
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    with torch.no_grad():
        apart = policy.model(input_ids=ids).logits
        with merged(policy.model):
            inside = policy.model.state_dict()
            together = policy.model(input_ids=ids).logits
            moved = [name for name, weight in before.items() if not torch.equal(inside[name], weight)]
        with policy.base():
            base = policy.model(input_ids=ids).logits
            with merged(policy.model):
                assert torch.equal(policy.model(input_ids=ids).logits, base)
    layers = policy.model.config.get_text_config().num_hidden_layers
    assert len(moved) == 7 * layers and all("language_model" in name for name in moved)
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(apart, base, atol=1e-2)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_base_in_bf16_is_not_merged_into() -> None:
    policy = shaken(load_policy("tiny"))
    policy.model.to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    with merged(policy.model):
        assert all(torch.equal(weight, before[name]) for name, weight in policy.model.state_dict().items())


def shaken(policy: Policy) -> Policy:
    """The policy with LoRA weights that do something."""
    policy = add_lora(policy, r=4, alpha=8)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return policy


def test_lora_is_on_the_language_model_starts_as_nothing_and_can_be_switched_off() -> None:
    conversations = asked(4)
    plain = tiny().generate(conversations, 16)
    fresh = add_lora(load_policy("tiny"), r=4, alpha=8)
    assert fresh.generate(conversations, 16) == plain
    trainable = [name for name, weight in fresh.model.named_parameters() if weight.requires_grad]
    layers = tiny().model.config.get_text_config().num_hidden_layers
    assert len(trainable) == layers * 7 * 2 and all("language_model" in n and "lora_" in n for n in trainable)
    policy = shaken(load_policy("tiny"))
    changed = policy.generate(conversations, 16)
    assert changed != plain
    with policy.base():
        assert policy.generate(conversations, 16) == plain
    assert policy.generate(conversations, 16) == changed
    with tiny().base():
        assert tiny().generate(conversations, 16) == plain


def test_an_adapter_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = shaken(load_policy("tiny"))
    policy.model.save_pretrained(tmp_path)
    loaded = load_policy("tiny", adapter=tmp_path)
    assert loaded.generate(asked(4), 16) == policy.generate(asked(4), 16)
    assert any(weight.requires_grad for weight in loaded.model.parameters())
    with pytest.raises((OSError, ValueError), match="adapter_config"):
        load_policy("tiny", adapter=tmp_path / "nothing")


@pytest.mark.parametrize("asked_for", [None, "np", "pt"])
def test_the_processor_gives_tensors_whatever_is_asked(asked_for: str | None) -> None:
    extra = {"return_tensors": asked_for} if asked_for else {}
    picture = Image.new("RGB", (384, 384), "red")
    text = "<|vision_start|><|image_pad|><|vision_end|>a flag"
    batch = tiny().processor(text=[text], images=[[picture]], **extra)
    assert isinstance(batch["pixel_values"], torch.Tensor) and isinstance(batch["image_grid_thw"], torch.Tensor)
    merged = int(batch["image_grid_thw"].prod()) // tiny().processor.image_processor.merge_size ** 2
    pad = tiny().tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert list(map(int, batch["input_ids"][0])).count(pad) == merged > 1


def test_the_processor_does_without_pictures_and_keeps_to_a_size() -> None:
    assert "pixel_values" not in tiny().processor(text=["a flag"])
    picture = Image.new("RGB", (384, 384))
    for side in (192, 96):  # the second time, to see that the first changed no default
        larger = load_processor("tiny", max_pixels=side * side)
        assert Policy(tiny().model, larger, "tiny").frame(picture) == (side, side)
        grid = larger(text=["<|image_pad|>"], images=[[picture]])["image_grid_thw"][0].tolist()
        assert grid == [1, side // larger.image_processor.patch_size, side // larger.image_processor.patch_size]
    assert tiny().frame(picture) == (128, 128)


def test_a_folder_laid_out_as_qwens_loads_without_a_video_processor(tmp_path: Path) -> None:
    shutil.copytree(TINY_DIR, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings["processor_class"] = "Qwen2_5_VLProcessor"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded, picture = load_processor(str(tmp_path)), Image.new("RGB", (384, 384), "red")
    ours, theirs = (p(text=["<|image_pad|> a flag"], images=[[picture]]) for p in (tiny().processor, loaded))
    assert ours["input_ids"] == theirs["input_ids"] and torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_tokens_are_counted_without_special_ones() -> None:
    assert tiny().count_tokens("") == 0
    assert 1 <= tiny().count_tokens("Kenya") < tiny().count_tokens("Kenya, Peru and France")


@pytest.mark.parametrize("token", ["[PAD]", "▁eot▁"])
def test_a_tokenizer_is_refused_whose_special_tokens_a_page_could_spell(token: str, tmp_path: Path) -> None:
    processor = load_processor("tiny")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    processor.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="which a page could spell"):
        load_processor(str(tmp_path))


def test_episodes_side_by_side_ask_it_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = overlaps = 0

    def slow(*args: object, **kwargs: object) -> list[str]:
        nonlocal inside, overlaps
        inside += 1
        overlaps += inside > 1
        time.sleep(0.002)
        inside -= 1
        return [""]

    policy = Policy(tiny().model, tiny().processor, "tiny")
    for method in ("open", "write", "read"):
        monkeypatch.setattr(Decoder, method, slow)

    def ask() -> None:
        policy.read(None, "a page")
        policy.ask([(None, [{"role": "user", "content": "Kenya"}])])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == 0
