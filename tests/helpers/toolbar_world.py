"""A second small world, of what installed packages ship: the buttons of matplotlib's toolbar, and modules' docstrings.

pages, pictures = write_sources(tmp_path)               # what `mmsr world index` takes
questions = write_questions(tmp_path / "fvqa")          # in FVQA's format: what does this button do?
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from pathlib import Path

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backend_bases import NavigationToolbar2
from PIL import Image

from mmsr.files import write_rows
from mmsr.tools.picture import flat

DATA = Path(matplotlib.get_data_path())
BUTTONS = {text: (says, image, method) for text, says, image, method in NavigationToolbar2.toolitems if text}
OTHERS = ("images/hand.png", "images/help_large.png", "images/matplotlib_large.png", "sample_data/grace_hopper.jpg")
MODULES = (
    *("argparse", "ast", "base64", "bisect", "calendar", "cmd", "codecs", "csv", "datetime", "decimal", "difflib"),
    *("fractions", "gzip", "heapq", "inspect", "json", "locale", "mimetypes", "optparse", "pickle", "random", "string"),
)
BOX = (180, 60, 276, 156)  # of the button in a question's picture


def answer(text: str) -> str:
    """What a button does, as its tooltip says."""
    return BUTTONS[text][0].partition("\n")[0]


def page_of(text: str) -> str:
    """The id of a button's page: the method that it calls."""
    return BUTTONS[text][2]


def write_sources(folder: Path) -> tuple[Path, Path]:
    """pages.jsonl, with ids and addresses for some of its pages, and a folder of pictures."""
    rows = []
    for text, (says, _, method) in BUTTONS.items():
        doc = (inspect.getdoc(getattr(NavigationToolbar2, method, None)) or "").partition("\n")[0]
        at = {"id": method, "url": f"https://matplotlib.org/stable/api/backend_bases_api.html#{method}"}
        rows.append({"title": f"{text} button", "text": "; ".join([*says.split("\n"), doc]), **at})
    rows += [{"title": f"Module {name}", "text": importlib.import_module(name).__doc__} for name in MODULES]
    write_rows(folder / "pages.jsonl", rows)
    (folder / "pictures").mkdir()
    for text, (_, image, _) in BUTTONS.items():
        shutil.copy(DATA / "images" / f"{image}_large.png", folder / "pictures" / f"{text}.png")
    for other in OTHERS:
        shutil.copy(DATA / other, folder / "pictures")
    return folder / "pages.jsonl", folder / "pictures"


def scene(text: str) -> Image.Image:
    """A window with a photograph and one button, drawn from the small icon, at BOX."""
    window = Image.new("RGB", (300, 200), "silver")
    with Image.open(DATA / "sample_data" / "grace_hopper.jpg") as photograph:
        window.paste(photograph.resize((150, 180)), (10, 10))
    with Image.open(DATA / "images" / f"{BUTTONS[text][1]}.png") as icon:
        x1, y1, x2, y2 = BOX
        window.paste(flat(icon).resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC), (x1, y1))
    return window


def write_questions(folder: Path) -> Path:
    """One question for each button, in FVQA's format; its id is the file of the picture that a search should find."""
    folder.mkdir()
    table = []
    for text in BUTTONS:
        scene(text).save(folder / "scene.png")
        golds = {"ground_truth": answer(text), "candidate_answers": json.dumps([answer(text).lower()]), "style": "rule"}
        table.append(
            {
                "prompt": [{"role": "user", "content": "What does the button in this window do?"}],
                "images": [{"bytes": (folder / "scene.png").read_bytes(), "path": None}],
                "reward_model": golds,
                "data_id": f"{text}.png",
                "category": "search_required",
            }
        )
    pq.write_table(pa.Table.from_pylist(table), folder / "fvqa_test.parquet")
    return folder
