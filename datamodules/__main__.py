"""`python -m datamodules`: makes, lists, checks and draws sites."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from datamodules.errors import NEGATIVE_NUMBER, InputError, remedied
from datamodules.sites import inventory as listing

if TYPE_CHECKING:
    from datamodules.sources.base import Source


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(args: list[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, 2 for input that cannot be used or sites that are damaged, or 130 when interrupted.
    """
    args = sys.argv[1:] if args is None else args
    try:
        if args[:1] == ["import"]:
            return _import(args[1:])
        options = _parser().parse_args(args)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except KeyboardInterrupt:
        return _print_error("interrupted: the same command goes on from here", 130)
    except BrokenPipeError:
        # the reader of the list, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = remedied(error)
        if line is None or os.environ.get("CSI_DEBUG"):
            raise
        return _print_error(f"error: {line}", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m datamodules", description="Makes, lists, checks and draws sites.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    make = add("make", _make, "make the sites of an experiment's data that are missing")
    make.add_argument("--config", type=Path, action="append", required=True, help="YAML with data.init_args.source")
    make.add_argument(
        "--workers", type=int, help="number of processes, or RAY_ADDRESS=... for a Ray cluster [one for each core]"
    )
    listing = add("ls", _ls, "list the sites in the cache")
    show = add("show", _show, "print statistics of a site")
    verify = add("verify", _verify, "verify the checksum of every site")
    plot = add("plot", _plot, "draw the map and the statistics of a site, or of all sites of an area")
    plot.add_argument("--out", type=Path, required=True, help="picture to write: .png, .pdf or .svg")
    amplitudes = add("amplitudes", _amplitudes, "draw amplitudes over scenarios and downtilts, with fits and mismatch")
    amplitudes.add_argument("--out", type=Path, required=True, help="picture to write: .png, .pdf or .svg")
    amplitudes.add_argument("name", nargs="+", help="names of sites or areas, see `ls`")
    for command in (show, plot):
        command.add_argument("name", help="name of a site or an area, see `ls`")
    for command in (listing, show, verify, plot, amplitudes):
        command.add_argument("--cache", type=Path, help="folder of finished sites [$CSI_CACHE, or data/sites]")
    taken = commands.add_parser(
        "import", add_help=False, help="convert measured CSI in .npy, .npz or .mat to a recording"
    )
    taken.add_argument("rest", nargs=argparse.REMAINDER)
    taken.set_defaults(command=_import)
    example = add("example", _example, "write a small simulated recording for experiments/data/recorded.yaml")
    example.add_argument("--out", help="folder to write it to [$CSI_DATA/recorded, or data/recorded]")
    return parser


# --- make


def _make(options: argparse.Namespace) -> int:
    from datamodules.sources.build import build

    failures = build(read_sources(options.config), options.workers)
    for name, problem in failures.items():
        _print_error(f"error: {name}: {problem}")
    return 2 if failures else 0


def read_sources(files: Sequence[Path]) -> list[Source]:
    """Build the sources that experiment files name at `data.init_args.source`; later files overrule earlier ones.

    Raises:
        InputError: A file is missing or no YAML, none names a source, or a source's arguments cannot be used.
    """
    from datamodules.yaml_file import read_yaml

    found: Any = None
    for file in files:
        content: Any = read_yaml(file)
        for key in ("data", "init_args", "source"):
            content = content.get(key) if isinstance(content, dict) else None
        if content is not None:
            found = _merge(found, content)
    if found is None:
        raise InputError(f"no data.init_args.source in {', '.join(map(str, files))}: add a file of experiments/data/")
    return [_build(entry, files) for entry in (found if isinstance(found, list) else [found])]


def _merge(old: Any, new: Any) -> Any:
    """Replace a source by one with a class, otherwise change its arguments, as `lightning` does."""
    if not isinstance(old, dict) or not isinstance(new, dict) or "class_path" in new:
        return new
    return {**old, **new, "init_args": {**(old.get("init_args") or {}), **(new.get("init_args") or {})}}


def _build(entry: Any, files: Sequence[Path]) -> Source:
    import jsonargparse

    import datamodules
    from datamodules.config_errors import condense, with_known
    from datamodules.sources.base import Source

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(with_known(message, self), ex)
            raise AssertionError("a parser of exit_on_error=False raises")

    for name in datamodules.__all__:
        getattr(datamodules, name)  # bare class names in YAML refer to imported classes
    parser = Parser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    try:
        source: Source = parser.instantiate(parser.parse_object({"source": entry})).source
    except InputError:
        raise
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        # as `lightning` says it of the same files
        raise InputError(condense(f'Parser key "data":\n{error}', files, (), (), datamodules.__all__)) from error
    return source


# --- the cache


def _ls(options: argparse.Namespace) -> int:
    folders = listing.folders(options.cache)
    rows = [("name", "links", "size", "city", "area", "source"), *map(listing.row, folders)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{'>' if i in (1, 2) else ''}{widths[i]}}" for i, cell in enumerate(row)).rstrip())
    print(f"{len(folders)} sites, {listing.in_bytes(sum(map(listing.size, folders)))}")
    return 0


def _show(options: argparse.Namespace) -> int:
    for folder, site in listing.matching(options.cache, options.name):
        print(f"{site.name} ({folder})")
        _print_facts(listing.statistics(site))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from datamodules.progress import Progress
    from datamodules.sites.site import Site

    damaged = []
    folders = listing.folders(options.cache)
    with Progress(len(folders), "verifying", "site") as progress:
        for folder in folders:
            try:
                Site.load(folder)
            except InputError as error:
                damaged.append(str(error))
            progress.update()
    for line in damaged:
        _print_error(f"error: {line}")
    print(f"{len(folders) - len(damaged)} of {len(folders)} sites are intact")
    return 2 if damaged else 0


def _plot(options: argparse.Namespace) -> int:
    plots = import_module("datamodules.plots.figures")
    figure = plots.plot_statistics([site for _, site in listing.matching(options.cache, options.name)])
    return _save(figure, options)


def _amplitudes(options: argparse.Namespace) -> int:
    plots = import_module("datamodules.plots.amplitudes")
    sites = [site for name in options.name for _, site in listing.matching(options.cache, name)]
    return _save(plots.plot_amplitudes(sites), options)


def _save(figure: Any, options: argparse.Namespace) -> int:
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {options.out}: {error}") from error
    print(options.out)
    return 0


def _import(args: list[str]) -> int:
    import jsonargparse

    from datamodules.sources.recorded.importing import import_recording

    parser = jsonargparse.ArgumentParser(prog="python -m datamodules import", exit_on_error=False, allow_abbrev=False)
    parser._negative_number_matcher = NEGATIVE_NUMBER
    parser.add_function_arguments(import_recording, as_positional=True)
    try:
        given = parser.parse_args(args)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{str(error).split('Given value')[0]} (see {parser.prog} --help)") from error
    return _print_recording(import_recording(**vars(given)))


def _example(options: argparse.Namespace) -> int:
    from datamodules.sources.base import data_root
    from datamodules.sources.recorded.example import write_example

    return _print_recording(write_example(data_root("recorded", options.out)))


def _print_recording(file: Path) -> int:
    """Print the content of a recording."""
    from datamodules.sources.recorded.file import read_recording
    from datamodules.sources.recorded.report import report

    recording, facts = read_recording(file)
    print(file)
    words = report(recording, facts["carrier_frequency"])
    dropped = facts.get("dropped_subcarriers")
    if dropped:
        words["dropped"] = f"{len(dropped)} null subcarriers: {', '.join(map(str, dropped))}"
    _print_facts(words)
    return 0


def _print_facts(words: dict[str, str]) -> None:
    for key, value in words.items():
        print(f"  {key:20} {value}")


def _print_error(line: str, status: int = 0) -> int:
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
