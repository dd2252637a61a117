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
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from mmsr.env import Task, Tools, Trajectory, TurnRecord, look_up
from mmsr.exam import Exam
from mmsr.habits import HABITS, seen_on
from mmsr.lab import env_factory
from mmsr.live.outside import AnswerJudge
from mmsr.policy import Policy
from mmsr.presets import Preset
from mmsr.protocol import render_observation, sanitise
from mmsr.reward import Judge, RewardWeights, evidence, matches, score
from mmsr.rollout import Sampling, play
from mmsr.stats import Interval, cluster_mean, cluster_ratio, harmonic_interval, mcnemar, paired_difference
from mmsr.teacher import Teacher
from mmsr.tools.base import Grounder, in_parallel
from mmsr.world.snapshot import World

K = 5


def direct(policy: Policy, exam: Exam, preset: Preset) -> list[Trajectory]:
    """The base's answer without any tool."""

    def answer(tasks: list[Task]) -> list[Trajectory]:
        asked = [(task.picture, preset.prompts.direct.format(question=task.question)) for task in tasks]
        return [_answered(task.id, [], said) for task, said in zip(tasks, policy.ask(asked, preset.eval_batch))]

    return exam.play(answer)


def _answered(task_id: str, turns: list[TurnRecord], answer: str) -> Trajectory:
    """A trajectory of a workflow that does not speak the protocol; its answer counts as a valid turn."""
    return Trajectory(task_id, [*turns, TurnRecord(answer, "answer", answer)], answer, "answer")


def rag(policy: Policy, exam: Exam, preset: Preset, tools: Tools) -> list[Trajectory]:
    """One search with the whole picture, one text search with question and best title, then the base answers."""

    def answer(tasks: list[Task]) -> list[Trajectory]:
        searched = in_parallel(lambda task: _search_twice(task, tools), tasks, tools.workers)
        pages = [sanitise(read, tools.special_tokens) for _, read in searched]
        texts = [preset.prompts.rag.format(pages=p, question=task.question) for task, p in zip(tasks, pages)]
        said = policy.ask([(task.picture, text) for task, text in zip(tasks, texts)], preset.eval_batch)
        return [_answered(task.id, turns, answer) for task, (turns, _), answer in zip(tasks, searched, said)]

    return exam.play(answer)


def _search_twice(task: Task, tools: Tools) -> tuple[list[TurnRecord], str]:
    """The two searches of the RAG workflow and the summary of the pages."""
    image = TurnRecord("", "img_search")
    seen = look_up(image, tools.image, task.picture, tools.image_summary, task.question, K)
    title = image.hits[0]["title"].removeprefix("Flag of ") if image.hits else ""
    text = TurnRecord("", "text_search", f"{task.question} {title}".strip())
    read = look_up(text, tools.text, text.content, tools.text_summary, task.question, K)
    image.observation, text.observation = render_observation(seen), render_observation(read)
    return [image, text], read


def agent(
    policy: Policy,
    exam: Exam,
    preset: Preset,
    tools: Tools,
    grounder: Grounder | None = None,
    rewrite: Callable[[str, Task], str] | None = None,
) -> list[Trajectory]:
    """A policy with the protocol and all tools, decoded greedily; another grounder where one is given."""
    sampling = Sampling(preset.new_tokens, batch_size=preset.eval_batch)
    extra = {"rewrite": rewrite} if rewrite else {}

    def act(tasks: list[Task]) -> list[Trajectory]:
        return play(policy, tasks, env_factory(preset, tools, tasks, grounder), preset.prompts, sampling, **extra)

    return exam.play(act)


def taught(
    exam: Exam, world: World, preset: Preset, tools: Tools, grounder: Grounder | None = None
) -> list[Trajectory]:
    """The scripted teacher on the world's questions."""
    teacher = Teacher(world)

    def act(tasks: list[Task]) -> list[Trajectory]:
        env = env_factory(preset, tools, tasks, grounder)()
        return [teacher.play(question, env) for question in exam.questions]

    return exam.play(act)


def judge_rows(
    workflow: str,
    exam: Exam,
    trajectories: Sequence[Trajectory],
    search_free: Sequence[bool],
    judge: AnswerJudge | None = None,
) -> list[dict]:
    """One row per question: what was answered, whether it was right, what it cost, what was found.

    "correct" is the judge's word where there is one, with its label in "verdict" (None where it could not be read, and
    exact match decides) and "exact" beside it; else it is exact match. Where there is nothing gold to be found, as in a
    public benchmark, "evidence", "useful_searches" and recall are None.
    """
    tasks = exam.unpictured()
    verdicts = judge.verdicts([(task, t.answer) for task, t in zip(tasks, trajectories)]) if judge else []
    rows = []
    for n, (task, about, trajectory, free) in enumerate(zip(tasks, exam.about, trajectories, search_free)):
        score(trajectory, task, RewardWeights(), judge or matches)
        searches = trajectory.searches()
        rows.append(
            {
                "workflow": workflow,
                "question": about,
                "answer": trajectory.answer,
                "correct": bool(trajectory.reward["correct"]),
                "search_free": bool(free),
                "searches": searches,
                "text_searches": trajectory.searches("text_search"),
                "image_searches": trajectory.searches("img_search"),
                "needless": bool(free and searches),
                "turns": len(trajectory.turns) + (trajectory.end != "answer"),
                "valid_turns": trajectory.valid_turns,
                **_retrieval(trajectory, task, about, known=bool(exam.questions)),
                **({"verdict": verdicts[n].label, "exact": verdicts[n].exact} if judge else {}),
                "trajectory": trajectory.as_dict(),
            }
        )
    return rows


def _retrieval(trajectory: Trajectory, task: Task, about: dict, known: bool) -> dict:
    """What the searches found of what is gold; nothing where that is not known."""
    if not known:
        return dict.fromkeys(("evidence", "useful_searches", "recall_at_1", "recall_at_5"))
    found = next((turn.hits for turn in trajectory.turns if turn.action == "img_search" and not turn.error), None)
    ids = [hit["id"] for hit in found or []]
    return {
        "evidence": evidence(trajectory, task),
        "useful_searches": useful(trajectory, about),
        "recall_at_1": about["entity"] in ids[:1] if found is not None else None,
        "recall_at_5": about["entity"] in ids[:5] if found is not None else None,
    }


def useful(trajectory: Trajectory, about: dict) -> int:
    """How many searches returned something gold: a gold page, or the flag of the country that is asked about."""
    gold = {*about["gold_pages"]}
    count = 0
    for turn in trajectory.turns:
        ids = {hit["id"] for hit in turn.hits}
        count += bool(gold & ids) if turn.action == "text_search" else about["entity"] in ids
    return count


def knows(exam: Exam, answers: Sequence[Trajectory], judge: Judge | None = None) -> list[bool]:
    """Which questions need no search: the base is right without one, or (in the world) the picture alone answers."""
    right = judge or matches
    return [
        about["type"] == "visual" or right(task, trajectory.answer)
        for task, about, trajectory in zip(exam.unpictured(), exam.about, answers)
    ]


def summarise(rows: Sequence[dict], seed: int) -> dict[str, Interval]:
    """Metrics of one workflow, named without it: accuracy (by type, taxonomy and half too), searches, evidence, habits.

    With a judge, exact match and the share of its replies that could not be read stand beside its accuracy.
    """
    country = [row["question"]["entity"] for row in rows]
    halves = {half: [r for r in rows if r["question"]["half"] == half] for half in ("unseen_entity", "unseen_question")}

    def mean(key: str | Callable[[dict], bool], chosen: Sequence[dict] = rows) -> Interval:
        value = key if callable(key) else itemgetter(key)
        return cluster_mean([float(value(r)) for r in chosen], [r["question"]["entity"] for r in chosen], seed)

    def ratio(numerator: Callable[[dict], float], denominator: Callable[[dict], float]) -> Interval:
        return cluster_ratio([numerator(r) for r in rows], [denominator(r) for r in rows], country, seed)

    found = {
        "accuracy": mean("correct"),
        "searches": mean("searches"),
        "text_searches": mean("text_searches"),
        "image_searches": mean("image_searches"),
        "needless_search_rate": ratio(lambda r: float(r["needless"]), lambda r: float(r["search_free"])),
        "valid_turn_rate": ratio(lambda r: float(r["valid_turns"]), lambda r: float(r["turns"])),
    }
    if all(row["evidence"] is not None for row in rows):
        found["evidence_coverage"] = mean("evidence")
        found["search_precision"] = ratio(lambda r: float(r["useful_searches"]), lambda r: float(r["searches"]))
    if all("verdict" in row for row in rows):
        found["exact_match"] = mean("exact")
        found["judge_unreadable"] = Interval(sum(r["verdict"] is None for r in rows) / len(rows), None, None, len(rows))
    groups = defaultdict(list)
    for row in rows:
        groups["accuracy/" + row["question"]["type"]].append(row)
        groups["accuracy/taxonomy/" + row["question"]["taxonomy"]].append(row)
    found |= {name: mean("correct", chosen) for name, chosen in sorted(groups.items())}
    found |= {f"habit/{name}": mean(HABITS[name].shown, chosen) for name, chosen in seen_on(rows).items()}
    if all(halves.values()):
        found |= {f"accuracy/{half}": mean("correct", chosen) for half, chosen in halves.items()}
        outcomes = [[float(r["correct"]) for r in chosen] for chosen in halves.values()]
        clusters = [[r["question"]["entity"] for r in chosen] for chosen in halves.values()]
        found["accuracy/harmonic_mean"] = harmonic_interval(*outcomes, *clusters, seed)
    return found


def headlines(found: Mapping[str, Interval | float], exam: Exam) -> str:
    """A workflow's accuracy in a line, with exact match where a judge has judged and a benchmark's own score."""
    names = ["accuracy", "exact_match"]
    if exam.benchmark:
        names.append(f"{exam.benchmark.name}/{exam.benchmark.headline}")
    return "   ".join(f"{name} {_shown(found[name])}" for name in names if name in found)


def _shown(interval: Interval) -> str:
    bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval.low is not None else ""
    return f"{interval.value:.3f}{bounds}"


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
