"""What training looks like from within: tokens that bear loss, a group of episodes, what an update changes.

    tokens(policy.tokenizer, ids, learned)          # an episode token by token: learned in colour, masked in grey
    group(groups[0])                                # a question's episodes: turns, reward, advantage
    update(policy.tokenizer, group, seen)           # probabilities before and after, and where clipping acts
    crops(picture, {"gold box": box, …}, tools.image, load_world())     # what a search sees of each, and finds

Notebooks 2, 3 and 5 show them. Laid out in inches from the top left corner, as `pictures` are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mmsr.grpo import CLIP, Group
from mmsr.protocol import Box
from mmsr.show.charts import Chart, heading
from mmsr.show.look import ACCENT, BLOCKS, GRID, INK, MARGIN, MIST, MUTED, NAVY, RIGHT, SLATE, WIDTH, WRONG, in_our_look
from mmsr.show.pictures import GAP, PAGE, SIZE, TAG_WIDTH, Sheet, text_width
from mmsr.show.transcript import blocks
from mmsr.tools.base import Corpus, ImageRetriever
from mmsr.tools.image import thumbnail

LINE = 0.24  # inches between two lines of tokens
MOVED = 14  # tokens that are named
SHOWN = (PAGE - 6 * 0.09) / 7  # inches: seven pictures side by side
ACTIONS = ("img_search", "text_search", "answer", "unread")


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
        for value, colour in ((before, SLATE), (after, shade)):
            left.plot(value, y, "o", color=colour, ms=5)
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
