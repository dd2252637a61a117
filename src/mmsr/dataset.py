"""What a training set is made of: the questions it may ask, its checks, its balance, its files (paper §3.3).

An example is a JSON row: question, messages (the conversation to learn), the label, the trajectory. Pictures lie beside
the rows. `funnel.build` makes the examples; a question is one of our world's, or a benchmark's:

    questions = make_questions(world, "train", 2000, seed=0)
    questions = [from_benchmark(item) for item in find_benchmark("infoseek_train").load(folder, sample=2000)]
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from mmsr.benchmarks.files import BenchmarkItem
from mmsr.env import Task, Trajectory, first_messages
from mmsr.policy import Policy
from mmsr.protocol import UNABLE, Prompts, sanitise
from mmsr.teacher import as_task
from mmsr.tools.base import ToolError
from mmsr.tools.picture import read_picture
from mmsr.world.questions import Question
from mmsr.world.snapshot import World

MAX_TURNS = 10


# --- questions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublicQuestion:
    """A question about a picture in a file, with what data building and SFT need of it; `taxonomy` may be missing."""

    id: str
    type: str
    text: str
    answer: str
    aliases: tuple[str, ...]
    picture: str
    taxonomy: str = ""

    @property
    def golds(self) -> tuple[str, ...]:
        """The gold answer and its aliases."""
        return (self.answer, *self.aliases)

    def as_dict(self) -> dict:
        """Plain JSON, with the picture's name and not its folder; `from_dict` reads it back."""
        return asdict(self) | {"picture": Path(self.picture).name}

    @classmethod
    def from_dict(cls, row: dict) -> PublicQuestion:
        return cls(**row | {"aliases": tuple(row["aliases"])})


Asked = Question | PublicQuestion


def from_benchmark(item: BenchmarkItem) -> PublicQuestion:
    """A benchmark's item as a question to build data from; use a training split."""
    first, *others = item.golds
    return PublicQuestion(item.id, item.kind, item.question, first, tuple(others), str(item.picture))


def to_task(question: Asked, world: World) -> Task:
    """The episode's view of a question, its picture drawn or read now. Raises ToolError for what is no picture."""
    if isinstance(question, Question):
        return as_task(question, world)
    try:
        picture = read_picture(Path(question.picture).read_bytes())
    except (OSError, ValueError) as error:
        raise ToolError(
            f"The picture of question {question.id}, {question.picture}, cannot be read: {error}."
        ) from None
    return Task(question.id, question.text, picture, question.golds)


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass
class Example:
    """One training conversation. `label` is "search_free" or "search_required"."""

    question: Asked
    label: str
    messages: list[dict]
    trajectory: dict = field(default_factory=dict)


def checks(trajectory: Trajectory) -> dict[str, bool]:
    """The paper's three checks: A valid tags, B fewer than ten turns, C ends in an answer."""
    return {
        "A": trajectory.valid_turns == len(trajectory.turns),
        "B": len(trajectory.turns) < MAX_TURNS,
        "C": trajectory.end == "answer" and trajectory.answer != UNABLE,
    }


def ask_base(policy: Policy, questions: Sequence[Asked], world: World, prompts: Prompts, batch: int) -> list[str]:
    """The base's answers without any tool: the knowledge boundary, and the direct workflow of the evaluation."""
    special = tuple(policy.tokenizer.all_special_tokens)
    asked = [
        (to_task(question, world).picture, prompts.direct.format(question=sanitise(question.text, special)))
        for question in questions
    ]
    return policy.ask(asked, batch)


def to_messages(
    question: Asked, trajectory: Trajectory, world: World, prompts: Prompts, special_tokens: tuple[str, ...] = ()
) -> list[dict]:
    """The conversation of an episode as the policy would have had it."""
    messages = first_messages(to_task(question, world), prompts, special_tokens)
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation:
            messages.append({"role": "tool", "content": turn.observation})
    return messages


class Labelled(Protocol):
    """What `balance` looks at: an example, or what will become one."""

    @property
    def question(self) -> Asked: ...
    @property
    def label(self) -> str: ...


L = TypeVar("L", bound=Labelled)


def balance(examples: Sequence[L], size: int, seed: int) -> list[L]:
    """Half search-free, half search-required, each about uniform over taxonomy and type; fewer if there are fewer."""
    rng = random.Random(f"{seed}/balance")
    chosen = []
    for label in ("search_free", "search_required"):
        groups = defaultdict(list)
        for example in rng.sample(list(examples), len(examples)):
            if example.label == label:
                groups[example.question.taxonomy, example.question.type].append(example)
        half = []
        while len(half) < size // 2 and any(groups.values()):
            for key in sorted(groups):
                if groups[key] and len(half) < size // 2:
                    half.append(groups[key].pop())
        chosen += half
    rng.shuffle(chosen)
    return chosen


# --- files ------------------------------------------------------------------------------------------------------------


def write_whole(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: the file is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def save_examples(examples: Sequence[Example], folder: Path, world: World, card: dict) -> None:
    """Write `pictures/`, `data.jsonl` and, last, `card.json`: a folder with a card is complete."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "card.json").unlink(missing_ok=True)
    left = {path.name for path in (folder / "pictures").iterdir()}  # of a data set that was here before
    with (folder / "data.jsonl.part").open("w", encoding="utf-8") as file:
        for example in examples:
            row = {
                "question": example.question.as_dict(),
                "label": example.label,
                "picture": _save_picture(example.question, folder / "pictures", world),
                "messages": example.messages,
                "trajectory": example.trajectory,
            }
            left.discard(row["picture"])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for name in left:
        (folder / "pictures" / name).unlink()
    (folder / "data.jsonl.part").replace(folder / "data.jsonl")
    write_whole(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _save_picture(question: Asked, folder: Path, world: World) -> str:
    """Put the picture into the folder and return its name there; a file is copied as it is."""
    plain = re.fullmatch(r"\w[\w.-]*", question.id)
    stem = question.id if plain else hashlib.sha256(question.id.encode()).hexdigest()[:24]
    if isinstance(question, PublicQuestion):
        name = stem + Path(question.picture).suffix
        shutil.copyfile(question.picture, folder / name)
    else:
        name = f"{stem}.png"
        question.scene(world).picture.save(folder / name)
    return name


def load_examples(folder: Path) -> tuple[list[Example], list[Image.Image]]:
    """Examples and their pictures. Raises FileNotFoundError, saying what to run, where the data is not complete."""
    if not (folder / "card.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished data set: run notebook 01 first")
    examples, pictures = [], []
    with (folder / "data.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            kind = Question if "scene_seed" in row["question"] else PublicQuestion
            question = kind.from_dict(row["question"])
            examples.append(Example(question, row["label"], row["messages"], row["trajectory"]))
            pictures.append(read_picture((folder / "pictures" / row["picture"]).read_bytes()))
    return examples, pictures


def describe(examples: Sequence[Example], funnel: Mapping[str, int], made_with: Mapping[str, object]) -> dict:
    """The card of a data set: what it was made with, counts at each step, and what it holds."""
    return {
        "name": "DeepMMSearchVQA in small (paper §3.3)",
        **made_with,
        "funnel": dict(funnel),
        "labels": dict(Counter(e.label for e in examples)),
        "types": dict(sorted(Counter(e.question.type for e in examples).items())),
        "taxonomy": dict(sorted(Counter(e.question.taxonomy for e in examples).items())),
        "searches": dict(sorted(Counter((e.trajectory and _searches(e.trajectory)) or 0 for e in examples).items())),
    }


def _searches(trajectory: dict) -> int:
    return sum(turn["action"] in ("text_search", "img_search") for turn in trajectory["turns"])
