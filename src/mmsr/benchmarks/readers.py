"""The public benchmarks' own files, read into drafts of one shape: a reader for each.

What a folder must hold:

    infoseek    infoseek_val.jsonl, infoseek_val_qtype.jsonl, oven_images/04/oven_04925692.JPEG
    evqa        test.csv, inaturalist/val.json and inaturalist/val/…, landmarks/{train,index,test}/a/b/c/abc….jpg
    okvqa       OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/COCO_val2014_….jpg
    aokvqa      aokvqa_v1p0_val.json, val2017/000000299207.jpg
    simplevqa   any *.parquet files (pictures inside, base64)
    dynvqa      one DynVQA_en*.jsonl, and images/<question_id>.jpg: it publishes links, not pictures
    fvqa        fvqa_test.parquet (pictures inside, bytes)

The formats are those of the benchmarks' repositories (`mmsr.benchmarks.scores` has the papers) and, for SimpleVQA and
FVQA, of the data sets m-a-p/SimpleVQA and lmms-lab/FVQA. Whatever is not as published raises BenchmarkError with file
and place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsr.benchmarks.files import (
    BenchmarkError,
    BenchmarkItem,
    Draft,
    any_suffix,
    checked,
    csv_lines,
    entries,
    json_lines,
    need,
    open_parquet,
    parquet_rows,
    read_json,
    texts,
)

EVQA_KINDS = ("templated", "automatic", "multi_answer", "2_hop")


def infoseek(data_dir: Path, split: str = "val") -> list[Draft]:
    """InfoSeek: kind is string, time or numerical; split is unseen_question or unseen_entity, or train.

    The validation set has its kinds in a file of their own. The training set has none: there a range is numerical and
    all else a string, which is scored as a time is.
    """
    rows = json_lines(data_dir / f"infoseek_{split}.jsonl")
    if split == "train":
        return [_infoseek(data_dir, row, where, None) for where, row in rows]
    kinds = {}
    for where, row in json_lines(data_dir / f"infoseek_{split}_qtype.jsonl"):
        kinds[need(row, "data_id", str, where)] = need(row, "question_type", str, where).lower()
    return [_infoseek(data_dir, row, where, kinds) for where, row in rows]


def _infoseek(data_dir: Path, row: dict[str, Any], where: str, kinds: Mapping[str, str] | None) -> Draft:
    name, image = need(row, "data_id", str, where), need(row, "image_id", str, where)
    if kinds is not None and name not in kinds:
        raise BenchmarkError(f"{where}: expected the question type of {name!r} in the file of question types.")
    marks = need(row, "answer_eval", (list, dict), where)
    ranged = marks if isinstance(marks, dict) else next((m for m in marks if isinstance(m, dict)), None)
    kind = kinds[name] if kinds is not None else "numerical" if ranged else "string"
    extra: dict[str, Any] = {"cluster": image}
    golds = texts(need(row, "answer", list, where)) if ranged else texts(marks)
    if kind == "numerical":
        extra["limits"] = _limits(ranged, where)
    item = BenchmarkItem(
        name, need(row, "question", str, where), Path(), golds, kind, _infoseek_split(row, where), extra
    )
    digits = image.rpartition("_")[2]
    return Draft(item, any_suffix(data_dir / "oven_images" / digits[:2] / image))


def _limits(ranged: Mapping[str, Any] | None, where: str) -> tuple[float, float]:
    limits = (ranged or {}).get("range")
    if not isinstance(limits, list) or len(limits) < 2:
        raise BenchmarkError(f"{where}: expected 'answer_eval' with a 'range' of two numbers, since it is numerical.")
    try:
        return float(limits[0]), float(limits[1])
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"{where}: expected a 'range' of two numbers, got {limits}.") from error


def _infoseek_split(row: Mapping[str, Any], where: str) -> str:
    split = need(row, "data_split", str, where)
    return next((s for s in ("unseen_question", "unseen_entity") if split.endswith(s)), split)


def evqa(data_dir: Path) -> list[Draft]:
    """Encyclopedic-VQA's test questions, each with the first of its pictures; clusters are Wikipedia pages."""
    rows = list(csv_lines(data_dir / "test.csv"))
    names: dict[str, str] = {}
    if any(row.get("dataset_name") == "inaturalist" for _, row in rows):
        index = data_dir / "inaturalist" / "val.json"
        images = entries(read_json(index), "images", index)
        names = {str(need(r, "id", (int, str), w)): need(r, "file_name", str, w) for w, r in images}
    return [_evqa(data_dir, number, row, where, names) for number, (where, row) in enumerate(rows, 1)]


def _evqa(data_dir: Path, number: int, row: dict[str, Any], where: str, names: Mapping[str, str]) -> Draft:
    kind = need(row, "question_type", str, where)
    if kind not in EVQA_KINDS:
        raise BenchmarkError(f"{where}: expected 'question_type' to be one of {', '.join(EVQA_KINDS)}, got {kind!r}.")
    item = BenchmarkItem(
        f"evqa_{number}",
        need(row, "question", str, where),
        Path(),
        tuple(need(row, "answer", str, where).split("|")),
        kind,
        "test",
        {"cluster": need(row, "wikipedia_url", str, where)},
    )
    image = need(row, "dataset_image_ids", str, where).split("|")[0]
    source = need(row, "dataset_name", str, where)
    if source == "landmarks" and len(image) > 2:
        folders = [data_dir / "landmarks" / part / "/".join(image[:3]) for part in ("train", "index", "test")]
        return Draft(item, tuple(folder / f"{image}.jpg" for folder in folders))
    if source == "inaturalist" and image in names:
        return Draft(item, (data_dir / "inaturalist" / names[image],))
    raise BenchmarkError(
        f"{where}: expected picture {image!r} to be of landmarks, or of inaturalist and listed in inaturalist/val.json."
    )


def okvqa(data_dir: Path) -> list[Draft]:
    """OK-VQA's validation questions with their ten annotators' answers; kind is the knowledge category."""
    path, marks = data_dir / "OpenEnded_mscoco_val2014_questions.json", data_dir / "mscoco_val2014_annotations.json"
    questions = {
        need(row, "question_id", int, where): need(row, "question", str, where)
        for where, row in entries(read_json(path), "questions", path)
    }
    document = read_json(marks)
    rows = list(entries(document, "annotations", marks))
    return [_okvqa(data_dir, row, where, questions, document.get("question_types", {})) for where, row in rows]


def _okvqa(
    data_dir: Path, row: dict[str, Any], where: str, questions: Mapping[int, str], kinds: Mapping[str, str]
) -> Draft:
    name = need(row, "question_id", int, where)
    if name not in questions:
        raise BenchmarkError(f"{where}: expected question {name} in the file of questions.")
    answers = [checked(a, dict, where, "each answer as an object") for a in need(row, "answers", list, where)]
    golds = tuple(need(answer, "answer", str, where) for answer in answers)
    kind, image = str(row.get("question_type", "other")), need(row, "image_id", int, where)
    picture = data_dir / "val2014" / f"COCO_val2014_{image:012d}.jpg"
    extra = {"cluster": str(image)}
    return Draft(
        BenchmarkItem(str(name), questions[name], picture, golds, kinds.get(kind, kind), "val", extra), (picture,)
    )


def aokvqa(data_dir: Path) -> list[Draft]:
    """A-OKVQA's validation questions with their ten direct answers; kind is direct or difficult."""
    path = data_dir / "aokvqa_v1p0_val.json"
    return [_aokvqa(data_dir, row, where) for where, row in entries(read_json(path), None, path)]


def _aokvqa(data_dir: Path, row: dict[str, Any], where: str) -> Draft:
    image = need(row, "image_id", int, where)
    answers = need(row, "direct_answers", list, where)
    item = BenchmarkItem(
        need(row, "question_id", str, where),
        need(row, "question", str, where),
        data_dir / "val2017" / f"{image:012d}.jpg",
        tuple(checked(answer, str, where, "each direct answer as text") for answer in answers),
        "difficult" if need(row, "difficult_direct_answer", bool, where) else "direct",
        "val",
        {"cluster": str(image)},
    )
    return Draft(item, (item.picture,))


def simplevqa(data_dir: Path) -> list[Draft]:
    """SimpleVQA's English questions (the paper leaves out the Chinese half); kind is their category."""
    columns = ("data_id", "question", "answer", "language", "original_category")
    files = sorted(data_dir.rglob("*.parquet"))
    if not files:
        raise BenchmarkError(f"{data_dir} holds no *.parquet file: SimpleVQA is published as parquet files.")
    drafts = []
    for path in files:
        for number, (where, row) in enumerate(parquet_rows(path, columns)):
            if need(row, "language", str, where) != "EN":
                continue
            name, kind = str(need(row, "data_id", (int, str), where)), str(row["original_category"])
            golds = (need(row, "answer", str, where),)
            item = BenchmarkItem(
                name, need(row, "question", str, where), Path(), golds, kind, "test", {"cluster": name}
            )
            drafts.append(Draft(item, (), (path, number, "image")))
    return drafts


def dynvqa(data_dir: Path) -> list[Draft]:
    """Dyn-VQA's English questions, answers in both languages as published; kind is its type where it has one."""
    files = sorted(data_dir.glob("DynVQA_en*.jsonl"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise BenchmarkError(
            f"{data_dir}: expected exactly one DynVQA_en*.jsonl (it has dated versions), found {found}."
        )
    drafts = []
    for where, row in json_lines(files[0]):
        name, golds = str(need(row, "question_id", (int, str), where)), texts(need(row, "answer", list, where))
        if not golds:
            raise BenchmarkError(f"{where}: expected at least one 'answer', got none.")
        kind, extra = str(row.get("type", "any")), {"cluster": str(row.get("image_url", name))}
        item = BenchmarkItem(name, need(row, "question", str, where), Path(), golds, kind, "en", extra)
        drafts.append(Draft(item, any_suffix(data_dir / "images" / name)))
    return drafts


def fvqa(data_dir: Path, split: str = "test") -> list[Draft]:
    """FVQA (MMSearch-R1): the question is the user's turn of the prompt, the golds ground truth and candidates."""
    path = data_dir / f"fvqa_{split}.parquet"
    columns = ("prompt", "reward_model", "data_id")
    category = ("category",) if "category" in open_parquet(path, columns).schema_arrow.names else ()
    rows = enumerate(parquet_rows(path, columns + category))
    return [_fvqa(path, split, number, row, where) for number, (where, row) in rows]


def _fvqa(path: Path, split: str, number: int, row: dict[str, Any], where: str) -> Draft:
    turns = [turn for turn in need(row, "prompt", list, where) if turn.get("role") == "user"]
    if len(turns) != 1:
        raise BenchmarkError(f"{where}: expected 'prompt' with one turn of the user, got {len(turns)}.")
    reward, name = need(row, "reward_model", dict, where), str(need(row, "data_id", (int, str), where))
    candidates = reward.get("candidate_answers") or []
    if isinstance(candidates, str):  # a JSON list written as text
        try:
            candidates = json.loads(candidates)
        except ValueError as error:
            raise BenchmarkError(f"{where}: expected 'candidate_answers' to be a JSON list ({error}).") from error
    golds = texts([need(reward, "ground_truth", (str, int, float), where), *checked(candidates, list, where, "a list")])
    kind = str(row.get("category") or "any")
    question = need(turns[0], "content", str, where)
    return Draft(
        BenchmarkItem(name, question, Path(), golds, kind, split, {"cluster": name}), (), (path, number, "images")
    )
