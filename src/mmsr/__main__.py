"""The command line.

    mmsr run 01 02 --preset tiny --name mine -p sft_lr=1e-3
    mmsr --help                                                 # all commands; mmsr run --help for one of them

With argparse: an option of many values, as in `mmsr contrast RUN … --to RUN …`, is more than typer knows. A command
imports what it needs when it runs.

Exit status: 0, 1 for what failed, differs or does not fit, 2 for what cannot be met, 130 for an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmsr.runs import RunFailed, UsageError, refusing

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. Errors at the user's end are a sentence on standard error."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (UsageError, RunFailed) as error:
        print(f"mmsr: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nmmsr: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands and their options; `command` is what runs one, `action` its name."""
    last = __doc__.splitlines()[-1]
    top = argparse.ArgumentParser("mmsr", description="Multimodal search agents, end to end.", epilog=last)
    commands = top.add_subparsers(required=True, metavar="command")
    changes, experiment = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    text = "a knob of the notebooks, a size of the preset, or where something outside is"
    changes.add_argument("-p", dest="parameters", action="append", default=[], metavar="key=value", help=text)
    text = "smoke, tiny, qwen_smoke, qwen3b or qwen7b (default: %(default)s)"
    experiment.add_argument("--preset", default="tiny", help=text)
    experiment.add_argument("--seed", type=int, default=0, help="default: %(default)s")

    def add(name: str, does: Callable[[Options], int | None], text: str, *parents: Any, to: Any = commands) -> Any:
        command = to.add_parser(name, help=text, parents=parents)
        command.set_defaults(command=does, action=name)
        return command.add_argument

    option = add("run", _run, "run notebooks in order into papermill_runs/NAME", experiment, changes)
    option("notebooks", nargs="*", metavar="notebook", help="01 … 05, or full names; all by default")
    option("--name", help="of the run's folder (default: the preset's)")
    option("--fresh", action="store_true", help="delete what a run of this name has done, and begin again")
    option = add("table", _table, "print the results of a run, or the mean and range of several")
    option("runs", type=Path, nargs="+", metavar="run")
    option = add("contrast", _contrast, "print what differs between runs, question by question")
    option("runs", type=Path, nargs="+", metavar="run", help="with the change")
    option("--to", type=Path, nargs="+", required=True, metavar="RUN", help="without it, pair by pair")
    option = add("compare", _compare, "print the metrics in which two runs differ; exit 1 if there are any")
    option("runs", type=Path, nargs=2, metavar="run")
    option("--costs", action="store_true", help="compare time and memory too")
    for name, number in (("sft", "02"), ("grpo", "03")):
        text = f"what notebook {number} trains, on the processes accelerate launches"
        option = add(name, _train, text, experiment, changes)
        option("--run", type=Path, required=True, metavar="RUN", help="the folder that notebook 01 filled")
    option = add("ask", _ask, "ask the trained agent about a picture, and see each of its turns", changes)
    option("picture", type=Path)
    option("question")
    option("--preset", default="", help="default: the run's, else tiny")
    option("--run", type=Path, metavar="RUN", help="the run whose agent is asked (default: the shipped one)")
    option("--adapter", type=Path, metavar="DIR", help="or an agent's LoRA weights")
    option("--html", type=Path, metavar="FILE", help="write the episode as a page, with the crop drawn in")
    option = add("fit", _fit, "whether SFT and GRPO of a preset fit a GPU, and with which settings")
    option("--preset", required=True, help="qwen3b or qwen7b")
    option("--gpu-gb", type=float, required=True, metavar="N", help="memory of the GPU")
    option("--json", action="store_true", help="print it as JSON, sizes in bytes")
    option = add("bench", _bench, "measure SFT and GRPO steps on random weights, and print JSON")
    option("--model", choices=("tiny", "qwen3b", "qwen7b"), default="tiny", help="default: %(default)s")
    option("--steps", type=int, default=3, metavar="N", help="after one to warm up (default: %(default)s)")
    option("--out", type=Path, metavar="FILE", help="write the JSON there instead")
    replay = commands.add_parser("replay", help="recorded calls of live tools: export, import, stats")
    actions = replay.add_subparsers(required=True, metavar="action")
    add("stats", _replay, "calls, errors and size by back end", to=actions)("record", type=Path)
    for name, text in (("export", "write a record as JSON lines"), ("import", "add JSON lines to a record")):
        option = add(name, _replay, text, to=actions)
        option("record", type=Path)
        option("jsonl", type=Path)
    option = add("serve", _serve, "serve the offline world as a web engine on this machine")
    option("--port", type=int, default=8765, help="0 takes a free one (default: %(default)s)")
    return top


def repository() -> Path:
    """The clone that holds the notebooks: here, above, or where the package lies. UsageError where there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "notebooks" / "01_build_data.ipynb").exists():
            return folder
    raise UsageError("there are no notebooks here: run this within a clone of the repository.")


def parameters(pairs: Sequence[str]) -> dict[str, str]:
    """key=value pairs as a dictionary; the value may hold further equals signs."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"-p takes key=value, not {pair!r}.")
        if key in found:
            raise UsageError(f"-p gives {key} twice.")
        found[key] = value
    return found


def _run(options: Options) -> None:
    given, root = parameters(options.parameters), repository()
    from mmsr.runs.runner import run

    folder = run(options.notebooks, options.preset, options.name, options.seed, given, root, options.fresh)
    print()
    _table(Options(runs=[folder]))
    print(f"\nFigures: {os.path.relpath(folder / 'figures')}")


def _table(options: Options) -> None:
    from mmsr.results import table

    print(_read(table, *options.runs))


def _read(make: Callable[..., Any], *runs: Any, **settings: Any) -> Any:
    """What is made of runs; UsageError where their files cannot be read or paired."""
    with refusing(OSError, ValueError):
        return make(*runs, **settings)


def _contrast(options: Options) -> None:
    from mmsr.runs.contrast import contrast

    print(_read(contrast, options.runs, options.to))


def _compare(options: Options) -> int:
    from mmsr.results import compare

    differences = _read(compare, *options.runs, costs=options.costs)
    print("\n".join(differences) or "The runs agree.")
    return 1 if differences else 0


def _train(options: Options) -> None:
    given, root = parameters(options.parameters), repository()
    from mmsr.runs.launch import launch

    launch(options.action, options.preset, options.run, options.seed, given, root)


def _ask(options: Options) -> None:
    given = parameters(options.parameters)
    from mmsr.runs.ask import ask, find_agent, read_file, write_html

    agent = find_agent(options.preset, options.run, options.adapter, given)
    episode = ask(agent, read_file(options.picture), options.question, tell=lambda text: print(text, flush=True))
    if options.html:
        print(f"Page: {write_html(episode, options.html)}")


def _fit(options: Options) -> int:
    if not 0 < options.gpu_gb < 100_000:
        raise UsageError(f"--gpu-gb takes the memory of a GPU in GB, such as 24, not {options.gpu_gb:g}.")
    from mmsr.gpu.fit import as_table, fit
    from mmsr.presets import get_preset

    with refusing(ValueError):
        found = fit(get_preset(options.preset), options.gpu_gb)
    print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else as_table(found, options.gpu_gb))
    return 0 if found["sft"]["fits"] or found["grpo"]["fits"] else 1


def _bench(options: Options) -> int:
    if options.steps < 1:
        raise UsageError(f"--steps takes a number from 1 on, not {options.steps}.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {options.out.parent} to write {options.out.name} into: make it first.")
    from mmsr.files import write_json
    from mmsr.gpu.bench import BenchError, bench

    try:
        report = bench(options.model, options.steps)
    except BenchError as error:
        print(f"mmsr: {error}", file=sys.stderr)
        return 1
    if options.out:
        write_json(options.out, report)
    print(f"written to {options.out}" if options.out else json.dumps(report, indent=1, ensure_ascii=False))
    return 0


def _replay(options: Options) -> None:
    from mmsr.live import record
    from mmsr.tools.base import ToolError

    with refusing(ToolError, OSError):
        if options.action == "export":
            lines = [f"calls written to {options.jsonl}: {record.export_jsonl(options.record, options.jsonl)}"]
        elif options.action == "import":
            counts = record.import_jsonl(options.record, options.jsonl)
            lines = [f"calls added to {options.record}: {counts['added']}, left as they were: {counts['left']}"]
        else:
            found = record.stats(options.record)
            lines = [f"{name}: " + ", ".join(f"{k} {v:g}" for k, v in counts.items()) for name, counts in found.items()]
    print("\n".join(lines))


def _serve(options: Options) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
