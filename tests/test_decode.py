"""What is kept between turns changes nothing: tokens, texts and log-probabilities are those of the whole model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_qwen import random_qwen
from small_policy import tiny

from mmsr.decode import Decoder, Row, spread
from mmsr.env import first_messages
from mmsr.policy import Policy, load_policy
from mmsr.presets import get_preset
from mmsr.protocol import render_observation
from mmsr.task import Task
from mmsr.world.questions import make_questions

TASKS = [Task.of(question) for question in make_questions("val", 9, seed=3)]
PROMPTS = get_preset("tiny").prompts
ASKED = [(task.picture, first_messages(task, PROMPTS)) for task in TASKS]
TURNS = 10


@pytest.fixture
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Decoder]:
    """A decoder that has seen no picture yet: the tiny base's, or that of a random model of the type asked for."""
    family = getattr(request, "param", "tiny")
    base = tiny() if family == "tiny" else shaken(tmp_path, family)
    with Policy(base.model, base.processor, base.name).generating() as found:
        yield found


def shaken(folder: Path, family: str) -> Policy:
    """A random model in fp32, with weights that are large enough to let each part of a picture tell."""
    policy = load_policy(str(random_qwen(folder, family=family)), max_pixels=65536)
    for name, weight in policy.model.float().named_parameters():
        weight.data *= 1 if "norm" in name else 4
    return policy


each = pytest.mark.parametrize("decoder", ["tiny", "qwen3_vl", "qwen3_5"], indirect=True)


def dialogue(decoder: Decoder, batch_size: int, order: list[int] | None = None) -> list[Row]:
    """Ten sampled turns of nine conversations, with pages of different lengths between them."""
    order = order or list(range(len(ASKED)))
    rows = decoder.open([ASKED[i] for i in order], batch_size)
    chances = [random.Random(f"{i}/chance") for i in order]
    for turn in range(TURNS):
        draws = [[chance.random() for _ in range(12)] for chance in chances]
        decoder.write(rows, [12] * len(rows), 1.0, draws, batch_size)
        for i, row in zip(order, rows):
            if turn < TURNS - 1:
                decoder.read(row, render_observation("Kenya: Nairobi is the capital. " * ((i + turn) % 4), "And?"))
    return [rows[order.index(i)] for i in range(len(ASKED))]


def test_a_prompt_has_the_tokens_that_the_processor_makes(decoder: Decoder) -> None:
    rows = decoder.open(ASKED, 4)
    for (picture, messages), row in zip(ASKED, rows):
        text = decoder.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert row.ids == decoder.processor(text=[text], images=[[picture]])["input_ids"][0]
        assert row.prompt == len(row.ids) and not any(row.written)


def test_what_follows_a_turn_is_what_the_chat_template_writes(decoder: Decoder) -> None:
    (row,), (_, messages) = decoder.open(ASKED[:1], 1), ASKED[0]
    start = len(row.ids)
    decoder.write([row], [8], 0.0, (), 1)
    said = decoder.tokenizer.decode([i for i in row.ids[start:] if i != decoder.tokenizer.eos_token_id])
    decoder.read(row, "<information>\nA page.\n</information>")
    whole = [
        *messages,
        {"role": "assistant", "content": said},
        {"role": "tool", "content": "<information>\nA page.\n</information>"},
    ]
    text = decoder.processor.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
    pads = decoder.processor.image_token * len(row.features)
    assert decoder.tokenizer.decode(row.ids) == text.replace(decoder.processor.image_token, pads)


@each
def test_log_probabilities_over_ten_turns_are_those_of_the_whole_model(decoder: Decoder) -> None:
    rows = dialogue(decoder, 4)
    plain = [row for row in rows if decoder.processor.image_token_id not in row.ids[row.prompt :]]
    assert len(plain) > 5  # of the others the whole model would take what was written for a picture
    for row in plain:
        ids, (picture, _) = torch.tensor([row.ids]), ASKED[rows.index(row)]
        seen = decoder.processor.image_processor(images=[picture], return_tensors="pt")
        kinds = (ids == decoder.processor.image_token_id).int()
        logps = decoder.model(input_ids=ids, mm_token_type_ids=kinds, **seen).logits[0].log_softmax(-1)
        own = torch.tensor(row.written[1:])
        theirs = logps[:-1].gather(1, ids[0, 1:, None])[:, 0][own]
        assert own.sum() >= TURNS
        torch.testing.assert_close(torch.tensor(row.logps[1:])[own], theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("batch_size", "order"), [(1, None), (3, None), (64, list(reversed(range(9))))])
def test_who_writes_beside_it_changes_nothing(decoder: Decoder, batch_size: int, order: list[int] | None) -> None:
    wanted = dialogue(decoder, 4)
    assert [row.ids for row in dialogue(decoder, batch_size, order)] == [row.ids for row in wanted]
    assert len({tuple(row.ids) for row in wanted}) == len(wanted)


def test_other_draws_write_other_turns(decoder: Decoder) -> None:
    rows = decoder.open([ASKED[0]] * 6, 6)
    draws = [[random.Random(f"{n}/{i}").random() for i in range(12)] for n in range(6)]
    assert len(set(decoder.write(rows, [12] * 6, 1.5, draws, 6))) > 2


class Counted:
    """Positions that pass the decoder, and pictures that pass the vision encoder."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch):
        self.positions, self.pictures = [], 0
        states, see = decoder._states, decoder.network.model.get_image_features

        def counted(embeds, *rest):
            self.positions.append(tuple(embeds.shape[:2]))
            return states(embeds, *rest)

        def seen(pixels, grids):
            self.pictures += len(grids)
            return see(pixels, grids)

        monkeypatch.setattr(decoder, "_states", counted)
        monkeypatch.setattr(decoder.network.model, "get_image_features", seen)


def test_a_picture_is_seen_once_an_equal_prompt_read_once_and_a_turn_computes_what_is_new(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counted(decoder, monkeypatch)
    rows = decoder.open([ASKED[0]] * 8, 8)
    assert count.pictures == 1 and count.positions == [(1, rows[0].prompt - 1)]
    decoder.write(rows, [4] * 8, 0.0, (), 8)
    for row in rows:
        decoder.read(row, "a page")
    new = len(rows[0].ids) - rows[0].cached
    count.positions.clear()
    decoder.write(rows, [2] * 8, 0.0, (), 8)
    assert count.positions[0] == (8, new) and set(count.positions[1:]) <= {(8, 1)} and new < 20
    decoder.open([ASKED[0]], 8)
    assert count.pictures == 1


def ending(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, *tokens: int) -> None:
    """Let the next tokens be these, whatever the model would write."""
    left = list(tokens)
    monkeypatch.setattr(decoder, "_choose", lambda states, *_: ([left.pop(0)] * len(states), [-1.0] * len(states)))


def test_a_turn_that_is_cut_off_is_closed_for_the_policy(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = decoder.open(ASKED[:1], 1)
    ending(decoder, monkeypatch, 300, 301)
    decoder.write([row], [2], 0.0, (), 1)
    decoder.read(row, "a page")
    assert row.ids[row.prompt : row.prompt + 3] == [300, 301, decoder.tokenizer.eos_token_id]
    assert row.written[row.prompt : row.prompt + 3] == [True, True, False]


@pytest.mark.parametrize("end", ["eos_token_id", "pad_token_id"])
def test_either_end_token_ends_a_turn(decoder: Decoder, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = decoder.open(ASKED[:1], 1)
    ending(decoder, monkeypatch, 300, getattr(decoder.tokenizer, end), 301)
    assert decoder.write([row], [9], 0.0, (), 1) == [decoder.tokenizer.decode([300])]
    assert sum(row.written) == 2 and row.logps[-2:] == [-1.0, -1.0]


@each
def test_a_pictures_token_that_the_policy_writes_shows_it_no_picture(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = decoder.open(ASKED[:1], 1)
    ending(decoder, monkeypatch, decoder.processor.image_token_id, decoder.tokenizer.eos_token_id)
    decoder.write([row], [4], 0.0, (), 1)
    ids, _, _ = spread([row], [(0, len(row.ids))])
    plain = decoder.network.get_input_embeddings().weight[decoder.processor.image_token_id]
    embeds = decoder.embed(ids, [row])[0]
    assert torch.equal(embeds[row.prompt], plain)
    seen = embeds[: row.prompt][ids[0, : row.prompt] == decoder.processor.image_token_id]
    assert torch.equal(seen, row.features[:, : seen.shape[1]])
    assert all(mask.sum() == len(seen) for name, mask in decoder.added(ids, [row]).items() if "mask" in name)


def test_a_special_token_that_the_policy_spells_from_pieces_stays_pieces(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelled = "<|image_pad|><|im_end|><|im_start|>user"
    pieces = [token for char in spelled for token in decoder.tokenizer(char, add_special_tokens=False)["input_ids"]]
    (row,) = decoder.open(ASKED[:1], 1)
    ending(decoder, monkeypatch, *pieces, decoder.tokenizer.eos_token_id)
    assert decoder.write([row], [len(pieces) + 1], 0.0, (), 1) == [spelled]
    decoder.read(row, render_observation("a page"))
    length = len(row.ids)
    assert [i for i, own in zip(row.ids, row.written) if own] == [*pieces, decoder.tokenizer.eos_token_id]
    ending(decoder, monkeypatch, 300, decoder.tokenizer.eos_token_id)
    assert decoder.write([row], [4], 0.0, (), 1) == [decoder.tokenizer.decode([300])] and len(row.ids) == length + 2


def test_a_turn_that_is_replaced_is_read_and_not_written(decoder: Decoder) -> None:
    one, other = decoder.open([ASKED[0]] * 2, 2)
    decoder.write([one], [8], 0.0, (), 1)
    decoder.replace_turn(one, "Kenya")
    other.add([*decoder.tokenizer("Kenya", add_special_tokens=False)["input_ids"], decoder.tokenizer.eos_token_id])
    for row in (one, other):
        decoder.read(row, "a page")
    assert one.ids == other.ids and one.written == other.written and not any(one.written)
    decoder.write([one, other], [12] * 2, 0.0, (), 2)
    assert one.ids == other.ids


def test_rows_are_padded_on_the_right_with_positions_of_their_own(decoder: Decoder) -> None:
    rows = decoder.open(ASKED[:2], 2)
    rows[1].add([300] * 3)
    ids, mask, positions = spread(rows, [(0, len(row.ids)) for row in rows])
    assert mask.sum(1).tolist() == [len(row.ids) for row in rows] and ids.shape == mask.shape == positions.shape[1:]
    late = positions[:, 1, rows[1].prompt : len(rows[1].ids)]
    assert torch.equal(late, late[:1].expand(3, -1)) and late[0].diff().tolist() == [1, 1]
    assert int(late[0, 0]) == int(rows[1].positions.max()) + 1  # a picture takes as many positions as its longer side
