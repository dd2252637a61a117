"""`mmsr export`: what is written loads with transformers alone, and its logits are the agent's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from random_qwen import FAMILIES, matrices, random_qwen
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from mmsr.policy import Policy, add_lora, load_policy
from mmsr.runs import command as cli
from mmsr.runs.ask import SHIPPED
from mmsr.runs.export import VIDEO

PICTURE = Image.effect_noise((384, 200), 90).convert("RGB")
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is the capital of Kenya?"}]}]


def a_run(folder: Path, policy: str, stage: str) -> tuple[Path, Policy]:
    """A run whose agent is a random adapter on a policy, of "tiny" the shipped one; and that agent, in fp32."""
    sizes = {} if policy == "tiny" else {"policy": policy, "max_pixels": 65536 + 4096}
    state = {"preset": "tiny" if policy == "tiny" else "qwen3b", "notebooks": {"01": {"parameters": {"sizes": sizes}}}}
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(state))
    adapter = folder / stage / "adapter"
    if policy == "tiny":
        shutil.copytree(SHIPPED, adapter)
    else:
        fresh = add_lora(load_policy(policy), 4, 8)
        for name, weight in fresh.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, 0, 0.3, torch.Generator().manual_seed(len(name)))
        fresh.model.save_pretrained(adapter)
    loaded = load_policy(policy, adapter, max_pixels=sizes.get("max_pixels"))
    loaded.model.float()
    return folder, loaded


@torch.no_grad()
def logits(model: torch.nn.Module, tokenizer: object, pictures: object) -> torch.Tensor:
    """Of a conversation about a picture, with the parts that any user of transformers has."""
    seen = pictures(images=[PICTURE], return_tensors="pt")
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    tokens = int(seen["image_grid_thw"].prod()) // 4
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * tokens), return_tensors="pt")["input_ids"]
    kinds = (ids == model.config.image_token_id).int()
    return model(input_ids=ids, mm_token_type_ids=kinds, **seen).logits.float()


@pytest.fixture(scope="module", params=["tiny", *FAMILIES])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Policy, str]:
    here, name = tmp_path_factory.mktemp("export"), request.param
    base = name if name == "tiny" else str(random_qwen(here / "base", family=name))
    run, policy = a_run(here / "run", base, "grpo" if name == "tiny" else "sft")
    return run, policy, base


@pytest.mark.parametrize("merge", [True, False])
def test_what_is_exported_loads_with_transformers_alone_and_computes_the_same(
    trained: tuple[Path, Policy, str], merge: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, policy, base = trained
    to = tmp_path / "agent"
    assert cli.main(["export", str(run), "--to", str(to), *["--merge"][:merge]]) == 0
    assert f"written to {to}" in capsys.readouterr().out
    model = AutoModelForImageTextToText.from_pretrained(to, dtype=torch.float32).eval()
    tokenizer, pictures = AutoTokenizer.from_pretrained(to), AutoImageProcessor.from_pretrained(to, backend="pil")
    found = logits(model, tokenizer, pictures)
    ours = logits(policy.model, policy.tokenizer, policy.processor.image_processor)
    with policy.base():
        apart = (logits(policy.model, policy.tokenizer, policy.processor.image_processor) - ours).abs().max()
    atol = float(apart) / 10 if merge and base != "tiny" else 1e-4  # a merged weight is rounded to bf16
    torch.testing.assert_close(found, ours, atol=atol, rtol=0)
    assert apart > 0.1
    assert (to / VIDEO).exists() == ("qwen3" in model.config.model_type)
    if merge:
        again = load_policy(str(to))
        assert again.processor.chat_template == policy.processor.chat_template
        assert again.processor.image_processor.size == policy.processor.image_processor.size
    else:
        settings = json.loads((to / "adapter_config.json").read_text())
        assert len(settings["target_modules"]) == matrices(model.config)
        assert all(".layers." in name for name in settings["target_modules"])


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "a.txt").write_text("mine")
    assert cli.main(["export", str(tmp_path), "--to", str(full)]) == 2
    assert "full holds something already: give --to a new folder" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--to", str(tmp_path / "new")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err and not (tmp_path / "new").exists()
