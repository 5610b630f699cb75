"""The `lightning` program: models, data and heads on the command line, with errors of invalid input in one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from foundation.runtime.commands import Commands

_HELP = """\
usage: lightning COMMAND --config FILE [--config FILE ...] [--KEY VALUE ...]

commands:
  fit        train a model
  validate   score a checkpoint on the validation data
  test       score a checkpoint on the test data
  predict    write features and predictions to predictions.safetensors
  export     CKPT --to onnx|safetensors [--part NAME] [--out FOLDER]: take the model away

Every run has a folder runs/<experiment>/<run id>/ with config.yaml, checkpoints/, metrics.csv, summary.json and plots/.
Later --config files overrule earlier ones, and options such as --trainer.max_epochs 5 overrule both.

  --experiment NAME     first part of the folder [name of the --config with the model]
  --run_id NAME         second part of the folder [date, time and seed]
  --runs FOLDER         folder of all experiments [runs]
  --ckpt_path FILE      a checkpoint, or `last` or `best` of the newest run of the experiment; `fit --ckpt_path last`
                        goes on where that run was stopped
  --then_test true      after fit, test the best checkpoint
  --print_config        print the composed configuration

  lightning COMMAND --help                all keys of a command
  lightning COMMAND --model.help CLASS    keys of a model; --data.help CLASS likewise

Set CSI_DEBUG=1 to see the traceback behind an error.
"""

_COMMANDS = ("fit", "validate", "test", "predict")

#: repeated warnings of libraries that do not apply, each with the reason
_NOISE = (
    # Rows are fetched by the batch and channels are made on the device; workers are a choice, not an oversight.
    r"The '.*_dataloader' does not have many workers",
    # Under the command line a checkpoint holds the class path and arguments of a module, not the module.
    r"Attribute '.*' is an instance of `nn.Module` and is already saved during checkpointing",
    # A resumed run goes on in its folder, on purpose.
    r"Checkpoint directory .* exists and is not empty",
    # Short epochs of small data sets still log their epoch's metrics.
    r"The number of training batches .* is smaller than the logging interval",
    # A frozen encoder is kept in eval mode while its head trains.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A classical predictor learns nothing, and has no optimizer.
    r"`training_step` returned `None`",
    r"`LightningModule.configure_optimizers` returned `None`",
    # `main` takes a list of arguments, so that tests and notebooks can call it.
    r"LightningCLI's args parameter is intended to run from within Python",
    # Evaluation over several processes: the datamodule shards without repeating rows, which this asks to check.
    r"Using `DistributedSampler` with the dataloaders",
    # NumPy notices, on import, that denormals are flushed to zero: see `run`.
    r"The value of the smallest subnormal for .* type is zero",
    # The datamodule goes on with the links that an interrupted epoch has not had, which Lightning asks of its loader.
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # Lightning 2.6 asks newer PyTorch the old way, in a place that is not ours.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
_CHATTER = (
    "💡 Tip:",
    "You are using a CUDA device",
    "TPU available",
    "HPU available",
    "\nDetected KeyboardInterrupt",
    "Restored all states",
    "The following callbacks returned in `LightningModule.configure_callbacks`",
)


def main(args: list[str] | None = None, callbacks: Sequence[Callback] = (), raises: bool = False) -> int:
    """Run the program.

    Args:
        args: The command line without the program's name; by default that of the process.
        callbacks: Callbacks of the trainer in addition to those of the command line.
        raises: Whether errors are raised rather than printed; see `user_error`.

    Returns:
        The exit status: 0, 2 for invalid input, 1 when another process of the run has ended, 130 when interrupted, or
        143 when terminated.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")  # without the seconds that importing torch takes
        return 0
    if args[0] == "--version":
        print(f"csi-foundation {importlib.metadata.version('csi-foundation')}")
        return 0
    if args[0].startswith("-"):
        first = f"give one of {', '.join(_COMMANDS)}, export first"
        return _report(f"error: '{args[0]}' comes before the command: {first}", 2)
    if args[0] not in (*_COMMANDS, "export"):
        return _report(f"error: unknown command '{args[0]}': must be one of {', '.join(_COMMANDS)}, export", 2)

    def work() -> None:
        if args[0] == "export":
            from datamodules.progress import activity

            _filter_messages()
            with activity("loading PyTorch"):
                from foundation.export import command

            command.main(args[1:])
        else:
            run(args, callbacks)

    return guarded(work, raises)


def guarded(work: Callable[[], object], raises: bool = False) -> int:
    """Return the exit status of work that may be stopped or find invalid input, which is one line; see `main`.

    Args:
        work: The work.
        raises: Whether errors are raised rather than printed; see `user_error`.
    """
    from foundation.runtime.stopping import INTERRUPTED, TERMINATED, Terminated, ended_by_sigterm, resume_hint

    try:
        with ended_by_sigterm():
            work()
    except Terminated as leaving:
        return _report(f"terminated{resume_hint(leaving)}", TERMINATED)
    except KeyboardInterrupt as leaving:
        return _report(f"interrupted{resume_hint(leaving)}", INTERRUPTED)
    except SystemExit as leaving:
        # Lightning turns Ctrl-C during a run into this, after an orderly shutdown.
        if isinstance(leaving.__context__, KeyboardInterrupt):
            return _report(f"interrupted{resume_hint(leaving)}", INTERRUPTED)
        raise
    except Exception as error:
        if raises or os.environ.get("CSI_DEBUG"):
            raise
        if _lost_connection(error):
            return _report(f"error: another process of this run is gone{resume_hint(error)}", 1)
        line = user_error(error)
        if line is None:
            raise
        return _report(f"error: {line}", 2)
    return 0


def run(args: list[str], callbacks: Sequence[Callback] = (), dry: bool = False) -> Commands:
    """Run a command and return what it built; errors are exceptions.

    Args:
        args: The command line without the program's name.
        callbacks: Callbacks of the trainer in addition to those of the command line.
        dry: Whether model, data and trainer are built and checked only.
    """
    from datamodules.progress import activity

    _filter_messages()
    # Before torch loads OpenMP: spinning threads slow each other down when another program uses a core (a forward pass
    # of 64 links on two cores, one of them busy: 120 to 560 ms instead of 35). Spinning for some microseconds, which
    # only GNU's OpenMP supports, is faster: a step of the two-tower takes 175 ms on two free cores instead of 254, and
    # 357 instead of 320 with one of them busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    with activity("loading PyTorch"):
        import torch

        # Trained networks contain many denormals, which make convolutions on the CPU ten times as slow. Before any
        # other work, since threads inherit the setting when they start.
        torch.set_flush_denormal(True)
        # No TF32 for matrix products: it keeps 10 bits, and would round channels and labels as they are made (complex
        # products too), distances and contrastive logits. --trainer.precision bf16-mixed reaches networks alone;
        # their convolutions use TF32 as they are.
        torch.set_float32_matmul_precision("highest")
        from foundation.runtime.commands import Commands

        for package in ("foundation", "datamodules", "heads"):
            # Bare class names in YAML refer to imported classes.
            module = importlib.import_module(package)
            for name in getattr(module, "__all__", ()):
                getattr(module, name)
    return Commands(args, callbacks, dry)


def _filter_messages() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_informative)


def _is_informative(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)


def _lost_connection(error: Exception) -> bool:
    """Return whether a collective operation failed because another process of the run has ended."""
    import torch

    lost = ("by peer", "Connection refused", "Broken pipe", "remote process exited")
    if not torch.distributed.is_available() or not isinstance(error, (torch.distributed.DistError, RuntimeError)):
        return False
    return any(words in str(error) for words in lost)


def user_error(error: Exception) -> str | None:
    """Return the message of an error that the user can resolve, None for a bug."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from datamodules.errors import remedied

    text = " ".join(str(error).split())
    if line := remedied(error):
        return line
    if isinstance(error, MisconfigurationException):
        return f"{text} Set trainer.accelerator to auto or cpu" if text.endswith("backend found!") else text
    if _is_of_lightning(error):
        return " ".join(str(error.args[0]).split()) if error.args else None
    if isinstance(error, ValueError) and text.startswith("Expected more than 1 value per channel when training"):
        return (
            "batch normalisation cannot learn from a batch of one link: give a larger data.batch_size or more training "
            "links, or choose `norm: group` where the encoder has it"
        )
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict for "):
        problems = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first = problems[0] if len(problems[0]) < 300 else f"{problems[0][:297]}..."
        return f"the checkpoint does not fit the configured model: {first}{more}"
    return None


def _is_of_lightning(error: Exception) -> bool:
    """Return whether Lightning has raised an error on purpose, as of a setting of its trainer or of a callback."""
    if not isinstance(error, ValueError | TypeError | RuntimeError | KeyError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "/lightning/" in frames[-1].filename and str(frames[-1].line).startswith("raise ")


def _report(line: str, status: int) -> int:
    from foundation.runtime.runs import rank

    if rank() == 0:
        print(line, file=sys.stderr)
    return status
