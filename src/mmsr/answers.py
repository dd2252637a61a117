"""When two answers are the same.

    exact_match("1046 km.", ["1,046 km"])       # True
    normalise("The 1,046km")                    # "1046 km"

The usual comparison of open question answering (SQuAD, Rajpurkar et al. 2016, evaluation script) with the numbers kept
whole: there "3.5" becomes "35".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_NUMBER = re.compile(r"((?:(?<!\w)-)?\d+(?:\.\d+)*)")
_DELETED = "'’`."  # d'Ivoire and U.S. are one word each; other punctuation parts words, as in Guinea-Bissau


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
