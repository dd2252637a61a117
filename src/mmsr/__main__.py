"""The command line.

    mmsr run 01 02 --preset tiny --name mine -p sft_lr=1e-3
    mmsr --help                                                 # all commands; mmsr run --help for one of them

The commands and their options stand in `assets/runs/commands.toml`, for argparse: an option of many values, as in `mmsr
contrast RUN … --to RUN …`, is more than typer knows. A command imports what it needs when it runs.

Exit status: 0, 1 for what failed, differs or does not fit, 2 for what cannot be met, 130 for an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr.runs import RunFailed, UsageError, refusing

COMMANDS = Path(__file__).parent / "assets" / "runs" / "commands.toml"
TYPES = {"path": Path, "int": int, "float": float}
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
    about = "Multimodal search agents, end to end."
    top = argparse.ArgumentParser("mmsr", description=about, epilog=__doc__.splitlines()[-1])
    commands = tomllib.loads(COMMANDS.read_text(encoding="utf-8"))
    _add(top, "command", commands, commands.pop("shared"))
    return top


def _add(to: argparse.ArgumentParser, kind: str, commands: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Give a parser its commands, or a command its actions."""
    parsers = to.add_subparsers(required=True, metavar=kind)
    for name, told in commands.items():
        command = parsers.add_parser(name, help=told["help"])
        command.set_defaults(command=DOES[name], action=name)
        options = {flag: shared[flag] for flag in told.get("shared", ())} | told.get("options", {})
        for flag, given in options.items():
            command.add_argument(flag, **given | {"type": TYPES[given["type"]]} if "type" in given else given)
        if "actions" in told:
            _add(command, "action", told["actions"], shared)


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
    from mmsr.runs.compare import table

    print(_read(table, *options.runs))


def _read(make: Callable[..., Any], *runs: Any) -> Any:
    """What is made of runs; UsageError where their files cannot be read or paired."""
    with refusing(OSError, ValueError):
        return make(*runs)


def _contrast(options: Options) -> None:
    from mmsr.runs.contrast import contrast

    print(_read(contrast, options.runs, options.to))


def _compare(options: Options) -> int:
    from mmsr.runs.compare import compare

    differences = _read(compare, *options.runs)
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


def _bench(options: Options) -> None:
    if options.steps < 1:
        raise UsageError(f"--steps takes a number from 1 on, not {options.steps}.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {options.out.parent} to write {options.out.name} into: make it first.")
    from mmsr.files import write_json
    from mmsr.gpu.bench import BenchError, bench

    try:
        report = bench(options.model, options.steps)
    except BenchError as error:
        raise RunFailed(str(error)) from error
    if options.out:
        write_json(options.out, report)
    print(f"written to {options.out}" if options.out else json.dumps(report, indent=1, ensure_ascii=False))


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


DOES = {"run": _run, "table": _table, "contrast": _contrast, "compare": _compare, "sft": _train, "grpo": _train}
DOES |= {"ask": _ask, "fit": _fit, "bench": _bench, "serve": _serve}
DOES |= dict.fromkeys(("replay", "export", "import", "stats"), _replay)


if __name__ == "__main__":
    sys.exit(main())
