"""Four workflows and what is measured of them (paper §4.2): direct answer, RAG, prompted agent, trained agent.

| workflow | tools |
|---|---|
| direct | none: the base answers |
| rag | exactly one search with the whole picture, then one text search, then the base answers |
| prompted | the base with the protocol's prompt and all tools |
| sft, grpo | the trained policies, all tools |
| teacher | the scripted teacher: the ceiling of what the tools allow |

A large model may play the first three too (`live.roles.Rival`).

Beyond right or wrong, an agent has habits: decisions that a cold start leaves half made.

| habit | seen on | what counts |
|---|---|---|
| looks_up | fact | a text search, instead of an answer from memory |
| goes_on | two_hop | a second, different text search, instead of an answer after the first |
| rewords | hard | the first text search is in the page's own word, not in the question's |
| tries_again | hard | a second, different text search (the paper's self-correction, §3.1) |

A search is needless where the base is right without tools, or the picture alone answers. Intervals are 95 %, resampled
by country, because questions about one country are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from mmsr.env import Rules, SearchEnv, Tools, Trajectory, TurnRecord, look_up
from mmsr.policy import Answering, Policy
from mmsr.presets import Preset
from mmsr.protocol import conversation, render_observation
from mmsr.results import TOLERATED
from mmsr.reward import SUPPORT, Judge, RewardWeights, evidence, score, support, verdicts
from mmsr.rollout import Rewrite, Sampling, answer_directly, play
from mmsr.stats import Interval, cluster_mean, cluster_ratio, harmonic_interval, mcnemar, paired_difference
from mmsr.task import HALVES, Asked, Task
from mmsr.teacher import Teacher
from mmsr.tools.base import in_parallel
from mmsr.world.relations import RELATIONS


@dataclass(frozen=True)
class Exam:
    """Questions in order: our world's, or a public benchmark's (`benchmarks.registry.open_benchmark`).

    block: pictures in memory at once (0: all). gold: whether it is known what a search should find. published: a
    benchmark's own scores of a workflow's rows, by name; headline: the one of them that it is known by.
    """

    questions: tuple[Asked, ...]
    block: int = 0
    gold: bool = True
    published: Callable[[Sequence[dict]], Mapping[str, Interval | float]] = lambda rows: {}
    headline: str = ""

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def halves(self) -> bool:
        """Whether it has InfoSeek's two halves, unseen entities and unseen questions."""
        return {*HALVES} <= {question.half for question in self.questions}

    def play(self, workflow: Callable[[list[Task]], list[Trajectory]]) -> list[Trajectory]:
        """The trajectories of a workflow on all questions, block by block."""
        size = self.block or max(1, len(self))
        blocks = (self.questions[start : start + size] for start in range(0, len(self), size))
        return [trajectory for block in blocks for trajectory in workflow([Task.of(question) for question in block])]


# --- workflows --------------------------------------------------------------------------------------------------------


def direct(policy: Answering, exam: Exam, preset: Preset) -> list[Trajectory]:
    """The base's answer without any tool."""

    def answer(tasks: list[Task]) -> list[Trajectory]:
        said = answer_directly(policy, tasks, preset.prompts, preset.rollout_rows)
        return [_answered(task.id, [], text) for task, text in zip(tasks, said)]

    return exam.play(answer)


def _answered(task_id: str, turns: list[TurnRecord], answer: str) -> Trajectory:
    """A trajectory of a workflow that does not speak the protocol; its answer counts as a valid turn."""
    return Trajectory(task_id, [*turns, TurnRecord(answer, "answer", answer)], answer, "answer")


def rag(policy: Answering, exam: Exam, preset: Preset, tools: Tools) -> list[Trajectory]:
    """One search with the whole picture, one text search with question and best title, then the base answers."""

    def answer(tasks: list[Task]) -> list[Trajectory]:
        searched = in_parallel(lambda task: _search_twice(task, tools), tasks, tools.workers)
        asked = [
            (task.picture, conversation(preset.prompts.rag, pages=pages, question=task.question))
            for task, (_, pages) in zip(tasks, searched)
        ]
        said = policy.ask(asked, preset.rollout_rows)
        return [_answered(task.id, turns, text) for task, (turns, _), text in zip(tasks, searched, said)]

    return exam.play(answer)


def _search_twice(task: Task, tools: Tools) -> tuple[list[TurnRecord], str]:
    """The two searches of the RAG workflow and the summary of the pages."""
    image = TurnRecord("", "img_search")
    seen = look_up(image, tools.image, task.picture, tools.image_summary, task.question, Rules.k)
    title = image.hits[0]["title"].removeprefix("Flag of ") if image.hits else ""
    text = TurnRecord("", "text_search", f"{task.question} {title}".strip())
    read = look_up(text, tools.text, text.content, tools.text_summary, task.question, Rules.k)
    image.observation, text.observation = render_observation(seen), render_observation(read)
    return [image, text], read


def agent(
    policy: Policy,
    exam: Exam,
    preset: Preset,
    tools: Tools,
    rewrite: Rewrite | None = None,
) -> list[Trajectory]:
    """A policy with the protocol and all tools, decoded greedily."""
    return exam.play(lambda tasks: play(policy, tasks, tools, preset.prompts, Sampling.of(preset), rewrite))


def taught(exam: Exam, preset: Preset, tools: Tools) -> list[Trajectory]:
    """The scripted teacher on the world's questions."""

    def act(tasks: list[Task]) -> list[Trajectory]:
        asked = {question.id: question for question in exam.questions}
        return [Teacher().play(asked[task.id], SearchEnv(tools, preset.prompts, task)) for task in tasks]

    return exam.play(act)


# --- rows -------------------------------------------------------------------------------------------------------------


def judge_rows(
    workflow: str,
    exam: Exam,
    trajectories: Sequence[Trajectory],
    search_free: Sequence[bool],
    judge: Judge | None = None,
    distrusts: Callable[[str], bool] = lambda url: False,
) -> list[dict]:
    """One row per question: what was answered, whether it was right, on which pages, what it cost, what was found.

    "correct" is the judge's word where there is one, with its label in "verdict" (None where it could not be read: then
    exact match decides), its words in "why", and exact match in "exact"; else it is exact match itself. Where it is not
    known what is gold, as in a public benchmark, "evidence", "useful_searches" and recall are None. "support" is
    `reward.support` of the answer. Prints how many verdicts are missing where these are too many.
    """
    tasks = [Task.of(question, pictured=False) for question in exam.questions]
    found = verdicts(judge, [(task, trajectory.answer) for task, trajectory in zip(tasks, trajectories)])
    missing = [verdict.why for verdict in found if verdict.label is None]
    if len(missing) > TOLERATED * len(found):
        told = f"{len(missing)} of {len(found)} verdicts failed or cannot be read, so exact match decides there"
        print(f"{workflow}: {told}. The first: {' '.join(missing[0].split())}", flush=True)
    rows = []
    for question, task, trajectory, free, verdict in zip(exam.questions, tasks, trajectories, search_free, found):
        score(trajectory, task, RewardWeights(), verdict)
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
                **_retrieval(trajectory, task, known=exam.gold),
                **({"verdict": verdict.label, "why": verdict.why, "exact": verdict.exact} if judge else {}),
                "support": support(trajectory.as_dict(), distrusts),
                "trajectory": trajectory.as_dict(),
            }
        )
    return rows


def _retrieval(trajectory: Trajectory, task: Task, known: bool) -> dict[str, Any]:
    """How much of what is gold the searches found; None for each where that is not known."""
    if not known:
        return dict.fromkeys(("evidence", "useful_searches", "recall_at_1", "recall_at_5"))
    found = {"evidence": evidence(trajectory, task), "useful_searches": useful(trajectory, task)}
    pictures = [turn.hits for turn in trajectory.turns if turn.action == "img_search" and not turn.error]
    ids = [hit["id"] for hit in pictures[0]] if pictures else None
    return found | {f"recall_at_{k}": None if ids is None else task.entity in ids[:k] for k in (1, 5)}


def useful(trajectory: Trajectory, task: Task) -> int:
    """How many searches returned something gold: a gold page, or the flag of the country that is asked about."""
    count = 0
    for turn in trajectory.turns:
        ids = {hit["id"] for hit in turn.hits}
        count += bool({*task.gold_pages} & ids) if turn.action == "text_search" else task.entity in ids
    return count


def knows(exam: Exam, answers: Sequence[Trajectory], judge: Judge | None = None) -> list[bool]:
    """Which questions need no search: the base is right without one, or (in the world) the picture alone answers."""
    asked = [question for question in exam.questions if question.type != "visual"]
    given = {trajectory.task_id: trajectory.answer for trajectory in answers}
    found = verdicts(judge, [(Task.of(question, pictured=False), given[question.id]) for question in asked])
    right = {question.id: verdict.correct for question, verdict in zip(asked, found)}
    return [right.get(question.id, True) for question in exam.questions]


# --- habits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habit:
    """The type of question it is seen on, its name in a figure, and whether an evaluation's row shows it."""

    type: str
    words: str
    shown: Callable[[Mapping], bool]


def queries(row: Mapping) -> list[str]:
    """The text searches of a row's episode that were carried out, each different query once, in order."""
    turns = row["trajectory"]["turns"]
    return list(dict.fromkeys(t["content"] for t in turns if t["action"] == "text_search" and not t["error"]))


def _rewords(row: Mapping) -> bool:
    return RELATIONS[row["question"]["relation"]].noun in "".join(queries(row)[:1])


HABITS: dict[str, Habit] = {
    "looks_up": Habit("fact", "Fact: looks it up", lambda row: bool(queries(row))),
    "goes_on": Habit("two_hop", "Two hops: goes on", lambda row: len(queries(row)) > 1),
    "rewords": Habit("hard", "Hard: rewords first", _rewords),
    "tries_again": Habit("hard", "Hard: tries again", lambda row: len(queries(row)) > 1),
}


def seen_on(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """The rows that each habit is measured on; a habit of a type that was not asked is left out, as in benchmarks."""
    world = [row for row in rows if row["question"].get("relation")]
    found = {name: [r for r in world if r["question"]["type"] == habit.type] for name, habit in HABITS.items()}
    return {name: chosen for name, chosen in found.items() if chosen}


# --- what is measured -------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[dict], seed: int) -> dict[str, Interval]:
    """One workflow's metrics, its name left off: accuracy (by type, taxonomy and half too), searches, evidence, habits.

    "supported", "unsupported" and "distrusted" are shares of all questions (`reward.support`); the rest were answered
    without a search, or not at all. With a judge, exact match and the share of its replies that could not be read stand
    beside its accuracy.
    """
    country = [row["question"]["entity"] for row in rows]
    halves = {half: [r for r in rows if r["question"]["half"] == half] for half in HALVES}

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
    found |= {label: mean(lambda row, label=label: row["support"]["label"] == label) for label in SUPPORT}
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
