"""A world of one's own: any pages of text and any pictures, searched as ours is (`mmsr world index`).

    world = index_world(Path("pages.jsonl"), Path("pictures"), Path("my.world"))
    world = open_world("my.world")                      # as `outside = {"world": "my.world"}` does
    world.text_search().search("Kenya capital", k=5)    # BM25
    world.picture_search().search(crop, k=5)            # cosine of thumbnails, or of a vision model's vectors

A page is a line of JSON with title and text; it may have url and id (else its line's number). Pictures are files of a
folder, titled by their names without suffix, or what `pictures.jsonl` in it lists by file, title and url. A world is a
sealed folder, there whole or not at all; its pictures stay where they were, for no search needs them.
"""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import asdict
from os.path import relpath
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from mmsr.files import UNREADABLE, check_seal, read_json, read_rows, seal, write_json, write_rows
from mmsr.tools.base import Corpus, ToolError, in_parallel
from mmsr.tools.image import LocalImageSearch, embedder
from mmsr.tools.picture import read_picture
from mmsr.tools.text import LocalTextSearch, bm25
from mmsr.world.snapshot import FlagImage, Page, load_world

ABOUT, PAGES, PICTURES, VECTORS, INDEX = "world.json", "pages.jsonl", "pictures.jsonl", "vectors.npy", "bm25"
REMEDY = "make the world with `mmsr world index`"
SUFFIXES, WORKERS = (".jpg", ".jpeg", ".png", ".webp", ".gif"), 4  # of pictures; those looked at side by side


def _given(path: Path, kind: type, key: str, fields: str) -> dict[str, Any]:
    """What the lines of a file give, by this field. Raises ValueError, naming the line, for what is wrong with one."""
    found, adapter = dict[str, Any](), TypeAdapter(kind)
    for number, line in enumerate(io.BytesIO(path.read_bytes()), 1):
        try:
            row = json.loads(line)
            known = {"id": str(row.get("id", number)), "iso": row.get("file"), "section": ""}
            entry = adapter.validate_python(row | known)
        except UNREADABLE:
            raise ValueError(f"{path}, line {number}: expected a JSON object of strings, with {fields}.") from None
        if found.setdefault(getattr(entry, key), entry) is not entry:
            raise ValueError(f"{path}, line {number}: {getattr(entry, key)!r} stands in an earlier line too.")
    return found


def _pictures(folder: Path) -> list[FlagImage]:
    """The pictures of a folder, known by their files. Raises ValueError for what is wrong with a list of them."""
    if (folder / PICTURES).exists():
        return list(_given(folder / PICTURES, FlagImage, "iso", "file and title (url)").values())
    files = (path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES)
    return [FlagImage(name, Path(name).stem) for name in sorted(p.relative_to(folder).as_posix() for p in files)]


def _read(path: Path) -> Image.Image:
    """A picture. Raises ToolError, naming it, where it cannot be read."""
    try:
        return read_picture(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ToolError(f"The picture {path} cannot be read ({error}).") from None


def index_world(pages: Path, pictures: Path, to: Path, vectors: str = "") -> OwnWorld:
    """Make the world at `to`, its pictures' vectors by `tools.image.embedder`.

    Raises ValueError for pages or pictures that cannot be used, naming them, and FatalToolError as that does.
    """
    if to.exists():
        raise ValueError(f"{to} is there already: delete it, or choose another name.")
    texts, shown = _given(pages, Page, "id", "title and text (url, id)").values(), _pictures(pictures)
    if not texts or not shown:
        raise ValueError(f"{pictures if texts else pages} is empty: a world has pages and pictures ({SUFFIXES}).")
    model = str(Path(vectors).resolve()) if vectors and Path(vectors).is_dir() else vectors
    embed = embedder(model)
    seen = in_parallel(lambda picture: embed(_read(pictures / picture.iso)), shown, WORKERS)
    if broken := [error for error in seen if isinstance(error, ToolError)]:
        raise ValueError(f"{len(broken)} of {len(seen)} pictures must be mended or left out. {broken[0]}")
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.absolute().parent) as around:
        folder = Path(around) / to.name
        write_rows(folder / PAGES, map(asdict, texts))
        write_rows(folder / PICTURES, map(asdict, shown))
        np.save(folder / VECTORS, np.stack(seen))
        bm25(texts).save(folder / INDEX, show_progress=False)
        write_json(folder / ABOUT, {"pictures": relpath(pictures, to), "model": model})
        seal(folder)
        folder.rename(to)
    return OwnWorld(to)


def check_world(folder: Path) -> dict[str, str]:
    """What a world says of itself. Raises FileNotFoundError where there is none, FileDamaged where it was changed."""
    check_seal(folder, REMEDY)
    return read_json(folder / ABOUT, dict[str, str], REMEDY)


class OwnWorld:
    """The world in a folder, a `tools.base.Corpus`. Raises as `check_world` does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, check_world(folder)
        self.pages = {row["id"]: Page(**row) for row in read_rows(folder / PAGES, REMEDY)}
        self.flags = tuple(FlagImage(**row) for row in read_rows(folder / PICTURES, REMEDY))

    def flag(self, iso: str) -> Image.Image:
        """A picture, by its file. Raises ToolError where it is no longer where it was."""
        return _read(self.folder / self.about["pictures"] / iso)

    def text_search(self) -> LocalTextSearch:
        """BM25 by the index on the disk, which is mapped into memory, as the pictures' vectors are."""
        return LocalTextSearch(self, bm25s.BM25.load(self.folder / INDEX, mmap=True, show_progress=False))

    def picture_search(self) -> LocalImageSearch:
        """Cosine of the pictures' vectors. Raises FatalToolError where their vision model cannot be loaded."""
        vectors = np.load(self.folder / VECTORS, mmap_mode="r")
        return LocalImageSearch(self, vectors, embedder(self.about["model"]))


def open_world(folder: str = "") -> Corpus:
    """The world in a folder, or ours where none is named. Raises as `check_world` does."""
    return OwnWorld(Path(folder)) if folder else load_world()
