"""How answers are compared and how sure the numbers are.

    exact_match("1046 km.", ["1,046 km"])                         # True
    proportion([True, False, True])                               # Interval(value=0.667, low=0.208, high=0.939, n=3)
    paired_difference(grpo, sft, clusters=countries, seed=0)      # mean gain per question, with its 95 % interval
    mcnemar(grpo, sft)                                            # exact two-sided p for two rows of right and wrong

All intervals are of 95 %. A proportion of independent questions gets Wilson's; everything whose questions share a
picture or an entity gets a percentile bootstrap that draws whole clusters, since questions about one entity fail
together. The paper reports no intervals (§4); these are ours. Normalisation is the usual one of open question answering
(SQuAD, Rajpurkar et al. 2016, evaluation script) with the numbers kept whole: there "3.5" becomes "35".
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.96
DRAWS = 2000
TAIL = 0.025
ARTICLES = {"a", "an", "the"}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_NUMBER = re.compile(r"((?:(?<!\w)-)?\d+(?:\.\d+)*)")
_DELETED = "'’`."  # d'Ivoire and U.S. are one word each; other punctuation parts words, as in Guinea-Bissau


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval and the number of items behind it; None where there is no such thing."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """The entry of `metrics.json`: value, low, high, n."""
        return asdict(self)


# --- answers --------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Lower case, no punctuation or articles, single spaces; numbers whole, without thousands commas, apart from units.

    "The 1,046km" becomes "1046 km" and "Guinea-Bissau" becomes "guinea bissau". An answer that is an article ("A")
    stays itself.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("−", "-")
    text = _LEADING_POINT.sub("0.", _THOUSANDS.sub("", text))
    pieces = _NUMBER.split(text)
    words = " ".join(piece if i % 2 else _without_punctuation(piece) for i, piece in enumerate(pieces)).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def _without_punctuation(text: str) -> str:
    """The text with apostrophes and points deleted and every other punctuation mark or symbol made a space."""
    kept = (c for c in text if c not in _DELETED)
    return "".join(" " if unicodedata.category(c)[0] in "PSC" else c for c in kept)


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether the answer equals the gold answer or one of its aliases after `normalise`; an empty answer never does."""
    normal = normalise(answer)
    return normal != "" and any(normal == normalise(gold) for gold in golds)


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 over the golds of the two bags of normalised words (SQuAD); 0 for an empty answer or no golds."""
    return max((_bag_f1(normalise(answer).split(), normalise(gold).split()) for gold in golds), default=0.0)


def _bag_f1(answer: list[str], gold: list[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


# --- intervals ------------------------------------------------------------------------------------------------------


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); ValueError unless 0 <= successes <= n and n > 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"Wilson's interval needs 0 <= successes <= n and n > 0, got {successes} of {n}.")
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula is 0 or 1 but for rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def proportion(outcomes: Iterable[bool]) -> Interval:
    """The share of True among independent outcomes with Wilson's interval; ValueError where there are none."""
    flags = [bool(outcome) for outcome in outcomes]
    low, high = wilson(sum(flags), len(flags))
    return Interval(sum(flags) / len(flags), low, high, len(flags))


def cluster_mean(values: Sequence[float], clusters: Sequence[Hashable], seed: int, draws: int = DRAWS) -> Interval:
    """The mean of the values with a bootstrap over clusters (one label per value, such as the picture or the entity).

    ValueError for no values or unequal lengths. With a single cluster the spread is unknown: low and high are None.
    Where all values are the same the interval has no width; for independent questions `proportion` is honest there.
    """
    return cluster_ratio(values, [1.0] * len(values), clusters, seed, draws)


def cluster_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Sum of numerators over sum of denominators (0 for 0/0) with a bootstrap over clusters; n counts the items.

    For rates whose base differs by item: needless searches per search, SimpleVQA's F. ValueError as in `cluster_mean`.
    """
    _same(numerators, denominators)
    totals = _cluster_totals(np.stack([_vector(numerators), _vector(denominators)], axis=-1), clusters)
    value = _divide(totals.sum(axis=0)[None])[0]
    return _interval(value, _divide(_resampled(totals, np.random.default_rng(seed), draws)), len(totals), len(clusters))


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int, draws: int = DRAWS
) -> Interval:
    """Mean of a − b over the same questions with a bootstrap over clusters; above 0 where a is better.

    a, b: scores of two systems, question by question; clusters: one label each. ValueError as in `cluster_mean`.
    """
    _same(a, b)
    return cluster_mean(_vector(a) - _vector(b), clusters, seed, draws)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of values >= 0: 0 as soon as one is 0; ValueError for none or a negative one."""
    if not len(values) or min(values) < 0:
        raise ValueError(f"A harmonic mean needs one or more values of at least 0, got {list(values)}.")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def harmonic_interval(
    a: Sequence[float],
    b: Sequence[float],
    clusters_a: Sequence[Hashable],
    clusters_b: Sequence[Hashable],
    seed: int,
    draws: int = DRAWS,
) -> Interval:
    """Harmonic mean of two groups' means, each group bootstrapped over its own clusters (InfoSeek's unseen splits).

    a, b: scores of the two disjoint groups; n counts the items of both. ValueError as in `cluster_mean`.
    """
    rng = np.random.default_rng(seed)
    groups = ((a, clusters_a), (b, clusters_b))
    totals = [_cluster_totals(np.stack([_vector(v), np.ones(len(v))], axis=-1), c) for v, c in groups]
    drawn = [_divide(_resampled(group, rng, draws)) for group in totals]
    value = harmonic_mean([_divide(group.sum(axis=0)[None])[0] for group in totals])
    harmonic = _divide(np.stack([2 * drawn[0] * drawn[1], drawn[0] + drawn[1]], axis=-1))
    return _interval(value, harmonic, min(len(group) for group in totals), len(a) + len(b))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided McNemar p that two systems are equally often right on the same questions.

    The binomial test on the questions where just one is right; 1.0 where there are none. ValueError for
    unequal lengths.
    """
    _same(a, b)
    only_a = sum(bool(x) and not y for x, y in zip(a, b))
    only_b = sum(bool(y) and not x for x, y in zip(a, b))
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


# --- the bootstrap --------------------------------------------------------------------------------------------------


def _vector(values: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _same(a: Sequence[object], b: Sequence[object]) -> None:
    """ValueError where the two are not of one length."""
    if len(a) != len(b):
        raise ValueError(f"Values must be paired one to one, got {len(a)} and {len(b)}.")


def _cluster_totals(parts: NDArray[np.float64], clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    """(items, m) summed within clusters to (clusters, m), in the order in which the labels first appear."""
    _same(parts, clusters)
    if not len(clusters):
        raise ValueError("There is nothing to average: no values were given.")
    order: dict[Hashable, int] = {}
    rows = [order.setdefault(label, len(order)) for label in clusters]
    totals = np.zeros((len(order), parts.shape[1]))
    np.add.at(totals, rows, parts)
    return totals


def _resampled(totals: NDArray[np.float64], rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """(draws, m): sums over as many clusters as there are, drawn with replacement, once per draw."""
    k = len(totals)
    # One draw at a time: all at once would need draws × clusters numbers of memory.
    return np.stack([np.bincount(rng.integers(k, size=k), minlength=k) @ totals for _ in range(draws)])


def _divide(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws, 2) → (draws,): first column over second, 0 for 0/0."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] != 0)


def _interval(value: float, drawn: NDArray[np.float64], clusters: int, n: int) -> Interval:
    if clusters < 2:
        return Interval(float(value), None, None, n)
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    return Interval(float(value), float(low), float(high), n)
