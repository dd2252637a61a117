"""What search on Milvus costs at a size: made-up pages and vectors are indexed, asked for, compared with exact search.

    python -m mmsr.live.milvus_measure --pages 1000000 --vectors 1000000 --out milvus.json [--uri FILE.db|http://…]

Pages have 60 words drawn by Zipf's law from 200,000, queries 8 of a page's. Vectors have 768 numbers and lie round
1,000 centres, as queries do. Both are drawn anew from their seeds wherever they are needed, so that this program's own
memory does not grow with their number. Memory and CPU time are those of this program and of what it starts: of Milvus
Lite, then, and not of a server.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mmsr.live.milvus import (
    FLAT,
    Frequencies,
    MilvusTextSearch,
    Picture,
    dimension,
    drop,
    index_pages,
    index_pictures,
    load,
    search_vector,
)
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.text import words
from mmsr.world.snapshot import Page

WORDS, VOCABULARY, SKEW = 60, 200_000, 1.0  # words of a page, words there are, exponent of their frequencies
QUERY_WORDS = 8
DIM, CENTRES, SPREAD = 768, 1_000, 1.0  # SPREAD is the distance from a centre as a share of the centre's own length
BLOCK = 10_000  # drawn at a time
Search = Callable[[Any, int], list[Hit]]
K, EQUALS = 10, 40  # results that count; exact ones that are kept beyond them, to know the last one's equals
INDEXES = {
    "FLAT": FLAT,
    "HNSW": {"index_type": "HNSW", "metric_type": "IP", "params": {"M": 32, "efConstruction": 200}},
    "IVF_SQ8": {"index_type": "IVF_SQ8", "metric_type": "IP", "params": {"nlist": 1024}},
}


# --- what is searched -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """`number` made-up pages, the same each time they are gone through."""

    number: int

    def __iter__(self) -> Iterator[Page]:
        shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1) ** SKEW)
        for start in range(0, self.number, BLOCK):
            rng = np.random.default_rng([1, start])
            size = (min(BLOCK, self.number - start), WORDS - 2)  # the title counts three times
            for n, page in enumerate(np.searchsorted(shares, rng.random(size) * shares[-1]), start):
                title, *text = (f"w{word}x" for word in page)
                yield Page(f"p{n}", title, "", " ".join(text))

    def queries(self, number: int) -> list[str]:
        """Queries of words that a page has, one for each of the first pages."""
        rng = np.random.default_rng(2)
        return [" ".join(rng.choice(page.text.split(), QUERY_WORDS)) for _, page in zip(range(number), self)]


@dataclass(frozen=True)
class Vectors:
    """`number` made-up unit vectors, the same each time they are gone through."""

    number: int

    def blocks(self) -> Iterator[np.ndarray]:
        """In blocks of shape (BLOCK, DIM), float32."""
        for start in range(0, self.number, BLOCK):
            yield self._round_centres([3, start], min(BLOCK, self.number - start))

    def __iter__(self) -> Iterator[Picture]:
        for start, block in enumerate(self.blocks()):
            yield from (Picture(f"p{start * BLOCK + i}", "", vector) for i, vector in enumerate(block))

    def queries(self, number: int) -> list[np.ndarray]:
        """Vectors round the same centres that are not among them."""
        return list(self._round_centres([4], number))

    @staticmethod
    def _round_centres(seed: Sequence[int], number: int) -> np.ndarray:
        centres = np.random.default_rng(5).standard_normal((CENTRES, DIM), np.float32)
        rng = np.random.default_rng(seed)
        drawn = centres[rng.integers(0, CENTRES, number)] + SPREAD * rng.standard_normal((number, DIM), np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


# --- exact search -----------------------------------------------------------------------------------------------------


def exact(blocks: Iterable[np.ndarray], k: int) -> list[set[str]]:
    """For each query the names of the best `k` and of all that equal the last; blocks of scores are (rows, queries)."""
    best = names = None
    for start, scores in enumerate(blocks):
        numbers = np.broadcast_to(np.arange(start * BLOCK, start * BLOCK + len(scores))[:, None], scores.shape)
        best = scores if best is None else np.concatenate([best, scores])
        names = numbers if names is None else np.concatenate([names, numbers])
        if len(best) > k + EQUALS:
            kept = np.argpartition(-best, k + EQUALS, axis=0)[: k + EQUALS]
            best, names = np.take_along_axis(best, kept, 0), np.take_along_axis(names, kept, 0)
    last = np.maximum(-np.sort(-best, axis=0)[k - 1], np.finfo(np.float32).tiny)  # no score is no result
    good = best >= last * (1 - 1e-6)
    return [{f"p{n}" for n in names[good[:, q], q]} for q in range(best.shape[1])]


def page_scores(pages: Pages, queries: Sequence[str]) -> Iterator[np.ndarray]:
    """BM25 of every page for every query, computed without Milvus from the same weights."""
    frequencies = Frequencies.of(pages)
    counts = [Counter(map(dimension, words(query))) for query in queries]
    column = {place: i for i, place in enumerate(dict.fromkeys(place for count in counts for place in count))}
    asked = np.zeros((len(column), len(queries)), np.float32)
    for q, count in enumerate(counts):
        for place, times in count.items():
            asked[column[place], q] = times
    weights = np.zeros((BLOCK, len(column)), np.float32)
    for n, page in enumerate(pages, 1):
        for place, weight in frequencies.weigh(page).items():
            if place in column:
                weights[(n - 1) % BLOCK, column[place]] = weight
        if n % BLOCK == 0 or n == pages.number:
            yield weights[: (n - 1) % BLOCK + 1] @ asked
            weights[:] = 0


def vector_scores(vectors: Vectors, queries: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Cosine of every vector and every query."""
    asked = np.stack(queries).T
    return (block @ asked for block in vectors.blocks())


# --- measuring --------------------------------------------------------------------------------------------------------


def measure_pages(uri: str, number: int, queries: int) -> dict[str, Any]:
    """Index that many pages at `uri`, ask, compare; the collection is dropped in the end."""
    pages, name, meter = Pages(number), f"measured_pages_{number}", Meter()
    asked = pages.queries(queries)
    cost = _built(uri, pages, lambda: index_pages(uri, name, pages), meter)
    right = exact(page_scores(pages, asked), K)
    return cost | _asked(uri, name, lambda: MilvusTextSearch(uri, name).search, asked, right, meter)


def measure_vectors(uri: str, number: int, queries: int, index: str) -> dict[str, Any]:
    """Index that many vectors at `uri` with an index of INDEXES, ask, compare; the collection is dropped in the end."""
    vectors, name, meter = Vectors(number), f"measured_vectors_{number}", Meter()
    asked = vectors.queries(queries)
    cost = _built(uri, vectors, lambda: index_pictures(uri, name, vectors, DIM, INDEXES[index]), meter)
    right = exact(vector_scores(vectors, asked), K)

    def ready() -> Search:
        load(uri, name)
        return lambda vector, k: search_vector(uri, name, vector, k)

    return {"index": index} | cost | _asked(uri, name, ready, asked, right, meter)


def _built(uri: str, rows: Pages | Vectors, build: Callable[[], None], meter: Meter) -> dict[str, Any]:
    """Seconds of drawing the rows once and of building; the memory's peak until here; gigabytes on disk."""
    began = time.perf_counter()
    for _ in rows:
        pass
    drawn, cpu = time.perf_counter(), meter.cpu()
    build()
    cost = {"number": rows.number, "drawing_s": drawn - began, "build_s": time.perf_counter() - drawn}
    cost |= {"build_cpu_s": meter.cpu() - cpu, "build_peak_gb": meter.peak_gb()}
    if uri.endswith(".db"):
        files = [path for path in (Path(uri), *Path(uri).rglob("*")) if path.is_file()]
        cost["disk_gb"] = sum(path.stat().st_size for path in files) / 1e9
    return cost


def _asked(
    uri: str,
    name: str,
    ready: Callable[[], Search],
    queries: Sequence[Any],
    right: Sequence[set[str]],
    meter: Meter,
) -> dict[str, Any]:
    """Seconds of loading until the first answer, latency of the answers after it, recall against exact search."""
    began = time.perf_counter()
    search = ready()
    search(queries[0], K)
    first, cpu, seconds, recalls = time.perf_counter() - began, meter.cpu(), [], []
    for query, names in zip(queries, right):
        began = time.perf_counter()
        hits = search(query, K)
        seconds.append(time.perf_counter() - began)
        recalls.append(len({hit.id for hit in hits} & names) / min(K, len(names)))
    cpu = meter.cpu() - cpu
    drop(uri, name)
    p50, p95 = (1000 * float(p) for p in np.percentile(seconds, [50, 95]))
    return {
        "first_answer_s": first,
        "queries": len(queries),
        "p50_ms": p50,
        "p95_ms": p95,
        "cpu_ms": 1000 * cpu / len(queries),
        f"recall_at_{K}": float(np.mean(recalls)),
        "peak_gb": meter.peak_gb(),
    }


class Meter(threading.Thread):
    """The most memory that this process and its children have held together, looked at ten times a second; CPU time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._process = 0, psutil.Process()
        self.start()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, sum(self._each(lambda process: process.memory_info().rss)))
            time.sleep(0.1)

    def peak_gb(self) -> float:
        """In gigabytes of resident memory."""
        return self.peak / 1e9

    def cpu(self) -> float:
        """Seconds of CPU until now."""
        return sum(self._each(lambda process: sum(process.cpu_times()[:2])))

    def _each(self, measure: Callable[[psutil.Process], float]) -> Iterator[float]:
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended between the listing and the look
                yield measure(process)


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    versions = {}
    for name in ("pymilvus", "milvus-lite"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"platform": platform.platform(), "cpus": len(os.sched_getaffinity(0)), "versions": versions}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write JSON; each part in a process of its own, so that each has its own peak of memory."""
    parser = argparse.ArgumentParser("mmsr.live.milvus_measure", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=0, help="0 leaves them out")
    parser.add_argument("--vectors", type=int, default=0, help="0 leaves them out")
    parser.add_argument("--index", choices=INDEXES, default="FLAT", help="of the vectors (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--uri", help="a file of Milvus Lite or an address (default: a temporary file)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    found = {"machine": machine(), "server": "Milvus Lite" if (options.uri or ".db").endswith(".db") else options.uri}
    with tempfile.TemporaryDirectory() as folder:
        uri = options.uri or os.path.join(folder, "measured.db")
        parts = {
            "pages": (measure_pages, uri, options.pages, options.queries),
            "vectors": (measure_vectors, uri, options.vectors, options.queries, options.index),
        }
        for part, (measure, *values) in parts.items():
            if values[1]:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
                    try:
                        measured = apart.submit(measure, *values).result()
                    except ToolError as error:
                        print(f"mmsr: {error}", file=sys.stderr)
                        return 1
                found[part] = {k: round(v, 4) if isinstance(v, float) else v for k, v in measured.items()}
                print(part, found[part], flush=True)
                part_file = options.out.with_name(options.out.name + ".part")
                part_file.write_text(json.dumps(found, indent=1) + "\n")
                part_file.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
