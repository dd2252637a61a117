"""How many of the 24 pictures in tests/fixtures/photos an agent answers, and what its crops find.

python papermill_runs/measured/measure_photos.py --out papermill_runs/measured/photos.json [--adapter DIR]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mmsr.files import read_rows, write_json
from mmsr.lab import open_tools
from mmsr.policy import TINY_DIR, load_policy
from mmsr.presets import get_preset
from mmsr.reward import exact_match
from mmsr.rollout import Sampling, play
from mmsr.task import FileQuestion, Task
from mmsr.tools.ground import iou

PHOTOS = Path(__file__).parents[2] / "tests" / "fixtures" / "photos"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--adapter", type=Path, default=TINY_DIR / "agent")
    given = options.parse_args()
    size, policy = get_preset("tiny"), load_policy("tiny", given.adapter)
    questions = [
        FileQuestion.from_dict(row) for row in read_rows(PHOTOS / "questions.jsonl", "run make_pictures.py there")
    ]
    tasks = [Task.of(replace(question, picture=str(PHOTOS / question.picture))) for question in questions]
    rows = []
    for question, played in zip(
        questions, play(policy, tasks, open_tools(size, policy), size.prompts, Sampling.of(size))
    ):
        crops = [turn for turn in played.turns if turn.box]
        found = [hit["id"] == question.entity for turn in crops for hit in turn.hits[:1]]
        rows.append(
            {
                "id": question.id,
                "question": question.text,
                "answer": question.answer,
                "said": played.answer,
                "right": exact_match(played.answer, question.golds),
                "iou": round(max((iou(turn.box, question.box) for turn in crops), default=0.0), 3),
                "found": any(found),
            }
        )
    totals = {key: sum(bool(row[key]) for row in rows) for key in ("right", "found")}
    write_json(given.out, {"pictures": len(rows), **totals, "rows": rows})
    print(totals)


if __name__ == "__main__":
    main()
