"""The published rules against second implementations in another style, on 1,000 random answers each."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mmsr.benchmarks import scores as rules
from mmsr.benchmarks.registry import BENCHMARKS, BenchmarkItem

DRAWS = 1000

# --- OK-VQA: the official script's loop over annotators, its tables written out --------------------------------------

TABLE = """aint:ain't arent:aren't
cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't havent:haven't
hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't itd:it'd itd've:it'd've
it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've
mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't
ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've she's:she's
shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd
someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd
somethingd've:something'd've something'dve:something'd've somethingll:something'll thats:that's thered:there'd
thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've
they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've
weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd
wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've
whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've
wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've
y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've"""
CONTRACTIONS = dict(entry.split(":") for entry in TABLE.split())
NUMBERS = dict(none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7", eight="8")
NUMBERS |= dict(nine="9", ten="10")


def official_vqa(text: str) -> str:
    out = text
    for p in [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]:
        if p + " " in text or " " + p in text or re.search(r"(\d)(\,)(\d)", text) is not None:
            out = out.replace(p, "")
        else:
            out = out.replace(p, " ")
    kept = []
    for i, char in enumerate(out):
        if char != "." or re.match(r"\d", out[i + 1 : i + 2]):
            kept.append(char)
    words = []
    for word in "".join(kept).lower().split():
        word = NUMBERS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def official_okvqa(answer: str, golds: list[str]) -> float:
    people = [{"id": i, "answer": gold} for i, gold in enumerate(golds)]
    if len(set(golds)) > 1:
        for person in people:
            person["answer"] = official_vqa(person["answer"])
        answer = official_vqa(answer)
    scores = []
    for left_out in people:
        others = [person for person in people if person != left_out]
        matching = [person for person in others if person["answer"] == answer]
        scores.append(min(1, float(len(matching)) / 3))
    return float(sum(scores)) / len(scores)


def official_lmms(answer: str, golds: list[str]) -> float:
    def process(text: str) -> str:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        return official_vqa(text.replace("\n", " ").replace("\t", " ").strip())

    people, accuracies = [process(gold) for gold in golds], []
    for i in range(len(people)):
        others = [people[j] for j in range(len(people)) if i != j]
        accuracies.append(min(1, float(len([gold for gold in others if gold == process(answer)])) / 3))
    return sum(accuracies) / len(accuracies)


VQA_WORDS = """two 2 Two. one the a an dog dogs, dont don't can't cant none 1,000 1000 3.5 3. hot-dog hot dog (red)
ice-cream youre itd've somebody'd ten! what? U.S. US x_y "quoted" mother's mothers red/blue .5 ; + rock'n'roll"""
WORDS = VQA_WORDS.split()


def test_vqa_normalisation_has_the_official_tables() -> None:
    assert rules.CONTRACTIONS | {"let's": "let's", "she's": "she's"} == CONTRACTIONS
    assert rules.DIGITS == NUMBERS


def test_okvqa_agrees_with_the_leave_one_out_loop() -> None:
    rng, marks = random.Random(0), []
    for _ in range(DRAWS):
        pool = [" ".join(rng.choices(WORDS, k=rng.choice((1, 1, 2, 3)))) for _ in range(rng.randint(1, 4))]
        golds, answer = rng.choices(pool, k=10), rng.choice([*pool, *pool, rng.choice(WORDS)])
        answer = rng.choice([answer, answer.upper(), f"the {answer}.", f" {answer}!"])
        assert rules.vqa_normalise(answer) == official_vqa(answer)
        marks.append(rules.okvqa_mark(answer, golds))
        assert marks[-1] == pytest.approx(official_okvqa(answer.strip(), golds)), (answer, golds)
        assert rules.okvqa_lmms_mark(answer, golds) == pytest.approx(official_lmms(answer, golds)), (answer, golds)
    assert len({round(mark, 3) for mark in marks}) >= 5  # the draws reach every step of agreement: 0, .3, .6, .9, 1


@pytest.mark.parametrize(("matches", "mark"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_okvqa_steps(matches: int, mark: float) -> None:
    assert rules.okvqa_mark("dog", ["dog"] * matches + [f"cat {i}" for i in range(10 - matches)]) == pytest.approx(mark)


def test_okvqa_normalises_nothing_where_all_agree() -> None:
    assert rules.okvqa_mark("the dog", ["dog"] * 10) == 0.0
    assert rules.okvqa_mark("the dog", ["dog"] * 9 + ["cat"]) == 1.0
    assert rules.okvqa_mark("Black", ["black"] * 10) == 0.0
    assert rules.okvqa_mark("Black", ["black"] * 9 + ["cat"]) == 1.0


def test_okvqa_is_scored_by_both_scripts() -> None:
    items = [BenchmarkItem(str(n), "?", ("black",) * 10, "any", "val", str(n)) for n in range(2)]
    scores = BENCHMARKS["okvqa"].score(items, ["Black", "black"])
    assert scores["vqa_accuracy"].value == 0.5 and scores["vqa_accuracy_lmms_eval"].value == 1.0


# --- A-OKVQA ---------------------------------------------------------------------------------------------------------


def test_aokvqa_agrees_with_counting() -> None:
    rng = random.Random(1)
    for _ in range(DRAWS):
        golds = rng.choices(["dog", "Dog", "dogs", "a dog", "cat"], k=10)
        answer = rng.choice([*golds, "bird"])
        votes = Counter(golds)[answer]
        assert rules.aokvqa_mark(answer, golds) == pytest.approx({0: 0.0, 1: 1 / 3, 2: 2 / 3}.get(votes, 1.0))


# --- InfoSeek --------------------------------------------------------------------------------------------------------


def plain_text(text: str) -> list[str]:
    letters = "".join(char for char in text.lower() if char not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in re.split(r"\s+", letters) if word not in ("", "a", "an", "the")]


def numbers_by_hand(text: str) -> list[float]:
    """The numbers of an answer made of words, digits, commas, points and dashes, read character by character."""
    found, current = [], ""
    for i, char in enumerate(text + " "):
        after = text[i + 1 : i + 2]
        grouped = char == "," and current[-1:].isdigit() and re.match(r"\d{3}", text[i + 1 : i + 4])
        if char.isdigit() or grouped or (char == "." and current and "." not in current and after.isdigit()):
            current += char
        elif char == "-" and not text[max(i - 1, 0) : i].isdigit() and after.isdigit():
            current = "-"
        elif current:
            found, current = [*found, float(current.replace(",", ""))], ""
    return found


def infoseek_by_hand(answer: str, kind: str, golds: list[str], low: float, high: float) -> int:
    if kind != "numerical":
        return int(plain_text(answer) in [plain_text(gold) for gold in golds])
    numbers = numbers_by_hand(answer)[:2]
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        numbers = numbers[:1]
    start, end = (numbers[0], numbers[-1]) if numbers else (0.0, 0.0)
    if start >= low and end <= high:
        return 1
    if start == end:
        return 0
    union = max(end, high) - min(start, low)  # of two ranges that meet; two that do not meet share nothing
    shared = min(end, high) - max(start, low)
    return int(shared > 0 and shared / union >= 0.5 - 1e-9)


def random_infoseek(rng: random.Random, split: str, number: int) -> tuple[BenchmarkItem, str]:
    kind = rng.choice(["string", "time", "numerical", "numerical"])
    low = round(rng.uniform(-50, 2000), rng.choice([0, 1]))
    high = low + rng.choice([0.0, 10.0, 200.0])
    golds = tuple(rng.sample(["Paris", "City of Light", "1883", "24 May 1883", "St. John's", "3.5"], 2))
    near = rng.uniform(low - 20, high + 20)
    value = rng.choice([f"{near:.0f}", f"{near:,.0f}", f"{near:.1f} m", f"about {near:,.2f}"])
    other = near + rng.choice([-30, 5, 15, 150, 400])
    numeric = rng.choice([value, f"{near:.0f}-{other:.0f}", f"from {near:.1f} to {other:.1f} km", "unknown", "1.2 3 4"])
    text = rng.choice([*golds, "the " + golds[0].lower() + ".", "Lyon", "St Johns"])
    item = BenchmarkItem(str(number), "?", golds, kind, split, f"{split}{number % 90}", (low, high))
    return item, numeric if kind == "numerical" else text


def test_infoseek_agrees_with_a_reading_by_hand() -> None:
    rng = random.Random(2)
    drawn = [random_infoseek(rng, rng.choice(["unseen_question", "unseen_entity"]), n) for n in range(DRAWS)]
    marks = {"unseen_question": [], "unseen_entity": []}
    for item, answer in drawn:
        expected = infoseek_by_hand(answer, item.kind, list(item.golds), *item.limits)
        assert rules.infoseek_mark(answer, item.kind, item.golds, item.limits) == expected, (item, answer)
        marks[item.split].append(expected)
    shares = {split: 100 * sum(values) / len(values) for split, values in marks.items()}
    question, entity = shares.values()
    assert 15 < question < 85
    scores = BENCHMARKS["infoseek"].score([item for item, _ in drawn], [answer for _, answer in drawn])
    assert 100 * scores["harmonic_mean"].value == pytest.approx(2 / (1 / question + 1 / entity))
    assert 100 * scores["unseen_question"].value == pytest.approx(question)
    assert 100 * scores["unseen_entity"].value == pytest.approx(entity)


@pytest.mark.parametrize(
    ("answer", "limits", "mark"),
    [
        ("1,100 m", (900, 1300), 1),
        ("9-10", (8, 11), 1),
        ("100 to 200", (150, 200), 1),  # IoU just 0.5
        ("100 to 201", (150, 200), 0),
        ("200 to 100", (195, 205), 1),  # a range that runs down is its first number
        (".5", (4, 6), 1),  # read as 5, as published
        ("no idea", (-1, 1), 1),  # no number is the range from 0 to 0, as published
        ("-.5.3 or 4", (3, 5), 1),
    ],
)
def test_infoseek_numbers(answer: str, limits: tuple[float, float], mark: int) -> None:
    assert rules.infoseek_mark(answer, "numerical", (), limits) == mark


# --- Dyn-VQA ---------------------------------------------------------------------------------------------------------


def scan_words(text: str) -> Counter[str]:
    """Words of a text of plain words, numbers, dollars, per cents, brackets, clitics and sentences, by scanning."""
    bag: Counter[str] = Counter()
    for chunk in text.lower().split():
        while chunk and chunk[0] in "($":
            bag[chunk[0]] += 1
            chunk = chunk[1:]
        tail = []
        while chunk and chunk[-1] in ").,?!:;%":
            tail.append(chunk[-1])
            chunk = chunk[:-1]
        bag.update(mark for mark in tail if mark in ")%")
        for ending in ("n't", "'s", "'ll", "'re", "'ve", "'d"):
            if chunk.endswith(ending) and chunk != ending:
                bag[ending] += 1
                chunk = chunk[: -len(ending)]
        parts = ["can", "not"] if chunk == "cannot" else [chunk]
        bag.update(part for part in parts if part)
    return bag


def dynvqa_by_hand(answer: str, golds: list[str]) -> float:
    normal = official_vqa(answer.strip())
    if not normal:
        return 0.0
    best, given = 0.0, scan_words(normal)
    for gold in golds:
        wanted = scan_words(gold)
        if not wanted or not given:
            best = max(best, float(wanted == given))
        else:
            best = max(best, sum(min(count, given[word]) for word, count in wanted.items()) / sum(wanted.values()))
    return best


DYN_TEXT = """Tesla has never released it. Messi won't win, November 3, 2024 $68.7 billion 11/3/2024 40,000 40000 the
don't Oliver's (oganesson) 23 years old ten 10 The a company's $5 5% they'll no: yes; three 莫娜 Moana 2 cannot"""
DYN_WORDS = DYN_TEXT.split()


def test_dynvqa_agrees_with_scanning() -> None:
    rng, marks = random.Random(3), []
    for _ in range(DRAWS):
        golds = [" ".join(rng.choices(DYN_WORDS, k=rng.randint(1, 7))) for _ in range(rng.randint(1, 4))]
        parts = [*rng.choice(golds).split(), *rng.choices(DYN_WORDS, k=3)]
        answer = rng.choice([" ".join(rng.sample(parts, rng.randint(0, len(parts)))), golds[0], golds[0] + "\n"])
        marks.append(rules.dynvqa_mark(answer, golds))
        assert marks[-1] == pytest.approx(dynvqa_by_hand(answer, golds)), (answer, golds)
    assert len(set(marks)) > 20


def test_dynvqa_tokens_follow_treebank() -> None:
    words = ["he", "said", "''", "no", "''", "--", "maybe", "...", "it", "'s", "11:30"]
    assert rules.dynvqa_tokens('He said "no" -- maybe... It\'s 11:30.') == words
    assert rules.dynvqa_tokens("Dr. No won. X Corp. fell") == ["dr.", "no", "won", "x", "corp.", "fell"]
    assert rules.dynvqa_tokens("'Tis the students' cannot") == ["tis", "the", "students", "can", "not"]


def test_dynvqa_articles_of_a_gold_are_never_found() -> None:
    assert rules.dynvqa_mark("the Moon", ["the Moon"]) == 0.5


# --- Encyclopedic-VQA and SQuAD's exact match ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "golds", "kind", "mark"),
    [
        ("The answer is two feet.", ["2 feet"], "templated", 1),
        ("2 foot", ["two feet", "2 foot"], "automatic", 1),
        ("true", ["yes"], "automatic", 1),
        ("", ["the"], "automatic", 0),  # a gold that is empty after normalisation matches nothing
        ("black, white and orange", ["orange&&black && white"], "multi_answer", 1),
        ("black & white", ["black&&white&&orange"], "multi_answer", 1),
        ("black", ["black&&white&&orange"], "multi_answer", 0),
        ("black, green", ["black&&white", "green&&black&&red"], "multi_answer", 1),
        ("1841", ["1841"], "2_hop", 1),
    ],
)
def test_evqa(answer: str, golds: list[str], kind: str, mark: int) -> None:
    assert rules.evqa_mark(answer, golds, kind) == mark


def test_squad_normalisation_is_the_published_one() -> None:
    assert rules.squad_mark("St Johns", ["St. John's"]) == 1.0
    assert rules.squad_mark("35", ["3.5"]) == 1.0  # as published; ours would not
    assert rules.squad_mark("Guinea Bissau", ["Guinea-Bissau"]) == 0.0
