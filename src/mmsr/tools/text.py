"""Local text search: BM25 over the pages of the world (paper §3.2: top-5 pages, an engine not adapted to the policy).

LocalTextSearch(world).search("Kenya capital", k=5)[0].id == "ke/capital"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import bm25s
import numpy as np

from mmsr.tools.base import Corpus, Hit

STOPWORDS = frozenset(
    "a an and are as at be by for from has in is it its of on or that the this to was what which".split()
)
K1, B = 0.9, 0.4  # better than 1.2, 0.75 on average over the BEIR sets


def words(text: str) -> list[str]:
    """Lower-case words without stop words; a plural -s is dropped."""
    found = re.findall(r"\w+", text.lower())
    return [w[:-1] if len(w) > 3 and w.endswith("s") and w[-2] != "s" else w for w in found if w not in STOPWORDS]


def page_words(page: Any) -> list[str]:
    """What a page is found by: the words of its title, which count three times, and of its text."""
    return words(f"{page.title} {page.title} {page.title} {page.text}")


def bm25(pages: Iterable[Any]) -> bm25s.BM25:
    """The index of pages. Words are numbered as they come: the same pages give the same index."""
    numbers: dict[str, int] = {}
    numbered = [[numbers.setdefault(word, len(numbers)) for word in page_words(page)] for page in pages]
    index = bm25s.BM25(k1=K1, b=B)
    index.index((numbered, numbers), show_progress=False)
    return index


class LocalTextSearch:
    """BM25 over titles and texts, by an index where there is one. Ties are broken by page order, so results repeat."""

    def __init__(self, world: Corpus, index: bm25s.BM25 | None = None):
        self.pages = list(world.pages.values())
        self.index = index or bm25(self.pages)

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best pages that share a word with the query, best first; none where no word is known."""
        tokens = [word for word in words(query) if word in self.index.vocab_dict]
        if not tokens:
            return []
        scores = self.index.get_scores(tokens)
        found = np.flatnonzero(scores)
        best = found[np.argsort(-scores[found], kind="stable")[:k]]
        return [Hit(p.id, p.title, p.text, round(float(scores[i]), 4), p.url) for i in best for p in [self.pages[i]]]
