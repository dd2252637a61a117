"""The record of outside calls, one SQLite file: the text that answered each, or how it failed.

call = Call("serper", 1, "POST /search", {"q": "Kenya capital"})
save(file, call, Outcome("the text of the answer"), seconds=0.4)
load(file, call.key).result()           # -> "the text of the answer"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmsr.files import write_rows
from mmsr.live.limits import BadAnswer, RateLimited, Refused, Unavailable
from mmsr.tools.base import FatalToolError, ToolError

SCHEMA = 1
ERRORS = {kind.__name__: kind for kind in (ToolError, Refused, BadAnswer, Unavailable, RateLimited)}
TABLE = """CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, backend TEXT NOT NULL, request TEXT NOT NULL,
    error TEXT NOT NULL, answer BLOB NOT NULL, seconds REAL NOT NULL, created TEXT NOT NULL) WITHOUT ROWID"""
# An answer replaces an error, and nothing replaces an answer.
INSERT = """INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET error = excluded.error,
    answer = excluded.answer, seconds = excluded.seconds, created = excluded.created
    WHERE calls.error <> '' AND excluded.error = ''"""


@dataclass(frozen=True)
class Call:
    """What identifies a call: back end, version of our dialect, method and path, JSON body, sha256 of its pictures."""

    backend: str
    version: int
    path: str
    body: Any
    pictures: tuple[str, ...] = ()

    def canonical(self) -> str:
        """The call as text: equal calls give equal text on every machine."""
        parts = [self.backend, self.version, self.path, self.body, list(self.pictures)]
        return json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """The sha256 under which the call is kept, and which trajectories log."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What the record holds of a call, and since when: the text of an answer, or the class and message of an error."""

    text: str
    error: str = ""
    created: str = ""

    def result(self) -> str:
        """The answer. Raises the recorded error where that was the outcome."""
        if self.error:
            raise ERRORS.get(self.error, ToolError)(self.text)
        return self.text


@contextlib.contextmanager
def opened(file: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection for one piece of work: no connection outlives it, so that threads and forks share none.

    For writing, a missing record is made. Raises FatalToolError where the file is missing, damaged or not a record.
    """
    if not write and not file.exists():
        raise FatalToolError(f"There is no record at {file}: run once in mode record, or `mmsr replay import` one.")
    try:
        if write:
            file.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{file.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        connection = sqlite3.connect(uri, uri=True, timeout=30)  # seconds to wait for another process's write
        with contextlib.closing(connection), connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if write and version == 0:
                connection.execute("PRAGMA journal_mode=WAL")  # readers go on while another process writes
                connection.execute(TABLE)
                connection.execute(f"PRAGMA user_version={SCHEMA}")
            elif version != SCHEMA:
                raise FatalToolError(f"{file} is not a record of this version (it has {version}, not {SCHEMA}).")
            yield connection
    except (sqlite3.Error, zlib.error, UnicodeDecodeError, OSError) as error:
        raise FatalToolError(f"The record {file} cannot be used ({error}): check the file and its folder.") from error


def load(file: Path, key: str) -> Outcome | None:
    """The outcome kept under `key`, or None."""
    with opened(file) as connection:
        row = connection.execute("SELECT answer, error, created FROM calls WHERE key = ?", (key,)).fetchone()
        return Outcome(zlib.decompress(row[0]).decode(), *row[1:]) if row else None


def save(file: Path, call: Call, outcome: Outcome, seconds: float, since: str = "") -> Outcome:
    """Keep an outcome and return what is now kept, which may be what another process saved first.

    An answer from before `since` makes room for another answer, and outlives an error.
    """
    with opened(file, write=True) as connection:
        if not outcome.error:
            connection.execute("DELETE FROM calls WHERE key = ? AND created < ?", (call.key, since))
        _insert(connection, call, outcome, round(seconds, 3), datetime.now(UTC).isoformat(timespec="seconds"))
    return load(file, call.key)


def _insert(connection: sqlite3.Connection, call: Call, outcome: Outcome, seconds: float, created: str) -> bool:
    packed = zlib.compress(outcome.text.encode("utf-8", "replace"))
    row = (call.key, call.backend, call.canonical(), outcome.error, packed, seconds, created)
    return connection.execute(INSERT, row).rowcount == 1


def export_jsonl(file: Path, out: Path) -> int:
    """Write the record as one JSON object a line, ordered by key, and return their number."""
    query = "SELECT key, request, error, answer, seconds, created FROM calls ORDER BY key"
    with opened(file) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(query)]
        for row in rows:
            row |= {"request": json.loads(row["request"]), "answer": zlib.decompress(row["answer"]).decode()}
    write_rows(out, rows)
    return len(rows)


def import_jsonl(file: Path, source: Path) -> dict[str, int]:
    """Add exported calls to a record; those already answered stay. Returns how many were "added" and "left".

    Raises ToolError naming the first line that is no record, and adds nothing.
    """
    counts = {"added": 0, "left": 0}
    with source.open("rb") as lines, opened(file, write=True) as connection:
        for number, line in enumerate(lines, 1):
            try:
                row = _parsed(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                said = f"{source}, line {number} is no recorded call ({error})"
                raise ToolError(f"{said}: nothing was imported; mend or remove it.") from None
            counts["added" if _insert(connection, *row) else "left"] += 1
    return counts


def _parsed(line: bytes) -> tuple[Call, Outcome, float, str]:
    entry = json.loads(line.decode())
    *name, body, pictures = entry["request"]
    call = Call(*name, body, tuple(pictures))
    if call.key != entry["key"]:
        raise ValueError("the key does not fit the request")
    if entry["error"] not in ("", *ERRORS) or not isinstance(entry["answer"], str):
        raise ValueError("the answer is not text, or the error is of an unknown kind")
    return call, Outcome(entry["answer"], entry["error"]), float(entry["seconds"]), str(entry["created"])


def stats(file: Path) -> dict[str, dict[str, float]]:
    """By back end: calls, errors, kilobytes kept, and the seconds that the calls took when they were made."""
    names, sums = ("calls", "errors", "kilobytes", "seconds"), "SUM(LENGTH(answer)) / 1000.0, SUM(seconds)"
    query = f"SELECT backend, COUNT(*), SUM(error <> ''), {sums} FROM calls GROUP BY backend ORDER BY backend"
    with opened(file) as connection:
        return {backend: dict(zip(names, values)) for backend, *values in connection.execute(query)}
