"""Grounding DINO as grounder: a random model of its class finds boxes, known outputs become the right crops."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from random_qwen import hub_copy
from small_policy import tiny
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from mmsr.env import SearchEnv
from mmsr.lab import open_tools
from mmsr.live.dino import (
    MODEL,
    REVISION,
    SMALLEST,
    THRESHOLD,
    DinoGrounder,
    as_caption,
    enlarge,
    load_dino,
)
from mmsr.presets import get_preset
from mmsr.protocol import Box
from mmsr.runs import command as cli
from mmsr.task import Task
from mmsr.world.questions import make_questions

WORDS = ("the", "flag", "on", "left", "red", "second", "from", ",")
FIXED = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}  # as BERT has them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Grounding DINO, narrow and shallow, with its processor, as the hub would keep it."""
    folder = tmp_path_factory.mktemp("dino")
    vocabulary = [FIXED.get(i, f"[unused{i}]") for i in range(1030)] + list(WORDS)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    swin = SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_indices=[2, 3, 4], image_size=224
    )
    bert = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 160}
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder


Loaded = tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_dino(str(folder), revision=None)


class Known:
    """The detector with known outputs: queries of given scores and boxes, relative to the picture's sides."""

    def __init__(self, model: GroundingDinoForObjectDetection, found: list[tuple[float, list[float]]]):
        self.config, self.device, self.found, self.seen = model.config, torch.device("cpu"), found, []

    def __call__(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, **_: object):
        self.seen.append((input_ids[0].tolist(), tuple(pixel_values.shape[-2:])))
        logits = torch.full((1, len(self.found), self.config.max_text_len), -torch.inf)
        for query, (score, _) in enumerate(self.found):
            logits[0, query, 1 + query % 2] = torch.tensor(score).logit()  # any token of the phrase
        boxes = [[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in self.found]
        return GroundingDinoObjectDetectionOutput(logits=logits, pred_boxes=torch.tensor([boxes]))


def known(loaded: Loaded, *found: tuple[float, list[float]]) -> DinoGrounder:
    model, processor = loaded
    return DinoGrounder(Known(model, list(found)), processor)


def test_a_random_detector_finds_boxes_within_any_picture(loaded: Loaded) -> None:
    model, processor = loaded
    for size in ((384, 384), (500, 90), (70, 300), (40, 40)):
        picture = Image.effect_noise(size, 80).convert("RGB")
        x1, y1, x2, y2 = DinoGrounder(model, processor, threshold=0.0).locate(picture, "The flag on the left")
        assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]
        assert x2 - x1 >= min(SMALLEST, size[0]) and y2 - y1 >= min(SMALLEST, size[1])
        assert DinoGrounder(model, processor, threshold=1.0).locate(picture, "The flag on the left") is None
    assert not any(weight.requires_grad and weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 400), (90, 190, 210, 310)),  # 100…200 and 200…300, a tenth of the side wider on each side
        ((4000, 300), (900, 142, 2100, 232)),
        ((300, 1000), (68, 475, 158, 775)),
        ((100, 120), (5, 43, 69, 107)),  # 25…50 and 60…90, grown to 64 pixels about the middle
        ((50, 600), (0, 285, 50, 465)),  # the picture itself is narrower than that
    ],
)
def test_a_known_box_is_padded_and_scaled_to_the_picture(loaded: Loaded, size: tuple[int, int], box: Box) -> None:
    grounder = known(loaded, (0.3, [0, 0, 1, 1]), (0.8, [0.25, 0.5, 0.5, 0.75]), (0.6, [0.1, 0.1, 0.2, 0.2]))
    assert grounder.locate(Image.new("RGB", size), "the flag") == box


def test_small_boxes_at_the_edge_are_moved_in() -> None:
    picture = Image.new("RGB", (200, 100))
    assert enlarge((0, 0, 10, 10), picture) == (0, 0, 64, 64)
    assert enlarge((190, 90, 200, 100), picture) == (136, 36, 200, 100)
    assert enlarge((0, 0, 200, 100), picture) == (0, 0, 200, 100)
    assert enlarge((10, 10, 20, 20), Image.new("RGB", (30, 20))) == (0, 0, 30, 20)


def test_nothing_found_is_none(loaded: Loaded) -> None:
    picture = Image.new("RGB", (300, 200))
    assert known(loaded, (0.2, [0.25, 0.5, 0.5, 0.75])).locate(picture, "the flag") is None  # below the threshold
    assert known(loaded, (0.9, [0.5, 0.5, 0.5, 0.75])).locate(picture, "the flag") is None  # no width
    assert known(loaded, (0.9, [1.2, 0.5, 1.4, 0.75])).locate(picture, "the flag") is None  # outside
    nothing = known(loaded, (0.9, [0, 0, 1, 1]))
    assert nothing.locate(picture, " . ") is None and not nothing.model.seen


def test_captions_are_lower_case_phrases_with_a_full_stop(loaded: Loaded) -> None:
    assert as_caption("  The Flag on the LEFT. ") == "the flag on the left."
    assert as_caption("St. Vincent's flag, no. 2") == "st vincent's flag, no 2."  # a full stop would part it in two
    assert as_caption("...") == as_caption("") == ""
    grounder = known(loaded, (0.9, [0, 0, 1, 1]))
    for _ in range(2):
        grounder.locate(Image.new("RGB", (200, 100)), "The red Flag")
    (ids, size), *again = grounder.model.seen
    assert not again  # an expression on a picture is looked for once
    assert grounder.processor.tokenizer.decode(ids) == "[CLS] the red flag. [SEP]" and size == (80, 160)
    pairs = [(Image.new("RGB", (200, 100)), words) for words in ("The red Flag", "the flag " * 500)]
    assert grounder.locate_all(pairs) == [(0, 0, 200, 100)] * 2
    assert len(grounder.model.seen[1][0]) == grounder.model.config.max_text_len


def test_its_crop_is_what_an_episode_searches(loaded: Loaded) -> None:
    preset = get_preset("tiny")
    question = next(q for q in make_questions("test", 10, seed=3) if q.type in ("one_hop", "two_hop", "hard"))
    task, tools = Task.of(question), open_tools(preset, tiny())
    relative = [v / side for v, side in zip(question.box, task.picture.size * 2)]
    grounder = known(loaded, (0.7, relative))
    env = SearchEnv(replace(tools, grounder=grounder), preset.prompts, task)
    env.step("<reason>Whose is it?</reason><img_search>the flag</img_search>")
    (turn,) = env.trajectory.turns
    assert not turn.error and turn.box == enlarge(question.box, task.picture) and turn.hits


def test_the_default_is_one_state_of_the_hub(
    folder: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_copy(folder, tmp_path, MODEL, REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    grounder, weights = DinoGrounder(), loaded[0].state_dict()
    assert grounder.threshold == THRESHOLD and not grounder.model.training
    assert all(torch.equal(weight, weights[name]) for name, weight in grounder.model.state_dict().items())
    with pytest.raises(OSError):
        load_dino(MODEL, "0" * 40)


def test_a_detector_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    assert cli.main(["ask", str(tmp_path / "a.png"), "Whose flag?", "-p", "grounder=dino"]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"mmsr: Grounding DINO cannot be loaded \(.+\): go online once, .+\.\n", told)
