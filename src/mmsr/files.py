"""Files that are there whole or not at all, locks between processes, and journals of long work.

    write_json(run / "metrics.json", value)         # under a temporary name first, then renamed
    read_json(path, dict[str, float], "delete it")  # FileDamaged, with that remedy, for a file of another shape
    with locked(run / "metrics.json"): …            # one process at a time reads and writes it
    write_rows(run / "eval" / "rows.jsonl", rows)   # JSON lines
    seal(adapter); check_seal(adapter, "…")         # hashes of a folder's files, kept beside them
    with Journal(folder / "played.jsonl") as played:
        fill(played, {"train-0-4": task, …}, play, workers=8)   # adds the rows that are missing, side by side
        "train-0-3" in played, played["train-0-3"]              # memory holds where each row lies, not the row

A line of JSON ends only at a line feed, whatever other line breaks a text contains.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from safetensors import SafetensorError

from mmsr.tools.base import USAGE, FatalToolError, ToolError, in_parallel

SYNC = 1.0  # seconds between two synchronisations of a journal with the disk
FAILURES = 20  # in a row: so many point to the service that is asked, not to an item
SEAL = "sha256.json"  # in a folder: the hashes of its files
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error)  # raised by a damaged file

T = TypeVar("T")


class FileDamaged(ValueError):
    """A file is not what was written: cut, empty, changed, of another shape. The message names it, and the remedy."""


def write_whole(path: Path, text: str) -> None:
    """Write under a temporary name, then rename; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        part.unlink(missing_ok=True)


def _json(value: Any, **layout: Any) -> str:
    """JSON with all characters as they are, except a lone surrogate, which UTF-8 cannot hold: it is escaped."""
    text = json.dumps(value, ensure_ascii=False, **layout)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def write_json(path: Path, value: Any) -> None:
    """A JSON value, whole. Raises ValueError for a number that is not finite."""
    write_whole(path, _json(value, indent=1, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """JSON lines, whole."""
    write_whole(path, "".join(_json(row) + "\n" for row in rows))


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """In this block weights are saved, in training read back too: safetensors' own error becomes an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"weights in {folder} cannot be written or read ({error})") from error


@contextlib.contextmanager
def undamaged(path: Path, remedy: str) -> Iterator[None]:
    """In this block a file is read: where no sense can be made of it, FileDamaged is raised, with the remedy.

    Raises FileNotFoundError, with the remedy ("run notebook 04 first"), where the file is not there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: {remedy}.")
    try:
        yield
    except FileDamaged:
        raise
    except UNREADABLE as error:
        raise FileDamaged(f"{path} is damaged: {remedy.replace(' first', ' again')}.") from error


def read_json(path: Path, kind: Any, remedy: str) -> Any:
    """The value of a JSON file, validated by pydantic as this type. Raises as `undamaged` does."""
    with undamaged(path, remedy):
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))


def read_rows(path: Path, remedy: str, known: str | None = None) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, whose hash must be `known`, or the sealed one. Raises as `undamaged` does."""
    sealed = path.parent / SEAL
    if known is None and sealed.exists():
        known = read_json(sealed, dict[str, str], remedy).get(path.name)
    with undamaged(path, remedy):
        if known is not None and sha256(path) != known:
            raise ValueError("another file than was written")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return TypeAdapter(list[dict[str, Any]]).validate_python(rows)


def read_table(path: Path, columns: Collection[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a training run's CSV, at least one; cells are numbers or empty. Raises as `undamaged` does."""
    with undamaged(path, remedy), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        numbers = [float(cell) for row in rows for cell in row.values() if cell != ""]
        if not numbers or {*columns} - rows[0].keys() or "\0" in "".join(rows[0]):
            raise ValueError("no numbers, or not these columns")
        return rows


def locked(path: Path, timeout: float = -1) -> FileLock:
    """A lock on what `path` holds, to be used in `with`, on any system; a hidden file beside it carries the lock.

    Raises filelock.Timeout where another process has it for longer than `timeout` seconds (negative: waits for ever).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, which: str = "*") -> None:
    """Keep the hashes of a folder's files, or of `which`, but for notes in Markdown, in a file beside them."""
    files = sorted(p for p in folder.rglob(which) if p.is_file() and p.suffix != ".md" and p.name != SEAL)
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): sha256(path) for path in files})


def check_seal(folder: Path, remedy: str) -> None:
    """Raises FileDamaged, with the remedy, where a file of a sealed folder is not the one that was sealed."""
    if (folder / SEAL).exists():
        for name, known in read_json(folder / SEAL, dict[str, str], remedy).items():
            if not (folder / name).is_file() or sha256(folder / name) != known:
                raise FileDamaged(f"{folder / name} is damaged: {remedy}.")


# --- journals ---------------------------------------------------------------------------------------------------------


class JournalError(RuntimeError):
    """A journal cannot be used; the message says why and what to do."""


class Stopped(FatalToolError):
    """Too many pieces of work failed one after the other: the outside service is in trouble."""


class Journal(ExitStack):
    """Rows by key in a file of JSON lines: what long work has finished, whenever it may be killed. Thread-safe.

    A row is written at once and synchronised with the disk about once a second and at the end: a kill loses nothing
    that was added, a power cut about a second's rows. A last line torn by a kill is dropped at the next opening; the
    file belongs to one process at a time. `failed` has the keys that were tried in vain, with the errors.
    """

    def __init__(self, path: Path) -> None:
        """Open or create. Raises JournalError where another process has it open, or a line is not a row."""
        super().__init__()
        self.path, self.failed = path, dict[str, str]()
        self._places: dict[str, int] = {}
        self._lock, self._synced = threading.Lock(), time.monotonic()
        try:
            self.enter_context(locked(path, timeout=0))
        except Timeout:
            raise JournalError(f"{path} is in use by another process: wait for it, or stop it.") from None
        self._file = self.enter_context(path.open("a+b"))
        self.callback(self._synchronise)
        try:
            self._read_in()
        except JournalError:
            self.close()
            raise

    def _read_in(self) -> None:
        """Note the place of every row and drop a torn last line."""
        place = self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                break
            try:
                self._note(json.loads(line), place)
            except UNREADABLE:
                raise JournalError(
                    f"{self.path}, line {number} is not a journal row: remove that line, and its work is done again."
                ) from None
            place += len(line)

    def _note(self, row: dict[str, Any], place: int) -> None:
        if "error" in row:
            self.failed[row["key"]] = row["error"]
        else:
            self._places[row["key"]] = place
            self.failed.pop(row["key"], None)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row of JSON without "key" and "error"; a later row takes the place of an earlier one."""
        self._append({"key": key, **row})

    def fail(self, key: str, error: str) -> None:
        """Note that the work on `key` failed; its row stays missing."""
        self._append({"key": key, "error": error})

    def _append(self, row: dict[str, Any]) -> None:
        line = _json(row).encode() + b"\n"
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)  # the seek first flushes a row that a full disk cut short
            self._file.write(line)
            self._file.flush()
            self._note(row, place)
            if time.monotonic() - self._synced > SYNC:
                self._synchronise()

    def _synchronise(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The row as it was added. Raises KeyError."""
        with self._lock:
            self._file.seek(self._places[key])
            row = json.loads(self._file.readline())
        del row["key"]
        return row


def fill(
    journal: Journal,
    items: Mapping[str, T],
    work: Callable[[T], dict[str, Any]],
    workers: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """`work` on every item that the journal lacks, side by side; each row is kept as soon as it is done.

    What an item spends on models goes into its row as "usage"; one whose outside call failed stays missing. `after` is
    called after each row. Raises Stopped where FAILURES new items fail in a row, and FatalToolError at once.
    """
    known, lock, failures = set(journal.failed), threading.Lock(), []

    def one(key: str) -> None:
        with lock:
            if len(failures) >= FAILURES:
                raise Stopped(
                    f"{len(failures)} pieces of work failed one after the other, the last with: {failures[-1]} "
                    f"Mend that and start again; {len(journal)} are kept in {journal.path}."
                )
        try:
            with USAGE.heard() as spent:
                row = work(items[key])
        except FatalToolError:
            raise
        except ToolError as error:
            journal.fail(key, str(error))
            with lock:
                failures.extend([] if key in known else [str(error)])
            return
        journal.add(key, row | ({"usage": _summed(spent)} if spent else {}))
        with lock:
            failures.clear()
            after()

    in_parallel(one, [key for key in items if key not in journal], workers)


def total_usage(journals: Sequence[Journal], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the kept rows have cost, by role: calls, tokens and dollars. Summed in the order of `keys`."""
    kept = (journal[key].get("usage", {}) for journal in journals for key in keys if key in journal)
    totals = _summed(pair for usage in kept for pair in usage.items())
    return {role: {**total, "cost": round(total["cost"], 6)} for role, total in sorted(totals.items())}


def _summed(used: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Numbers added up by role and name."""
    totals: dict[str, dict[str, float]] = {}
    for role, numbers in used:
        total = totals.setdefault(role, dict.fromkeys(numbers, 0))
        for name, number in numbers.items():
            total[name] += number
    return totals
