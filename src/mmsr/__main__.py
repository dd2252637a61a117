"""The command line.

    mmsr run [01 … 05] [--preset tiny] [--name NAME] [--seed N] [-p key=value …] [--fresh]
    mmsr table RUN [RUN …]                      the results of a run; of several seeds, their mean and range
    mmsr contrast RUN [RUN …] --to RUN [RUN …]  what a change did, paired question by question
    mmsr compare RUN RUN                        whether a run came out again: exits 1 where their metrics differ
    mmsr sft|grpo --preset P --run RUN          a training alone, for accelerate launch -m mmsr …
    mmsr ask PICTURE "question" [--html FILE]   the trained agent on any picture
    mmsr fit --preset P --gpu-gb N [--json]     whether training it fits such a GPU; exits 1 where nothing does
    mmsr bench [--model tiny] [--steps N]       speed and memory of training, with random weights
    mmsr replay export|import|stats RECORD …    recorded calls of live tools
    mmsr serve [--port N]                       the offline world as a web engine

Exit status: 0, 1 for what failed, differs or does not fit, 2 for what cannot be met, 130 for an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


class UsageError(Exception):
    """The request cannot be met; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status. Errors at the user's end are a sentence on standard error."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except UsageError as error:
        print(f"mmsr: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nmmsr: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The subcommands and their options."""
    lines = __doc__.splitlines()
    top = argparse.ArgumentParser("mmsr", description="Multimodal search agents, end to end.", epilog=lines[-1])
    commands = top.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="run notebooks in order into papermill_runs/NAME")
    run.add_argument("notebooks", nargs="*", metavar="notebook", help="01 … 05, or full names; all by default")
    run.add_argument("--preset", default="tiny", help="smoke, tiny, qwen_smoke, qwen3b or qwen7b (default: tiny)")
    run.add_argument("--name", help="of the run's folder (default: the preset's)")
    run.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="key=value", help="a parameter")
    run.add_argument("--fresh", action="store_true", help="delete what a run of this name has done, and begin again")
    run.set_defaults(command=_run)

    table = commands.add_parser("table", help="print the results of a run, or the mean and range of several")
    table.add_argument("runs", type=Path, nargs="+", metavar="run")
    table.set_defaults(command=_table)

    contrast = commands.add_parser("contrast", help="print what differs between runs, question by question")
    contrast.add_argument("runs", type=Path, nargs="+", metavar="run", help="with the change")
    contrast.add_argument("--to", type=Path, nargs="+", required=True, metavar="RUN", help="without it, pair by pair")
    contrast.set_defaults(command=_contrast)

    compare = commands.add_parser("compare", help="print the metrics in which two runs differ; exit 1 if there are any")
    compare.add_argument("runs", type=Path, nargs=2, metavar="run")
    compare.add_argument("--costs", action="store_true", help="compare time and memory too")
    compare.set_defaults(command=_compare)

    for name, number in (("sft", "02"), ("grpo", "03")):
        train = commands.add_parser(name, help=f"what notebook {number} trains, on the processes accelerate launches")
        train.add_argument("--preset", default="tiny", help="default: %(default)s")
        train.add_argument("--run", type=Path, required=True, metavar="RUN", help="the folder that notebook 01 filled")
        train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
        train.add_argument("-p", dest="parameters", action="append", default=[], metavar="key=value")
        train.set_defaults(command=_train, stage=name)

    ask = commands.add_parser("ask", help="ask the trained agent about a picture, and see each of its turns")
    ask.add_argument("picture", type=Path)
    ask.add_argument("question")
    ask.add_argument("--preset", default="", help="default: the run's, else tiny")
    ask.add_argument("--run", type=Path, metavar="RUN", help="the run whose agent is asked (default: the shipped one)")
    ask.add_argument("--adapter", type=Path, metavar="DIR", help="or an agent's LoRA weights")
    ask.add_argument("--html", type=Path, metavar="FILE", help="write the episode as a page, with the crop drawn in")
    ask.add_argument("-p", dest="parameters", action="append", default=[], metavar="key=value", help="as for run")
    ask.set_defaults(command=_ask)

    fit = commands.add_parser("fit", help="whether SFT and GRPO of a preset fit a GPU, and with which settings")
    fit.add_argument("--preset", required=True, help="qwen3b or qwen7b")
    fit.add_argument("--gpu-gb", type=float, required=True, metavar="N", help="memory of the GPU")
    fit.add_argument("--json", action="store_true", help="print it as JSON, sizes in bytes")
    fit.set_defaults(command=_fit)

    bench = commands.add_parser("bench", help="measure SFT and GRPO steps on random weights, and print JSON")
    bench.add_argument("--model", choices=("tiny", "qwen3b", "qwen7b"), default="tiny", help="default: %(default)s")
    bench.add_argument("--steps", type=int, default=3, metavar="N", help="after one to warm up (default: %(default)s)")
    bench.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there instead")
    bench.set_defaults(command=_bench)

    replay = commands.add_parser("replay", help="recorded calls of live tools: export, import, stats")
    actions = replay.add_subparsers(required=True, metavar="action")
    for name, files, text in (
        ("export", ("record", "jsonl"), "write a record as JSON lines"),
        ("import", ("record", "jsonl"), "add JSON lines to a record"),
        ("stats", ("record",), "calls, errors and size by back end"),
    ):
        action = actions.add_parser(name, help=text)
        for file in files:
            action.add_argument(file, type=Path)
        action.set_defaults(command=_replay, action=name)

    serve = commands.add_parser("serve", help="serve the offline world as a web engine on this machine")
    serve.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: %(default)s)")
    serve.set_defaults(command=_serve)
    return top


def repository() -> Path:
    """The clone that holds the notebooks: here, above, or where the package lies. UsageError where there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "notebooks" / "01_build_data.ipynb").exists():
            return folder
    raise UsageError("there are no notebooks here: run this within a clone of the repository.")


def _run(options: argparse.Namespace) -> int:
    parameters = _parameters(options.parameters)
    root = repository()
    from mmsr.runs.runner import RunError, RunFailed, run

    try:
        folder = run(
            options.notebooks, options.preset, options.name, options.seed, parameters, root, fresh=options.fresh
        )
    except RunError as error:
        raise UsageError(str(error)) from error
    except RunFailed as error:
        print(f"mmsr: {error}", file=sys.stderr)
        return 1
    print(f"\n{_results([folder])}\n\nFigures: {os.path.relpath(folder / 'figures')}")
    return 0


def _parameters(pairs: Sequence[str]) -> dict[str, str]:
    """key=value pairs as a dictionary; the value may hold further equals signs."""
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"-p takes key=value, not {pair!r}.")
        if key in parameters:
            raise UsageError(f"-p gives {key} twice.")
        parameters[key] = value
    return parameters


def _results(runs: Sequence[Path]) -> str:
    from mmsr.results import table

    try:
        return table(*runs)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _table(options: argparse.Namespace) -> int:
    print(_results(options.runs))
    return 0


def _contrast(options: argparse.Namespace) -> int:
    from mmsr.runs.contrast import contrast

    try:
        print(contrast(options.runs, options.to))
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mmsr.results import compare

    try:
        differences = compare(*options.runs, costs=options.costs)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print("\n".join(differences) if differences else "The runs agree.")
    return 1 if differences else 0


def _train(options: argparse.Namespace) -> int:
    parameters, root = _parameters(options.parameters), repository()
    from mmsr.runs.launch import LaunchError, launch

    try:
        launch(options.stage, options.preset, options.run, options.seed, parameters, root)
    except LaunchError as error:
        raise UsageError(str(error)) from error
    return 0


def _ask(options: argparse.Namespace) -> int:
    parameters = _parameters(options.parameters)
    from mmsr.runs.ask import AskError, ask, find_agent, read_file, read_parameters, write_html

    try:
        sources, model = read_parameters(parameters)
        agent = find_agent(options.preset, options.run, options.adapter, **model)
        episode = ask(agent, read_file(options.picture), options.question, sources, tell=_say)
        if options.html:
            print(f"Page: {write_html(episode, options.html)}")
    except AskError as error:
        raise UsageError(str(error)) from error
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _fit(options: argparse.Namespace) -> int:
    if not 0 < options.gpu_gb < 100_000:
        raise UsageError(f"--gpu-gb takes the memory of a GPU in GB, such as 24, not {options.gpu_gb:g}.")
    from mmsr.gpu import fit
    from mmsr.presets import get_preset

    try:
        preset = get_preset(options.preset)
        estimates = fit.fit(preset, options.gpu_gb)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.json:
        print(json.dumps(fit.as_dict(preset, options.gpu_gb, estimates), indent=1, ensure_ascii=False))
    else:
        print(fit.as_table(preset, options.gpu_gb, estimates))
    return 0 if any(estimate.fits for estimate in estimates) else 1


def _bench(options: argparse.Namespace) -> int:
    if options.steps < 1:
        raise UsageError(f"--steps takes a number from 1 on, not {options.steps}.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {options.out.parent} to write {options.out.name} into: make it first.")
    from mmsr.gpu.bench import BenchError, bench
    from mmsr.results import write_json

    try:
        report = bench(options.model, options.steps)
    except BenchError as error:
        print(f"mmsr: {error}", file=sys.stderr)
        return 1
    if options.out:
        write_json(options.out, report)
        print(f"written to {options.out}")
    else:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from mmsr.live import replay
    from mmsr.tools.base import ToolError

    try:
        if options.action == "export":
            print(f"calls written to {options.jsonl}: {replay.export_jsonl(options.record, options.jsonl)}")
        elif options.action == "import":
            counts = replay.import_jsonl(options.record, options.jsonl)
            print(f"calls added to {options.record}: {counts['added']}, left as they were: {counts['left']}")
        else:
            for backend, counts in replay.stats(options.record).items():
                print(f"{backend}: " + ", ".join(f"{name} {value:g}" for name, value in counts.items()))
    except (ToolError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


def _serve(options: argparse.Namespace) -> int:
    from mmsr.live.serve import serve
    from mmsr.tools.image import LocalImageSearch
    from mmsr.tools.text import LocalTextSearch
    from mmsr.world.snapshot import load_world

    world = load_world()
    try:
        serve(world, LocalTextSearch(world), LocalImageSearch(world), port=options.port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"the port {options.port} cannot be used ({error}): choose another, or 0.") from error
    except KeyboardInterrupt:
        pass  # the way to end it
    return 0


if __name__ == "__main__":
    sys.exit(main())
