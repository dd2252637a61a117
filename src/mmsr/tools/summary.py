"""An extractive summary: what the policy reads of a search, within a token budget (paper §3.2 asks an LLM for one)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from mmsr.tools.base import Hit
from mmsr.tools.text import words


class ExtractiveSummariser:
    """Numbered lines, `1. title: clauses`, best page first, until the budget is spent.

    Each page keeps its first clause and those that share the most words with the query and the question; no page takes
    more than half of the budget, and a title that would is cut to a quarter. `count_tokens` measures a text in the
    policy's tokens; how often it is called depends on the budget, not on the pages.
    """

    def __init__(self, count_tokens: Callable[[str], int], budget: int):
        self.count_tokens, self.budget = count_tokens, budget

    def summarise(self, question: str, query: str, hits: Sequence[Hit]) -> str:
        """The lines, at most `budget` tokens together; "Nothing was found." where there are no hits."""
        if not hits:
            return "Nothing was found."
        wanted, lines, left = {*words(f"{query} {question}")}, [], self.budget
        for rank, hit in enumerate(hits, 1):
            line = self._line(rank, hit, wanted, min(left, self.budget // 2))
            if not line:
                break
            lines.append(line)
            left -= self.count_tokens(line + "\n")
        return "\n".join(lines) or "Nothing was found."

    def _line(self, rank: int, hit: Hit, wanted: set[str], limit: int) -> str:
        """One page in at most `limit` tokens, or nothing where not even its title fits."""
        head = f"{rank}. "
        line = head + hit.title
        if self.count_tokens(line) > self.budget // 2:
            line = head + longest(hit.title, "", lambda start: self.count_tokens(head + start) <= self.budget // 4)
        if self.count_tokens(line) > limit:
            return ""
        clauses = [clause for clause in hit.text.split("; ") if clause]
        overlap = {i: len(wanted & {*words(clause)}) for i, clause in enumerate(clauses)}
        chosen: list[int] = []
        for i in sorted(overlap, key=lambda i: (i != 0, -overlap[i], i))[: self.budget // 2]:  # no more can be kept
            body = "; ".join(clauses[j] for j in sorted([*chosen, i]))
            if self.count_tokens(f"{line}: {body}") <= limit:
                chosen.append(i)
        if chosen:
            return f"{line}: " + "; ".join(clauses[i] for i in sorted(chosen))
        items = clauses[0].split(", ") if clauses else []
        kept = longest(items, ", ", lambda start: self.count_tokens(f"{line}: {start}") <= limit)
        return f"{line}: {kept}" if kept else line


def longest(pieces: Sequence[str], joint: str, fits: Callable[[str], bool]) -> str:
    """The longest start of the pieces that fits, joined, by bisection; "" where not even the first does."""
    number = bisect_left(range(len(pieces)), True, key=lambda last: not fits(joint.join(pieces[: last + 1])))
    return joint.join(pieces[:number])
