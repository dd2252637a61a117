"""Record and replay: the one door to the outside, through which every search, page, judge, teacher and summary goes.

    outside = Outside("record", Path("calls.sqlite"), Budget(money=5.0))
    call = Call("serper", 1, "POST /search", {"q": "Kenya capital"})
    outside.answer(call, ask=lambda: "the text of the answer")     # asks once, then reads the record

| mode | where the answer comes from |
|---|---|
| live | always outside, nothing is kept |
| record | the record where it has one, else outside, and kept |
| replay | the record alone; a call it does not have is a `ReplayMiss` that names the request |

A recorded run replays to the same numbers, so one request has one outcome: the first answer kept is the answer for
everyone, and a request that failed (not fatally) is recorded as failed and fails alike in replay; recording again asks
it again. The key of a call is the sha256 of back end, version, method and path, canonical body and picture hashes; no
credential is part of a call, hence of the record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mmsr.live.limits import BadAnswer, Budget, RateLimited, Refused, Unavailable
from mmsr.tools.base import FatalToolError, ToolError, log_keys

Mode = Literal["live", "record", "replay"]
SCHEMA = 1
STRIPES = 1024  # locks that calls with equal keys share, so that eight rollouts with one query pay for it once
ERRORS = {kind.__name__: kind for kind in (ToolError, Refused, BadAnswer, Unavailable, RateLimited)}


class ReplayMiss(FatalToolError):
    """A replay was asked for a call that was never recorded."""


@dataclass(frozen=True)
class Call:
    """What makes an outside call itself: back end, version of our dialect of it, method and path, body, pictures.

    `body` is JSON without credentials, in which a picture is only named; `pictures` are their sha256 values, in order.
    """

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
    """What the record holds of a call: the text of an answer, or the class and message of an error."""

    text: str
    error: str = ""

    def result(self) -> str:
        """The answer. Raises the recorded error where that was the outcome."""
        if self.error:
            raise ERRORS.get(self.error, ToolError)(self.text)
        return self.text


@dataclass
class Outside:
    """The door itself. Safe between threads and, for one record, between processes; pickles to other processes."""

    mode: Mode = "live"
    file: Path | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.mode not in ("live", "record", "replay"):
            raise ValueError(f"There is no mode {self.mode!r}: choose live, record or replay.")
        if self.mode != "live" and self.file is None:
            raise ValueError(f"Mode {self.mode!r} needs the file of a record.")
        if self.mode == "record":
            create(self.file)
        elif self.mode == "replay":
            with opened(self.file):  # fails now rather than at the first question
                pass
        self.asked: Counter[str] = Counter()  # calls by back end, however they were answered: alike in every mode
        self._counting = threading.Lock()
        self._failed: dict[str, Outcome] = {}
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    def __getstate__(self) -> dict[str, Any]:
        budget = (self.budget.calls, self.budget.money, self.budget.file)
        return {"mode": self.mode, "file": self.file, "budget": budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["mode"], state["file"], Budget(*state["budget"]))

    def answer(self, call: Call, ask: Callable[[], str]) -> str:
        """The text of the answer to `call`; `ask` goes outside and is run only where the mode wants it.

        Raises what `ask` raises, or what it raised when the call was recorded; ReplayMiss for an unrecorded call.
        """
        key = call.key
        log_keys([key])
        with self._counting:
            self.asked[call.backend] += 1
        if self.mode == "live":
            return ask()
        with self._stripes[int(key[:8], 16) % STRIPES]:
            kept = load(self.file, key)
            if self.mode == "replay":
                if kept is None:
                    raise ReplayMiss(
                        f"The record {self.file} has no answer to {call.backend} {call.path} "
                        f"{_shortened(call.body)} (key {key[:12]}): record it, or ask what was asked then."
                    )
                return kept.result()
            if kept is None or (kept.error and key not in self._failed):
                kept = self._ask_and_keep(key, call, ask)
            return kept.result()

    def _ask_and_keep(self, key: str, call: Call, ask: Callable[[], str]) -> Outcome:
        started = time.monotonic()
        try:
            outcome = Outcome(ask())
        except FatalToolError:
            raise  # says nothing about the request: the next run must ask again
        except ToolError as error:
            outcome = Outcome(str(error), type(error).__name__)
            self._failed[key] = outcome
        return save(self.file, key, call, outcome, time.monotonic() - started)


def _shortened(body: Any) -> str:
    text = json.dumps(body, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 160 else text[:159] + "…"


# --- the file -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(file: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection for one piece of work: no connection outlives it, so that threads and forks share none.

    Raises FatalToolError where the file is missing or is no record.
    """
    if not file.exists():
        raise FatalToolError(f"There is no record at {file}: run once in mode record, or `mmsr replay import` one.")
    uri = file.absolute().as_uri() + ("?mode=rw" if write else "?mode=ro")
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=30)  # seconds to wait for another process's write
        with contextlib.closing(connection), connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA:
                raise FatalToolError(f"{file} is no record of this version (it has {version}, not {SCHEMA}).")
            yield connection
    except sqlite3.Error as error:
        raise FatalToolError(f"The record {file} cannot be used ({error}): check the file and its folder.") from error


def create(file: Path) -> None:
    """Make an empty record at `file` unless there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                connection.execute("PRAGMA journal_mode=WAL")  # readers go on while another process writes
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, backend TEXT NOT NULL, "
                    "request TEXT NOT NULL, error TEXT NOT NULL, answer BLOB NOT NULL, seconds REAL NOT NULL, "
                    "created TEXT NOT NULL) WITHOUT ROWID"
                )
                connection.execute(f"PRAGMA user_version={SCHEMA}")
    except sqlite3.Error as error:
        raise FatalToolError(f"No record can be made at {file} ({error}): choose another file.") from error


def load(file: Path, key: str) -> Outcome | None:
    """The outcome kept under `key`, or None."""
    with opened(file) as connection:
        return _load(connection, key)


def _load(connection: sqlite3.Connection, key: str) -> Outcome | None:
    row = connection.execute("SELECT answer, error FROM calls WHERE key = ?", (key,)).fetchone()
    return Outcome(zlib.decompress(row[0]).decode(), row[1]) if row else None


def save(file: Path, key: str, call: Call, outcome: Outcome, seconds: float) -> Outcome:
    """Keep an outcome and return what is now kept: an answer replaces an error, and nothing replaces an answer."""
    with opened(file, write=True) as connection:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _insert(connection, (key, call.backend, call.canonical(), outcome, round(seconds, 3), created))
        return _load(connection, key)


def _insert(connection: sqlite3.Connection, row: tuple[str, str, str, Outcome, float, str]) -> bool:
    key, backend, request, outcome, seconds, created = row
    packed = zlib.compress(outcome.text.encode("utf-8", "replace"))
    done = connection.execute(
        "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET error = excluded.error, "
        "answer = excluded.answer, seconds = excluded.seconds, created = excluded.created "
        "WHERE calls.error <> '' AND excluded.error = ''",
        (key, backend, request, outcome.error, packed, seconds, created),
    )
    return done.rowcount == 1


# --- mmsr replay export | import | stats ------------------------------------------------------------------------------


def export_jsonl(file: Path, out: Path) -> int:
    """Write the record as one JSON object a line, ordered by key, and return their number."""
    columns = ("key", "request", "error", "answer", "seconds", "created")
    with opened(file) as connection, out.open("w", encoding="utf-8", newline="\n") as lines:
        count = 0
        for row in connection.execute(f"SELECT {', '.join(columns)} FROM calls ORDER BY key"):
            entry = dict(zip(columns, row))
            entry |= {"request": json.loads(entry["request"]), "answer": zlib.decompress(entry["answer"]).decode()}
            lines.write(json.dumps(entry, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def import_jsonl(file: Path, source: Path) -> dict[str, int]:
    """Add exported calls to a record (made where missing); calls that it already answers are left as they are.

    Returns how many were added and left. Raises ToolError naming the first line that is no record; nothing is added
    then.
    """
    create(file)
    counts = {"added": 0, "left": 0}
    with opened(file, write=True) as connection, source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = _parsed(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ToolError(
                    f"{source}, line {number} is no recorded call ({error}): nothing was imported; mend or remove it."
                ) from None
            counts["added" if _insert(connection, row) else "left"] += 1
    return counts


def _parsed(line: bytes) -> tuple[str, str, str, Outcome, float, str]:
    entry = json.loads(line.decode())
    backend, version, path, body, pictures = entry["request"]
    call = Call(str(backend), int(version), str(path), body, tuple(map(str, pictures)))
    if call.key != entry["key"]:
        raise ValueError("the key does not fit the request")
    if entry["error"] not in ("", *ERRORS) or not isinstance(entry["answer"], str):
        raise ValueError("the answer is no text, or the error of an unknown kind")
    outcome = Outcome(entry["answer"], entry["error"])
    return call.key, call.backend, call.canonical(), outcome, float(entry["seconds"]), str(entry["created"])


def stats(file: Path) -> dict[str, dict[str, float]]:
    """By back end: calls, errors, kilobytes kept, and the seconds that the calls took when they were made."""
    with opened(file) as connection:
        rows = connection.execute(
            "SELECT backend, COUNT(*), SUM(error <> ''), SUM(LENGTH(answer)) / 1000.0, SUM(seconds) FROM calls "
            "GROUP BY backend ORDER BY backend"
        ).fetchall()
    names = ("calls", "errors", "kilobytes", "seconds")
    return {backend: dict(zip(names, values)) for backend, *values in rows}
