"""How the tiny base was made: one command, one seed, minutes on a GPU (or on a CPU with patience).

    python -m mmsr.base.pretrain --out base --seed 0        # the same command goes on from where it was stopped
    python -m mmsr.base.pretrain --start src/mmsr/assets/tiny       # the last phase alone, from a base (that grows)

It trains a byte-level BPE on the lessons, then the smallest useful Qwen2.5-VL (arXiv 2502.13923; its sizes are in
`assets/base/architecture.toml`) on sequences of lessons (lessons.py), with loss on every text token: phase 1 on all
lessons but relays, phase 2 on relays too, and on longer sequences. The result is shipped in `assets/tiny`, with a card.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmsr.base.lessons import (
    MERGE,
    PATCH,
    SIZES,
    VIEW,
    lesson_scene,
    lesson_view,
    mosaic,
    scene_lessons,
    text_lesson,
    visual_lessons,
)
from mmsr.base.reading import PLAIN_WORDS, Lesson, now_and_then_marked
from mmsr.base.relays import Relays
from mmsr.files import write_json
from mmsr.policy import best_device, in_bf16
from mmsr.world.photo import Size

SPECIALS: list[str] = SIZES["tokenizer"]["specials"]
OPTIMISER = "optimiser.pt"
STEPS = 100  # between two reports of the loss and two saves
SCENE_REUSE = 4
MOSAICS = 0.4  # of the pictures drawn; a scene serves four sequences, so about a seventh of the sequences
QUIET_WEIGHT = 0.1  # of a token that is no answer, against 1 of an answer's
QUIET_SHARE = 0.125  # of those tokens, at random, bear it for all: logits over the vocabulary are a fifth of a step


class Phase(NamedTuple):
    """A stretch of training: tokens a sequence, sequences a step, peak rate, share of relays, sequences until there is
    little copying, minutes.
    """

    length: int
    batch: int
    peak: float
    relays: float
    warm: int
    minutes: float


FIRST = Phase(576, 192, 1.5e-3, 0.0, 7680, 8.5)
LAST = {"cuda": Phase(1024, 128, 1.2e-3, 0.5, 1, 11.2), "cpu": Phase(1024, 8, 7e-4, 0.5, 1, 230.0)}


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,560 tokens, trained on lessons: train countries and invented words alone."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = [" ".join(PLAIN_WORDS), "user\nassistant\n"] * 400
    lessons = [text_lesson(rng, copying=0.1) for _ in range(20_000)]
    lessons += [lesson for _ in range(150) for lesson in scene_lessons(lesson_scene(rng), rng)]
    texts += [text for lesson in lessons for text in lesson]
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(SIZES["tokenizer"]["split"]), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    size, chars = SIZES["text"]["vocab_size"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, initial_alphabet=chars, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SIZES["tokenizer"]["settings"])


def tiny_config() -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL of the sizes in architecture.toml: language layers of 256, vision layers of 128, 8-pixel patches."""
    text, vision = SIZES["text"] | {"bos_token_id": None}, SIZES["vision"] | {"window_size": VIEW}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **SIZES["picture_tokens"])


def picture_processor() -> Qwen2VLImageProcessorPil:
    """Every picture is brought to about VIEW×VIEW pixels, in steps of 16."""
    size = {"shortest_edge": VIEW * VIEW, "longest_edge": VIEW * VIEW}
    return Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, size=size)


class Lessons(IterableDataset):
    """Endless batches: token ids [B, length], and pictures [B, H, W, 3] as bytes, of one size in a batch.

    Each worker draws its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, phase: Phase, seed: int):
        self.tokenizer, self.phase, self.seed = tokenizer, phase, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        worker = get_worker_info()
        relays = Relays(lambda text: len(self.tokenizer.tokenize(text)))
        rng = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        drawn = 0
        while True:
            view, rows = lesson_view(rng), []
            while len(rows) < self.phase.batch:
                copying = 0.15 + 0.6 * max(0.0, 1 - (drawn + len(rows)) / self.phase.warm)
                rows += self._rows(view, relays, rng, copying)
            drawn += len(rows)
            ids, views = zip(*rows[: self.phase.batch])
            yield np.stack(ids), np.stack(views)

    def _rows(self, view: Size, relays: Relays, rng: random.Random, copying: float) -> list[tuple]:
        """A mosaic's sequence, or those that one scene serves, each with the picture."""
        if rng.random() < MOSAICS:
            tiles, lessons = mosaic(rng, view)
            return [(self._fill(lessons, view, rng, copying), np.array(tiles))]
        scene, rows = lesson_scene(rng, view), []
        seen = np.array(scene.picture.resize(view, Image.Resampling.BICUBIC))
        for _ in range(SCENE_REUSE):
            relay = relays.draw(scene, rng) if rng.random() < self.phase.relays else []
            if relay:  # after what relays never ask, lest it be forgotten
                lessons = visual_lessons(scene, rng)[:2] + [now_and_then_marked(lesson, rng) for lesson in relay]
            else:
                lessons = scene_lessons(scene, rng)
            rows.append((self._fill(lessons, view, rng, copying, behind_texts=not relay), seen))
        return rows

    def _fill(
        self, lessons: list[Lesson], view: Size, rng: random.Random, copying: float, behind_texts: bool = True
    ) -> np.ndarray:
        """These lessons, the picture before the first one, then lessons on text up to the phase's length."""
        if behind_texts and rng.random() < 0.5:  # some lessons on text go first: skills must not depend on the place
            lessons = [text_lesson(rng, copying) for _ in range(rng.randint(1, 4))] + lessons
        tokens = (view[0] // PATCH // MERGE) * (view[1] // PATCH // MERGE)
        picture = "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"
        ids: list[int] = []
        while len(ids) < self.phase.length:
            text = ""
            for instruction, response in lessons or [text_lesson(rng, copying) for _ in range(6)]:
                text += f"<|im_start|>user\n{picture}{instruction}<|im_end|>\n"
                text += f"<|im_start|>assistant\n{response}<|im_end|>\n"
                picture = ""
            ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
            lessons = []
        return np.asarray(ids[: self.phase.length], dtype=np.int64)


def patches(views: torch.Tensor) -> torch.Tensor:
    """Pictures [B, H, W, 3] as bytes → patches [B·H·W/64, 3·2·8·8], as the processor makes them but in one go."""
    processor = picture_processor()
    mean, std = (torch.tensor(v, device=views.device) for v in (processor.image_mean, processor.image_std))
    x = ((views.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    b, high, wide = len(views), views.shape[1] // PATCH // MERGE, views.shape[2] // PATCH // MERGE
    x = x.view(b, 3, high, MERGE, PATCH, wide, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)  # b gh gw mh mw c ph pw
    return x.unsqueeze(6).expand(*x.shape[:6], 2, PATCH, PATCH).reshape(b * high * wide * MERGE**2, -1)


def batched_vision_attention(model: Qwen) -> None:
    """Attend to all pictures of a batch at once: they have one size here, and the stock code loops over them."""

    def forward(self, hidden_states, cu_seqlens, position_embeddings=None, **kwargs):
        length = len(hidden_states)
        q, k, v = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        pictures = len(cu_seqlens) - 1  # these are where pictures end, and 0
        q, k, v = (x.reshape(pictures, -1, self.num_heads, x.shape[-1]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(length, -1))

    for block in model.model.visual.blocks:
        block.attn.forward = forward.__get__(block.attn)


def answer_weights(ids: torch.Tensor, tokens: dict[str, int]) -> torch.Tensor:
    """1 for the tokens of an answer and its end, QUIET_WEIGHT on average for the rest, most of them 0. ids [B, L].

    Copying does not start without loss on all text; boxes and colours drown if all text weighs the same.
    """
    before = F.pad(ids[:, :-1], (1, 0), value=-1)
    opens = (before == tokens["<|im_start|>"]) & (ids == tokens["assistant"])
    closes = before == tokens["<|im_end|>"]
    # in an answer is what comes after an opening that is younger than the last closing
    index = torch.arange(ids.shape[1], device=ids.device)
    opened, closed = (torch.where(at, index, -1).cummax(1).values for at in (opens, closes))
    quiet = torch.where(torch.rand(ids.shape, device=ids.device) < QUIET_SHARE, QUIET_WEIGHT / QUIET_SHARE, 0.0)
    return torch.where((opened > closed) & ~opens, 1.0, quiet)


def step_loss(model: Qwen, ids: torch.Tensor, views: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy over the text tokens. ids and weights [B, L], views [B, H, W, 3]."""
    grid = [edge // PATCH for edge in views.shape[1:3]]
    film, picture = torch.tensor([[[len(views), *grid]], [[1, *grid]]], device=ids.device)
    seen = {"pixel_values": patches(views), "image_grid_thw": film}  # frames of one film are attended apart
    is_picture = ids == model.config.image_token_id
    # every sequence begins with its picture, so that all have the positions of the first
    where, _ = model.model.get_rope_index(ids[:1], is_picture[:1].int(), image_grid_thw=picture)
    hidden = model.model(ids, position_ids=where.expand(3, *ids.shape), use_cache=False, **seen).last_hidden_state
    keep = ~is_picture[:, 1:] & (weights[:, 1:] > 0)
    logits = model.lm_head(hidden[:, :-1][keep])
    losses, weights = F.cross_entropy(logits.float(), ids[:, 1:][keep], reduction="none"), weights[:, 1:][keep]
    return (losses * weights).sum() / weights.sum()


def learning_rate(progress: float, peak: float) -> float:
    """Warm up over the first 2 %, hold, then decay linearly to nothing over the last 35 %."""
    return peak * min(progress / 0.02, 1.0, max(0.0, (1 - progress) / 0.35))


def parameter_groups(model: Qwen) -> list[dict]:
    """Weight decay on matrices alone; the vision encoder at half the rate, for at the full one it loses its colours."""
    groups = []
    for share, vision in ((0.5, True), (1.0, False)):
        for decay, matrix in ((0.05, True), (0.0, False)):
            chosen = [p for n, p in model.named_parameters() if ("visual" in n) == vision and (p.ndim > 1) == matrix]
            groups.append({"params": chosen, "weight_decay": decay, "share": share})
    return groups


def train(out: Path, start: Path | None, phase: Phase, seed: int, workers: int) -> None:
    """Train one phase, from `start` or from nothing, for its minutes of wall-clock time, and save under `out`.

    Every 100 steps it prints the mean loss, raises RuntimeError where that diverges, and saves `out/partial`, from
    which it goes on where it was stopped.
    """
    partial = out / "partial"
    going_on = partial.exists()
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    device = best_device()
    cuda = device.type == "cuda"
    start = partial if going_on else start
    model, tokenizer = begin(start, seed, device)
    tokens = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "assistant")}
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=phase.peak, betas=(0.9, 0.98), fused=cuda)
    before = json.loads((start / "recipe.json").read_text(encoding="utf-8")) if start else []
    name = torch.cuda.get_device_name() if cuda else "cpu"
    done = phase._asdict() | {"minutes": 0.0, "seed": seed, "device": name, "steps": 0}
    if going_on:
        done = before.pop()
        optimiser.load_state_dict(torch.load(partial / OPTIMISER, map_location=device, weights_only=True))
    lessons = Lessons(tokenizer, phase, seed + done["steps"])  # not those from before it was stopped
    loader = DataLoader(lessons, batch_size=None, num_workers=workers, pin_memory=cuda)
    began, earlier, window = time.time(), done["minutes"], []
    for ids, views in loader:
        done["minutes"] = earlier + (time.time() - began) / 60
        if done["minutes"] >= phase.minutes:
            break
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * learning_rate(done["minutes"] / phase.minutes, phase.peak)
        ids, views = ids.to(device, non_blocking=True), views.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16(device)):
            loss = step_loss(model, ids, views, answer_weights(ids, tokens))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        window.append(loss.detach())
        done["steps"] += 1
        if len(window) == STEPS:
            mean, window = torch.stack(window).mean().item(), []
            print({"step": done["steps"], "loss": round(mean, 4), "minutes": round(done["minutes"], 1)}, flush=True)
            if not math.isfinite(mean):
                raise RuntimeError(f"the loss is {mean} at step {done['steps']}: lower `peak` of this phase")
            save(model, tokenizer, new := out / "partial.new", [*before, done], torch.float32)
            torch.save(optimiser.state_dict(), new / OPTIMISER)
            shutil.rmtree(partial, ignore_errors=True)
            new.rename(partial)
    save(model, tokenizer, out, [*before, done])
    shutil.rmtree(partial, ignore_errors=True)


def begin(start: Path | None, seed: int, device: torch.device) -> tuple[Qwen, PreTrainedTokenizerFast]:
    """The model and the tokenizer of `start`, or fresh ones; made quick for batches of equal pictures."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start) if start else train_tokenizer(seed)
    model = Qwen(tiny_config())
    if start:
        model.load_state_dict(grown(Qwen.from_pretrained(start, dtype=torch.float32), model.config))
    model = model.to(device).train()
    batched_vision_attention(model)
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True  # a layer that does not compile runs as it is
        for layer in model.model.language_model.layers:
            layer.compile()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    return model, tokenizer


def grown(base: Qwen, config: Qwen2_5_VLConfig) -> dict[str, torch.Tensor]:
    """The weights of a base for a deeper model, which begins by computing what the base does.

    Layers are copied next to themselves, and what a copy adds to the stream is 0 at first ("block expansion", LLaMA
    Pro, arXiv 2401.02415). Of a base of the same depth these are its own weights.
    """
    weights, deep = base.state_dict(), {}
    depths = ((of.text_config.num_hidden_layers, of.vision_config.depth) for of in (base.config, config))
    for stack, has, wants in zip(("model.language_model.layers", "model.visual.blocks"), *depths):
        for layer in range(wants):
            old, is_copy = layer * has // wants, layer > 0 and (layer - 1) * has // wants == layer * has // wants
            for name in [name for name in weights if name.startswith(f"{stack}.{old}.")]:
                adds = re.search(r"(o_proj|attn\.proj|down_proj)\.(weight|bias)$", name)
                new = name.replace(f"{stack}.{old}.", f"{stack}.{layer}.")
                deep[new] = torch.zeros_like(weights[name]) if is_copy and adds else weights[name]
    return {name: weight for name, weight in weights.items() if not re.search(r"\.(layers|blocks)\.", name)} | deep


def save(
    model: Qwen,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    recipe: list[dict],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights, tokenizer, processor and recipe, as `load_policy` reads them; in fp32 what training goes on from.

    It learns in steps that bf16 would round away.
    """
    weights = {n: w.to(dtype) for n, w in model.state_dict().items() if n != "lm_head.weight"}  # it is tied
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    picture_processor().save_pretrained(out)
    write_json(out / "recipe.json", recipe)


def main(out: Path = Path("base"), seed: int = 0, workers: int = 2, start: Path | None = None) -> None:
    """Make a base, phase by phase, or by the last phase alone from the base at `--start`."""
    first = out / "phase1"
    if start is None and not (first / "recipe.json").exists():
        train(first, None, FIRST, seed, workers)
    train(out, start or first, LAST[best_device().type], seed, workers)


if __name__ == "__main__":
    typer.run(main)
