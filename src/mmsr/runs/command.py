"""The command line.

    mmsr run 01 02 --preset tiny --name mine -p sft_lr=1e-3
    mmsr --help                                                 # all commands; mmsr run --help for one of them

The commands and their options are in `assets/runs/commands.toml`. A command imports what it needs when it runs.

Exit status: 0; 1 for what failed, differs or does not fit; 2 for a request that cannot be met; 130 if interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsr.runs import RunFailed, UsageError, reason, refusing

COMMANDS = Path(__file__).parents[1] / "assets" / "runs" / "commands.toml"
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
    except OSError as error:  # a full disk, a folder that may not be written, a name that is too long
        where = f"{error.filename}: " if error.filename else ""
        print(f"mmsr: {where}{reason(error)}; mend that, and the same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmmsr: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands and their options; `command` is what runs one, `action` its name."""
    top = argparse.ArgumentParser("mmsr", epilog=__doc__.splitlines()[-1])
    top.description = "Multimodal search agents, end to end."
    commands = tomllib.loads(COMMANDS.read_text(encoding="utf-8"))
    _add(top, "command", commands, commands.pop("shared"))
    return top


def _add(
    to: argparse.ArgumentParser, kind: str, commands: Mapping[str, Any], shared: Mapping[str, Any], of: str = ""
) -> None:
    """Give a parser its commands, or the command `of` its actions."""
    parsers = to.add_subparsers(required=True, metavar=kind)
    for name, told in commands.items():
        command = parsers.add_parser(name, help=told["help"])
        command.set_defaults(command=DOES[of or name], action=name)
        options = {flag: shared[flag] for flag in told.get("shared", ())} | told.get("options", {})
        for flag, given in options.items():
            command.add_argument(flag, **given | {"type": TYPES[given["type"]]} if "type" in given else given)
        if "actions" in told:
            _add(command, "action", told["actions"], shared, name)


def repository() -> Path:
    """The clone that holds the notebooks: here, above, or where the package is. UsageError where there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
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
    from mmsr.runs.compare import table
    from mmsr.runs.runner import run

    folder = run(options.notebooks, options.preset, options.name, options.seed, given, root, options.fresh)
    tries = "\n\nThese sizes only try the path: nothing is learned at them." if "smoke" in options.preset else ""
    print(f"\n{table(folder)}{tries}\n\nFigures: {os.path.relpath(folder / 'figures')}")
    if not options.notebooks:
        _tell_report(folder)


def _report(options: Options) -> None:
    _tell_report(options.run)


def _tell_report(run: Path) -> None:
    from mmsr.runs.report import write_report

    with refusing(OSError, ValueError):
        print(f"Report: {os.path.relpath(write_report(run))}")


def _read(options: Options) -> int:
    """Print what is made of runs; 1 where `compare` finds a difference."""
    from mmsr.runs.compare import compare, contrast, table

    with refusing(OSError, ValueError):  # their files cannot be read or paired
        match options.action:
            case "table":
                found = [table(*options.runs)]
            case "contrast":
                found = [contrast(options.runs, options.to)]
            case _:
                found = compare(*options.runs)
    print("\n".join(found) or "The runs agree.")
    return 1 if options.action == "compare" and found else 0


def _check(options: Options) -> int:
    """Run the reference again; 1 where a digit differs, with what else does."""
    root = repository()
    from mmsr.runs.check import again, misses, surroundings

    here, there = again(options.preset, root)
    if not (found := misses(here, there)):
        print(f"\n{os.path.relpath(here)} agrees with {os.path.relpath(there)} to the last digit.")
        return 0
    print(f"\nDigits of {os.path.relpath(here)} and {os.path.relpath(there)} that differ:", *found, sep="\n  ")
    print("\nSurroundings that differ:", *(surroundings(here, there) or ["none that the manifests show"]), sep="\n  ")
    return 1


def _train(options: Options) -> None:
    given, root = parameters(options.parameters), repository()
    from mmsr.gpu.device import pin

    pin()  # as the notebooks' kernels are: before anything is loaded that computes
    from mmsr.runs.launch import launch

    launch(options.action, options.preset, options.run, options.seed, given, root)


def _ask(options: Options) -> None:
    given = parameters(options.parameters)
    from mmsr.runs.ask import ask, find_agent, read_file, write_html
    from mmsr.task import Task

    agent = find_agent(options.preset, options.run, options.adapter, given)
    task = Task("ask", options.question.strip(), read_file(options.picture), golds=())
    played = ask(agent, task, tell=lambda text: print(text, flush=True))
    if options.html:
        print(f"Page: {write_html(agent, task, played, options.html)}")


def _export(options: Options) -> None:
    from mmsr.runs.export import export

    print(export(options.run, options.to, options.merge))


def _scene(options: Options) -> None:
    if options.out.suffix.lower() not in {".png", ".jpg", ".jpeg"} or not options.out.absolute().parent.is_dir():
        raise UsageError(f"--out takes a picture to write, .png or .jpg in a folder that exists, not {options.out}.")
    from mmsr.world.photo import draw_photo
    from mmsr.world.questions import ABOUT_FLAG
    from mmsr.world.scenes import draw_scene
    from mmsr.world.snapshot import load_world

    world = load_world()
    with refusing(ValueError):
        isos = [world.find(country).iso for country in options.countries]
        scene = (draw_photo if options.photo else draw_scene)(world, isos, options.seed)
    scene.picture.save(options.out)
    print(f"{scene.picture.width}×{scene.picture.height} pixels written to {options.out}. Ask, for example:")
    ways = [words for index in range(len(scene.flags)) for words in scene.references(index, ["position", "size"])]
    for words in ways[:3] or ["in the picture"]:
        question = ABOUT_FLAG["train"][0].format(noun="capital", ref=f"the flag {words}")
        print(f"  mmsr ask {options.out} {question!r}")


def _fit(options: Options) -> int:
    if not 0 < options.gpu_gb < 100_000:
        raise UsageError(f"--gpu-gb takes the memory of a GPU in GB, such as 24, not {options.gpu_gb:g}.")
    given = parameters(options.parameters)
    from mmsr.gpu.cost import told
    from mmsr.gpu.fit import as_table, fit
    from mmsr.live.outside import settings
    from mmsr.runs.parameters import SETTINGS, sort

    with refusing(ValueError):
        asked = sort(given, SETTINGS)
        preset, outside = settings(options.preset, asked.get("sizes"), asked.get("outside"))
        found = fit(preset, options.gpu_gb, given)
        found |= told(replace(preset, **found["settings"]), outside, options.gpu, options.gpu_gb)
    print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else as_table(found, options.gpu_gb))
    return 0 if found["sft"]["fits"] or found["grpo"]["fits"] else 1


def _bench(options: Options) -> None:
    if options.steps < 1:
        raise UsageError(f"--steps takes a number of at least 1, not {options.steps}.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {options.out.parent} to write {options.out.name} into: make it first.")
    from mmsr.files import write_json
    from mmsr.gpu.bench import BenchError, bench

    if options.model not in (("tiny", "layers12") if options.against else ("tiny", "qwen3b", "qwen7b")):
        raise UsageError("--against takes the models tiny and layers12, and layers12 needs --against.")
    if options.against:
        from mmsr.gpu.against import against as bench
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
            told = [f"calls written to {options.jsonl}: {record.export_jsonl(options.record, options.jsonl)}"]
        elif options.action == "import":
            counts = record.import_jsonl(options.record, options.jsonl)
            told = [f"calls added to {options.record}: {counts['added']}, left as they were: {counts['left']}"]
        else:
            found = record.stats(options.record).items()
            told = [f"{name}: " + ", ".join(f"{k} {v:g}" for k, v in counts.items()) for name, counts in found]
    print("\n".join(told))


def _index(options: Options) -> None:
    from mmsr.tools.base import ToolError
    from mmsr.world.own import index_world

    with refusing(ValueError, ToolError):
        world = index_world(options.pages, options.pictures, options.to, options.vectors)
    print(f"{options.to}: {len(world.pages)} pages, {len(world.flags)} pictures by {options.vectors or 'thumbnails'}.")


def _serve(options: Options) -> None:
    from mmsr.live.serve import serve
    from mmsr.tools.base import ToolError
    from mmsr.world.own import open_world

    with refusing(ToolError, ValueError, FileNotFoundError):
        world = open_world(options.world)
        engines = world.text_search(), world.picture_search()
    with (
        refusing(OSError, OverflowError, saying=f"the port {options.port} cannot be used (choose another, or 0)"),
        contextlib.suppress(KeyboardInterrupt),  # the way to end it
    ):
        serve(world, *engines, port=options.port)


DOES = {"run": _run, "report": _report, "check": _check, "ask": _ask, "export": _export, "scene": _scene}
DOES |= {"fit": _fit, "bench": _bench, "serve": _serve, "replay": _replay, "world": _index}
DOES |= dict.fromkeys(("sft", "grpo"), _train)
DOES |= dict.fromkeys(("table", "contrast", "compare"), _read)
