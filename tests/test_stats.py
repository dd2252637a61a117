"""The intervals are what the textbooks say."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr import stats
from mmsr.stats import Interval, mcnemar, paired_difference


def share(successes: int, n: int) -> tuple[float, float]:
    """The bounds of `proportion` for so many successes of n."""
    interval = stats.proportion([True] * successes + [False] * (n - successes))
    return interval.low, interval.high


def test_wilson_known_values() -> None:
    assert share(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert share(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert share(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert share(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


@settings(deadline=None)  # the first example loads scipy.stats
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_solves_its_equation(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = share(successes, n)
    value = successes / n
    assert 0.0 <= low <= value <= high <= 1.0
    for end in (low, high):  # each end lies z standard errors, taken at that end, from the share
        assert (value - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, abs=1e-9)


def test_proportion() -> None:
    interval = stats.proportion([True] * 3 + [False])
    assert (interval.value, interval.n) == (0.75, 4)
    with pytest.raises(ValueError):
        stats.proportion([])


def test_mcnemar_is_the_sign_test() -> None:
    """Against all 2^n ways in which the discordant questions could have fallen."""
    for only_a, only_b in itertools.product(range(6), repeat=2):
        a = [True] * only_a + [False] * only_b + [True, False]
        b = [False] * only_a + [True] * only_b + [True, False]
        n, gap = only_a + only_b, abs(only_a - only_b)
        extreme = sum(abs(sum(signs)) >= gap for signs in itertools.product((-1, 1), repeat=n))
        assert mcnemar(a, b) == pytest.approx(extreme / 2**n)


def test_mcnemar_known_value_and_size() -> None:
    assert mcnemar([True] * 5 + [False] * 15, [False] * 5 + [True] * 15) == pytest.approx(0.041389, abs=1e-6)
    assert 0.0 <= mcnemar([True] * 3000 + [False] * 2500, [False] * 3000 + [True] * 2500) < 1e-9
    with pytest.raises(ValueError, match="one to one"):
        mcnemar([True], [])


def test_cluster_mean_agrees_with_a_plain_bootstrap() -> None:
    """Against resampling lists of items by hand, with other random numbers."""
    source = random.Random(1)
    groups = {f"entity {i}": [source.random() for _ in range(1 + i % 4)] for i in range(40)}
    items = [(value, name) for name, values in groups.items() for value in values]
    got = stats.cluster_mean([v for v, _ in items], [c for _, c in items], seed=3)
    means = []
    for _ in range(4000):
        drawn = [v for name in source.choices(list(groups), k=len(groups)) for v in groups[name]]
        means.append(sum(drawn) / len(drawn))
    assert got.value == pytest.approx(sum(v for v, _ in items) / len(items))
    assert (got.low, got.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert got.n == len(items)


def test_clusters_widen_the_interval() -> None:
    values = [float(i % 2) for i in range(50) for _ in range(8)]
    alone = stats.cluster_mean(values, range(len(values)), seed=0)
    together = stats.cluster_mean(values, [i // 8 for i in range(len(values))], seed=0)
    width = [interval.high - interval.low for interval in (alone, together)]
    assert width[1] / width[0] == pytest.approx(math.sqrt(8), rel=0.15)


def test_paired_difference_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """About 95 of 100 intervals hold the true gain of 0.1, though questions of one cluster rise and fall together."""
    monkeypatch.setattr(stats, "DRAWS", 300)
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        clusters = np.repeat(np.arange(60), 5)
        level = rng.random(60)[clusters] * 0.8
        a, b = rng.random(300) < level + 0.1, rng.random(300) < level
        interval = paired_difference(a, b, clusters.tolist(), seed=seed)
        held += interval.low <= 0.1 <= interval.high
    assert 180 <= held <= 199


def test_paired_difference_of_equals_is_nothing() -> None:
    assert paired_difference([1, 0, 1], [1, 0, 1], "xyz", seed=5) == Interval(0.0, 0.0, 0.0, 3)


def test_same_seed_same_interval() -> None:
    values, clusters = [0.1 * i for i in range(30)], [i % 7 for i in range(30)]
    assert stats.cluster_mean(values, clusters, 4) == stats.cluster_mean(values, clusters, 4)
    assert stats.cluster_mean(values, clusters, 4) != stats.cluster_mean(values, clusters, 5)


def test_one_cluster_has_no_interval() -> None:
    assert stats.cluster_mean([1.0, 0.0], ["x", "x"], seed=0) == Interval(0.5, None, None, 2)


def test_nothing_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        stats.cluster_mean([], [], seed=0)
    with pytest.raises(ValueError, match="one to one"):
        stats.cluster_mean([1.0], ["x", "y"], seed=0)
    with pytest.raises(ValueError, match="one to one"):
        paired_difference([1.0], [1.0, 2.0], ["x"], seed=0)


def test_ratio_of_nothing_is_zero() -> None:
    assert stats.cluster_ratio([0, 0], [0, 0], ["x", "y"], seed=0) == Interval(0.0, 0.0, 0.0, 2)
    assert stats.cluster_ratio([1, 0], [3, 1], ["x", "y"], seed=0).value == 0.25


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=8), st.lists(st.integers(0, 5), min_size=2, max_size=8))
def test_harmonic_interval_value(a: list[int], b: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "DRAWS", 50)
        interval = stats.harmonic_interval(a, b, range(len(a)), range(len(b)), seed=0)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    expected = 2 * mean_a * mean_b / (mean_a + mean_b) if mean_a and mean_b else 0.0
    assert interval.value == pytest.approx(expected)
    assert min(mean_a, mean_b) - 1e-9 <= interval.value <= max(mean_a, mean_b) + 1e-9
    assert interval.low <= interval.high
    assert interval.n == len(a) + len(b)


def test_harmonic_mean_of_known_groups() -> None:
    pairs = ["x", "x", "y", "y"]
    assert stats.harmonic_interval([1, 0, 1, 0], [1, 0, 0, 0], pairs, pairs, seed=0).value == pytest.approx(1 / 3)
    assert stats.harmonic_interval([1, 1], [0, 0], pairs[:2], pairs[:2], seed=0) == Interval(0.0, None, None, 4)
    with pytest.raises(ValueError, match="nothing to average"):
        stats.harmonic_interval([], [1.0], [], ["x"], seed=0)
