"""Dry run of what follows a pre-training, so that what cannot work is refused before it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.errors import InputError
from datamodules.progress import activity
from foundation.cli import guarded, run, user_error

#: one batch of every side, and no file
_TRIED = ["--trainer.fast_dev_run", "1", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
_TRIED += ["--trainer.enable_model_summary", "false"]
#: end of the id of a run, by which runs of one kind differ: number of links, data and seed
_REPEATED = re.compile(r"(-n\d+)?(-@.*?)?(-s\d+)?$")


def build(args: Sequence[str]) -> Any:
    """Build and check model, data and trainer of a command, without files and before any data are made.

    Args:
        args: The command line without the program's name.

    Returns:
        The model.

    Raises:
        InputError: The command cannot work.
    """
    return run([*args, *_TRIED], dry=True).model


def save_untrained(model: Any, file: Path) -> None:
    """Write the checkpoint of a model as its training would, with the weights that it has."""
    import torch

    content = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, file)


def check_followers(commands: Sequence[tuple[Path, list[str]]]) -> None:
    """Build the trainings that start from the checkpoint of an earlier one in a list of runs, one of each kind.

    Args:
        commands: Folder and command line of each run to be made, in order.

    Raises:
        InputError: One cannot work; the message has its folder.
    """
    to_come = {str(folder / "checkpoints" / "best.ckpt"): (folder, args) for folder, args in commands}
    followers: dict[str, tuple[Path, list[str]]] = {}
    for folder, args in commands:
        if args[0] == "fit" and to_come.keys() & set(args):
            followers.setdefault(_REPEATED.sub("", folder.name), (folder, args))
    if not followers:
        return
    untrained: dict[str, str] = {}

    def start(arg: str) -> str:
        """Return an argument, or an untrained checkpoint in the place of one that is yet to be made."""
        if arg in to_come and arg not in untrained:
            file = Path(place, f"{len(untrained)}.ckpt")
            save_untrained(model_of(*to_come[arg]), file)
            untrained[arg] = str(file)
        return untrained.get(arg, arg)

    def model_of(folder: Path, args: list[str]) -> Any:
        try:
            return build([start(arg) for arg in args])
        except Exception as error:
            if isinstance(error, _NamedError) or (line := user_error(error)) is None:
                raise
            for real, file in untrained.items():
                line = line.replace(file, real)
            raise _NamedError(f"{folder} cannot be run: {line}") from error

    with TemporaryDirectory() as place, _quiet(), activity("checking what follows the pre-training"):
        for follower in followers.values():
            model_of(*follower)


class _NamedError(InputError):
    """An error whose message has the folder of the run."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the messages of a run."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def main(args: Sequence[str] | None = None) -> int:
    """Adapt an untrained model for one batch: all that the adaptation of the trained one needs is there, or refused.

    Args:
        args: The --config file of the pre-training, and the options of `lightning fit` of the adaptation.

    Returns:
        The exit status.
    """
    config, *adaptation = sys.argv[1:] if args is None else args

    def work() -> None:
        with TemporaryDirectory() as place, _quiet():
            file = Path(place, f"{Path(config).stem}.ckpt")
            save_untrained(build(["fit", "--config", config]), file)
            run(["fit", *adaptation, "--model.checkpoint", str(file), *_TRIED])

    print("trying the adaptation on one batch, before the pre-training", flush=True)
    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
