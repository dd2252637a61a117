"""Files as FVQA publishes them, with a picture of its own in each row."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int) -> bytes:
    """A PNG of one colour, another for each number."""
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (number % 256, 7 * number % 256, 90)).save(data, "PNG")
    return data.getvalue()


def write(path: Path, numbers: Iterable[int], split: str = "train") -> Path:
    """The question, the picture and the answer of each number; its folder."""
    table = [
        {
            "prompt": [{"content": f"Which colour is number {number}?", "role": "user"}],
            "images": [{"bytes": picture(number), "path": None}],
            "reward_model": {"candidate_answers": "[]", "ground_truth": f"colour {number}", "style": "rule"},
            "data_id": f"fvqa_{split}_{number}",
            "category": "search_required",
        }
        for number in numbers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), path)
    return path.parent
