"""How sure a number is.

    proportion([True, False, True])                               # Interval(value=0.667, low=0.208, high=0.939, n=3)
    paired_difference(grpo, sft, clusters=countries, seed=0)      # mean gain per question, with its 95 % interval
    mcnemar(grpo, sft)                                            # exact two-sided p for two rows of right and wrong

All intervals are 95 %; the paper reports none (§4). A proportion of independent questions gets Wilson's. Questions
about one entity fail together: they get a percentile bootstrap that draws whole clusters. It is written out because
scipy's draws single values, and because runs are compared to the last digit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
TAIL = 0.025


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval and the number of items behind it; None where there is no such thing."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


# --- independent questions ------------------------------------------------------------------------------------------


def proportion(outcomes: Iterable[bool]) -> Interval:
    """The share of True among independent outcomes with Wilson's score interval (1927); ValueError for none."""
    from scipy.stats import binomtest  # takes a second to import, which tables of old runs need not wait for

    flags = [bool(outcome) for outcome in outcomes]
    interval = binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
    return Interval(sum(flags) / len(flags), float(interval.low), float(interval.high), len(flags))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test: are two systems equally often right on the same questions?

    The binomial test on the questions where just one is right; ValueError for unequal lengths.
    """
    from scipy.stats import binomtest

    _same(a, b)
    discordant = [bool(x) for x, y in zip(a, b) if bool(x) != bool(y)]
    return float(binomtest(sum(discordant), len(discordant)).pvalue) if discordant else 1.0


# --- questions in clusters ------------------------------------------------------------------------------------------


def cluster_mean(values: Sequence[float], clusters: Sequence[Hashable], seed: int) -> Interval:
    """The mean of the values with a bootstrap over clusters (one label per value, such as the picture or the entity).

    ValueError for no values or unequal lengths. With a single cluster the spread is unknown: low and high are None.
    """
    return cluster_ratio(values, np.ones(len(values)), clusters, seed)


def draws(values: Sequence[float], clusters: Sequence[Hashable], seed: int) -> NDArray[np.float64]:
    """The means of the values in the draws behind `cluster_mean`."""
    return _divide(*_resampled(_cluster_totals(values, np.ones(len(values)), clusters), np.random.default_rng(seed)).T)


def cluster_ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable], seed: int
) -> Interval:
    """Sum of numerators over sum of denominators (0 for 0/0) with a bootstrap over clusters; n counts the items.

    For rates whose base differs by item: needless searches per search, SimpleVQA's F. ValueError as in `cluster_mean`.
    """
    totals = _cluster_totals(numerators, denominators, clusters)
    drawn = _divide(*_resampled(totals, np.random.default_rng(seed)).T)
    return _interval(_divide(*totals.sum(axis=0)), drawn, len(totals), len(clusters))


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], seed: int) -> Interval:
    """Mean of a − b over the same questions with a bootstrap over clusters; above 0 where a is better.

    a, b: scores of two systems, question by question; clusters: one label each. ValueError as in `cluster_mean`.
    """
    _same(a, b)
    return cluster_mean(np.subtract(a, b, dtype=np.float64), clusters, seed)


def harmonic_interval(
    a: Sequence[float], b: Sequence[float], clusters_a: Sequence[Hashable], clusters_b: Sequence[Hashable], seed: int
) -> Interval:
    """Harmonic mean of two groups' means, each group bootstrapped over its own clusters (InfoSeek's unseen splits).

    a, b: scores of at least 0 of the two disjoint groups; the mean is 0 where one group's is. n counts the items of
    both. ValueError as in `cluster_mean`.
    """
    rng = np.random.default_rng(seed)
    totals = [_cluster_totals(v, np.ones(len(v)), c) for v, c in ((a, clusters_a), (b, clusters_b))]
    means = [_divide(*group.sum(axis=0)) for group in totals]
    drawn = [_divide(*_resampled(group, rng).T) for group in totals]
    value = 2 / sum(1 / mean for mean in means) if min(means) > 0 else 0.0
    harmonic = _divide(2 * drawn[0] * drawn[1], drawn[0] + drawn[1])
    return _interval(value, harmonic, min(len(group) for group in totals), len(a) + len(b))


# --- the bootstrap --------------------------------------------------------------------------------------------------


def _same(a: Sequence[object], b: Sequence[object]) -> None:
    """ValueError where the two differ in length."""
    if len(a) != len(b):
        raise ValueError(f"Values must be paired one to one, got {len(a)} and {len(b)}.")


def _cluster_totals(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable]
) -> NDArray[np.float64]:
    """(items,) twice, summed within clusters to (clusters, 2), in the order in which the labels first appear."""
    _same(numerators, denominators)
    _same(numerators, clusters)
    if not len(clusters):
        raise ValueError("There is nothing to average: no values were given.")
    order: dict[Hashable, int] = {}
    rows = [order.setdefault(label, len(order)) for label in clusters]
    totals = np.zeros((len(order), 2))
    np.add.at(totals, rows, np.stack([numerators, denominators], axis=-1).astype(np.float64))
    return totals


def _resampled(totals: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws, 2): sums over as many clusters as there are, drawn with replacement, once per draw."""
    k = len(totals)
    # One draw at a time: all at once would need draws × clusters numbers of memory.
    return np.stack([np.bincount(rng.integers(k, size=k), minlength=k) @ totals for _ in range(DRAWS)])


def _divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Above over below, each of any shape, 0 for 0/0."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below != 0)


def _interval(value: float, drawn: NDArray[np.float64], clusters: int, n: int) -> Interval:
    if clusters < 2:
        return Interval(float(value), None, None, n)
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    return Interval(float(value), float(low), float(high), n)
