"""What the readers of the public benchmarks share: the shape of a question, files with clear errors, and pictures.

    for where, row in json_lines(path):                          # where = "infoseek_val.jsonl, line 3"
        question = need(row, "question", str, where)             # or BenchmarkError naming that place
    items = settle(drafts)                                       # pictures found, or unpacked from a parquet file

A draft is a `BenchmarkItem` and the places where its picture may lie; a sample is drawn before the pictures are looked
for, since a benchmark has up to 70,000 of them.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".JPG", ".png", ".PNG", ".webp", ".gif")
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}


class BenchmarkError(ValueError):
    """A benchmark's files are not as published; the message names the file, the line, and what was expected."""


@dataclass(frozen=True)
class BenchmarkItem:
    """One question: its picture, gold answers (as published), kind of question, split, and what its scoring needs.

    extra holds "cluster" (questions with one label rise and fall together: the picture, or the entity where it is
    given) and for InfoSeek's numerical questions "limits". FVQA's kinds are search_free and search_required.
    """

    id: str
    question: str
    picture: Path  # where it lies once `settle` has found it
    golds: tuple[str, ...]
    kind: str
    split: str
    extra: Mapping[str, Any] = field(default_factory=dict)


Packed = tuple[Path, int, str]  # a picture inside a parquet file: file, row from 0, column


@dataclass(frozen=True)
class Draft:
    """An item whose picture has not been looked for: places to look, best first, or the cell that holds it."""

    item: BenchmarkItem
    places: tuple[Path, ...]
    packed: Packed | None = None


# --- pictures ---------------------------------------------------------------------------------------------------------


def settle(drafts: Sequence[Draft]) -> list[BenchmarkItem]:
    """The items with their pictures' paths; BenchmarkError naming the first picture that is not there."""
    unpacked = _unpack([draft.packed for draft in drafts if draft.packed])
    return [replace(d.item, picture=unpacked[d.packed] if d.packed else _found(d)) for d in drafts]


def _found(draft: Draft) -> Path:
    for place in draft.places:
        if place.is_file():
            return place
    others = f", or one of {len(draft.places) - 1} other spellings of it" if draft.places[1:] else ""
    raise BenchmarkError(f"The picture of question {draft.item.id} is missing: expected {draft.places[0]}{others}.")


def any_suffix(stem: Path) -> tuple[Path, ...]:
    return tuple(stem.with_name(stem.name + suffix) for suffix in SUFFIXES)


def _unpack(cells: Sequence[Packed]) -> dict[Packed, Path]:
    """The pictures of parquet rows, written beside their file as pictures/<file>_<row>.<format>."""
    columns: dict[tuple[Path, str], set[int]] = {}
    for path, row, column in cells:
        columns.setdefault((path, column), set()).add(row)
    return {
        (path, row, column): _write_picture(value, path, row)
        for (path, column), rows in columns.items()
        for row, value in _values(path, column, rows)
    }


def _values(path: Path, column: str, rows: set[int]) -> Iterator[tuple[int, Any]]:
    """(row, value) for the wanted rows, in small batches: a file of pictures can be larger than memory."""
    row = 0
    for batch in open_parquet(path, [column]).iter_batches(batch_size=32, columns=[column]):
        for cell in batch.column(0):
            if row in rows:
                yield row, cell.as_py()
            row += 1


def _write_picture(value: Any, path: Path, row: int) -> Path:
    where = f"{path.name}, row {row + 1}"
    value = value[0] if isinstance(value, list) and value else value  # FVQA lists its one picture
    value = value.get("bytes") if isinstance(value, dict) else value
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError as error:
        raise BenchmarkError(f"{where}: expected the picture as base64 text ({error}).") from error
    suffix = next((s for magic, s in MAGIC.items() if isinstance(data, bytes) and data.startswith(magic)), None)
    if suffix is None:
        raise BenchmarkError(f"{where}: expected the bytes of a PNG, JPEG, WebP or GIF picture.")
    target = path.parent / "pictures" / f"{path.stem}_{row + 1}{suffix}"
    if not (target.is_file() and target.read_bytes() == data):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return target


# --- files ------------------------------------------------------------------------------------------------------------


def need_file(path: Path) -> Path:
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing: the benchmark needs its published file {path.name} in {path.parent}.")
    return path


def read_json(path: Path) -> Any:
    try:
        return json.loads(need_file(path).read_bytes())
    except ValueError as error:
        raise BenchmarkError(f"{path.name}: expected one JSON document ({error}).") from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for every line that is not empty; the place names file and line for error messages."""
    with need_file(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BenchmarkError(f"{where}: expected one JSON object a line ({error}).") from error
            yield where, checked(row, dict, where, "a JSON object")


def csv_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for every record of a CSV file with a header; the place names the record's last line."""
    try:
        with need_file(path).open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            for row in reader:
                yield f"{path.name}, line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path.name}: expected a CSV table in UTF-8 ({error}).") from error


def entries(document: Any, key: str | None, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for each entry of a JSON list, which stands under the key where one is given."""
    listed = need(checked(document, dict, path.name, "a JSON object"), key, list, path.name) if key else document
    for number, row in enumerate(checked(listed, list, path.name, "a JSON list"), 1):
        where = f"{path.name}, entry {number}"
        yield where, checked(row, dict, where, "a JSON object")


def checked(value: Any, kind: type | tuple[type, ...], where: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise BenchmarkError(f"{where}: expected {expected}, got {type(value).__name__}.")
    return value


def need(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """row[key], which must be there and of the kind."""
    if row.get(key) is None:
        raise BenchmarkError(f"{where}: expected a field {key!r}, found {', '.join(map(repr, row)) or 'none'}.")
    names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
    return checked(row[key], kind, where, f"{key!r} to be {' or '.join(names)}")


def open_parquet(path: Path, columns: Sequence[str]) -> Any:
    """The opened file, with all the columns; pyarrow comes with `datasets`, which TRL needs anyway."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(need_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise BenchmarkError(f"{path.name}: expected a parquet file ({error}).") from error
    missing = [column for column in columns if column not in file.schema_arrow.names]
    if missing:
        raise BenchmarkError(f"{path.name}: expected a column {missing[0]!r}, found {file.schema_arrow.names}.")
    return file


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(open_parquet(path, columns).read(columns=list(columns)).to_pylist(), 1):
        yield f"{path.name}, row {number}", row


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """A list of texts or numbers, lists inside it opened, as distinct texts in order."""
    flat = [text for v in values for text in (texts(v) if isinstance(v, list) else [str(v)])]
    return tuple(dict.fromkeys(flat))
