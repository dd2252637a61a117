"""Files as a full disk, a bad sector or another program leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * (len(data) // 3) :],
    "other shape": lambda data: b"[[3]]\n",
    "no text": lambda data: b"\xff\xfe" + data,
}


def damage(path: Path, how: str) -> None:
    """Put what DAMAGES makes of a file in its place."""
    path.write_bytes(DAMAGES[how](path.read_bytes()))


def cut_at_a_line(path: Path) -> None:
    """Leave the first half of the lines: each of them is whole."""
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[: len(lines) // 2]) + b"\n")
