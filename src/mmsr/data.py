"""Building the data: play, check, keep what is right, label, balance (paper §3.3). It can be killed at any point.

1. The teacher plays each question with live tools.
2. Check A: every action tag is valid. B: fewer than ten turns. C: the episode ends in an answer.
3. Kept only where the answer is right: by exact match, or where a judge is given, by its verdict.
4. The knowledge boundary: the base is asked without tools; where it is right, the example becomes search-free.
5. A field of knowledge for questions that come without one; then a balance: about uniform over fields, half
   search-required and half search-free.

    built = build(questions, scripted(tools), tools, policy, preset, seed, folder / "funnel")
    built.funnel            # what is left after each step, as the paper's 200k → 47k → 10k
    save_examples(built.examples, folder / "data", built.card())

Every finished piece of work (an episode, a verdict, an answer of the base, a label) is a row of a journal in the
funnel's folder, under the question's id: a kill costs the pieces under way, and the next start does what is missing,
in the same batches, so that the result does not depend on interruptions. Pictures come and go in waves.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmsr.env import MAX_TURNS, SEARCHES, SearchEnv, Tools, Trajectory, TurnRecord, first_messages
from mmsr.files import Journal, fill, read_json, read_rows, sha256, total_usage, undamaged, write_json, write_rows
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import UNABLE, Prompts, sanitise
from mmsr.reward import Judge, exact_match
from mmsr.rollout import answer_directly
from mmsr.task import Asked, FileQuestion, Task
from mmsr.teacher import FunnelError, Player, recall
from mmsr.tools.base import ToolError
from mmsr.tools.picture import PictureFiles, read_picture
from mmsr.world.questions import Question

WAVE = 512  # questions that are played before the next are prepared
BATCHES = 4  # batches of the base's questions whose pictures are in memory at once
TOLD = 60.0  # seconds between two lines of progress
UNLABELLED = "Unlabelled"
STEPS = ("played", "judged", "base", "base_judged", "fields")


# --- the funnel -------------------------------------------------------------------------------------------------------


@dataclass
class Example:
    """One training conversation. `label` is "search_free" or "search_required"."""

    question: Asked
    label: str
    messages: list[dict]
    trajectory: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """A question with the teacher's or the base's answer, whether a search led there, and its label."""

    question: Asked
    answer: str
    searched: bool = False
    label: str = ""


@dataclass
class Built:
    """The examples, the counts after each step, what the funnel was made with, and what its kept work has cost."""

    examples: list[Example]
    funnel: dict[str, int]
    made_with: dict[str, Any]
    usage: dict[str, dict[str, float]]

    def card(self) -> dict[str, Any]:
        """The card of the data set, the same however often the funnel was interrupted."""
        played = (example.trajectory.get("turns", []) for example in self.examples)
        searches = (sum(turn["action"] in SEARCHES for turn in turns) for turns in played)
        return {
            "name": "DeepMMSearchVQA in small (paper §3.3)",
            **{name: value for name, value in self.made_with.items() if name != "code"},
            **({"usage": self.usage} if self.usage else {}),
            "funnel": self.funnel,
            "labels": dict(Counter(e.label for e in self.examples)),
            "types": dict(sorted(Counter(e.question.type for e in self.examples).items())),
            "taxonomy": dict(sorted(Counter(e.question.taxonomy for e in self.examples).items())),
            "searches": dict(sorted(Counter(searches).items())),
        }


def build(
    questions: Sequence[Asked],
    player: Player,
    tools: Tools,
    policy: Policy,
    preset: Preset,
    seed: int,
    folder: Path,
    judge: Judge | None = None,
) -> Built:
    """Play, check, keep what is right, label and balance, going on from what `folder` holds.

    Raises FunnelError for a folder or questions that cannot be used, or where no example is left, JournalError, and
    FatalToolError; what was finished is kept all the same.
    """
    if len({question.id for question in questions}) < len(questions):
        raise FunnelError("Two questions have the same id: each needs its own, since its work is kept under it.")
    made_with = {
        "preset": preset.name,
        "seed": seed,
        **player.settings,
        "judge": judge and dict(judge.settings),
        "sources": dict(tools.settings),
        "policy": preset.policy,
        "weights": _hash(w.detach().flatten()[:64].tolist() for w in policy.model.parameters()),  # tells bases apart
        "prompts": _hash([asdict(preset.prompts), preset.observation_tokens]),
        "questions": _hash(_row(question) for question in questions),
    }
    begin(folder, made_with)
    with ExitStack() as stack:
        kept = {step: stack.enter_context(Journal(folder / f"{step}.jsonl")) for step in STEPS}
        play_all(questions, player, tools, preset, kept["played"])
        funnel, passed = sift(questions, kept["played"])
        right = keep_right({a.question.id: a for a in passed}, judge, kept["judged"])
        funnel["correct"] = len(right)
        own = ask_all([a.question for a in right.values()], policy, preset, kept["base"])
        known = keep_right(own, judge, kept["base_judged"])
        candidates = label(right, known, player, kept["fields"])
        for name in ("search_free", "search_required"):
            funnel[name] = sum(candidate.label == name for candidate in candidates)
        chosen = balance(candidates, preset.data_examples, seed)
        funnel["balanced"] = len(chosen)
        if not chosen:
            left = ", ".join(f"{step} {count}" for step, count in funnel.items())
            said = f"The data set would be empty ({left}): see in {kept['played'].path} what the teacher wrote"
            raise FunnelError(f"{said}, and name another teacher or play more questions.")
        examples = [_example(candidate, kept["played"], preset.prompts) for candidate in chosen]
        usage = total_usage(list(kept.values()), [question.id for question in questions])
    return Built(examples, funnel, made_with, usage)


def begin(folder: Path, made_with: Mapping[str, Any]) -> None:
    """Make the funnel's folder, or go on with the one that is there.

    A funnel that was begun with other settings is begun afresh where playing it again costs nothing but time. Where
    the funnel has made outside calls, nothing is deleted: FunnelError, naming what differs.
    """
    begun, wanted = folder / "begun.json", json.loads(json.dumps(made_with))
    if begun.exists():
        known = read_json(begun, dict, "delete it to go on under the same settings, or its folder to begin again")
        if known == wanted:
            return
        differences = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if _asked_outside(folder):
            told = ", ".join(f"{name} {known.get(name)!r}, not {wanted.get(name)!r}" for name in differences)
            raise FunnelError(
                f"{folder} was begun with {told}, and calls were spent on what it keeps: choose another run, or delete "
                "that folder to begin again."
            )
        print(f"{folder.name}: begun afresh, because these changed: {', '.join(differences)}", flush=True)
        for step in STEPS:  # the settings come last: after a kill in between, this is done again
            (folder / f"{step}.jsonl").unlink(missing_ok=True)
    write_json(begun, wanted)


def _asked_outside(folder: Path) -> bool:
    """Whether a kept row took a call to a model or a web engine."""

    def paid(row: dict) -> bool:
        return bool(row.get("usage")) or any(t["replay_keys"] for t in row.get("trajectory", {}).get("turns", []))

    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(folder / f"{step}.jsonl")) for step in STEPS]
        return any(paid(journal[key]) for journal in journals for key in journal)


def _hash(values: Iterable[Any]) -> str:
    """A hash of JSON values, one after the other."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def _row(question: Asked) -> dict[str, Any]:
    """A question as the data keeps it: with the name of its picture's file, without the folder."""
    row = question.as_dict()
    return row | {"picture": Path(row["picture"]).name} if "picture" in row else row


def waves(questions: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """The questions in pieces that are the same at every start."""
    return (questions[start : start + size] for start in range(0, len(questions), size))


def play_all(questions: Sequence[Asked], player: Player, tools: Tools, preset: Preset, played: Journal) -> None:
    """Play what has not been played. Raises FunnelError where not one question could be."""

    def play(question: Asked) -> dict[str, Any]:
        try:
            task = Task.of(question)
        except ValueError as error:
            raise ToolError(str(error)) from None
        env = SearchEnv(tools, preset.prompts, task)
        return {"trajectory": player.play(question, task, env).as_dict()}

    told = time.monotonic()

    def tell() -> None:
        nonlocal told
        if time.monotonic() - told > TOLD or len(played) == len(questions):
            print(f"{len(played):,} of {len(questions):,} questions played", flush=True)
            told = time.monotonic()

    for wave in waves(questions, WAVE):
        missing = {question.id: question for question in wave if question.id not in played}
        if missing:
            player.prepare(wave)  # the whole wave, so that its batches are the same whatever was played already
            fill(played, missing, play, player.workers, tell)
    if questions and not len(played):
        raise FunnelError(f"None of {len(questions)} questions could be played: {next(iter(played.failed.values()))}")


def read_trajectory(row: Mapping[str, Any]) -> Trajectory:
    """A trajectory back from `as_dict`, without its times: they differ from run to run, and no example needs them."""
    turns = [TurnRecord(**turn | {"seconds": 0.0}) for turn in row["turns"]]
    return Trajectory(**row | {"turns": turns})


def checks(trajectory: Trajectory) -> dict[str, bool]:
    """The paper's three checks: A valid tags, B fewer than ten turns, C ends in an answer."""
    return {
        "A": trajectory.valid_turns == len(trajectory.turns),
        "B": len(trajectory.turns) < MAX_TURNS,
        "C": trajectory.end == "answer" and trajectory.answer != UNABLE,
    }


def sift(questions: Sequence[Asked], played: Journal) -> tuple[dict[str, int], list[Answered]]:
    """The checks A, B and C: how many questions are left after each, and the answers of those that pass all."""
    counts = dict.fromkeys(("questions", "played", "passed_A", "passed_B", "passed_C"), 0)
    counts["questions"], passed = len(questions), []
    for question in (question for question in questions if question.id in played):
        trajectory = read_trajectory(played[question.id]["trajectory"])
        found = checks(trajectory)
        counts["played"] += 1
        counts["passed_A"] += found["A"]
        counts["passed_B"] += found["A"] and found["B"]
        counts["passed_C"] += all(found.values())
        if all(found.values()):
            passed.append(Answered(question, trajectory.answer, trajectory.searches() > 0))
    return counts, passed


def keep_right(answers: Mapping[str, Answered], judge: Judge | None, judged: Journal) -> dict[str, Answered]:
    """The answers that match exactly, and those that the judge, asked about all others, calls correct."""

    def verdict(given: Answered) -> dict[str, Any]:
        found = judge.verdict(given.question.text, given.question.golds, given.answer)
        return {"label": found.label, "why": found.why}

    right = {key for key, given in answers.items() if exact_match(given.answer, given.question.golds)}
    if judge is not None:
        others = {key: given for key, given in answers.items() if key not in right}
        fill(judged, others, verdict, judge.workers)
        right |= {key for key in others if key in judged and judged[key]["label"] == "correct"}
    return {key: given for key, given in answers.items() if key in right}


def ask_all(questions: Sequence[Asked], policy: Policy, preset: Preset, base: Journal) -> dict[str, Answered]:
    """What the base answers without any tool: the knowledge boundary."""
    for wave in waves(questions, BATCHES * preset.rollout_rows):
        if any(question.id not in base for question in wave):
            answers = answer_directly(policy, [Task.of(q) for q in wave], preset.prompts, preset.rollout_rows)
            for question, answer in zip(wave, answers):
                base.add(question.id, {"answer": sanitise(answer)})
    return {question.id: Answered(question, base[question.id]["answer"]) for question in questions}


def label(
    right: Mapping[str, Answered], known: Mapping[str, Answered], player: Player, fields: Journal
) -> list[Answered]:
    """Search-free where the base is right by itself, search-required where the teacher searched and was right.

    What the teacher knew without a search and the base does not know is left out: it would teach guessing.
    """
    candidates = []
    for key, given in right.items():
        if key in known:
            candidates.append(replace(known[key], label="search_free"))
        elif given.searched:
            candidates.append(replace(given, label="search_required"))
    blank = {c.question.id: c.question for c in candidates if not c.question.taxonomy}
    if player.field_of is not None:
        fill(fields, blank, lambda question: {"field": player.field_of(question)}, player.workers)
    found = {key: (fields[key]["field"] if key in fields else "") or UNLABELLED for key in blank}
    return [
        replace(c, question=replace(c.question, taxonomy=found[c.question.id])) if c.question.id in found else c
        for c in candidates
    ]


def balance(candidates: Sequence[Answered], size: int, seed: int) -> list[Answered]:
    """Half search-free, half search-required, each about uniform over taxonomy and type; fewer if there are fewer."""
    rng = random.Random(f"{seed}/balance")
    chosen = []
    for name in ("search_free", "search_required"):
        groups = defaultdict(list)
        for candidate in rng.sample(list(candidates), len(candidates)):
            if candidate.label == name:
                groups[candidate.question.taxonomy, candidate.question.type].append(candidate)
        half = []
        while len(half) < size // 2 and any(groups.values()):
            for key in sorted(groups):
                if groups[key] and len(half) < size // 2:
                    half.append(groups[key].pop())
        chosen += half
    rng.shuffle(chosen)
    return chosen


def _example(candidate: Answered, played: Journal, prompts: Prompts) -> Example:
    question = candidate.question
    if candidate.label == "search_free":
        messages = to_messages(question, Trajectory(question.id), prompts)
        messages.append({"role": "assistant", "content": recall(question, candidate.answer)})
        return Example(question, candidate.label, messages)
    trajectory = read_trajectory(played[question.id]["trajectory"])
    return Example(question, candidate.label, to_messages(question, trajectory, prompts), trajectory.as_dict())


def to_messages(question: Asked, trajectory: Trajectory, prompts: Prompts) -> list[dict]:
    """The conversation of an episode as the policy would have had it."""
    messages = first_messages(Task.of(question, pictured=False), prompts)
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation:
            messages.append({"role": "tool", "content": turn.observation})
    return messages


# --- files ------------------------------------------------------------------------------------------------------------


def save_examples(examples: Sequence[Example], folder: Path, card: dict) -> None:
    """Write `pictures/`, `data.jsonl` and, last, `card.json`: a folder with a card is complete."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").unlink(missing_ok=True)
    left = {path.name for path in pictures.iterdir()}  # of a data set that was here before
    rows = []
    for example in examples:
        row = {"question": _row(example.question), "label": example.label}
        row |= {"picture": _save_picture(example.question, pictures), "messages": example.messages}
        rows.append(row | {"trajectory": example.trajectory})
    write_rows(folder / "data.jsonl", rows)
    for name in left - {row["picture"] for row in rows}:
        (pictures / name).unlink()
    write_json(folder / "card.json", card | {"data_sha256": sha256(folder / "data.jsonl")})


def _save_picture(question: Asked, folder: Path) -> str:
    """Put the picture into the folder and return its name there; a file is copied as it is."""
    plain = re.fullmatch(r"\w[\w.-]*", question.id)
    stem = question.id if plain else hashlib.sha256(question.id.encode()).hexdigest()[:24]
    if isinstance(question, FileQuestion):
        name = stem + Path(question.picture).suffix
        shutil.copyfile(question.picture, folder / name)
    else:
        name = f"{stem}.png"
        question.draw().save(folder / name)
    return name


def load_examples(folder: Path) -> tuple[list[Example], PictureFiles]:
    """Examples and their pictures. Raises FileNotFoundError or FileDamaged, saying what to run, for incomplete data."""
    if not (folder / "card.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished data set: run notebook 01 first.")
    examples, paths, remedy = [], [], "run notebook 01 again"
    known = read_json(folder / "card.json", dict, remedy).get("data_sha256", "")
    for row in read_rows(folder / "data.jsonl", remedy, known):
        kind = Question if "scene_seed" in row["question"] else FileQuestion
        examples.append(Example(kind.from_dict(row["question"]), row["label"], row["messages"], row["trajectory"]))
        paths.append(folder / "pictures" / row["picture"])
        with undamaged(paths[-1], remedy):
            read_picture(paths[-1].read_bytes())
    return examples, PictureFiles(paths)
