"""DeepMMSearchVQA in small: play, filter, label, balance (paper §3.3).

1. The teacher plays each question with live tools.
2. Check A: every action tag is valid. B: fewer than ten turns. C: the episode ends in an answer.
3. Kept only where the answer is right.
4. The knowledge boundary: the base is asked without tools; where it is right, the example becomes search-free.
5. About uniform over the taxonomy, half search-required and half search-free.

An example is a JSON row: question, messages (the conversation to learn), the label, the trajectory. Pictures lie beside
the rows as PNG files. `funnel` counts what is left after each step, as the paper's 200k → 47k → 10k does.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmsr.env import SearchEnv, Trajectory, first_messages
from mmsr.metrics import exact_match
from mmsr.policy import Policy
from mmsr.protocol import UNABLE, Prompts
from mmsr.teacher import Teacher, as_task, recall
from mmsr.world.data import World
from mmsr.world.questions import Question

MAX_TURNS = 10


@dataclass
class Example:
    """One training conversation. `label` is "search_free" or "search_required"."""

    question: Question
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


def ask_base(policy: Policy, questions: Sequence[Question], world: World, prompts: Prompts, batch: int) -> list[str]:
    """The base's answers without any tool: the knowledge boundary, and the direct workflow of the evaluation."""
    conversations = []
    for question in questions:
        text = prompts.direct.format(question=question.text)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        conversations.append((question.scene(world).picture, [{"role": "user", "content": content}]))
    with policy.base():
        return [answer.strip() for answer in policy.generate(conversations, 32, batch_size=batch)]


def to_messages(question: Question, trajectory: Trajectory, world: World, prompts: Prompts) -> list[dict]:
    """The conversation of an episode as the policy would have had it."""
    messages = first_messages(as_task(question, world), prompts)
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation:
            messages.append({"role": "tool", "content": turn.observation})
    return messages


def build_examples(
    questions: Sequence[Question],
    world: World,
    teacher: Teacher,
    policy: Policy,
    new_env: Callable[[], SearchEnv],
    prompts: Prompts,
    size: int,
    seed: int,
    batch: int = 64,
) -> tuple[list[Example], dict[str, int]]:
    """Play, filter, label and balance. Returns the examples and the funnel's counts."""
    env = new_env()
    played = [(question, teacher.play(question, env)) for question in questions]
    passed = [(q, t) for q, t in played if all(checks(t).values())]
    right = [(q, t) for q, t in passed if exact_match(t.answer, q.golds)]
    own = ask_base(policy, [q for q, _ in right], world, prompts, batch)
    examples = []
    for (question, trajectory), answer in zip(right, own):
        if exact_match(answer, question.golds):
            messages = first_messages(as_task(question, world), prompts)
            messages.append({"role": "assistant", "content": recall(question, answer)})
            examples.append(Example(question, "search_free", messages))
        elif question.type != "visual":  # a search cannot show what the base cannot see
            messages = to_messages(question, trajectory, world, prompts)
            examples.append(Example(question, "search_required", messages, trajectory.as_dict()))
    balanced = balance(examples, size, seed)
    funnel = {
        "questions": len(questions),
        "passed_A": sum(checks(t)["A"] for _, t in played),
        "passed_B": sum(checks(t)["A"] and checks(t)["B"] for _, t in played),
        "passed_C": len(passed),
        "correct": len(right),
        "search_free": sum(e.label == "search_free" for e in examples),
        "search_required": sum(e.label == "search_required" for e in examples),
        "balanced": len(balanced),
    }
    return balanced, funnel


def balance(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
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


def save_examples(examples: Sequence[Example], folder: Path, world: World, card: dict) -> None:
    """Write `data.jsonl`, `pictures/*.png` and, last, `card.json`: a folder with a card is complete."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    with (folder / "data.jsonl.part").open("w") as file:
        for example in examples:
            name = f"{example.question.id}.png"
            example.question.scene(world).picture.save(pictures / name)
            row = {
                "question": example.question.as_dict(),
                "label": example.label,
                "picture": name,
                "messages": example.messages,
                "trajectory": example.trajectory,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "data.jsonl.part").replace(folder / "data.jsonl")
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    (folder / "card.json.part").write_text(text)
    (folder / "card.json.part").replace(folder / "card.json")


def load_examples(folder: Path) -> tuple[list[Example], list[Image.Image]]:
    """Examples and their pictures. Raises FileNotFoundError, saying what to run, where the data is not complete."""
    if not (folder / "card.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished data set: run notebook 01 first")
    examples, pictures = [], []
    for line in (folder / "data.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = Question.from_dict(row["question"])
        examples.append(Example(question, row["label"], row["messages"], row["trajectory"]))
        with Image.open(folder / "pictures" / row["picture"]) as picture:
            pictures.append(picture.convert("RGB"))
    return examples, pictures


def describe(examples: Sequence[Example], funnel: dict[str, int], seed: int, preset: str) -> dict:
    """The card of a data set: where it comes from, counts at each step, and what it holds."""
    return {
        "name": "DeepMMSearchVQA in small",
        "source": "flags × factbook world, scripted teacher, live local tools (paper §3.3)",
        "preset": preset,
        "seed": seed,
        "funnel": funnel,
        "labels": dict(Counter(e.label for e in examples)),
        "types": dict(sorted(Counter(e.question.type for e in examples).items())),
        "taxonomy": dict(sorted(Counter(e.question.taxonomy for e in examples).items())),
        "searches": dict(sorted(Counter((e.trajectory and _searches(e.trajectory)) or 0 for e in examples).items())),
    }


def _searches(trajectory: dict) -> int:
    return sum(turn["action"] in ("text_search", "img_search") for turn in trajectory["turns"])
