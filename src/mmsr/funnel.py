"""The builder's funnel, resumable at any point: play, check, keep what is right, label, balance (paper §3.3).

1. The teacher plays each question with live tools.
2. Check A: every action tag is valid. B: fewer than ten turns. C: the episode ends in an answer.
3. Kept only where the answer is right: by exact match, or where a judge is given, by its verdict.
4. The knowledge boundary: the base is asked without tools; where it is right, the example becomes search-free.
5. A field of knowledge for questions that come without one; about uniform over it, half search-required and half
   search-free.

    built = build(questions, world, scripted(world, tools), tools, policy, preset, seed, folder / "funnel")
    built.funnel            # what is left after each step, as the paper's 200k → 47k → 10k

Every finished piece of work (an episode, a verdict, an answer of the base, a label) is a row of a journal in the
funnel's folder, under the question's id: a kill costs the pieces under way, and the next start does what is missing.
Work that is done in batches is always done in the same batches, so that the result does not depend on interruptions.
Nothing of a question is held in memory but itself and, once played, its answer; pictures come and go in waves.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmsr.dataset import Asked, Example, ask_base, balance, checks, describe, to_messages, to_task, write_whole
from mmsr.env import Limits, SearchEnv, Tools, Trajectory, TurnRecord
from mmsr.journal import Journal, fill, total_usage
from mmsr.live.models import Judge
from mmsr.players import FunnelError, Player, for_threads
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import sanitise
from mmsr.stats import exact_match
from mmsr.teacher import recall
from mmsr.world.snapshot import World

WAVE = 512  # questions that are played before the next are prepared
BATCHES = 4  # of the base's questions whose pictures are in memory at once
TOLD = 60.0  # seconds between two lines on progress
UNLABELLED = "Unlabelled"
BEGUN = "begun.json"
STEPS = ("played", "judged", "base", "base_judged", "fields")

# --- the folder -------------------------------------------------------------------------------------------------------


def begin(folder: Path, made_with: Mapping[str, Any]) -> None:
    """Make the funnel's folder, or go on with the one that is there.

    A funnel that was begun with other settings is begun afresh where playing it again costs nothing but time. Where
    anything was asked outside for it, nothing is deleted: FunnelError, naming what differs.
    """
    begun, wanted = folder / BEGUN, json.loads(json.dumps(made_with))
    if begun.exists():
        known = json.loads(begun.read_text(encoding="utf-8"))
        if known == wanted:
            return
        differences = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if _asked_outside(folder):
            told = ", ".join(f"{name} {known.get(name)!r}, not {wanted.get(name)!r}" for name in differences)
            raise FunnelError(
                f"{folder} was begun with {told}, and calls were spent on what it keeps: choose another run, or delete "
                "that folder to begin again."
            )
        print(f"{folder.name}: begun afresh, for what has changed: {', '.join(differences)}", flush=True)
        for step in STEPS:  # the settings last: a kill in between leaves what is begun afresh once more
            (folder / f"{step}.jsonl").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(begun, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")


def _asked_outside(folder: Path) -> bool:
    """Whether a kept row took a call of a model or a web engine."""
    for step in STEPS:
        with Journal(folder / f"{step}.jsonl") as kept:
            for row in (kept[key] for key in kept):
                turns = row.get("trajectory", {"turns": []})["turns"]
                if row.get("usage") or any(turn["replay_keys"] for turn in turns):
                    return True
    return False


def _hash(values: Iterable[Any]) -> str:
    """Of JSON values, one after the other."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def _weights(policy: Policy) -> str:
    """A few numbers of every weight, hashed: tells two bases apart without reading gigabytes."""
    digest = hashlib.sha256()
    for weight in policy.model.parameters():
        digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- the funnel -------------------------------------------------------------------------------------------------------


@dataclass
class Built:
    """The examples, the counts after each step, what the funnel was made with, and what its kept work has taken."""

    examples: list[Example]
    funnel: dict[str, int]
    made_with: dict[str, Any]
    usage: dict[str, dict[str, float]]

    def card(self) -> dict[str, Any]:
        """The card of the data set, the same however often the funnel was interrupted."""
        made_with = {name: value for name, value in self.made_with.items() if name != "code"}
        return describe(self.examples, self.funnel, made_with | ({"usage": self.usage} if self.usage else {}))


@dataclass(frozen=True)
class Candidate:
    """What will be an example if the balance takes it; `answer` is the base's, for one without a search."""

    question: Asked
    label: str
    answer: str = ""


def build(
    questions: Sequence[Asked],
    world: World,
    player: Player,
    tools: Tools,
    policy: Policy,
    preset: Preset,
    seed: int,
    folder: Path,
    size: int = 0,
    judge: Judge | None = None,
    field_of: Callable[[Asked], str] | None = None,
    sources: Mapping[str, Any] | None = None,
) -> Built:
    """Play, check, keep what is right, label and balance, going on from what `folder` holds.

    size: of the balanced set, the preset's where 0. field_of: labels a question that has no taxonomy. sources: what
    else the episodes follow from, such as the search engines. Raises FunnelError for a folder or questions that cannot
    be used, JournalError, and FatalToolError; what is finished is kept then.
    """
    if len({question.id for question in questions}) < len(questions):
        raise FunnelError("Two questions have the same id: each needs its own, since its work is kept under it.")
    made_with = {
        "preset": preset.name,
        "seed": seed,
        **player.settings,
        "judge": judge and {"model": judge.chat.model.model, "prompt": judge.prompt_hash},
        "sources": dict(sources or {}),
        "policy": preset.policy,
        "weights": _weights(policy),
        "prompts": _hash([asdict(preset.prompts), preset.observation_tokens]),
        "questions": _hash(question.as_dict() for question in questions),
    }
    begin(folder, made_with)
    with ExitStack() as stack:
        kept = {step: stack.enter_context(Journal(folder / f"{step}.jsonl")) for step in STEPS}
        play_all(questions, world, player, tools, preset, kept["played"])
        funnel, passed = sift(questions, kept["played"])
        right = keep_right({a.question.id: a for a in passed}, judge, kept["judged"])
        funnel["correct"] = len(right)
        own = ask_all([a.question for a in right.values()], world, tools, policy, preset, kept["base"])
        known = keep_right(own, judge, kept["base_judged"])
        candidates = label(right, known, field_of, player.workers, kept["fields"])
        for name in ("search_free", "search_required"):
            funnel[name] = sum(candidate.label == name for candidate in candidates)
        chosen = balance(candidates, size or preset.data_examples, seed)
        funnel["balanced"] = len(chosen)
        examples = [_example(c, kept["played"], world, preset, tools.special_tokens) for c in chosen]
        usage = total_usage(list(kept.values()), [question.id for question in questions])
    return Built(examples, funnel, made_with, usage)


def waves(questions: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    """The questions in pieces that are the same at every start."""
    return (questions[start : start + size] for start in range(0, len(questions), size))


def play_all(
    questions: Sequence[Asked], world: World, player: Player, tools: Tools, preset: Preset, played: Journal
) -> None:
    """Play what has not been played. Raises FunnelError where not one question could be."""
    shared = for_threads(tools)

    def play(question: Asked) -> dict[str, Any]:
        task = to_task(question, world)
        env = SearchEnv(shared, preset.prompts, Limits(), {task.id: task})
        return {"trajectory": player.play(question, task, env).as_dict()}

    progress = _Progress(len(questions))
    for wave in waves(questions, WAVE):
        missing = {question.id: question for question in wave if question.id not in played}
        if missing:
            player.prepare(wave)  # the whole of it: what was played already stands in the same batches
            fill(played, missing, play, player.workers, lambda: progress.tell(len(played)))
    if questions and not len(played):
        raise FunnelError(f"None of {len(questions)} questions could be played: {next(iter(played.failed.values()))}")


def read_trajectory(row: Mapping[str, Any]) -> Trajectory:
    """A trajectory back from `as_dict`, without its times: they differ from run to run, and no example needs them."""
    turns = [TurnRecord(**turn | {"seconds": 0.0}) for turn in row["turns"]]
    return Trajectory(**row | {"turns": turns})


@dataclass
class _Progress:
    """Says now and then how many of `total` questions are played."""

    total: int
    told: float = field(default_factory=time.monotonic)

    def tell(self, played: int) -> None:
        if time.monotonic() - self.told > TOLD or played == self.total:
            print(f"{played:,} of {self.total:,} questions played", flush=True)
            self.told = time.monotonic()


@dataclass(frozen=True)
class Answered:
    """A question with an answer to it, the teacher's or the base's, and whether a search led there."""

    question: Asked
    answer: str
    searched: bool = False


def sift(questions: Sequence[Asked], played: Journal) -> tuple[dict[str, int], list[Answered]]:
    """The checks A, B and C: how many questions are left after each, and the answers of those that pass all."""
    counts = dict.fromkeys(("questions", "played", "passed_A", "passed_B", "passed_C"), 0)
    passed = []
    for question in questions:
        counts["questions"] += 1
        if question.id not in played:
            continue
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
    right = {key for key, given in answers.items() if exact_match(given.answer, given.question.golds)}
    if judge is not None:
        others = {key: given for key, given in answers.items() if key not in right}
        fill(judged, others, lambda given: _verdict(judge, given), judge.chat.model.workers)
        right |= {key for key in others if key in judged and judged[key]["label"] == "correct"}
    return {key: given for key, given in answers.items() if key in right}


def _verdict(judge: Judge, given: Answered) -> dict[str, Any]:
    verdict = judge.verdict(given.question.text, given.question.golds, given.answer)
    return {"label": verdict.label, "why": verdict.why}


def ask_all(
    questions: Sequence[Asked], world: World, tools: Tools, policy: Policy, preset: Preset, base: Journal
) -> dict[str, Answered]:
    """What the base answers without any tool: the knowledge boundary."""
    for wave in waves(questions, BATCHES * preset.eval_batch):
        if any(question.id not in base for question in wave):
            answers = ask_base(policy, wave, world, preset.prompts, preset.eval_batch)
            for question, answer in zip(wave, answers):
                base.add(question.id, {"answer": sanitise(answer, tools.special_tokens)})
    return {question.id: Answered(question, base[question.id]["answer"]) for question in questions}


def label(
    right: Mapping[str, Answered],
    known: Mapping[str, Answered],
    field_of: Callable[[Asked], str] | None,
    workers: int,
    fields: Journal,
) -> list[Candidate]:
    """Search-free where the base is right by itself, search-required where the teacher searched and was right.

    What the teacher knew without a search and the base does not know is left out: it would teach to guess.
    """
    candidates = []
    for key, given in right.items():
        if key in known:
            candidates.append(Candidate(given.question, "search_free", known[key].answer))
        elif given.searched:
            candidates.append(Candidate(given.question, "search_required"))
    blank = {c.question.id: c.question for c in candidates if not c.question.taxonomy}
    if field_of is not None:
        fill(fields, blank, lambda question: {"field": field_of(question)}, workers)
    found = {key: (fields[key]["field"] if key in fields else "") or UNLABELLED for key in blank}
    return [
        replace(c, question=replace(c.question, taxonomy=found[c.question.id])) if c.question.id in found else c
        for c in candidates
    ]


def _example(
    candidate: Candidate, played: Journal, world: World, preset: Preset, special_tokens: tuple[str, ...]
) -> Example:
    question = candidate.question
    if candidate.label == "search_free":
        messages = to_messages(question, Trajectory(question.id), world, preset.prompts, special_tokens)
        messages.append({"role": "assistant", "content": recall(question, candidate.answer)})
        return Example(question, candidate.label, messages)
    trajectory = read_trajectory(played[question.id]["trajectory"])
    messages = to_messages(question, trajectory, world, preset.prompts, special_tokens)
    return Example(question, candidate.label, messages, trajectory.as_dict())
