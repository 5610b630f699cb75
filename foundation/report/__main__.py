"""`make report`: one HTML page that compares runs, to open in any browser, offline."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files import write_whole
from foundation.report.page import build


def main(args: list[str] | None = None) -> int:
    """Write the page.

    Args:
        args: The command line, without the program's name.

    Returns:
        The exit status: 0, or 2 if there is no run or the page cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m foundation.report", description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs: of all, of an experiment, of a run [runs]")
    parser.add_argument("--out", type=Path, help="the file [report.html in the first folder]")
    given = parser.parse_args(args)
    folders = given.runs or [Path("runs")]
    out = given.out or folders[0] / "report.html"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            page = build(folders)
        for line in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
            print(f"warning: {line}", file=sys.stderr)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        write_whole(out, page)
    except OSError as error:
        print(f"error: {out} cannot be written ({error.strerror}): give another --out", file=sys.stderr)
        return 2
    print(f"report: {out} ({len(page) / 1e6:.1f} MB), to open in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
