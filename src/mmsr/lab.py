"""What every notebook opens with: an experiment's sizes, folder, policy, tools, judge and record.

    lab = Lab("../papermill_runs/lab", "tiny", seed=0, sizes={"grpo_steps": 128}, outside={"search": "serper"})
    policy = lab.policy("sft")                  # the base with the adapter of a stage; lab.policy() is the base
    tools = lab.tools(policy)                   # the offline world's, or what `outside` names
    lab.record({"sft/val/accuracy": …})         # into the run's metrics.json

`sizes` changes fields of the preset (`presets.Preset`), `outside` says where tools and large models are
(`live.outside.Outside`; nothing for the offline world); both are checked before anything runs. The commands
`mmsr sft` and `mmsr grpo` train with the notebooks' `lab.sft()` and `lab.grpo()`, on the processes accelerate launches.
"""

from __future__ import annotations

import functools
import gc
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from mmsr.data import Built, build, load_examples
from mmsr.env import Tools
from mmsr.evaluate import Exam, agent, judge_rows, summarise
from mmsr.files import SEAL, read_rows, sha256
from mmsr.grpo import kept_steps, train_grpo
from mmsr.policy import Policy, load_policy, put_on
from mmsr.presets import Preset
from mmsr.results import STAGES, check_adapter, find_adapter, record_metrics
from mmsr.reward import Judge, RewardWeights
from mmsr.sft import train_sft
from mmsr.stats import Interval
from mmsr.task import Asked
from mmsr.teacher import Player, scripted
from mmsr.tools.base import Grounder
from mmsr.tools.ground import BaseGrounder
from mmsr.tools.summary import ExtractiveSummariser
from mmsr.training import processes
from mmsr.world.own import open_world
from mmsr.world.questions import make_questions

if TYPE_CHECKING:
    from mmsr.live.outside import Connection
    from mmsr.live.roles import Rival

WORKERS = 8  # searches side by side where they wait for the network; the engines' own rate limits still hold
SOURCES = ("search", "picture_search", "read_pages", "grounder", "summary")  # what episodes follow from


class Lab:
    """An experiment in a run's folder. `adapters` is another run's folder, for adapters that this one has not trained.

    GRPO and validation ask the training split of `train_benchmark`, with its files in `train_dir`; else our world.
    Raises ValueError for impossible settings, and FatalToolError for a missing key or an unusable record.
    """

    def __init__(
        self,
        run_dir: str | Path,
        preset: str = "tiny",
        seed: int = 0,
        sizes: Mapping[str, Any] | None = None,
        outside: Mapping[str, Any] | None = None,
        adapters: str | Path = "",
        train_benchmark: str = "",
        train_dir: str | Path = "",
    ):
        from mmsr.live.outside import connect, settings

        self.folder, self.seed, self.adapters = Path(run_dir), seed, str(adapters)
        self.train_benchmark, self.train_dir = train_benchmark, train_dir
        if train_benchmark:
            from mmsr.benchmarks.registry import check_training

            check_training(train_benchmark, train_dir)
        self.size, self.outside = settings(preset, sizes, outside)
        self.size.check_tracker()
        if self.adapters and not any((Path(self.adapters) / stage / "adapter").is_dir() for stage in STAGES):
            raise ValueError(
                f"adapters={self.adapters} holds neither sft/adapter nor grpo/adapter: give a trained run."
            )
        self.connection: Connection = connect(self.outside, self.folder)

    @property
    def judge(self) -> Judge | None:
        """The large model that judges answers; None where exact match does."""
        return self.connection.judge

    def policy(self, stage: str = "") -> Policy:
        """The base, bare or with the adapter of "sft" or "grpo". Raises as `find_adapter` and `check_adapter` do."""
        size, adapter = self.size, self.adapter(stage) if stage else None
        return load_policy(size.policy, adapter, size.revision, size.max_pixels, size.four_bit)

    def adapter(self, stage: str) -> Path:
        """Where a stage's whole adapter lies: here, else in `adapters`. Raises as `find_adapter`, `check_adapter`."""
        return check_adapter(find_adapter(stage, [self.folder, self.adapters]))

    def tools(self, policy: Policy) -> Tools:
        """The tools that `outside` names, the offline ones where it names none; an index is made by one process."""
        with processes().main_process_first():
            return open_tools(self.size, policy, self.connection)

    def record(self, values: Mapping[str, Interval | float]) -> None:
        """Merge measured values into the run's metrics.json."""
        record_metrics(self.folder, values)

    def account(self, notebook: str) -> str:
        """Record what this notebook asked for outside, and return it in a few lines of text."""
        from mmsr.live.outside import record_usage

        return record_usage(self.connection, self.folder, notebook)

    # --- notebook 1

    def teacher(self, tools: Tools) -> Player:
        """Who plays the training examples: the script, or the large model that `outside` names."""
        if not self.outside.teacher:
            return scripted(tools)
        from mmsr.live.roles import LLMTeacher, label_field

        player, fields = (self.connection.chat(role) for role in ("teacher", "fields"))
        teacher = LLMTeacher(player, self.seed).player(self.outside.teacher_workers)
        return replace(teacher, field_of=functools.partial(label_field, fields))

    def questions(self, benchmark: str = "", data_dir: str | Path = "") -> Sequence[Asked]:
        """Questions to build data from: our world's train split, or a benchmark's, from its files."""
        if not benchmark:
            return make_questions("train", self.size.data_questions, self.seed)
        return training_split(benchmark, data_dir, self.size.data_questions, self.seed)

    def build(self, questions: Sequence[Asked], player: Player, tools: Tools, policy: Policy) -> Built:
        """The funnel, in the run's folder `funnel`."""
        return build(questions, player, tools, policy, self.size, self.seed, self.folder / "funnel", self.judge)

    # --- notebooks 2 and 3

    def sft(self) -> Policy:
        """Train the cold start on notebook 1's data, and return it as it was saved, loaded again."""
        examples, pictures = load_examples(self.folder / "data")
        policy = self.policy()
        _ = self.tools(policy), self.validation  # what is missing shows now, not after the training
        train_sft(policy, examples, pictures, self.size, self.folder / "sft", self.seed)
        del policy  # its weights may be scattered over the processes now
        gc.collect()
        return self.policy("sft")

    @functools.cached_property
    def validation(self) -> Sequence[Asked]:
        """A few questions of the validation split, or about benchmark pictures that the cold start has not seen."""
        return self._drawn("val", self.size.validation_questions, self.seed)

    @functools.cached_property
    def grpo_questions(self) -> Sequence[Asked]:
        """The questions of GRPO, none of them seen in the cold start or in validation."""
        step, validated = self.size.grpo_questions, {question.entity for question in self.validation}
        questions = self._drawn("train", step * self.size.grpo_steps, self.seed + 1000, validated)
        if len(questions) < step:
            raise ValueError(f"A step of GRPO asks {step} questions, but {len(questions)} are left to ask: give more.")
        return questions

    def _drawn(self, split: str, number: int, seed: int, used: Collection[str] = ()) -> Sequence[Asked]:
        """Questions from a split of our world, or a benchmark's about nothing `used` or in the cold start's data."""
        if not self.train_benchmark:
            return make_questions(split, number, seed)
        runs = [Path(run) for run in (self.folder, self.adapters) if run and Path(run, "sft", "adapter").is_dir()]
        data = (runs or [self.folder])[0] / "data" / "data.jsonl"  # of the run whose cold start it is, or will be
        learned = {row["question"]["entity"] for row in read_rows(data, "run notebook 01 first")}
        return training_split(self.train_benchmark, self.train_dir, number, seed, learned.union(used))

    def grpo(self, policy: Policy, weights: RewardWeights, kl: float) -> Policy:
        """GRPO on a policy that carries the cold start's adapter; the last adapter is the agent, until `choose`."""
        tools, folder = self.tools(policy), self.folder / "grpo"
        return train_grpo(policy, self.grpo_questions, tools, self.size, folder, self.seed, weights, kl, self.judge)

    def choose(self, policy: Policy) -> tuple[list[dict], dict[str, Interval]]:
        """Of the adapters that GRPO kept, the best on the validation questions is the agent; of equals, the last.

        It becomes `grpo/adapter`, and `policy`, which `grpo` has returned, carries it. Returns its rows, and what to
        record: its step, and each one's accuracy and searches. Raises as `check_adapter` does.
        """
        rows, kept = {}, self.folder / "grpo" / "kept"
        for step in kept_steps(self.size.grpo_steps):
            put_on(policy, check_adapter(kept / str(step)))
            rows[step] = self.validate("grpo", policy)
        best = max(rows, key=lambda step: (sum(row["correct"] for row in rows[step]), step))
        put_on(policy, kept / str(best))
        if processes().is_main_process:
            shutil.copytree(kept / str(best), self.folder / "grpo" / "adapter", dirs_exist_ok=True)
        processes().wait_for_everyone()
        found = {step: summarise(played, self.seed) for step, played in rows.items()}
        measured = {f"grpo/val/{n}/{name}": found[n][name] for n in found for name in ("accuracy", "searches")}
        return rows[best], {"grpo/chosen_step": Interval(best)} | measured

    def validate(self, name: str, policy: Policy) -> list[dict]:
        """The rows of a policy on the validation questions, divided among the processes."""
        tools = self.tools(policy)
        with processes().split_between_processes(self.validation) as mine:
            exam = Exam(tuple(mine), self.size.rollout_rows, gold=not self.train_benchmark)
            played = agent(policy, exam, self.size, tools)
            rows = judge_rows(name, exam, played, [question.type == "visual" for question in mine], self.judge)
        return gather_object(rows)

    # --- notebook 4

    def rivals(self) -> list[Rival]:
        """The large models that `outside` names to be played beside ours."""
        return self.connection.rivals()

    def exam(self, benchmark: str = "", data_dir: str | Path = "", sample: int = 0) -> Exam:
        """The world's test questions, or a benchmark's; `sample` draws that many of them, not the preset's number."""
        if not benchmark:
            return Exam(tuple(make_questions("test", sample or self.size.eval_questions, self.seed)))
        from mmsr.benchmarks.registry import open_benchmark

        return open_benchmark(benchmark, data_dir, sample, self.seed, self.size.rollout_rows)


def training_split(
    benchmark: str, folder: str | Path, number: int, seed: int, used: Collection[str] = ()
) -> Sequence[Asked]:
    """As `benchmarks.registry.training_questions`; one process unpacks the pictures."""
    from mmsr.benchmarks.registry import training_questions

    with processes().main_process_first():
        return training_questions(benchmark, folder, number, seed, used)


# --- tools ------------------------------------------------------------------------------------------------------------


def open_tools(size: Preset, policy: Policy, connection: Connection | None = None) -> Tools:
    """The tools that a connection's `outside` names; without one, the local engines, the frozen base as grounder, and
    extractive summaries in the preset's budget."""
    summaries = connection and connection.summaries
    if summaries:
        from mmsr.live.roles import Shortened

        shown = [Shortened(summary, policy.count_tokens, size.observation_tokens) for summary in summaries]
    else:
        shown = [ExtractiveSummariser(policy.count_tokens, size.observation_tokens)] * 2
    outside = connection and connection.outside
    world = open_world(outside.world if outside else "")
    own = {"world": sha256(Path(outside.world) / SEAL)} if outside and outside.world else {}
    web, lens = (outside and getattr(outside, kind) != "local" for kind in ("search", "picture_search"))
    return Tools(
        text=connection.text_search(world) if web else world.text_search(),
        image=connection.picture_search(world) if lens else world.picture_search(),
        grounder=_grounder(size, policy, outside.grounder if outside else "base"),
        text_summary=shown[0],
        image_summary=shown[1],
        to_picture=policy.to_picture,
        workers=WORKERS if outside and (any(outside.engines()) or outside.summary) else 1,
        settings={name: getattr(outside, name) for name in SOURCES} | own if outside else {},
    )


def _grounder(size: Preset, policy: Policy, name: str) -> Grounder:
    if name == "dino":
        from mmsr.live.dino import DinoGrounder  # loads a detector of its own

        return DinoGrounder()
    return BaseGrounder(policy, size.prompts.locate)
