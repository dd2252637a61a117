"""What search on Milvus costs at a size: made-up pages and vectors are indexed, asked for, compared with exact search.

    python papermill_runs/measured/measure_milvus.py --pages 1000000 --vectors 1000000 --out milvus.json [--uri FILE.db|http://…]

Pages have 60 words drawn by Zipf's law from 200,000, queries 8 of a page's. Vectors have 768 numbers and lie round
1,000 centres, as queries do. Both are drawn anew from their seeds, block by block, wherever they are needed, so that
this program's own memory does not grow with their number. Memory and CPU time are those of this program and of what it
starts: of Milvus Lite, then, and not of a server.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mmsr.files import write_json
from mmsr.live.milvus import FLAT, Collection, client, index_pages, page_weights, word_counts
from mmsr.tools.base import ToolError
from mmsr.world.snapshot import Page

WORDS, VOCABULARY, SKEW = 60, 200_000, 1.0  # words of a page, words there are, exponent of their frequencies
QUERY_WORDS = 8
DIM, CENTRES, SPREAD = 768, 1_000, 1.0  # SPREAD is the distance from a centre as a share of the centre's own length
BLOCK = 10_000  # drawn at a time
K, EQUALS = 10, 40  # results that count; exact ones that are kept beyond them, to know the last one's equals
INDEXES = {
    "FLAT": FLAT,
    "HNSW": {"index_type": "HNSW", "metric_type": "IP", "params": {"M": 32, "efConstruction": 200}},
    "IVF_SQ8": {"index_type": "IVF_SQ8", "metric_type": "IP", "params": {"nlist": 1024}},
}


@dataclass(frozen=True)
class Pages:
    """`number` made-up pages, the same each time they are gone through."""

    number: int

    def blocks(self) -> Iterator[list[Page]]:
        """In lists of BLOCK."""
        shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1) ** SKEW)
        for start in range(0, self.number, BLOCK):
            rng = np.random.default_rng([1, start])
            size = (min(BLOCK, self.number - start), WORDS - 2)  # the title counts three times
            drawn = [[f"w{word}x" for word in page] for page in np.searchsorted(shares, rng.random(size) * shares[-1])]
            yield [Page(f"p{n}", title, "", " ".join(text)) for n, (title, *text) in enumerate(drawn, start)]

    def __iter__(self) -> Iterator[Page]:
        return (page for block in self.blocks() for page in block)

    def queries(self, number: int) -> list[str]:
        """Queries of words that a page has, one for each of the first pages."""
        rng = np.random.default_rng(2)
        return [" ".join(rng.choice(page.text.split(), QUERY_WORDS)) for _, page in zip(range(number), self)]

    def collection(self, uri: str) -> Collection:
        """Where they are put."""
        return Collection(uri, f"measured_pages_{self.number}")

    def index(self, collection: Collection, index: str) -> None:
        """Pages have one index."""
        index_pages(collection, self)

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """BM25 of every page for every query, computed without Milvus from the same weights: (BLOCK, queries)."""
        weigh, asked = page_weights(self), defaultdict(list)
        for q, query in enumerate(queries):
            for place, times in word_counts(query).items():
                asked[place].append((q, times))
        for block in self.blocks():
            scores = np.zeros((len(block), len(queries)))
            for row, page in zip(scores, block):
                for place, weight in weigh(page).items():
                    for q, times in asked.get(place, ()):
                        row[q] += times * weight
            yield scores


@dataclass(frozen=True)
class Vectors:
    """`number` made-up unit vectors, the same each time they are gone through."""

    number: int

    def blocks(self) -> Iterator[np.ndarray]:
        """In arrays of shape (BLOCK, DIM), float32."""
        for start in range(0, self.number, BLOCK):
            yield self._round_centres([3, start], min(BLOCK, self.number - start))

    def __iter__(self) -> Iterator[tuple[str, str, np.ndarray]]:
        vectors = (vector for block in self.blocks() for vector in block)
        return ((f"p{n}", "", vector) for n, vector in enumerate(vectors))

    def queries(self, number: int) -> list[np.ndarray]:
        """Vectors round the same centres that are not among them."""
        return list(self._round_centres([4], number))

    @staticmethod
    def _round_centres(seed: Sequence[int], number: int) -> np.ndarray:
        centres = np.random.default_rng(5).standard_normal((CENTRES, DIM), np.float32)
        rng = np.random.default_rng(seed)
        drawn = centres[rng.integers(0, CENTRES, number)] + SPREAD * rng.standard_normal((number, DIM), np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def collection(self, uri: str) -> Collection:
        """Where they are put."""
        return Collection(uri, f"measured_vectors_{self.number}", DIM, np.asarray)

    def index(self, collection: Collection, index: str) -> None:
        """By one of INDEXES."""
        collection.fill(((name, title, "", vector) for name, title, vector in self), INDEXES[index])

    def scores(self, queries: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Cosine of every vector and every query: (BLOCK, queries)."""
        return (block @ np.stack(queries).T for block in self.blocks())


def exact(scores: Iterable[np.ndarray], k: int) -> list[set[str]]:
    """For each query the names of the best `k` and of all that equal the last; blocks of scores are (rows, queries)."""
    kept = []
    for number, block in enumerate(scores):
        rows = np.argsort(-block, axis=0)[: k + EQUALS]
        kept.append((np.take_along_axis(block, rows, 0), rows + number * BLOCK))
    best, names = map(np.concatenate, zip(*kept))
    last = np.maximum(-np.sort(-best, axis=0)[k - 1], np.finfo(np.float32).tiny)  # no score is no result
    good = best >= last * (1 - 1e-6)
    return [{f"p{n}" for n in names[good[:, q], q]} for q in range(best.shape[1])]


class Meter(threading.Thread):
    """Seconds, CPU seconds, and the most memory held by this process and its children, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_gb, self._process = 0.0, psutil.Process()
        self._last = np.zeros(2)
        self.start()

    def run(self) -> None:
        while True:
            self.peak_gb = max(self.peak_gb, sum(self._each(lambda process: process.memory_info().rss)) / 1e9)
            time.sleep(0.1)

    def lap(self) -> tuple[float, float]:
        """Seconds and CPU seconds since the last lap."""
        now = np.array([time.perf_counter(), sum(self._each(lambda process: sum(process.cpu_times()[:2])))])
        lap, self._last = now - self._last, now
        return tuple(lap.tolist())

    def _each(self, measure: Callable[[psutil.Process], float]) -> Iterator[float]:
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended between the listing and the look
                yield measure(process)


def measure(uri: str, rows: Pages | Vectors, index: str, queries: int) -> dict[str, float]:
    """Index rows at `uri`, ask, compare with exact search; the collection is dropped in the end.

    Of the rows: seconds to draw them once, to index them, and to load them until the first answer; of the answers after
    it: latency, CPU, recall; gigabytes on disk, and of memory at its peak, once indexed and in the end.
    """
    meter, asked = Meter(), rows.queries(queries)
    collection = rows.collection(uri)
    cost: dict[str, float] = {"number": rows.number}
    meter.lap()
    for _ in rows:
        pass
    cost["drawing_s"], _ = meter.lap()
    rows.index(collection, index)
    cost["build_s"], cost["build_cpu_s"] = meter.lap()
    cost["build_peak_gb"] = meter.peak_gb
    if uri.endswith(".db"):
        files = [path for path in (Path(uri), *Path(uri).rglob("*")) if path.is_file()]
        cost["disk_gb"] = sum(path.stat().st_size for path in files) / 1e9
    right, seconds, recalls = exact(rows.scores(asked), K), [], []
    meter.lap()
    search = collection.load().search
    search(asked[0], K)
    cost["first_answer_s"], _ = meter.lap()
    for query, names in zip(asked, right):
        began = time.perf_counter()
        hits = search(query, K)
        seconds.append(time.perf_counter() - began)
        recalls.append(len({hit.id for hit in hits} & names) / min(K, len(names)))
    _, cpu = meter.lap()
    cost["queries"] = len(asked)
    cost["p50_ms"], cost["p95_ms"] = (1000 * np.percentile(seconds, [50, 95])).tolist()
    cost |= {"cpu_ms": 1000 * cpu / len(asked), f"recall_at_{K}": float(np.mean(recalls)), "peak_gb": meter.peak_gb}
    with client(uri) as milvus:
        milvus.drop_collection(collection.name)
    return cost


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    versions = dict.fromkeys(("pymilvus", "milvus-lite"))
    for name in versions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"platform": platform.platform(), "cpus": cpus, "versions": versions}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write JSON; each part in a process of its own, so that each has its own peak of memory."""
    parser = argparse.ArgumentParser("measure_milvus.py", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=0, help="0 leaves them out")
    parser.add_argument("--vectors", type=int, default=0, help="0 leaves them out")
    parser.add_argument("--index", choices=INDEXES, default="FLAT", help="of the vectors (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--uri", help="a file of Milvus Lite or an address (default: a temporary file)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    found = {"machine": machine(), "server": "Milvus Lite" if (options.uri or ".db").endswith(".db") else options.uri}
    parts = {"pages": (Pages(options.pages), ""), "vectors": (Vectors(options.vectors), options.index)}
    with tempfile.TemporaryDirectory() as folder:
        uri = options.uri or os.path.join(folder, "measured.db")
        for part, (rows, index) in parts.items():
            if not rows.number:
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
                try:
                    cost = apart.submit(measure, uri, rows, index, options.queries).result()
                except ToolError as error:
                    print(f"mmsr: {error}", file=sys.stderr)
                    return 1
            found[part] = ({"index": index} if index else {}) | {name: round(value, 4) for name, value in cost.items()}
            print(part, found[part], flush=True)
            write_json(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
