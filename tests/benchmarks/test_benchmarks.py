"""The benchmarks load from files in their published formats, are sampled by a seed, and say clearly what is broken."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsr.benchmarks.registry import BENCHMARKS, Benchmark, BenchmarkError, BenchmarkItem, check_benchmark
from mmsr.reward import LABELS
from mmsr.stats import Interval

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")


def write_simplevqa(folder: Path, rows: int = 6, **changes: object) -> Path:
    """Rows as in m-a-p/SimpleVQA, every third of them Chinese."""
    table = [
        {
            "data_id": number,
            "image": base64.b64encode(PNG).decode(),
            "image_description": "one red point",
            "language": "CN" if number % 3 == 2 else "EN",
            "question": f"Question {number}?",
            "answer": f"answer {number}",
            "original_category": "art" if number % 2 else "biology",
            "source": "made by hand",
            "atomic_question": "What is this?",
            "atomic_fact": "a point",
        }
        | changes
        for number in range(rows)
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "data" / "test-00000-of-00001.parquet", row_group_size=2)
    return folder


def write_fvqa(folder: Path, split: str = "test", **changes: object) -> Path:
    """Rows as in lmms-lab/FVQA."""
    golds = [("Malta", '["Malta", "MLT", "Republic of Malta"]'), ("namus", "[]")]
    table = [
        {
            "prompt": [{"content": f"Which name {number}?", "role": "user"}],
            "images": [{"bytes": PNG, "path": None}],
            "reward_model": {"candidate_answers": candidates, "ground_truth": truth, "style": "rule"},
            "data_source": f"mmsearch_r1/fvqa_{split}",
            "image_urls": None,
            "data_id": f"fvqa_{split}_{number}",
            "category": "search_required" if number else "search_free",
        }
        | changes
        for number, (truth, candidates) in enumerate(golds)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / f"fvqa_{split}.parquet")
    return folder


def folder_of(name: str, tmp_path: Path) -> Path:
    if name == "simplevqa":
        return write_simplevqa(tmp_path / name)
    if name.startswith("fvqa"):
        return write_fvqa(tmp_path / name, "train" if name.endswith("train") else "test")
    return FIXTURES / name.removesuffix("_train")


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_and_its_golds_earn_the_most(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    items = benchmark.load(folder_of(name, tmp_path))
    assert len({item.id for item in items}) == len(items) >= 2
    for item in items:
        assert item.question.endswith("?") and item.golds and item.kind and item.split and item.cluster
        with Image.open(item.picture) as picture:
            picture.load()
    scores = benchmark.score(items, [best_answer(benchmark, item) for item in items], ["correct"] * len(items))
    headline = scores[benchmark.headline]
    assert isinstance(headline, Interval) and headline.value > 0.85
    assert scores["exact_match"].n == len(items)
    nothing = benchmark.score(items, ["", *["nonsense"] * (len(items) - 1)], ["incorrect"] * len(items))
    assert nothing[benchmark.headline].value == 0.0


def best_answer(benchmark: Benchmark, item: BenchmarkItem) -> str:
    if benchmark.mark is None:
        return item.golds[0]
    if item.kind == "multi_answer":
        return item.golds[0].replace("&&", ",")
    return max(item.golds, key=lambda gold: benchmark.mark(item, gold) or 0.0)


def test_infoseek_items() -> None:
    items = {item.id[-1]: item for item in BENCHMARKS["infoseek"].load(FIXTURES / "infoseek")}
    assert [items[i].kind for i in "012345"] == ["numerical", "string", "time", "numerical", "string", "string"]
    assert [items[i].split for i in "0123"] == ["unseen_question"] * 3 + ["unseen_entity"]
    assert items["0"].limits == (297.0, 363.0)
    assert items["3"].limits == (0.99, 1.21)
    assert items["1"].golds == ("Paris", "City of Light")
    assert items["0"].picture == FIXTURES / "infoseek/oven_images/04/oven_04925692.JPEG"
    assert items["3"].picture.suffix == ".png"


def test_infoseek_train_tells_kinds_by_ranges() -> None:
    items = BENCHMARKS["infoseek_train"].load(FIXTURES / "infoseek")
    assert [(item.kind, item.split) for item in items] == [("numerical", "train"), ("string", "train")]


def test_evqa_items() -> None:
    items = BENCHMARKS["evqa"].load(FIXTURES / "evqa")
    assert [item.kind for item in items] == ["templated", "automatic", "multi_answer", "2_hop"]
    assert items[0].golds == ("20 cm", "twenty centimetres")
    assert [item.picture.parent.name for item in items] == ["00041_Plantae_example", "3", "00042_Animalia_example", "f"]


def test_okvqa_and_aokvqa_items() -> None:
    okvqa = BENCHMARKS["okvqa"].load(FIXTURES / "okvqa")
    assert [item.kind for item in okvqa] == ["Sports and Recreation"] * 2 + ["Cooking and Food"]
    assert len(okvqa[0].golds) == 10 and okvqa[0].cluster == okvqa[1].cluster
    aokvqa = BENCHMARKS["aokvqa"].load(FIXTURES / "aokvqa")
    assert [item.kind for item in aokvqa] == ["direct", "direct", "difficult"]


def test_dynvqa_opens_lists_and_numbers() -> None:
    items = BENCHMARKS["dynvqa"].load(FIXTURES / "dynvqa")
    assert items[1].golds == ("零", "0", "zero", "none")


def test_simplevqa_keeps_english_and_unpacks_pictures(tmp_path: Path) -> None:
    items = BENCHMARKS["simplevqa"].load(write_simplevqa(tmp_path))
    assert [item.id for item in items] == ["0", "1", "3", "4"]
    assert items[2].picture == tmp_path / "data/pictures/test-00000-of-00001_4.png"
    items[2].picture.write_bytes(PNG[:20])  # an interrupted run left half a picture
    assert BENCHMARKS["simplevqa"].load(tmp_path)[2].picture.read_bytes() == PNG


def test_fvqa_items(tmp_path: Path) -> None:
    items = BENCHMARKS["fvqa"].load(write_fvqa(tmp_path))
    assert items[0].golds == ("Malta", "MLT", "Republic of Malta")
    assert (items[1].golds, items[1].kind, items[1].question) == (("namus",), "search_required", "Which name 1?")


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_sample_follows_from_its_seed(tmp_path: Path) -> None:
    benchmark = BENCHMARKS["simplevqa"]
    write_simplevqa(tmp_path, rows=60)
    first = [item.id for item in benchmark.load(tmp_path, sample=10, seed=1)]
    assert first == [item.id for item in benchmark.load(tmp_path, sample=10, seed=1)]
    assert first != [item.id for item in benchmark.load(tmp_path, sample=10, seed=2)]
    assert len(set(first)) == 10 and first == sorted(first, key=int)
    assert len(list((tmp_path / "data/pictures").iterdir())) < 40  # pictures of the drawn questions alone
    assert len(benchmark.load(tmp_path, sample=1000)) == 40


def test_the_paper_draws_2000_of_two_benchmarks() -> None:
    assert {name: b.drawn for name, b in BENCHMARKS.items() if b.drawn} == {"infoseek": 2000, "evqa": 2000}


# --- broken files -----------------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def put(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


VAL, QTYPE = "infoseek_val.jsonl", "infoseek_val_qtype.jsonl"
PICTURE = "oven_images/04/oven_04000017.jpg"
BROKEN = [
    ("infoseek", drop(QTYPE), ["infoseek_val_qtype.jsonl is missing"]),
    ("infoseek", drop("oven_images/04/oven_04000017.jpg"), ["infoseek_val_00000002", "oven_04000017.jpg", "missing"]),
    ("infoseek", edit(VAL, '"question": "Which', '"questions": "Which'), ["val.jsonl, line 2", "field 'question'"]),
    ("infoseek", edit(VAL, "[297.0, 363.0]", "[297.0]"), ["val.jsonl, line 1", "'range' of two numbers"]),
    ("infoseek", edit(VAL, "[297.0, 363.0]", '["low", 3]'), ["val.jsonl, line 1", "'range' of two numbers"]),
    ("infoseek", edit(VAL, '{"data_id": "infoseek_val_00000001"', "{"), ["line 2", "JSON"]),
    ("infoseek", edit(VAL, '"answer_eval": ["Paris", "City of Light"]', '"answer_eval": "Paris"'), ["list or dict"]),
    ("infoseek", edit(VAL, '["Paris", "City of Light"]', "[]"), ["val.jsonl, line 2", "at least one 'answer_eval'"]),
    ("infoseek", edit(QTYPE, "00000005", "99999999"), ["val.jsonl, line 6", "'infoseek_val_00000005'"]),
    ("infoseek", put(VAL, b'{"data_id": "caf\xe9"}\n'), ["val.jsonl, line 1"]),
    ("infoseek", put(VAL, b"[1]\n"), ["val.jsonl, line 1", "JSON object, got list"]),
    ("infoseek", put(VAL, b"\n"), ["no question of infoseek"]),
    ("infoseek", put(VAL, b'{"data_id": "\\ud800"}\n'), ["val.jsonl, line 1", "JSON"]),  # it cannot be written again
    ("infoseek", put(VAL, b"[" * 100_000 + b"\n"), ["val.jsonl, line 1", "JSON"]),
    ("infoseek", put(PICTURE, b"<html>not found</html>"), ["infoseek_val_00000002", PICTURE, "not a picture in"]),
    ("infoseek", edit(VAL, "oven_04000017", "o" * 300), ["infoseek_val_00000002", "missing"]),
    ("evqa", edit("test.csv", ",templated,", ",other,"), ["test.csv, line 3", "'question_type'", "'other'"]),
    ("evqa", edit("test.csv", "2700123|", "9|"), ["test.csv, line 3", "'9'", "inaturalist/val.json"]),
    ("evqa", edit("test.csv", "wikipedia_url,", "url,"), ["test.csv, line 3", "field 'wikipedia_url'"]),
    ("evqa", put("test.csv", b"question\n\xff\xfe\n"), ["test.csv", "UTF-8"]),
    ("evqa", put("inaturalist/val.json", b"[]"), ["val.json", "JSON object, got list"]),
    ("evqa", drop("landmarks/index/c/0/f/c0ffee0123456789.jpg"), ["evqa_4", "c0ffee0123456789.jpg", "2 other"]),
    ("okvqa", put("mscoco_val2014_annotations.json", b"{"), ["mscoco_val2014_annotations.json", "JSON document"]),
    ("okvqa", edit("mscoco_val2014_annotations.json", ": 221,", ": 999,"), ["entry 3", "question 999"]),
    ("aokvqa", edit("aokvqa_v1p0_val.json", '"difficult_direct_answer": true', '"x": 1'), ["entry 3", "'difficult_"]),
    ("aokvqa", edit("aokvqa_v1p0_val.json", '"image_id": 33', '"image_id": "33"'), ["entry 1", "to be int, got str"]),
    ("dynvqa", drop("DynVQA_en.202412.jsonl"), ["exactly one DynVQA_en*.jsonl", "found none"]),
    ("dynvqa", put("DynVQA_en.jsonl", b""), ["exactly one", "DynVQA_en.202412.jsonl, DynVQA_en.jsonl"]),
    ("dynvqa", edit("DynVQA_en.202412.jsonl", '["Nov 3, 2024", "November 3, 2024"]', "[]"), ["line 3", "'answer'"]),
]


@pytest.mark.parametrize(("name", "damage", "named"), BROKEN)
def test_damage_is_named_in_one_sentence(
    name: str, damage: Callable[[Path], None], named: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    damage(folder)
    with pytest.raises(BenchmarkError) as raised:
        BENCHMARKS[name].load(folder)
    message = str(raised.value)
    assert all(part in message for part in named), message
    assert "\n" not in message and message.endswith(".") and " at 0x" not in message


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no \*\.parquet"):
        BENCHMARKS["simplevqa"].load(tmp_path)
    for changes, named in (
        ({"image": "no picture!"}, "row 1: expected the picture as base64"),
        ({"image": base64.b64encode(b"text").decode()}, "row 1: expected the bytes of a PNG"),
        ({"answer": None}, "row 1: expected a field 'answer'"),
        ({"language": "FR"}, "no question of simplevqa"),
    ):
        with pytest.raises(BenchmarkError, match=named):
            BENCHMARKS["simplevqa"].load(write_simplevqa(tmp_path / "s", **changes))
    for changes, named in (
        ({"prompt": [{"content": "x", "role": "system"}]}, "one turn of the user"),
        ({"reward_model": {"candidate_answers": "[", "ground_truth": "x"}}, "'candidate_answers'"),
        ({"images": []}, "row 1: expected the bytes of a PNG"),
    ):
        with pytest.raises(BenchmarkError, match=named):
            BENCHMARKS["fvqa"].load(write_fvqa(tmp_path / "f", **changes))
    (tmp_path / "f/fvqa_test.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BenchmarkError, match="parquet file"):
        BENCHMARKS["fvqa"].load(tmp_path / "f")
    damaged = bytearray((write_fvqa(tmp_path / "f") / "fvqa_test.parquet").read_bytes())
    end = len(damaged) - 8 - int.from_bytes(damaged[-8:-4], "little")  # what describes the columns begins there
    damaged[4:end] = bytes(end - 4)
    (tmp_path / "f/fvqa_test.parquet").write_bytes(damaged)
    with pytest.raises(BenchmarkError, match="expected a parquet file that is whole"):
        BENCHMARKS["fvqa"].load(tmp_path / "f")
    for table, named in (
        ({"prompt": [1]}, r"column image or images, found \['prompt'\]"),
        ({"prompt": [1], "images": [[]]}, "row 1: expected 'prompt' to be list, got int"),
        ({"prompt": [[{"role": "user", "content": "?"}]], "images": [[]]}, "row 1: expected a field 'data_id'"),
    ):
        pq.write_table(pa.table(table), tmp_path / "f/fvqa_test.parquet")
        with pytest.raises(BenchmarkError, match=named):
            BENCHMARKS["fvqa"].load(tmp_path / "f")


def test_pictures_that_cannot_be_unpacked_are_told(tmp_path: Path) -> None:
    write_fvqa(tmp_path)
    (tmp_path / "pictures").write_text("a file in the way")
    with pytest.raises(BenchmarkError, match=r"row 1: its picture cannot be written to .*fvqa_test_1\.png \("):
        BENCHMARKS["fvqa"].load(tmp_path)


def test_wrong_names_and_folders() -> None:
    assert check_benchmark("okvqa", FIXTURES / "okvqa") is BENCHMARKS["okvqa"]
    with pytest.raises(BenchmarkError, match=r"infoseek.*okvqa"):
        check_benchmark("vqa", FIXTURES / "okvqa")
    for name in BENCHMARKS:
        with pytest.raises(BenchmarkError, match=r"the files of .*: 'nowhere' is not one\. Such a folder holds \S+"):
            check_benchmark(name, "nowhere")
    with pytest.raises(BenchmarkError, match="is missing: the benchmark needs its published file"):
        BENCHMARKS["okvqa"].load(Path("nowhere"))


def test_a_sample_without_one_unseen_split_is_refused_before_any_rollout() -> None:
    with pytest.raises(BenchmarkError, match="unseen_"):
        BENCHMARKS["infoseek"].load(FIXTURES / "infoseek", sample=1)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_infoseek_scores() -> None:
    benchmark = BENCHMARKS["infoseek"]
    items = benchmark.load(FIXTURES / "infoseek")
    answers = ["about 330 m", "london", "May 24 1883", "2 to 3 m", "The Raven", "France"]
    scores = benchmark.score(items, answers)
    assert scores["unseen_question"].value == pytest.approx(2 / 3)
    assert scores["unseen_entity"].value == pytest.approx(1 / 3)
    assert scores["harmonic_mean"].value == pytest.approx(4 / 9)
    assert scores["relaxed_accuracy/numerical"].value == 0.5
    assert "judge_accuracy" not in scores


def test_aokvqa_leaves_difficult_questions_out() -> None:
    benchmark = BENCHMARKS["aokvqa"]
    items = benchmark.load(FIXTURES / "aokvqa")
    scores = benchmark.score(items, ["turn", "0", "nonsense"])
    assert scores["direct_answer"].value == pytest.approx((1 + 2 / 3) / 2)
    assert (scores["direct_answer"].n, scores["exact_match"].n) == (2, 3)
    with pytest.raises(ValueError, match="None of the 1 questions"):
        benchmark.score(items[2:], ["roll"])


label_lists = st.lists(st.sampled_from([*LABELS, None]), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(label_lists)
def test_simplevqa_f_is_the_harmonic_mean_of_its_parts(labels: list[str | None]) -> None:
    n = len(labels)
    items = [BenchmarkItem(str(i), "?", ("x",), "art", "test", str(i)) for i in range(n)]
    scores = BENCHMARKS["simplevqa"].score(items, [""] * n, labels)
    correct, attempted = labels.count("correct"), labels.count("correct") + labels.count("incorrect")
    given_attempted = correct / attempted if attempted else 0.0
    both = correct / n + given_attempted
    assert scores["accuracy_given_attempted"].value == pytest.approx(given_attempted)
    assert scores["f_score"].value == pytest.approx(2 * correct / n * given_attempted / both if both else 0.0)
    assert scores["judge_accuracy"].value == pytest.approx(correct / n)
    assert scores["judge_unreadable"] == pytest.approx(labels.count(None) / n)


def test_simplevqa_without_labels_has_no_f(tmp_path: Path) -> None:
    items = BENCHMARKS["simplevqa"].load(write_simplevqa(tmp_path))
    assert set(BENCHMARKS["simplevqa"].score(items, [""] * len(items))) == {"exact_match"}


def test_scores_refuse_what_does_not_fit() -> None:
    items = BENCHMARKS["okvqa"].load(FIXTURES / "okvqa")
    for arguments, named in (
        (([], []), "nothing to score"),
        ((items, ["x"]), "answers for each of 3 items, got 1"),
        ((items, ["x"] * 3, ["correct"]), "labels for each of 3"),
        ((items, ["x"] * 3, ["right", None, None]), "'right'"),
    ):
        with pytest.raises(ValueError, match=named):
            BENCHMARKS["okvqa"].score(*arguments)


def test_scores_go_to_json() -> None:
    items = BENCHMARKS["okvqa"].load(FIXTURES / "okvqa")
    scores = BENCHMARKS["okvqa"].score(items, ["chess", "two", "orange"], ["correct", None, "incorrect"])
    text = json.dumps({k: asdict(v) if isinstance(v, Interval) else v for k, v in scores.items()})
    assert "vqa_accuracy/Cooking and Food" in text
    assert scores["vqa_accuracy"].value == pytest.approx((0.9 + 1.0 + 1.0) / 3)
