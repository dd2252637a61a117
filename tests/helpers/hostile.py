"""The hostile set (tests/fixtures/hostile), and tools of one's own tried on it.

    .venv/bin/python tests/helpers/hostile.py mymodule:tools        # tools() returns a `mmsr.env.Tools`

An episode must be able to go on from whatever a tool makes of a case: it may find nothing or raise ToolError.
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import json
import os
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmsr.env import SearchEnv, Tools
from mmsr.policy import load_processor
from mmsr.presets import get_preset
from mmsr.protocol import Action, ImageSearch, TextSearch, Turn, render_turn, sanitise
from mmsr.task import Task
from mmsr.tools.base import Hit, ToolError
from mmsr.tools.picture import read_picture

FOLDER = Path(__file__).parents[1] / "fixtures" / "hostile"
KINDS = ("pages", "pictures", "questions", "addresses", "turns", "verdicts", "answers")
ORIENTATION = 0x0112  # the tag of EXIF
BEGIN, END = "<information>\n", "\n</information>"

Case = Mapping[str, Any]


def cases(kind: str) -> list[Case]:
    """The cases of a kind, as they are written."""
    lines = (FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def text(told: Any) -> str:
    """A case's text: as it is, repeated, or joined from several."""
    if isinstance(told, list):
        return "".join(map(text, told))
    return told if isinstance(told, str) else told["repeat"] * told["times"]


def page(case: Case) -> bytes:
    """The bytes of a page."""
    return base64.b64decode(case["base64"]) if "base64" in case else text(case["body"]).encode("utf-8")


def picture(case: Case) -> bytes:
    """The bytes of a picture's file, built as the case says."""
    if "base64" in case:
        return base64.b64decode(case["base64"])
    options, exif = dict(case.get("save", {})), Image.Exif()
    if "orientation" in case:
        exif[ORIENTATION] = case["orientation"]
    if "orientation" in case or "exif" in case:
        options["exif"] = bytes.fromhex(case["exif"]) if "exif" in case else exif
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    fill, buffer = case["fill"], io.BytesIO()
    built = Image.new(case["mode"], case["size"], tuple(fill) if isinstance(fill, list) else fill)
    built.save(buffer, case["format"], **options)
    data = buffer.getvalue()
    if "claims" in case:  # a PNG's header begins at byte 12 with its name, and its checksum is at byte 29
        header = data[12:16] + b"".join(side.to_bytes(4, "big") for side in case["claims"]) + data[24:29]
        data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    return data[: int(len(data) * case.get("keep", 1))] + case.get("after", "").encode()


@functools.cache
def _processor() -> Any:
    return load_processor("tiny")


def special_tokens(prompt: str) -> int:
    """How many special tokens a policy's tokenizer reads in a text."""
    tokenizer = _processor().tokenizer
    special = {*tokenizer.all_special_ids}
    return sum(i in special for i in tokenizer(prompt, add_special_tokens=False)["input_ids"])


def harm(words: str) -> str:
    """What a parser, a tokenizer or a file would take for more than words; "" where there is nothing."""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in words):
        return "half a character, which cannot be written"
    if {"<", ">"} & {*words, *unicodedata.normalize("NFKC", words)}:
        return "an angle bracket"
    return "a special token" if special_tokens(words) else ""


# --- tools of one's own -----------------------------------------------------------------------------------------------


def attempts(tools: Tools) -> Iterator[tuple[str, str]]:
    """Every case that tools can be given, by name, with what went wrong; "" where an episode can go on."""
    scene = Image.new("RGB", (96, 96), "white")
    for case in cases("questions"):
        asked = Task("hostile", text(case["text"]), scene, ("Kenya",))
        plain = Task("hostile", "Whose flag is it?", scene, ("Kenya",))
        words = sanitise(asked.question).strip()[:1000] or "?"  # as a policy can write them
        yield f"{case['id']}, as a question", _played(tools, asked, TextSearch("Kenya capital"))
        yield f"{case['id']}, as a query", _played(tools, plain, TextSearch(words))
        yield f"{case['id']}, as a description", _played(tools, plain, ImageSearch(expression=words))
    for case in cases("pictures"):
        if "reads" in case:
            shown = Task("hostile", "Whose flag is it?", read_picture(picture(case)), ("Kenya",))
            yield f"{case['id']}, as a picture", _played(tools, shown, ImageSearch())
    for case in cases("pages"):
        body = page(case).decode("utf-8", "replace")[:8000]
        hits = [Hit(f"{n}", text(case.get("title", "Kenya")), body, 1.0) for n in range(5)]
        for name, summariser in (("text", tools.text_summary), ("picture", tools.image_summary)):
            yield f"{case['id']}, as a {name} result", _summed(summariser.summarise, hits)


def _played(tools: Tools, task: Task, action: Action) -> str:
    env = SearchEnv(tools, get_preset("tiny").prompts, task)
    try:
        env.step(render_turn(Turn("a", action)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    record = env.trajectory.turns[0]
    block, end, _ = record.observation.partition(END)
    if not block.startswith(BEGIN) or not end:
        return record.error or "an observation without its block"
    return _writable(record.hits) or harm(block.removeprefix(BEGIN))


def _summed(summarise: Callable[..., str], hits: list[Hit]) -> str:
    try:
        return harm(sanitise(summarise("Whose flag is it?", "Kenya capital", hits)))
    except ToolError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _writable(hits: list[dict]) -> str:
    try:
        json.dumps(hits, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        return f"a result that cannot be written: {error}"
    return ""


def main(name: str) -> int:
    """Try the tools that `module:function` returns, print what was tried and lost; 1 where anything was lost."""
    sys.path.insert(0, os.getcwd())
    module, _, function = name.partition(":")
    found = list(attempts(getattr(importlib.import_module(module), function)()))
    lost = [f"{case}: {wrong}" for case, wrong in found if wrong]
    print(*lost, f"tried {len(found)}, lost {len(lost)}", sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
