"""What the readers of the public benchmarks share: the shape of a question, rows with clear errors, and pictures.

    for row in rows(path):                    # row.place = "infoseek_val.jsonl, line 3"
        question = row.need("question")       # or BenchmarkError naming that place
    items = settle(drafts)                    # pictures found, or unpacked from a parquet file

A draft is a `BenchmarkItem` and the places where its picture may lie, best first; `<file>.parquet/images/7` is the
picture in row 7 of a parquet file. Pictures are found and checked only after a sample is drawn: there are up to 70,000.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr.task import FileQuestion

SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".JPG", ".png", ".PNG", ".webp", ".gif")
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}
PICTURE_COLUMNS = ("image", "images")  # of the benchmarks that are published as parquet files


class BenchmarkError(ValueError):
    """A benchmark's files are not as published; the message names the file, the line, and what was expected."""


@dataclass(frozen=True)
class BenchmarkItem:
    """One question, its golds as published; those of one cluster (a picture or an entity) rise and fall together."""

    id: str
    question: str
    golds: tuple[str, ...]
    kind: str
    split: str
    cluster: str
    limits: tuple[float, float] | None = None  # the range of InfoSeek's numerical questions
    picture: Path = Path()  # where it lies once `settle` has found it

    def asked(self, taxonomy: str = "") -> FileQuestion:
        """The question as data building and evaluation take it; an empty taxonomy is for a labeller to fill."""
        gold = {"answer": self.golds[0], "aliases": self.golds[1:], "picture": str(self.picture)}
        about = {"type": self.kind, "taxonomy": taxonomy, "entity": self.cluster, "half": self.split}
        return FileQuestion(id=self.id, text=self.question, **about, **gold)


Draft = tuple[BenchmarkItem, Sequence[Path]]


@dataclass(frozen=True)
class Row:
    """A JSON object or a record of a published file, and the place that its errors name."""

    place: str
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.fields, dict):
            raise self.error(f"a JSON object, got {type(self.fields).__name__}")

    def need(self, key: str, *kinds: type) -> Any:
        """The field, which must be there and of one of the kinds (text where none is named); a list is not empty."""
        value, kinds = self.fields.get(key), kinds or (str,)
        if value is None:
            raise self.error(f"a field {key!r}, found {', '.join(map(repr, self.fields)) or 'none'}")
        if not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"{key!r} to be {names}, got {type(value).__name__}")
        if value == []:
            raise self.error(f"at least one {key!r}, got none")
        return value

    def rows(self, key: str) -> list[Row]:
        """The objects in the list under the key."""
        return [Row(f"{self.place}, entry {number}", entry) for number, entry in enumerate(self.need(key, list), 1)]

    def error(self, expected: str) -> BenchmarkError:
        return BenchmarkError(f"{self.place}: expected {expected}.")


def rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv or .parquet file; a row of the last has its picture's place as "picture"."""
    read = {".jsonl": _json_lines, ".csv": _csv_records, ".parquet": _parquet_rows}[_there(path).suffix]
    return (Row(f"{path.name}, {place}", fields) for place, fields in read(path))


def document(path: Path, listed: str = "") -> Row:
    """The object that a .json file holds, or its list under the name given."""
    value = decoded(_there(path).read_bytes(), path.name, "one JSON document")
    return Row(path.name, {listed: value} if listed else value)


def decoded(data: str | bytes, place: str, expected: str) -> Any:
    """The JSON value, whose texts can be written again: a lone surrogate is refused."""
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{place}: expected {expected} ({error}).") from error


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """A list of texts or numbers, lists inside it flattened, as distinct texts in order."""
    flat = [text for v in values for text in (texts(v) if isinstance(v, list) else [str(v)])]
    return tuple(dict.fromkeys(flat))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing: the benchmark needs its published file {path.name} in {path.parent}.")
    return path


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", decoded(line, f"{path.name}, line {number}", "one JSON object a line")


def _csv_records(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a table with a header; one may span several lines, and its place names the last."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            for record in reader:
                yield f"line {reader.line_num}", record
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path.name}: expected a CSV table in UTF-8 ({error}).") from error


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Within the block a parquet file is read: BenchmarkError where it is not one, or is damaged."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        said = str(error).partition("\n")[0]
        raise BenchmarkError(f"{path.name}: expected a parquet file that is whole ({said}).") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _whole(path):
        file = pq.ParquetFile(path)
    columns = file.schema_arrow.names
    pictures = next((name for name in PICTURE_COLUMNS if name in columns), None)
    if pictures is None:
        raise BenchmarkError(f"{path.name}: expected a column {' or '.join(PICTURE_COLUMNS)}, found {columns}.")
    with _whole(path):
        table = file.read(columns=[name for name in columns if name != pictures]).to_pylist()
    for number, row in enumerate(table, 1):
        yield f"row {number}", row | {"picture": path / pictures / str(number)}


def _cells(column: Path) -> Iterator[Any]:
    """The values of a parquet file's column, in small batches: a file can be larger than memory."""
    with _whole(column.parent):
        for batch in pq.ParquetFile(column.parent).iter_batches(batch_size=32, columns=[column.name]):
            yield from batch.column(0)


def any_suffix(stem: Path) -> list[Path]:
    """The places of a picture whose name is published without its suffix."""
    return [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]


def located(drafts: Sequence[Draft]) -> list[Path | None]:
    """Where the pictures of drafts lie, those of parquet files unpacked; None for one that is not there."""
    unpacked = _unpack({places[0] for _, places in drafts if places[0].parent.parent.suffix == ".parquet"})
    lying = (next((place for place in places if os.path.isfile(place)), None) for _, places in drafts)
    return [unpacked.get(places[0]) or place for (_, places), place in zip(drafts, lying)]


def settle(drafts: Sequence[Draft]) -> list[BenchmarkItem]:
    """The items with their pictures' paths, each picture looked at: better now than after hours of other workflows.

    Raises BenchmarkError for the first picture that is not there or cannot be read, naming its question.
    """
    items, seen = [], set()
    for (item, places), picture in zip(drafts, located(drafts)):
        if picture is None:
            others = f", or one of {len(places) - 1} other spellings of it" if places[1:] else ""
            raise BenchmarkError(f"The picture of question {item.id} is missing: expected {places[0]}{others}.")
        items.append(replace(item, picture=picture))
        if picture not in seen:
            seen.add(picture)
            try:
                items[-1].asked().draw()
            except ValueError as error:
                raise BenchmarkError(str(error)) from None
    return items


def _unpack(packed: set[Path]) -> dict[Path, Path]:
    """Where the pictures of parquet rows are now: written beside their file as pictures/<file>_<row>.<format>."""
    written = {}
    for column in sorted({place.parent for place in packed}):
        for number, cell in enumerate(_cells(column), 1):
            if (place := column / str(number)) in packed:
                written[place] = _write_picture(cell.as_py(), column.parent, number)
    return written


def _write_picture(value: Any, path: Path, number: int) -> Path:
    where = f"{path.name}, row {number}"
    value = value[0] if isinstance(value, list) and value else value  # FVQA lists its one picture
    value = value.get("bytes") if isinstance(value, dict) else value
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError as error:
        raise BenchmarkError(f"{where}: expected the picture as base64 text ({error}).") from error
    suffix = next((s for magic, s in MAGIC.items() if isinstance(data, bytes) and data.startswith(magic)), None)
    if suffix is None:
        raise BenchmarkError(f"{where}: expected the bytes of a PNG, JPEG, WebP or GIF picture.")
    target = path.parent / "pictures" / f"{path.stem}_{number}{suffix}"
    if not (target.is_file() and target.read_bytes() == data):
        try:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise BenchmarkError(f"{where}: its picture cannot be written to {target} ({error.strerror}).") from error
    return target
