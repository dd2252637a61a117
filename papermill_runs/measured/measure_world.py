"""What a world of one's own costs at a size: made-up pages and pictures are indexed, and asked for.

    python papermill_runs/measured/measure_world.py --pages 100000 --pictures 10000 --out world.json [--vectors MODEL]

A page has a title of 2 words and a text of 60, drawn as often as the factbook's pages have them; a query is 8 words of
a page's. A picture is a mosaic of 8×6 colours, 320×240 pixels in JPEG; it is asked for by a crop that lacks 5 % of each
side. So it is known what should be found: that page, that picture. Both are drawn from seeds. Memory is that of the
process that indexes, or of the other that asks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measure_milvus import Meter, machine
from PIL import Image

from mmsr.files import write_json, write_rows
from mmsr.tools.base import Hit
from mmsr.world.own import index_world, open_world
from mmsr.world.snapshot import load_world

TITLE, TEXT, QUERY = 2, 60, 8  # words
MOSAIC, SIZE, CUT = (8, 6), (320, 240), 0.05
K = 5


def draw(folder: Path, pages: int, pictures: int) -> None:
    """Write pages.jsonl and pictures/."""
    words, rng = " ".join(page.text for page in load_world().pages.values()).split(), random.Random(0)
    drawn = (rng.choices(words, k=TITLE + TEXT) for _ in range(pages))
    write_rows(folder / "pages.jsonl", ({"title": " ".join(d[:TITLE]), "text": " ".join(d[TITLE:])} for d in drawn))
    (folder / "pictures").mkdir()
    colours = np.random.default_rng(0)
    for number in range(pictures):
        mosaic = Image.fromarray(colours.integers(0, 256, (MOSAIC[1], MOSAIC[0], 3), np.uint8))
        mosaic.resize(SIZE, Image.Resampling.BICUBIC).save(folder / "pictures" / f"picture {number}.jpg")


def index(folder: Path, vectors: str) -> dict[str, float]:
    """Make the world, and say what that took."""
    meter = Meter()
    meter.lap()
    index_world(folder / "pages.jsonl", folder / "pictures", folder / "my.world", vectors)
    seconds, cpu = meter.lap()
    disk = sum(path.stat().st_size for path in (folder / "my.world").rglob("*") if path.is_file()) / 1e9
    return {"index_s": seconds, "index_cpu_s": cpu, "index_peak_gb": meter.peak_gb, "disk_gb": disk}


def ask(folder: Path, queries: int) -> dict[str, float]:
    """Open the world and ask for its first pages and pictures; what that took, and how often they are found."""
    meter = Meter()
    meter.lap()
    world = open_world(str(folder / "my.world"))
    text, image = world.text_search(), world.picture_search()
    cost = {"open_s": meter.lap()[0]}
    rng = random.Random(1)
    pages = [(page.id, " ".join(rng.sample(page.text.split(), QUERY))) for page in list(world.pages.values())[:queries]]
    crops = []
    for flag in world.flags[:queries]:
        picture = world.flag(flag.iso)
        dx, dy = int(picture.width * CUT), int(picture.height * CUT)
        crops.append((flag.iso, picture.crop((dx, dy, picture.width - dx, picture.height - dy))))
    cost |= _timed("text", text.search, pages) | _timed("picture", image.search, crops)
    return cost | {"ask_peak_gb": meter.peak_gb}


def _timed(name: str, search: Callable[[Any, int], list[Hit]], asked: Sequence[tuple[str, Any]]) -> dict[str, float]:
    """Milliseconds of a search once it has been asked, and how often it finds what it should, first and among K."""
    search(asked[0][1], K)
    seconds, ranks = [], []
    for wanted, query in asked:
        began = time.perf_counter()
        hits = [hit.id for hit in search(query, K)]
        seconds.append(time.perf_counter() - began)
        ranks.append(hits.index(wanted) if wanted in hits else K)
    p50, p95 = (1000 * np.percentile(seconds, [50, 95])).tolist()
    recall = {f"{name}_recall_at_{k}": float(np.mean([rank < k for rank in ranks])) for k in (1, K)}
    return {f"{name}_p50_ms": p50, f"{name}_p95_ms": p95} | recall


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write JSON; indexing and asking in a process each, so that each has its own peak of memory."""
    parser = argparse.ArgumentParser("measure_world.py", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--queries", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--vectors", default="", help="a vision model (default: thumbnails)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("pages", "pictures", "queries", "vectors")}
    versions = {name: importlib.metadata.version(name) for name in ("bm25s", "numpy", "pillow")}
    found = {"machine": machine() | {"versions": versions}, **sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, options.pages, options.pictures)
        for work, given in ((index, options.vectors), (ask, options.queries)):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
                cost = apart.submit(work, folder, given).result()
            found |= {name: round(value, 4) for name, value in cost.items()}
    write_json(options.out, found)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
