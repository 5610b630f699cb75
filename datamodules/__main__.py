"""`python -m datamodules`: makes, lists, checks and draws sites."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from datamodules.errors import DatasetNotFoundError, InputError

if TYPE_CHECKING:
    from datamodules.site import Site
    from datamodules.sources.base import Source


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, 2 for input that cannot be used or sites that are damaged, or 130 when interrupted.
    """
    try:
        options = _parser().parse_args(args)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except KeyboardInterrupt:
        return _say("interrupted: the same command goes on from here", 130)
    except BrokenPipeError:
        # whoever read the list, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        if os.environ.get("CSI_DEBUG"):
            raise
        return _say(f"error: {' '.join(str(error).split())}", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m datamodules", description="Makes, lists, checks and draws sites.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    make = add("make", _make, "make the sites of an experiment's data that are missing")
    make.add_argument("--config", type=Path, action="append", required=True, help="YAML with data.init_args.source")
    make.add_argument("--workers", type=int, help="processes; RAY_ADDRESS=... has a Ray cluster work [one a core]")
    listing = add("ls", _ls, "list the sites in the cache")
    show = add("show", _show, "print statistics of a site")
    verify = add("verify", _verify, "hold every site against its checksum")
    plot = add("plot", _plot, "draw the map and the statistics of a site, or of all sites of an area")
    plot.add_argument("--out", type=Path, required=True, help="picture to write: .png, .pdf or .svg")
    for command in (show, plot):
        command.add_argument("name", help="name of a site or an area, see `ls`")
    for command in (listing, show, verify, plot):
        command.add_argument("--cache", type=Path, help="folder of finished sites [$CSI_CACHE, or data/sites]")
    taken = commands.add_parser(
        "import", add_help=False, help="turn measured CSI in .npy, .npz or .mat into a recording"
    )
    taken.add_argument("rest", nargs=argparse.REMAINDER)
    taken.set_defaults(command=_import)
    return parser


# --- make


def _make(options: argparse.Namespace) -> int:
    from datamodules.factory import build

    failures = build(read_sources(options.config), options.workers)
    for name, problem in failures.items():
        _say(f"error: {name}: {problem}")
    return 2 if failures else 0


def read_sources(files: Sequence[Path]) -> list[Source]:
    """Build the sources that experiment files name at `data.init_args.source`; later files overrule earlier ones.

    Raises:
        InputError: A file is missing or no YAML, none names a source, or a source's arguments cannot be used.
    """
    import yaml

    found: Any = None
    for file in files:
        try:
            content = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetNotFoundError(f"config file {file} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise InputError(f"{file} is no YAML: {error}") from error
        for key in ("data", "init_args", "source"):
            content = content.get(key) if isinstance(content, dict) else None
        if content is not None:
            found = _merge(found, content)
    if found is None:
        raise InputError(f"no data.init_args.source in {', '.join(map(str, files))}: add a file of experiments/data/")
    return [_build(entry) for entry in (found if isinstance(found, list) else [found])]


def _merge(old: Any, new: Any) -> Any:
    """Change arguments where the class stays, as `lightning` does with several --config files."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    if new.get("class_path", old.get("class_path")) != old.get("class_path"):
        return new
    return {**old, **new, "init_args": {**(old.get("init_args") or {}), **(new.get("init_args") or {})}}


def _build(entry: Any) -> Source:
    import jsonargparse

    import datamodules
    from datamodules.sources.base import Source

    for name in datamodules.__all__:
        getattr(datamodules, name)  # bare class names in YAML are those of imported classes
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    try:
        source: Source = parser.instantiate(parser.parse_object({"source": entry})).source
    except InputError:
        raise
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).split("Given value")[0].splitlines()]
        raise InputError(
            f"data.init_args.source: {' '.join(lines)[:400].removeprefix('Parser key "source": ')}"
        ) from error
    return source


# --- what is there


def _folders(options: argparse.Namespace) -> list[Path]:
    cache: Path = options.cache or Path(os.environ.get("CSI_CACHE", "data/sites"))  # as every Source has it
    folders = sorted(file.parent for file in cache.glob("*/site.json") if not file.parent.name.startswith("."))
    if not folders:
        raise DatasetNotFoundError(f"no site in {cache}: make some with `make`, or set --cache")
    return folders


def _matching(options: argparse.Namespace) -> Iterator[tuple[Path, Site]]:
    """Open the sites that bear a name: a site's, its folder's or its area's."""
    from datamodules.site import Site

    found = False
    for folder in _folders(options):
        facts = _facts(folder)
        if options.name in (folder.name, facts.get("name"), facts.get("area")):
            found = True
            yield folder, Site.load(folder)
    if not found:
        raise DatasetNotFoundError(f"no site or area is named {options.name!r}: `ls` lists them")


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "site.json").read_text())
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def _ls(options: argparse.Namespace) -> int:
    rows = [("name", "links", "size", "place", "area", "source")]
    total = 0
    for folder in _folders(options):
        facts, size = _facts(folder), sum(file.stat().st_size for file in folder.iterdir())
        total += size
        source = facts.get("provenance", {}).get("source", "?")
        cells = (facts.get("name", f"{folder.name} (damaged)"), facts.get("num_users", "?"), _bytes(size))
        rows.append((*map(str, cells), str(facts.get("place", "?")), str(facts.get("area", "?")), str(source)))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        print("  ".join(f"{cell:{'>' if i in (1, 2) else ''}{widths[i]}}" for i, cell in enumerate(row)).rstrip())
    print(f"{len(rows) - 1} sites, {_bytes(total)}")
    return 0


def _show(options: argparse.Namespace) -> int:
    for folder, site in _matching(options):
        print(f"{site.name} ({folder})")
        for key, value in _statistics(site).items():
            print(f"  {key:20} {value}")
    return 0


def _statistics(site: Site) -> dict[str, str]:
    """Return what there is to say about a site, in words."""
    from datamodules.paths import Paths

    links, (low, high) = site.links, (site.environment.bounds[:2], site.environment.bounds[2:])
    counts = {key: int((links.los == state).sum()) for key, state in (("los", 1), ("nlos", 0), ("neither", -1))}
    facts = {
        "place, area": f"{site.place}, {site.area}",
        "carrier": f"{site.carrier_frequency / 1e9:g} GHz",
        "base station": f"{_triple(site.bs_position.tolist())} m, turned by {_triple(site.bs_orientation.tolist())} rad",
        "bounds": f"{_triple(low)} to {_triple(high)} m, {len(site.environment.heights)} buildings",
        "links": f"{len(links)}: {counts['los']} in line of sight, {counts['nlos']} not, {counts['neither']} unknown",
    }
    if isinstance(links, Paths) and links.has_path.any():
        served = links[links.has_path]
        weight, delay = served.gain.abs().double().square(), served.delay.double()
        weight = weight / weight.sum(1, keepdim=True)
        mean = (weight * delay).sum(1, keepdim=True)
        spread = (weight * (delay - mean).square()).sum(1).sqrt()
        power = 10 * served.power.double().log10()
        facts |= {
            "links": facts["links"].replace("unknown", "without any path"),
            "paths a link": f"{served.mask.sum(1).double().mean():.1f} on average, {links.num_paths} at most",
            "delay spread": f"{1e9 * spread.median():.1f} ns in the median",
            "power": f"{power.min():.1f} to {power.max():.1f} dB, {power.median():.1f} dB in the median, for 1 W sent",
        }
    labels = {key: value for key, value in site.domain.items() if key != "frequency"}
    return facts | {"domain": json.dumps(labels), "provenance": json.dumps(site.provenance)}


def _triple(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"


def _verify(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from datamodules.site import Site

    damaged = []
    folders = _folders(options)
    for folder in tqdm(folders, desc="verifying", unit="site"):
        try:
            Site.load(folder)
        except InputError as error:
            damaged.append(str(error))
    for line in damaged:
        _say(f"error: {line}")
    print(f"{len(folders) - len(damaged)} of {len(folders)} sites are sound")
    return 2 if damaged else 0


def _plot(options: argparse.Namespace) -> int:
    plots = import_module("datamodules.plots")
    figure = plots.plot_statistics([site for _, site in _matching(options)])
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {options.out}: {error}") from error
    print(options.out)
    return 0


def _import(options: argparse.Namespace) -> int:
    import jsonargparse

    from datamodules.sources.recorded_import import import_recording

    parser = jsonargparse.ArgumentParser(prog="python -m datamodules import", exit_on_error=False)
    parser.add_function_arguments(import_recording, as_positional=True)
    try:
        given = parser.parse_args(options.rest)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{str(error).split('Given value')[0]} (see {parser.prog} --help)") from error
    print(import_recording(**vars(given)))
    return 0


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _say(line: str, status: int = 0) -> int:
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
