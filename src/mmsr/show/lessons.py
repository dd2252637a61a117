"""What training looks like from within: tokens that bear loss, a group of episodes, what an update changes.

    tokens(policy.tokenizer, ids, learned)          # an episode token by token: learned in colour, masked in grey
    group(groups[0])                                # a question's episodes: turns, reward, advantage
    update(policy.tokenizer, group, seen)           # probabilities before and after, and where clipping acts
    crops(picture, {"gold box": box, …}, tools.image, load_world())     # what a search sees of each, and finds
    boxes(question, rows)                           # one picture with the boxes of all crops, and how each ended
    why(rows, ("grpo", "sft"), seeds(run_dir, preset, seed))    # why intervals, why paired, why seeds
    road("03_grpo")                                 # where this notebook stands among the five

The notebooks show them. Laid out in inches from the top left corner, as `pictures` are.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from mmsr.files import FileDamaged, read_json
from mmsr.grpo import CLIP, Group
from mmsr.protocol import Box
from mmsr.results import read_metrics
from mmsr.show.charts import NAMES, Chart, heading, whisker
from mmsr.show.look import (
    ACCENT,
    BLOCKS,
    GRID,
    INK,
    MARGIN,
    MIST,
    MUTED,
    NAVY,
    PALE,
    RIGHT,
    ROAD,
    SHORT,
    SLATE,
    WIDTH,
    WRONG,
    colour,
    in_our_look,
    words,
)
from mmsr.show.pictures import GAP, OUTCOMES, PAGE, SIZE, TAG_WIDTH, Sheet, text_width
from mmsr.show.transcript import blocks, outcome
from mmsr.stats import Interval, draws
from mmsr.task import Asked
from mmsr.tools.base import Corpus, ImageRetriever
from mmsr.tools.image import thumbnail

LINE = 0.24  # inches between two lines of tokens
MOVED = 14  # tokens that are named
SHOWN = (PAGE - 6 * 0.09) / 7  # inches: seven pictures side by side
ACTIONS = ("img_search", "text_search", "answer", "unread")
DRAWN = 200  # times that fewer questions are drawn


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token as text, special ones by their names; line ends and spaces are visible."""
    return [tokenizer.decode([token]).replace("\n", "↵").replace(" ", "·") for token in ids]


@in_our_look
def tokens(tokenizer: Any, ids: Sequence[int], learned: Sequence[bool]) -> Figure:
    """Tokens in reading order, in colour where they bear loss; equal ones in a row, as a picture's, are counted."""
    sheet, x, y = Sheet(), MARGIN, MARGIN + 2 * LINE
    told = f"{sum(learned):,} of {len(ids):,} tokens bear loss"
    sheet.text(MARGIN, MARGIN, told, PAGE, size=11, weight="bold")
    for (text, own), same in itertools.groupby(zip(token_texts(tokenizer, ids), learned)):
        number = len(list(same))
        for shown in [f"{text}×{number}"] if number > 2 else [text] * number:
            width = text_width(shown, SIZE, "normal") + 0.05
            if x + width > WIDTH - MARGIN:
                x, y = MARGIN, y + LINE
            sheet.ax.add_patch(Rectangle((x, y), width - 0.02, 0.85 * LINE, color=ACCENT if own else GRID, lw=0))
            sheet.ax.text(x + 0.015, y + 0.62 * LINE, shown, va="baseline", size=SIZE, color="white" if own else MUTED)
            x += width
            if text.endswith("↵"):
                x, y = MARGIN, y + LINE
    return sheet.cut(y + LINE + MARGIN)


@in_our_look
def group(played: Group) -> Figure:
    """A question, its picture, and its episodes from the best reward to the worst: what each did, its advantage."""
    sheet, side, zero = Sheet(), 1.2, WIDTH - MARGIN - 0.45
    columns = {"what it did": MARGIN, "reward": zero - 1.6, "advantage": zero - 0.95}
    mean = f"{len(played.episodes)} episodes, mean reward {np.mean(played.rewards):.2f}"
    y = sheet.text(MARGIN, MARGIN, played.task.question, PAGE - side - GAP, 2, size=11, weight="bold") + 0.05
    y = sheet.text(MARGIN, y, f"gold: {played.task.golds[0]}  ·  {mean}", PAGE - side - GAP, 1, color=MUTED)
    y = max(y, sheet.image(WIDTH - MARGIN - side, MARGIN, side, played.task.picture)) + 0.1
    for name, x in columns.items():
        sheet.text(x, y, name, 2, color=MUTED, size=SIZE - 0.5)
    y += 0.24
    most = max(map(abs, played.advantages)) or 1.0
    ranked = sorted(zip(played.episodes, played.rewards, played.advantages), key=lambda found: -found[1])
    for episode, reward, advantage in ranked:
        top, shade = y, RIGHT if advantage > 0 else WRONG if advantage < 0 else MUTED
        for block in (block for turn in episode.trajectory.turns for block in blocks(asdict(turn))):
            if block.kind in ACTIONS:
                look = BLOCKS[block.kind]
                sheet.text(MARGIN, y, look["tag"], TAG_WIDTH, 1, color=look["shade"], weight="bold", size=SIZE - 0.5)
                y = sheet.text(MARGIN + TAG_WIDTH, y, block.text, 5.2, 1, **look["text"])
        sheet.text(columns["reward"], top, f"{reward:.2f}", 0.6)
        sheet.text(columns["advantage"], top, f"{advantage:+.2f}", 0.6, color=shade)
        sheet.ax.add_patch(Rectangle((zero, top + 0.02), 0.45 * advantage / most, 0.13, color=shade, lw=0))
        y = max(y, top + 0.2) + 0.14
        sheet.ax.plot([MARGIN, WIDTH - MARGIN], [y - 0.07] * 2, color=GRID, lw=0.8)
    return sheet.cut(y + MARGIN / 2)


@in_our_look
def update(tokenizer: Any, played: Group, seen: Sequence[Sequence[torch.Tensor]]) -> Figure:
    """What updates on one group do: the tokens that the first moved most, and the ratios of all tokens after each.

    seen: as `grpo.update_by_hand` gives them. Beyond the lines a token may be clipped: it has no gradient left.
    """
    chart = Chart(figsize=(WIDTH, 3.6), layout="constrained")
    chart.get_layout_engine().set(rect=(0.01, 0.02, 0.97, 0.96))
    left, *right = chart.subplots(1, len(seen), width_ratios=(2, *[1] * (len(seen) - 1)))
    found: dict[tuple[str, float, float], set[bool]] = {}  # what episodes have in common is one token
    for episode, old, new, advantage in zip(played.episodes, *seen[:2], played.advantages):
        texts = token_texts(tokenizer, [token for token, own in zip(episode.row.ids, episode.row.written) if own])
        for text, before, after in zip(texts, old.exp().tolist(), new.exp().tolist()):
            found.setdefault((text, round(before, 3), round(after, 3)), set()).add(advantage > 0)
    moved = sorted(found, key=lambda token: -abs(token[2] - token[1]))[:MOVED]
    heading(left, "Tokens that moved most", "grey: before; then green if rewarded, red if not")
    for y, token in enumerate(moved):
        _, before, after = token
        shade = INK if len(found[token]) == 2 else RIGHT if True in found[token] else WRONG
        left.plot([before, after], [y, y], color=shade, lw=1.5)
        left.plot(before, y, "o", color=SLATE, ms=5)
        left.plot(after, y, "o", color=shade, ms=5)
    left.set_yticks(range(len(moved)), [text for text, *_ in moved], color=INK)
    left.set(xlim=(-0.03, 1.03), ylim=(len(moved) - 0.5, -0.5))
    for number, (ax, now) in enumerate(zip(right, seen[1:]), 1):
        ratios = [(new - old).exp().numpy() for new, old in zip(now, seen[0])]
        clipped = sum(int(clips(ratio, advantage).sum()) for ratio, advantage in zip(ratios, played.advantages))
        every = np.concatenate(ratios)
        heading(ax, f"Ratios after update {number}", f"{clipped:,} of {len(every):,} clipped next")
        ax.hist(np.clip(every, 0, 2), bins=np.linspace(0, 2, 41), color=NAVY)
        for edge in (1 - CLIP, 1 + CLIP):
            ax.axvline(edge, color=INK, lw=1, ls="--")
        ax.set(
            yscale="log", xlim=(0, 2), ylim=(0.7, None), ylabel="tokens", yticks=[1, 10, 100], yticklabels=[1, 10, 100]
        )
    return chart


def clips(ratio: np.ndarray, advantage: float) -> np.ndarray:
    """Which tokens have no gradient left: likelier by a fifth where that is rewarded, less likely where it is not."""
    return (ratio > 1 + CLIP) & (advantage > 0) | (ratio < 1 - CLIP) & (advantage < 0)


@in_our_look
def crops(picture: Image.Image, boxes: Mapping[str, Box], search: ImageRetriever, corpus: Corpus) -> Figure:
    """Each box's crop, the thumbnail that the local picture search makes of it, and the five pictures nearest to it."""
    sheet, y = Sheet(), MARGIN
    for name, box in boxes.items():
        crop, x = picture.crop(box), MARGIN
        sheet.text(x, y, f"{name}, {crop.width} × {crop.height} px", PAGE, weight="bold")
        y += 0.22
        pieces = [
            (crop, "the crop"),
            (thumbnail(crop).resize((240, 160), Image.Resampling.NEAREST), "its thumbnail"),
        ]
        for hit in search.search(crop, 5):
            pieces.append((corpus.flag(hit.id), f"{hit.score:.2f}  {hit.title.removeprefix('Flag of ')}"))
        ends = []
        for piece, told in pieces:
            width = min(SHOWN, 0.8 * piece.width / piece.height)
            end = sheet.image(x, y, width, piece)
            sheet.ax.add_patch(Rectangle((x, y), width, end - y, fill=False, color=MIST, lw=0.6))
            ends.append(sheet.text(x, end + 0.05, told, SHOWN, 2, size=SIZE - 1, color=MUTED))
            x += SHOWN + 0.09
        y = max(ends) + 0.14
    return sheet.cut(y + MARGIN / 2)


@in_our_look
def boxes(question: Asked, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A question's picture with each crop's box in its colour; beside it what the search found, and the answer.

    rows: of `ablation.crop_rows`, those of this question.
    """
    picture, sheet = question.draw(), Sheet()
    side = min(4.2, 3.2 * picture.width / picture.height)
    end, beside, scale = sheet.image(MARGIN, MARGIN, side, picture), MARGIN + side + GAP, side / picture.width
    y = sheet.text(beside, MARGIN, question.text, PAGE - side - GAP, 3, size=11, weight="bold") + 0.15
    for number, row in enumerate(rows):
        shade, ended = colour(row["crop"]), outcome(row)
        box = row["box"] or ((0, 0, *picture.size) if row["searched"] else None)
        if box:
            x1, y1, x2, y2 = (scale * v for v in box)
            sheet.frame(MARGIN + x1, MARGIN + y1, x2 - x1, y2 - y1, color=shade, lw=2.4 - 0.3 * number)
        finds = {True: "finds it", False: "finds another", None: ""}[row.get("recall_at_1") if box else None]
        sheet.text(beside, y, words(row["crop"]), 1.3, 1, color=shade, weight="bold")
        sheet.text(beside + 1.3, y, finds or "no search", 1.2, 1)
        style = {"weight": "bold", "color": OUTCOMES[ended.name]}
        y = sheet.text(beside + 2.5, y, f"{ended.mark} {ended.name}", 0.8, 1, **style) + 0.1
    return sheet.cut(max(end, y) + MARGIN)


@in_our_look
def why(
    rows: Mapping[str, Sequence[dict]], pair: tuple[str, str], played: Mapping[int, Mapping[str, Interval]]
) -> Figure:
    """Three panels on how far a number may be trusted, of a pair of workflows such as ("grpo", "sft").

    What the first scores on fewer questions, two hundred draws each; their difference, the countries drawn once for
    both and once for each; both on every seed that was played (`seeds`). rows: by workflow, in one order of questions.
    """
    chart, rng = Chart(figsize=(WIDTH, 3.2), layout="constrained"), np.random.default_rng(0)
    chart.get_layout_engine().set(rect=(0.01, 0.02, 0.98, 0.96), wspace=0.06)
    left, middle, right = chart.subplots(1, 3)
    first, second = (100 * np.array([row["correct"] for row in rows[name]], float) for name in pair)
    sizes = [n for n in (25, 50, 100, 200) if n < len(first)]
    heading(left, "Why intervals", f"accuracy on n of {len(first):,} questions, %")
    for place, n in enumerate(sizes):
        drawn = [rng.choice(first, n, replace=False).mean() for _ in range(DRAWN)]
        left.plot(place + rng.uniform(-0.25, 0.25, len(drawn)), drawn, ".", ms=3, color=colour(pair[0]), alpha=0.5)
    left.axhline(first.mean(), color=INK, lw=1)
    left.set_xticks(range(len(sizes)), [f"n = {n}" for n in sizes])
    countries = [row["question"]["entity"] for row in rows[pair[0]]]
    heading(middle, "Why paired", f"{SHORT[pair[0]]} − {SHORT[pair[1]]}, points")
    apart = draws(first, countries, seed=0) - draws(second, countries, seed=1)
    drawn = {"paired": draws(first - second, countries, seed=0), "each for itself": apart}
    edges = np.histogram_bin_edges(np.concatenate([*drawn.values()]), 30)
    for (name, found), style in zip(drawn.items(), ({"color": NAVY, "alpha": 0.6}, {"histtype": "step", "color": INK})):
        low, high = np.quantile(found, (0.025, 0.975))
        middle.hist(found, edges, label=f"{name} [{low:+.0f}, {high:+.0f}]", **style)
    middle.set(yticks=[], ylim=(0, 1.4 * middle.get_ylim()[1]))
    middle.legend(loc="upper left")
    heading(right, "Why seeds", "accuracy, %" if len(played) > 1 else "accuracy, %; of one seed alone")
    for place, found in enumerate(played.values()):
        for shift, name in zip((0.12, -0.12), pair):
            whisker(right, place + shift, found[f"eval/{name}/accuracy"], color=colour(name))
            right.plot(place + shift, 100 * found[f"eval/{name}/accuracy"].value, "o", color=colour(name))
    right.set_xticks(range(len(played)), [f"seed {seed}" for seed in played])
    right.set(xlim=(-0.6, len(played) - 0.4))
    return chart


def seeds(run_dir: Path, preset: str, seed: int) -> dict[int, dict[str, Interval]]:
    """By seed, what this run has measured, and the first whole run of its preset beside it for each other seed.

    A run beside it that is damaged is named and left out: it is none of this run's business.
    """
    found = {seed: read_metrics(run_dir)}
    for path in sorted(run_dir.resolve().parent.glob("*/manifest.json")):
        try:
            run = read_json(path, dict, "run it again, or move it away")
            known = read_metrics(path.parent) if run.get("preset") == preset else {}
        except (FileDamaged, FileNotFoundError) as error:
            print(f"Left out: {error}", flush=True)
            continue
        if "eval/grpo/accuracy" in known and isinstance(run.get("seed"), int):
            found.setdefault(run["seed"], known)
    return dict(sorted(found.items()))


@in_our_look
def road(name: str) -> Figure:
    """The five notebooks from left to right, what each makes, and this one in colour; below, the versions in use."""
    sheet, width = Sheet(), (PAGE - 4 * 0.3) / 5
    for number, (notebook, (title, makes)) in enumerate(zip(NAMES, ROAD)):
        x, here = MARGIN + number * (width + 0.3), notebook == name
        sheet.ax.add_patch(
            FancyBboxPatch((x, 0.3), width, 1.15, "round,pad=0,rounding_size=0.08", color=NAVY if here else PALE, lw=0)
        )
        ink, small = ("white", "white") if here else (INK, MUTED)
        y = sheet.text(x + 0.1, 0.42, f"{number + 1}  {title}", width - 0.2, 1, size=11, weight="bold", color=ink)
        sheet.text(x + 0.1, y + 0.08, makes, width - 0.2, 4, color=small)
        if number:
            sheet.ax.annotate("", (x - 0.03, 0.87), (x - 0.27, 0.87), arrowprops={"arrowstyle": "->", "color": MUTED})
    used = [f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers", "trl", "peft")]
    told = "  ·  ".join([f"python {platform.python_version()}", *used])
    return sheet.cut(sheet.text(MARGIN, 1.6, told, PAGE, 1, color=MUTED, size=SIZE - 0.5) + 0.15)
