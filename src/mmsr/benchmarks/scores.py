"""The published scoring rules of the public benchmarks, one answer at a time.

    okvqa_mark("two dogs", ["2 dogs"] * 3 + ["dogs"] * 7)    # 0.9: mean over the ten annotators left out in turn
    infoseek_mark("1,100 m", "numerical", (), (900, 1300))   # 1.0: within the range
    dynvqa_mark("in November 2024", ["Nov 2024", "November 2024"])   # 1.0: recall of the gold's words

A mark is from 0 to 1, and there is at least one gold. Oddities of the official scripts are kept and named: a score is
only comparable when it errs as the others do. Word tables (normalise.toml) and sources (published.toml) are assets.
"""

from __future__ import annotations

import contextlib
import re
import string
import tomllib
from collections import Counter
from collections.abc import Sequence

from mmsr.presets import ASSETS

IOU = 0.5  # from which a list (Encyclopedic-VQA) or a range (InfoSeek) is right
VQA_AGREEMENT = 3  # annotators who must agree for a full mark

TABLES = tomllib.loads((ASSETS / "benchmarks" / "normalise.toml").read_text(encoding="utf-8"))
VQA, TREEBANK = TABLES["vqa"], TABLES["treebank"]
DIGITS = VQA["digits"]
EVQA_WORDS = DIGITS | TABLES["evqa"]["words"]
CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form for form in VQA["contracted"].split() for i, char in enumerate(form) if char == "'"
} | VQA["irregular"]

DIGIT_COMMA = re.compile(r"\d,\d")
# The script means to spare decimals; its lookbehind is misspelt, so only a digit after the point saves it.
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # it passes re.UNICODE, which is 32, where the number of replacements goes
INFOSEEK_NUMBER = re.compile(r"[-+]?\.?\d+(?:,\d\d\d)*\.?\d*(?:[eE][-+]?\d+)?")
SENTENCE_END = re.compile(r"(?<=[.?!])[\"')\]]*\s+")
ABBREVIATION = re.compile(rf"(?:^|[\s(\"'])(?:(?:\w\.)+|(?:{'|'.join(TREEBANK['abbreviations'].split())})\.)$")


def vqa_normalise(text: str) -> str:
    """The official VQA normalisation: punctuation, number words, articles, contractions; lower case."""
    drop_all = DIGIT_COMMA.search(text) is not None
    out = text
    for mark in VQA["punctuation"]:
        touches_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if touches_space or drop_all else " ")
    words = PERIOD.sub("", out, count=MOST_PERIODS).lower().split()
    words = [DIGITS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in VQA["articles"])


def okvqa_mark(answer: str, golds: Sequence[str]) -> float:
    """VQA accuracy as vqaEval.py has it (GT-Vision-Lab/VQA, for VQA v2).

    Where all annotators wrote the same, it compares to the letter: "Black" is wrong where ten wrote "black".
    """
    answer, golds = _one_line(answer), [_one_line(gold) for gold in golds]
    if len(set(golds)) > 1:
        answer, golds = vqa_normalise(answer), [vqa_normalise(gold) for gold in golds]
    return _agreement(answer, golds)


def okvqa_lmms_mark(answer: str, golds: Sequence[str]) -> float:
    """VQA accuracy as lmms-eval has it: all normalised, without commas and question marks, a clitic 's split off."""
    texts = (text.lower().replace(",", "").replace("?", "").replace("'s", " 's") for text in (answer, *golds))
    answer, *golds = (vqa_normalise(_one_line(text)) for text in texts)
    return _agreement(answer, golds)


def _agreement(answer: str, golds: Sequence[str]) -> float:
    """Each annotator left out in turn, min(1, matches among the others / 3), then the mean."""
    n, matches = len(golds), golds.count(answer)
    one_left_out, all_there = (min(1.0, count / VQA_AGREEMENT) for count in (matches - 1, matches))
    return (matches * one_left_out + (n - matches) * all_there) / n


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def aokvqa_mark(answer: str, golds: Sequence[str]) -> float:
    """A-OKVQA's direct answer: min(1, annotators who wrote exactly this / 3), without any normalisation."""
    return min(1.0, sum(answer == gold for gold in golds) / VQA_AGREEMENT)


def squad_mark(answer: str, golds: Sequence[str]) -> float:
    """1 where the answer equals a gold after `squad_normalise` (InfoSeek's strings and times, FVQA)."""
    return float(squad_normalise(answer) in map(squad_normalise, golds))


def squad_normalise(text: str) -> str:
    """Lower case, ASCII punctuation deleted, articles dropped, single spaces; "3.5" becomes "35", as published."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def infoseek_mark(answer: str, kind: str, golds: Sequence[str], limits: tuple[float, float] | None) -> float:
    """InfoSeek's relaxed accuracy: exact match for kinds string and time, the range rule for numerical.

    A number must lie within the limits; two numbers are a range, which must lie within them or overlap by IoU >= 0.5.
    """
    if kind != "numerical":
        return squad_mark(answer, golds)
    low, high = limits
    first, last = _infoseek_range(answer)
    if first == last or low <= first <= last <= high:
        return float(low <= first <= high)
    common, tiny = max(0.0, min(last, high) - max(first, low)), 1e-12  # by which the script lengthens each range
    return float(common / ((last - first + tiny) + (high - low + tiny) - common) >= IOU - tiny)


def _infoseek_range(answer: str) -> tuple[float, float]:
    """The first two numbers, or one number twice (also where the second is the smaller); (0, 0) where there is none.

    As the script reads them: without commas or a point at either end (".5" is 5); "-.5.3", where it fails, is left out.
    """
    numbers = []
    for text in INFOSEEK_NUMBER.findall(re.sub(r"(?<=\d)-", " - ", answer)):  # 9-10 is a range, not a negative number
        with contextlib.suppress(ValueError):
            numbers.append(float(text.replace(",", "").strip(".")))
    first, last = (numbers * 2 or [0.0, 0.0])[:2]
    return (first, last) if first <= last else (first, first)


def evqa_normalise(text: str) -> str:
    """Punctuation deleted, articles and "the answer is" dropped, number and truth words unified, single spaces."""
    # The script also writes contractions out; with every apostrophe gone that can no longer make two answers equal.
    text = _one_line(text.lower()).translate(str.maketrans("", "", string.punctuation + "‘’´"))
    words = re.sub(r"\b(the answer is|a|an|the)\b", " ", text).split()
    return " ".join(EVQA_WORDS.get(word, word) for word in words)


def evqa_mark(answer: str, golds: Sequence[str], kind: str) -> float:
    """Encyclopedic-VQA's exact match, the best over annotators; lists (multi_answer) match from IoU 0.5.

    This is the exact-match half of the published score; the other, BEM, is a BERT model that this package lacks.
    """
    if kind == "multi_answer":
        return max(_evqa_list_mark(answer, gold) for gold in golds)
    return float(evqa_normalise(answer) in _evqa_set(golds))


def _evqa_list_mark(answer: str, gold: str) -> float:
    wanted = _evqa_set(gold.split("&&"))
    given = _evqa_set(answer.replace(" and ", ",").replace(" & ", ",").split(","))
    return float(bool(wanted) and len(wanted & given) / len(wanted | given) >= IOU)


def _evqa_set(texts: Sequence[str]) -> set[str]:
    return {*map(evqa_normalise, texts)} - {""}


def dynvqa_tokens(text: str) -> list[str]:
    """The words of a lower-cased text by Penn Treebank rules, without the tokens that are mere punctuation.

    These are the rules of NLTK's `word_tokenize` without its trained sentence splitter, which matters only to the full
    stop of an abbreviation that normalise.toml lacks.
    """
    words = []
    for sentence in _sentences(text.lower()):
        sentence = sentence.strip()
        for pattern, replacement in TREEBANK["rules"]:
            sentence = re.sub(pattern, replacement, sentence)
        words += [word for word in sentence.split() if word not in TREEBANK["dropped"]]
    return words


def _sentences(text: str) -> list[str]:
    parts, start = [], 0
    for gap in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : gap.start()]):
            parts.append(text[start : gap.end()])
            start = gap.end()
    return [*parts, text[start:]]


def dynvqa_mark(answer: str, golds: Sequence[str]) -> float:
    """Dyn-VQA's token F1-recall in English: the share of a gold's words that the answer holds, best over the golds."""
    normal = vqa_normalise(_one_line(answer))  # golds are not, as published: an article in one is never found
    return 0.0 if normal == "" else max(_recall(dynvqa_tokens(gold), dynvqa_tokens(normal)) for gold in golds)


def _recall(gold: list[str], answer: list[str]) -> float:
    if not gold or not answer:
        return float(gold == answer)
    return sum((Counter(gold) & Counter(answer)).values()) / len(gold)
