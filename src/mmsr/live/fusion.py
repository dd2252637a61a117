"""Several text engines at once: what they find, fused by reciprocal rank, and how many of them agree on it.

    Fused([serper, wikimedia], reader).search("Kenya capital", k=5)     # -> [Hit(title="Nairobi (2 of 2 engines)", …)]

Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009. The agreement stands in the title, so that the policy reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from mmsr.live.engines import PageReader, with_pages
from mmsr.tools.base import Hit, TextRetriever, ToolError, in_parallel

DAMPING = 60  # k of the source: the larger, the less a first place counts for more than a second
SAME = re.compile(r"^https?://(www\.)?|/?(#.*)?$")  # what may differ in two addresses of one page


def fuse(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Each page of several engines' lists once, best first; its score is the sum of 1 / (60 + rank) over its lists."""
    ranked: list[dict[str, tuple[int, Hit]]] = [{} for _ in lists]
    for found, hits in zip(ranked, lists):
        for rank, hit in enumerate(hits, 1):
            found.setdefault(SAME.sub("", hit.id), (rank, hit))
    fused = []
    for page in dict.fromkeys(chain(*ranked)):
        places = [found[page] for found in ranked if page in found]
        score, (_, hit) = sum(1 / (DAMPING + rank) for rank, _ in places), places[0]
        title = f"{hit.title} ({len(places)} of {len(lists)} engines)"
        fused.append(replace(hit, title=title, score=round(score, 6)))
    return sorted(fused, key=lambda hit: -hit.score)


@dataclass(frozen=True)
class Fused:
    """`base.TextRetriever` by several others, asked side by side; pages are read for the fused list alone.

    Lists are short, for in long ones what two find last comes before what one finds first. Where an engine fails the
    others go on, but a fatal error ends the run: with fewer engines it would be a different one.
    """

    engines: Sequence[TextRetriever]
    reader: PageReader | None = None

    def search(self, query: str, k: int) -> list[Hit]:
        """The best `k` of each engine's best `k`. Raises ToolError where every engine failed."""
        found = in_parallel(lambda engine: engine.search(query, k), self.engines, len(self.engines))
        if all(isinstance(answer, ToolError) for answer in found):
            raise ToolError(" ".join(map(str, found)))
        hits = fuse([[] if isinstance(answer, ToolError) else answer for answer in found])[:k]
        return with_pages(hits, self.reader) if self.reader else hits
