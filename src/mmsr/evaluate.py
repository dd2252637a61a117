"""Four workflows and what is measured of them (paper §4.2): direct answer, RAG, prompted agent, trained agent.

| workflow | tools |
|---|---|
| direct | none: the base answers |
| rag | exactly one search with the whole picture, then one text search, then the base answers |
| prompted | the base with the protocol's prompt and all tools |
| sft, grpo | the trained policies, all tools |
| teacher | the scripted teacher: the ceiling of what the tools allow |

A search is needless where the base is right without tools, or the picture alone answers. Intervals are 95 %, resampled
by country, for questions on one country are not independent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from mmsr.dataset import ask_base
from mmsr.env import SearchEnv, Tools, Trajectory, TurnRecord
from mmsr.metrics import (
    Interval,
    cluster_mean,
    cluster_ratio,
    exact_match,
    harmonic_interval,
    mcnemar,
    paired_difference,
)
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import render_observation, sanitise
from mmsr.reward import RewardWeights, evidence, score
from mmsr.rollout import Sampling, play
from mmsr.teacher import Teacher, as_task
from mmsr.world.data import World
from mmsr.world.questions import Question

K = 5


def direct(policy: Policy, questions: Sequence[Question], world: World, preset: Preset) -> list[Trajectory]:
    """The base's answer without any tool."""
    answers = ask_base(policy, questions, world, preset.prompts, preset.eval_batch)
    return [_answered(q.id, [], answer) for q, answer in zip(questions, answers)]


def _answered(task_id: str, turns: list[TurnRecord], answer: str) -> Trajectory:
    """A trajectory of a workflow that does not speak the protocol; its answer counts as a valid turn."""
    return Trajectory(task_id, [*turns, TurnRecord(answer, "answer", answer)], answer, "answer")


def rag(policy: Policy, questions: Sequence[Question], world: World, preset: Preset, tools: Tools) -> list[Trajectory]:
    """One search with the whole picture, one text search with question and best title, then the base answers."""
    conversations, searched = [], []
    for question in questions:
        picture = question.scene(world).picture
        matches = tools.image.search(picture, K)
        query = f"{question.text} {matches[0].title.removeprefix('Flag of ')}"
        pages = tools.text.search(query, K)
        seen = tools.image_summary.summarise(question.text, "", matches)
        read = tools.text_summary.summarise(question.text, query, pages)
        turns = [
            TurnRecord("", "img_search", "", hits=_as_rows(matches), observation=render_observation(seen)),
            TurnRecord("", "text_search", query, hits=_as_rows(pages), observation=render_observation(read)),
        ]
        text = preset.prompts.rag.format(pages=sanitise(read, tools.special_tokens), question=question.text)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        conversations.append((picture, [{"role": "user", "content": content}]))
        searched.append(turns)
    with policy.base():
        answers = policy.generate(conversations, 32, batch_size=preset.eval_batch)
    return [_answered(q.id, turns, answer.strip()) for q, turns, answer in zip(questions, searched, answers)]


def _as_rows(hits: Sequence) -> list[dict]:
    return [{"id": h.id, "title": h.title, "score": h.score, "url": h.url} for h in hits]


def agent(
    policy: Policy,
    questions: Sequence[Question],
    world: World,
    preset: Preset,
    new_env: Callable[[], SearchEnv],
    rewrite: Callable | None = None,
) -> list[Trajectory]:
    """A policy with the protocol and all tools, decoded greedily."""
    tasks = [as_task(question, world) for question in questions]
    sampling = Sampling(preset.new_tokens, batch_size=preset.eval_batch)
    extra = {"rewrite": rewrite} if rewrite else {}
    return play(policy, tasks, new_env, preset.prompts, sampling, **extra)


def taught(questions: Sequence[Question], world: World, new_env: Callable[[], SearchEnv]) -> list[Trajectory]:
    """The scripted teacher on the same questions."""
    teacher, env = Teacher(world), new_env()
    return [teacher.play(question, env) for question in questions]


def judge_rows(
    workflow: str,
    questions: Sequence[Question],
    trajectories: Sequence[Trajectory],
    search_free: Sequence[bool],
    world: World,
) -> list[dict]:
    """One row per question: what was answered, whether it was right, what it cost, what was found."""
    rows = []
    for question, trajectory, free in zip(questions, trajectories, search_free):
        task = as_task(question, world)
        score(trajectory, task, RewardWeights())
        found = next((turn.hits for turn in trajectory.turns if turn.action == "img_search" and not turn.error), None)
        ids = [hit["id"] for hit in found or []]
        searches = trajectory.searches()
        rows.append(
            {
                "workflow": workflow,
                "question": question.as_dict(),
                "answer": trajectory.answer,
                "correct": bool(trajectory.reward["correct"]),
                "search_free": bool(free),
                "searches": searches,
                "text_searches": trajectory.searches("text_search"),
                "image_searches": trajectory.searches("img_search"),
                "needless": bool(free and searches),
                "turns": len(trajectory.turns) + (trajectory.end != "answer"),
                "valid_turns": trajectory.valid_turns,
                "evidence": evidence(trajectory, task),
                "useful_searches": useful(trajectory, question),
                "recall_at_1": question.entity in ids[:1] if found is not None else None,
                "recall_at_5": question.entity in ids[:5] if found is not None else None,
                "trajectory": trajectory.as_dict(),
            }
        )
    return rows


def useful(trajectory: Trajectory, question: Question) -> int:
    """How many searches returned something gold: a gold page, or the flag of the country that is asked about."""
    gold = {*question.gold_pages}
    count = 0
    for turn in trajectory.turns:
        ids = {hit["id"] for hit in turn.hits}
        count += bool(gold & ids) if turn.action == "text_search" else question.entity in ids
    return count


def knows(questions: Sequence[Question], answers: Sequence[Trajectory]) -> list[bool]:
    """Which questions need no search: the base is right without one, or the picture alone answers."""
    return [q.type == "visual" or exact_match(t.answer, q.golds) for q, t in zip(questions, answers)]


def summarise(rows: Sequence[dict], seed: int) -> dict[str, Interval]:
    """Metrics of one workflow, named without it: accuracy (by type, taxonomy and half too), searches, evidence."""
    country = [row["question"]["entity"] for row in rows]
    halves = {half: [r for r in rows if r["question"]["half"] == half] for half in ("unseen_entity", "unseen_question")}

    def mean(key: str, chosen: Sequence[dict] = rows) -> Interval:
        return cluster_mean([float(r[key]) for r in chosen], [r["question"]["entity"] for r in chosen], seed)

    def ratio(numerator: Callable[[dict], float], denominator: Callable[[dict], float]) -> Interval:
        return cluster_ratio([numerator(r) for r in rows], [denominator(r) for r in rows], country, seed)

    found = {
        "accuracy": mean("correct"),
        "searches": mean("searches"),
        "text_searches": mean("text_searches"),
        "image_searches": mean("image_searches"),
        "evidence_coverage": mean("evidence"),
        "needless_search_rate": ratio(lambda r: float(r["needless"]), lambda r: float(r["search_free"])),
        "search_precision": ratio(lambda r: float(r["useful_searches"]), lambda r: float(r["searches"])),
        "valid_turn_rate": ratio(lambda r: float(r["valid_turns"]), lambda r: float(r["turns"])),
    }
    groups = defaultdict(list)
    for row in rows:
        groups["accuracy/" + row["question"]["type"]].append(row)
        groups["accuracy/taxonomy/" + row["question"]["taxonomy"]].append(row)
    found |= {name: mean("correct", chosen) for name, chosen in sorted(groups.items())}
    if all(halves.values()):
        found |= {f"accuracy/{half}": mean("correct", chosen) for half, chosen in halves.items()}
        outcomes = [[float(r["correct"]) for r in chosen] for chosen in halves.values()]
        clusters = [[r["question"]["entity"] for r in chosen] for chosen in halves.values()]
        found["accuracy/harmonic_mean"] = harmonic_interval(*outcomes, *clusters, seed)
    return found


def compare(rows: dict[str, list[dict]], first: str, second: str, seed: int) -> dict[str, Interval]:
    """Paired differences, `first` minus `second`, on the same questions: accuracy, needless searches, searches."""
    a, b = rows[first], rows[second]
    country = [row["question"]["entity"] for row in a]
    name = f"paired/{first}-{second}"

    def difference(key: str) -> Interval:
        return paired_difference([float(r[key]) for r in a], [float(r[key]) for r in b], country, seed)

    p = mcnemar([r["correct"] for r in a], [r["correct"] for r in b])
    return {
        f"{name}/accuracy": difference("correct"),
        f"{name}/needless": difference("needless"),
        f"{name}/searches": difference("searches"),
        f"{name}/mcnemar_p": Interval(p, None, None, len(a)),
    }


def save_rows(rows: Sequence[dict], path: Path) -> None:
    """Rows as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    part.replace(path)


def load_rows(path: Path) -> list[dict]:
    """Rows of JSON lines. Raises FileNotFoundError, saying what to run, where there are none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run notebook 04 first")
    return [json.loads(line) for line in path.read_text().splitlines()]
