"""Files that are there whole or not at all, rows of JSON, and locks between processes.

write_json(run / "metrics.json", value)         # under a temporary name first, then renamed
with locked(run / "metrics.json"): …            # one process at a time reads and writes it
write_rows(run / "eval" / "rows.jsonl", rows)   # JSON lines; a line ends at "\\n" alone, whatever stands in a text
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock


def write_whole(path: Path, text: str) -> None:
    """Write under a temporary name, then rename; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """A JSON value, whole. Raises ValueError for a number that is not finite."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """JSON lines, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The rows of JSON lines. Raises FileNotFoundError, with the remedy ("run notebook 04 first"), where none are."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: {remedy}.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def locked(path: Path, timeout: float = -1) -> FileLock:
    """A lock on what `path` holds, to be used in `with`, on any system; a hidden file beside it carries the lock.

    Raises filelock.Timeout where another process has it for longer than `timeout` seconds (negative: waits for ever).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)
