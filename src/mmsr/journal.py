"""Rows by key, appended as they come: what a long piece of work has finished, whenever it may be killed.

    with Journal(Path("funnel/played.jsonl")) as played:
        played.add("train-0-3", {"answer": "Nairobi"})      # outlives this process from now on
        "train-0-3" in played, played["train-0-3"]          # memory holds where each row lies, not the row
        fill(played, {"train-0-4": task, …}, play, workers=8)   # adds the rows that are missing, side by side

A file of JSON lines. A last line that a kill tore is dropped when the journal is opened again; the file belongs to one
process at a time. Every row is written at once and synchronised with the disk about once a second and at the end,
so that a kill costs nothing that was added and a power cut a second's rows.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mmsr.live.models import Usage, spent
from mmsr.tools.base import FatalToolError, ToolError, in_parallel

SYNC = 1.0  # seconds between two synchronisations with the disk
PATIENCE = 20  # failures in a row that speak of what is asked rather than of an item

T = TypeVar("T")


class JournalError(RuntimeError):
    """A journal cannot be used; the message says why and what to do."""


class Stopped(FatalToolError):
    """Too many pieces of work failed one after the other: what is asked outside is in trouble."""


class Journal:
    """The rows of one file. Safe between threads. `failed` has the keys that were tried in vain, with the errors."""

    def __init__(self, path: Path) -> None:
        """Open, or make. Raises JournalError where another process has it open, or a line is no row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.failed = path, dict[str, str]()
        self._places: dict[str, int] = {}
        self._lock, self._synced = threading.Lock(), time.monotonic()
        self._file, self._reader = path.open("ab", buffering=0), path.open("rb")
        try:
            self._take()
            self._end = self._read_in()
            self._file.truncate(self._end)
        except JournalError:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.path} is in use by another process: wait for it, or stop it.") from None

    def _read_in(self) -> int:
        """Note every row's place; returns where the last whole line ends."""
        end = 0
        for number, line in enumerate(self._reader, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                self._note(row["key"], row, end)
            except (ValueError, KeyError, TypeError):
                raise JournalError(
                    f"{self.path}, line {number} is no row of a journal: remove that line, and its work is done again."
                ) from None
            end += len(line)
        return end

    def _note(self, key: str, row: dict[str, Any], place: int) -> None:
        if "error" in row:
            self.failed[key] = row["error"]
        else:
            self._places[key] = place
            self.failed.pop(key, None)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row of JSON without "key" and "error"; a later row takes the place of an earlier one."""
        self._append({"key": key, **row})

    def fail(self, key: str, error: str) -> None:
        """Keep that the work on `key` failed; it stays missing."""
        self._append({"key": key, "error": error})

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._file.write(line) != len(line):
                self._file.truncate(self._end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self._note(row["key"], row, self._end)
            self._end += len(line)
            if time.monotonic() - self._synced > SYNC:
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
            self._reader.seek(self._places[key])
            row = json.loads(self._reader.readline())
        del row["key"]
        return row

    def close(self) -> None:
        """Synchronise and let go of the file."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._reader.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


# --- work that fills it -----------------------------------------------------------------------------------------------


def fill(
    journal: Journal,
    items: Mapping[str, T],
    work: Callable[[T], dict[str, Any]],
    workers: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """`work` on every item that the journal lacks, side by side; each row is kept as soon as it is there.

    What an item spends on models goes into its row as "usage". An item whose outside call failed stays missing and is
    tried again at the next start. `after` is called after each row. Raises Stopped where PATIENCE items fail in a row
    that never failed before, and FatalToolError at once.
    """
    known, lock, failures = set(journal.failed), threading.Lock(), []

    def one(key: str) -> None:
        with lock:
            if len(failures) >= PATIENCE:
                raise Stopped(
                    f"{len(failures)} pieces of work failed one after the other, the last with: {failures[-1]} "
                    f"Mend that and start again; {len(journal)} are kept in {journal.path}."
                )
        with spent() as usage:
            try:
                row = work(items[key])
            except FatalToolError:
                raise
            except ToolError as error:
                journal.fail(key, str(error))
                with lock:
                    failures.extend([] if key in known else [str(error)])
                return
        journal.add(key, row | ({"usage": {r: asdict(u) for r, u in usage.items()}} if usage else {}))
        with lock:
            failures.clear()
            after()

    in_parallel(one, [key for key in items if key not in journal], workers)


def total_usage(journals: Sequence[Journal], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the kept rows have taken, by role: calls, tokens and dollars. Summed in the order of `keys`."""
    totals: dict[str, Usage] = {}
    for journal in journals:
        for key in keys:
            for role, used in (journal[key].get("usage", {}) if key in journal else {}).items():
                total = totals.get(role, Usage())
                totals[role] = Usage(*(a + b for a, b in zip(asdict(total).values(), used.values())))
    return {role: asdict(replace(total, cost=round(total.cost, 6))) for role, total in sorted(totals.items())}
