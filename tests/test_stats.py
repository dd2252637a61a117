"""Answers are compared as the docstrings say, and the intervals are what the textbooks say."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr import stats as metrics
from mmsr.stats import Interval, exact_match, mcnemar, normalise, paired_difference, token_f1, wilson

LATIN = st.text(st.characters(max_codepoint=255), max_size=40)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1,046 km", "1046 km"),
        ("1046km", "1,046 km"),
        ("1,234,567.", "1234567"),
        ("The  Guinea-Bissau!", "guinea bissau"),
        ("U.S.", "US"),
        ("Côte d’Ivoire", "côte d'ivoire"),
        ("−12.5 °C", "-12.5 C"),
        (".5%", "0.5 %"),
        ("１２ km²", "12 km2"),
        ("A", "a"),
        ("an apple (red)", "apple red"),
    ],
)
def test_same_answer(answer: str, gold: str) -> None:
    assert exact_match(answer, [gold])
    assert exact_match(gold, ["something else", answer])


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("12", "12.5"),
        ("1,2", "12"),
        ("", ""),
        ("?", "!"),
        ("Niger", "Nigeria"),
        ("a", "the"),
    ],
)
def test_another_answer(answer: str, gold: str) -> None:
    assert not exact_match(answer, [gold])


def test_ranges_and_names_with_numbers_are_not_negative() -> None:
    assert normalise("1939-1945") == "1939 1945"
    assert normalise("COVID-19") == "covid 19"


def test_no_golds_match_nothing() -> None:
    assert not exact_match("Kenya", [])
    assert token_f1("Kenya", []) == 0.0


@given(LATIN)
def test_normalise_twice_is_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.integers(0, 10**12), st.sampled_from(["", " km", " sq km"]))
def test_thousands_commas_do_not_matter(number: int, unit: str) -> None:
    assert exact_match(f"{number:,}{unit}", [f"{number}{unit}"])


@given(LATIN, LATIN)
def test_f1_is_symmetric_and_one_on_a_match(a: str, b: str) -> None:
    score = token_f1(a, [b])
    assert 0.0 <= score <= 1.0
    assert math.isclose(score, token_f1(b, [a]))
    if exact_match(a, [b]):
        assert score == 1.0


def test_f1_counts_repeated_words_once_each() -> None:
    # two of three answer words and two of two gold words: precision 2/3, recall 1
    assert token_f1("red red blue", ["blue red"]) == pytest.approx(0.8)
    assert token_f1("red", ["green", "red blue"]) == pytest.approx(2 / 3)


def test_wilson_known_values() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_solves_its_equation(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    share = successes / n
    assert 0.0 <= low <= share <= high <= 1.0
    for end in (low, high):  # each end lies z standard errors, taken at that end, from the share
        assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_nonsense(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_proportion() -> None:
    interval = metrics.proportion([True] * 3 + [False])
    assert (interval.value, interval.n) == (0.75, 4)
    assert (interval.low, interval.high) == wilson(3, 4)


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
    got = metrics.cluster_mean([v for v, _ in items], [c for _, c in items], seed=3)
    means = []
    for _ in range(4000):
        drawn = [v for name in source.choices(list(groups), k=len(groups)) for v in groups[name]]
        means.append(sum(drawn) / len(drawn))
    assert got.value == pytest.approx(sum(v for v, _ in items) / len(items))
    assert (got.low, got.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert got.n == len(items)


def test_clusters_widen_the_interval() -> None:
    values = [float(i % 2) for i in range(50) for _ in range(8)]
    alone = metrics.cluster_mean(values, range(len(values)), seed=0)
    together = metrics.cluster_mean(values, [i // 8 for i in range(len(values))], seed=0)
    width = [interval.high - interval.low for interval in (alone, together)]
    assert width[1] / width[0] == pytest.approx(math.sqrt(8), rel=0.15)


def test_paired_difference_coverage() -> None:
    """About 95 of 100 intervals hold the true gain of 0.1, though questions of one cluster rise and fall together."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        clusters = np.repeat(np.arange(60), 5)
        level = rng.random(60)[clusters] * 0.8
        a, b = rng.random(300) < level + 0.1, rng.random(300) < level
        interval = paired_difference(a, b, clusters.tolist(), seed=seed, draws=300)
        held += interval.low <= 0.1 <= interval.high
    assert 180 <= held <= 199


def test_paired_difference_of_equals_is_nothing() -> None:
    assert paired_difference([1, 0, 1], [1, 0, 1], "xyz", seed=5) == Interval(0.0, 0.0, 0.0, 3)


def test_same_seed_same_interval() -> None:
    values, clusters = [0.1 * i for i in range(30)], [i % 7 for i in range(30)]
    assert metrics.cluster_mean(values, clusters, 4) == metrics.cluster_mean(values, clusters, 4)
    assert metrics.cluster_mean(values, clusters, 4) != metrics.cluster_mean(values, clusters, 5)


def test_one_cluster_has_no_interval() -> None:
    assert metrics.cluster_mean([1.0, 0.0], ["x", "x"], seed=0) == Interval(0.5, None, None, 2)


def test_nothing_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        metrics.cluster_mean([], [], seed=0)
    with pytest.raises(ValueError, match="one to one"):
        metrics.cluster_mean([1.0], ["x", "y"], seed=0)
    with pytest.raises(ValueError, match="one to one"):
        paired_difference([1.0], [1.0, 2.0], ["x"], seed=0)


def test_ratio_of_nothing_is_zero() -> None:
    assert metrics.cluster_ratio([0, 0], [0, 0], ["x", "y"], seed=0) == Interval(0.0, 0.0, 0.0, 2)
    assert metrics.cluster_ratio([1, 0], [3, 1], ["x", "y"], seed=0).value == 0.25


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=8), st.lists(st.integers(0, 5), min_size=2, max_size=8))
def test_harmonic_interval_value(a: list[int], b: list[int]) -> None:
    interval = metrics.harmonic_interval(a, b, range(len(a)), range(len(b)), seed=0, draws=50)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    expected = 2 * mean_a * mean_b / (mean_a + mean_b) if mean_a and mean_b else 0.0
    assert interval.value == pytest.approx(expected)
    assert min(mean_a, mean_b) - 1e-9 <= interval.value <= max(mean_a, mean_b) + 1e-9
    assert interval.low <= interval.high
    assert interval.n == len(a) + len(b)


def test_harmonic_mean() -> None:
    assert metrics.harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)
    assert metrics.harmonic_mean([0.9, 0.0]) == 0.0
    with pytest.raises(ValueError, match="harmonic"):
        metrics.harmonic_mean([])


def test_interval_goes_to_json() -> None:
    assert Interval(1.0).as_dict() == {"value": 1.0, "low": None, "high": None, "n": None}
