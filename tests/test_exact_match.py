"""Answers are compared as the docstrings say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr.reward import exact_match, normalise

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
        ("–5 °C", "-5 °C"),
        ("— 5 °C", "−5 °C"),
        ("‒$5", "-$5"),
        ("Bogota", "Bogotá"),
        ("ISTANBUL", "İstanbul"),
        ("Tromsø", "tromsø"),
        ("Nai\u200brobi\u00ad", "Nairobi"),
        ("New\tYork\n", "new york"),
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
        *((f"{dash}5 °C", "5 °C") for dash in "-‐‑‒–—―−➖﹣－⁻"),
        ("– 5 °C", "5 °C"),
        ("-$5", "$5"),
        ("कि", "की"),
        ("か", "が"),
        ("5 km", "5 kilometres"),
        ("1st", "first"),
        ("2", "two"),
    ],
)
def test_another_answer(answer: str, gold: str) -> None:
    assert not exact_match(answer, [gold])


def test_ranges_and_names_with_numbers_are_not_negative() -> None:
    assert normalise("1939-1945") == "1939 1945"
    assert normalise("COVID-19") == "covid 19"
    assert normalise("1939–1945") == normalise("1939 – 1945") == "1939 1945"


def test_a_tower_of_marks_is_read_in_time() -> None:
    assert exact_match("Li" + "\u0301\u0316" * 25_000 + "ma", ["Lima"])  # to sort them takes seconds


def test_no_golds_match_nothing() -> None:
    assert not exact_match("Kenya", [])


@given(LATIN)
def test_normalise_twice_is_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.integers(0, 10**12), st.sampled_from(["", " km", " sq km"]))
def test_thousands_commas_do_not_matter(number: int, unit: str) -> None:
    assert exact_match(f"{number:,}{unit}", [f"{number}{unit}"])
