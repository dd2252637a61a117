"""What fusing two engines finds, one of them noisy: recall of the scripted teacher's queries on 400 test questions.

    python papermill_runs/measured/measure_fusion.py --out papermill_runs/measured/fusion.json

The first engine is BM25 over the world's pages; the second is the same, but each of its hits is exchanged for a page
drawn at random with a chance of one third. The teacher is given the right crops. Recall@k is the share of its queries
with a gold page of their question among the first k hits; what agreement is worth, the share of gold pages among the
hits of the fused engine by how many found them.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from mmsr.ablation import oracle
from mmsr.evaluate import Exam, queries, taught
from mmsr.files import write_json
from mmsr.lab import open_tools
from mmsr.live.fusion import Fused
from mmsr.policy import load_policy
from mmsr.presets import get_preset
from mmsr.tools.base import Hit, TextRetriever
from mmsr.tools.text import LocalTextSearch
from mmsr.world.questions import make_questions
from mmsr.world.snapshot import load_world

NOISE, K = 1 / 3, 5


@dataclass(frozen=True)
class Noisy:
    """Another engine, each of whose hits is a page drawn at random with a chance of NOISE, by query and seed."""

    inner: LocalTextSearch
    seed: int

    def search(self, query: str, k: int) -> list[Hit]:
        rng, hits = random.Random(f"{self.seed}/{query}"), self.inner.search(query, k)
        drawn = [rng.choice(self.inner.pages) if rng.random() < NOISE else None for _ in hits]
        return [
            replace(hit, id=page.id, title=page.title, text=page.text) if page else hit
            for hit, page in zip(hits, drawn)
        ]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--questions", type=int, default=400)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    size, exam = get_preset("tiny"), Exam(tuple(make_questions("test", given.questions, given.seed)))
    tools = replace(open_tools(size, load_policy("tiny")), grounder=oracle(exam.questions))
    played = taught(exam, size, tools)
    gold = [
        (query, {*question.gold_pages})
        for question, trajectory in zip(exam.questions, played)
        for query in queries({"trajectory": trajectory.as_dict()})
    ]
    clean = LocalTextSearch(load_world())
    noisy = Noisy(clean, given.seed)
    engines: dict[str, TextRetriever] = {"bm25": clean, "noisy": noisy, "fused": Fused([clean, noisy])}
    recall, agreed = {}, defaultdict(list)
    for name, engine in engines.items():
        found = [engine.search(query, K) for query, _ in gold]
        right = [[hit.id in pages for hit in hits] for hits, (_, pages) in zip(found, gold)]
        recall[name] = {f"recall_at_{k}": round(sum(any(r[:k]) for r in right) / len(right), 4) for k in (1, K)}
        for hits, marks in zip(found, right) if name == "fused" else ():
            for hit, mark in zip(hits, marks):
                agreed[hit.title.rpartition("(")[2].removesuffix(" engines)")].append(mark)  # "… (2 of 2 engines)"
    worth = {name: {"hits": len(marks), "gold": round(sum(marks) / len(marks), 4)} for name, marks in agreed.items()}
    report = {"questions": len(exam), "queries": len(gold), "seed": given.seed, "noise": round(NOISE, 4)}
    write_json(given.out, report | {"recall": recall, "agreement": dict(sorted(worth.items()))})
    print(recall, worth, sep="\n")


if __name__ == "__main__":
    main()
