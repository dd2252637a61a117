"""The public benchmarks' own files, read into drafts of one shape: a reader for each.

What a folder must hold, in which formats, is in assets/benchmarks/published.toml. Whatever is not as published raises
BenchmarkError with file and place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsr.benchmarks.files import BenchmarkError, BenchmarkItem, Draft, Row, any_suffix, decoded, document, rows, texts

EVQA_KINDS = ("templated", "automatic", "multi_answer", "2_hop")


def infoseek(data_dir: Path, split: str = "val") -> Iterator[Draft]:
    """InfoSeek: kind is string, time or numerical; split is unseen_question or unseen_entity, or train.

    The training set has no file of kinds: there a range is numerical, all else a string, which is scored as a time is.
    """
    types = rows(data_dir / f"infoseek_{split}_qtype.jsonl") if split != "train" else ()
    kinds = {row.need("data_id"): row.need("question_type").lower() for row in types}
    for row in rows(data_dir / f"infoseek_{split}.jsonl"):
        name, image, marks = row.need("data_id"), row.need("image_id"), row.need("answer_eval", list, dict)
        ranged = marks if isinstance(marks, dict) else next((mark for mark in marks if isinstance(mark, dict)), None)
        kind = kinds.get(name) if split != "train" else "numerical" if ranged else "string"
        if kind is None:
            raise row.error(f"the question type of {name!r} in the file of question types")
        golds = texts(row.need("answer", list) if ranged else marks)
        limits = _limits(row, (ranged or {}).get("range")) if kind == "numerical" else None
        half = row.need("data_split").removeprefix("val_")
        item = BenchmarkItem(name, row.need("question"), golds, kind, half, image, limits)
        yield item, any_suffix(data_dir / "oven_images" / image.rpartition("_")[2][:2] / image)


def _limits(row: Row, published: Any) -> tuple[float, float]:
    try:
        low, high = published[:2]
        return float(low), float(high)
    except (LookupError, TypeError, ValueError):
        expected = "'answer_eval' with a 'range' of two numbers, since it is numerical"
        raise row.error(f"{expected}, got {published!r:.60}") from None


def evqa(data_dir: Path) -> Iterator[Draft]:
    """Encyclopedic-VQA's test questions, each with the first of its pictures; clusters are Wikipedia pages."""
    questions, names = list(rows(data_dir / "test.csv")), {}
    if any(row.fields.get("dataset_name") == "inaturalist" for row in questions):
        pictures = document(data_dir / "inaturalist" / "val.json").rows("images")
        names = {str(picture.need("id", int, str)): picture.need("file_name") for picture in pictures}
    for number, row in enumerate(questions, 1):
        kind, golds = row.need("question_type"), tuple(row.need("answer").split("|"))
        if kind not in EVQA_KINDS:
            raise row.error(f"'question_type' to be one of {', '.join(EVQA_KINDS)}, got {kind!r}")
        image, source = row.need("dataset_image_ids").split("|")[0], row.need("dataset_name")
        if source == "landmarks" and len(image) > 2:
            parts = [data_dir / "landmarks" / part for part in ("train", "index", "test")]
            places = [part / image[0] / image[1] / image[2] / f"{image}.jpg" for part in parts]
        elif source == "inaturalist" and image in names:
            places = [data_dir / "inaturalist" / names[image]]
        else:
            raise row.error(f"picture {image!r} to be of landmarks, or of inaturalist and in inaturalist/val.json")
        item = BenchmarkItem(f"evqa_{number}", row.need("question"), golds, kind, "test", row.need("wikipedia_url"))
        yield item, places


def okvqa(data_dir: Path) -> Iterator[Draft]:
    """OK-VQA's validation questions with their ten annotators' answers; kind is the knowledge category."""
    listed = document(data_dir / "OpenEnded_mscoco_val2014_questions.json").rows("questions")
    questions = {row.need("question_id", int): row.need("question") for row in listed}
    annotations = document(data_dir / "mscoco_val2014_annotations.json")
    categories = annotations.fields.get("question_types", {})
    for row in annotations.rows("annotations"):
        number, image = row.need("question_id", int), row.need("image_id", int)
        if number not in questions:
            raise row.error(f"question {number} in the file of questions")
        kind = str(row.fields.get("question_type", "other"))
        golds = tuple(answer.need("answer") for answer in row.rows("answers"))
        item = BenchmarkItem(str(number), questions[number], golds, categories.get(kind, kind), "val", str(image))
        yield item, [data_dir / "val2014" / f"COCO_val2014_{image:012d}.jpg"]


def aokvqa(data_dir: Path) -> Iterator[Draft]:
    """A-OKVQA's validation questions with their ten direct answers; kind is direct or difficult."""
    for row in document(data_dir / "aokvqa_v1p0_val.json", listed="questions").rows("questions"):
        name, image, golds = row.need("question_id"), row.need("image_id", int), row.need("direct_answers", list)
        if not all(isinstance(gold, str) for gold in golds):
            raise row.error("each of 'direct_answers' to be text")
        kind = "difficult" if row.need("difficult_direct_answer", bool) else "direct"
        item = BenchmarkItem(name, row.need("question"), tuple(golds), kind, "val", str(image))
        yield item, [data_dir / "val2017" / f"{image:012d}.jpg"]


def simplevqa(data_dir: Path) -> Iterator[Draft]:
    """SimpleVQA's English questions (the paper leaves out the Chinese half); kind is their category."""
    files = sorted(data_dir.rglob("*.parquet"))
    if not files:
        raise BenchmarkError(f"{data_dir} holds no *.parquet file: SimpleVQA is published as parquet files.")
    for row in (row for path in files for row in rows(path)):
        if row.need("language") == "EN":
            name, kind = str(row.need("data_id", int, str)), str(row.fields.get("original_category"))
            item = BenchmarkItem(name, row.need("question"), (row.need("answer"),), kind, "test", name)
            yield item, [row.fields["picture"]]


def dynvqa(data_dir: Path) -> Iterator[Draft]:
    """Dyn-VQA's English questions, answers in both languages as published; kind is its type where it has one."""
    files = sorted(data_dir.glob("DynVQA_en*.jsonl"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise BenchmarkError(f"{data_dir}: expected exactly one DynVQA_en*.jsonl (they are dated), found {found}.")
    for row in rows(files[0]):
        name, golds = str(row.need("question_id", int, str)), texts(row.need("answer", list))
        kind, picture = str(row.fields.get("type", "any")), str(row.fields.get("image_url", name))
        item = BenchmarkItem(name, row.need("question"), golds, kind, "en", picture)
        yield item, any_suffix(data_dir / "images" / name)


def fvqa(data_dir: Path, split: str = "test") -> Iterator[Draft]:
    """FVQA (MMSearch-R1), or a file in its format: the question is the user's turn, the golds truth and candidates."""
    for row in rows(data_dir if data_dir.is_file() else data_dir / f"fvqa_{split}.parquet"):
        turns = [turn for turn in row.rows("prompt") if turn.fields.get("role") == "user"]
        if len(turns) != 1:
            raise row.error(f"'prompt' with one turn of the user, got {len(turns)}")
        name, kind = str(row.need("data_id", int, str)), str(row.fields.get("category") or "any")
        item = BenchmarkItem(name, turns[0].need("content"), _fvqa_golds(row), kind, split, name)
        yield item, [row.fields["picture"]]


def _fvqa_golds(row: Row) -> tuple[str, ...]:
    reward = Row(row.place, row.need("reward_model", dict))
    candidates = reward.fields.get("candidate_answers") or []
    if isinstance(candidates, str):  # a JSON list written as text
        candidates = decoded(candidates, row.place, "'candidate_answers' to be a JSON list")
    if not isinstance(candidates, list):
        raise row.error(f"'candidate_answers' to be a list, got {type(candidates).__name__}")
    return texts([reward.need("ground_truth", str, int, float), *candidates])
