"""The commands behind `lightning`: Lightning's command line, with a folder of its own for every run."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO

from datamodules.errors import InputError
from foundation.callbacks import PredictionFile, RunSummary, SaveConfig
from foundation.checkpoint import read_checkpoint
from foundation.complaints import condense
from foundation.loggers import Csv, Wandb
from foundation.progress import RunProgress
from foundation.resume import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ExactResume,
    LastCheckpoint,
    first_step_after,
)
from foundation.runs import CHECKPOINTS, Run


class Parser(LightningArgumentParser):
    """Raises `InputError` with one line where jsonargparse prints many and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the input."""
        if not self.exit_on_error:
            # The parser of one nested class: the outer ones add their keys to the message. Which keys it knows is
            # only known here.
            if "is not accepted" in message or "does not accept option" in message:
                message += f" (known: {', '.join(action.dest for action in self._actions)})"
            super().error(message, ex)
        raise _ParserComplaint(message, getattr(ex, "subcommand_parser", None) or self)


class _ParserComplaint(Exception):
    def __init__(self, message: str, parser: Parser) -> None:
        super().__init__(message)
        self.parser = parser


class Commands(LightningCLI):
    """`lightning fit|validate|test|predict`.

    Beyond Lightning's: a run folder with config, checkpoints, metrics and summary; `--ckpt_path best` and `last` across
    processes; checkpoints that are read without running code from them. A model may have `monitor` and `monitor_mode`,
    which pick the best checkpoint, and `describe()`; a datamodule may have `describe()` (see `RunSummary`).

    Args:
        args: The command line.

    Attributes:
        run: The run, None under `fast_dev_run`, which leaves nothing on disk.
    """

    run: Run | None = None

    def __init__(self, args: list[str]) -> None:
        self._args = args
        args = _replacing_sources(args)
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                # Shards are made by the datamodule: Lightning's sampler pads the last batch of a rank with copies.
                trainer_defaults={"use_distributed_sampler": False},
                seed_everything_default=0,
                parser_class=Parser,
                # Optimizers belong to the model, whose checkpoint must be able to rebuild them.
                auto_configure_optimizers=False,
                args=args,
            )
        except BaseException:
            self._stop_helpers()
            raise
        finally:
            self._close()

    def _close(self) -> None:
        trainer = getattr(self, "trainer", None)
        for logger in trainer.loggers if trainer is not None else []:
            if isinstance(logger, Wandb):
                logger.close()
        if self.run is not None:
            self.run.discard_if_empty()

    def _stop_helpers(self) -> None:
        """End the processes that Lightning's launcher started: they would wait for this one, then say it is gone."""
        trainer = getattr(self, "trainer", None)
        kill = getattr(trainer.strategy.launcher, "kill", None) if trainer is not None else None
        if callable(kill):
            kill(signal.SIGKILL)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that takes no abbreviated option: a misspelt one must not pass for another."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of a run."""
        parser.add_argument("--experiment", type=str | None, help="Name of the experiment [--config's].")
        parser.add_argument("--run_id", type=str | None, help="Name of the run [date, time and seed].")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all experiments.")
        parser.add_argument("--then_test", type=bool, default=False, help="After fit, test the best checkpoint.")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """List the commands and the arguments of `Trainer` that are no keys: the four share all their keys."""
        commands = LightningCLI.subcommands()
        return {name: skip | {"weights_only", "verbose", "return_predictions"} for name, skip in commands.items()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and complain in one line."""
        try:
            super().parse_arguments(parser, args)
        except _ParserComplaint as complaint:
            keys = [action.dest for action in complaint.parser._actions]
            line = condense(str(complaint), _config_files(self._args), self._args, keys, _class_names())
            raise InputError(line) from complaint

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint's hyperparameters overrule the configuration, silently, up to the class of
        # the model.
        pass

    def before_instantiate_classes(self) -> None:
        """Find or name the run, and check the checkpoint."""
        config = self.config[self.subcommand]
        if not isinstance(config.trainer, Namespace):
            raise InputError(f"'trainer' must be a mapping or a file, got '{config.trainer}'")
        self._resumed_step: int | None = None
        if config.trainer.fast_dev_run:
            return
        self.run, config.ckpt_path = _locate(config, self.subcommand, _config_files(self._args))
        config.experiment = self.run.experiment
        if config.ckpt_path is None or "://" in str(config.ckpt_path):
            return
        checkpoint = read_checkpoint(config.ckpt_path)
        _check_class(checkpoint, config)
        if self.subcommand == "fit" and self.run.folder in Path(config.ckpt_path).parents:
            self._resumed_step = first_step_after(checkpoint)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a value that a constructor refuses is bad input."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # jsonargparse wraps what a constructor says
                cause = cause.__cause__
            if isinstance(cause, (ValueError, FileNotFoundError)):
                raise InputError(str(cause)) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with what every run has."""
        given = self.config_init[self.subcommand].trainer
        callbacks = _listed(given.callbacks)
        plugins = _listed(given.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        if given.sync_batchnorm and not (given.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()):
            given.sync_batchnorm = False  # PyTorch has no synchronised batch normalisation on the CPU
        if given.devices == "auto" and "LOCAL_WORLD_SIZE" in os.environ and not torch.cuda.is_available():
            # torchrun has said how many processes there are; on a CPU `auto` would say one
            given.devices = int(os.environ["LOCAL_WORLD_SIZE"])
        if given.enable_progress_bar is not False and not any(isinstance(bar, ProgressBar) for bar in callbacks):
            callbacks.append(RunProgress())
        # The composed config is logged instead of the model's share of it.
        self.model._log_hyperparams = False
        if self.run is None:
            return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        loggers = [logger for logger in _listed(given.logger) if isinstance(logger, Logger)]
        for logger in loggers:
            if isinstance(logger, Wandb):
                logger.attach(self.run)
        seed = self._get(self.config, "seed_everything")
        callbacks += [*self._run_callbacks(self.run, seed, given.enable_checkpointing is not False)]
        return super().instantiate_trainer(
            logger=[Csv(self.run, self._resumed_step), *loggers], callbacks=callbacks, plugins=plugins, **kwargs
        )

    def _run_callbacks(self, run: Run, seed: int | bool, checkpoints: bool) -> Iterable[Callback]:
        config = self.config[self.subcommand]
        yield SaveConfig(self._parser(self.subcommand), config, run, str(self.subcommand))
        yield ExactResume(seed)
        yield RunSummary(run, None if seed is False else seed)
        if self.subcommand == "predict":
            yield PredictionFile(run)
        if checkpoints:
            monitor, mode = getattr(self.model, "monitor", None), getattr(self.model, "monitor_mode", "min")
            yield BestCheckpoint(run, monitor, mode)
            yield LastCheckpoint(run)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs

    def after_fit(self) -> None:
        """Test the best checkpoint, if asked to."""
        if not self._get(self.config, "then_test"):
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, weights_only=True)


def _locate(config: Any, command: str | None, files: list[Path]) -> tuple[Run, str | None]:
    """Find the run that a command goes on with, or name a new one; and the path of its checkpoint."""
    root, wanted = Path(config.runs), config.ckpt_path
    experiment, run_id = config.experiment, config.run_id
    file = _first_with_model(files)
    config_of = Run.of(file) if file else None
    if experiment is None:
        experiment = file.stem if file else str(config.model.class_path).rsplit(".", 1)[-1].lower()
    if wanted in CHECKPOINTS:
        if config_of is not None and run_id is None:
            # The config of a run names that run, not the newest.
            root, experiment, run_id = config_of.root, config_of.experiment, config_of.id
        run = Run.newest(root, experiment, wanted, run_id)
        return run, str(run.checkpoint(wanted))
    owner = Run.of(wanted) if wanted else None
    if owner is not None and config.experiment in (None, owner.experiment) and run_id in (None, owner.id):
        # Training goes on in place only from where it stopped; any other checkpoint starts a new run.
        if command != "fit" or Path(wanted) == owner.checkpoint("last"):
            return owner, str(wanted)
    return Run.new(root, experiment, config.seed_everything, run_id), None if wanted is None else str(wanted)


def _check_class(checkpoint: dict[str, Any], config: Any) -> None:
    written = str(checkpoint.get("hyper_parameters", {}).get("_class_path", "")).rsplit(".", 1)[-1]
    asked = str(config.model.class_path).rsplit(".", 1)[-1]
    if written and written != asked:
        raise InputError(f"checkpoint {config.ckpt_path} is of a {written}, but the configured model is a {asked}")


def _config_files(args: list[str]) -> list[Path]:
    """Return the --config files, in order, also of a command line that does not parse."""
    pairs = itertools.pairwise([*args, ""])
    given = [value if flag in ("-c", "--config") else flag.partition("--config=")[2] for flag, value in pairs]
    return [Path(file) for file in given if file]


def _replacing_sources(args: list[str]) -> list[str]:
    """Let a later --config that names a source replace that of an earlier one, arguments and all.

    Otherwise the arguments that both classes know would stay: one city with the window and the carrier of another.
    """
    replaced: list[str] = []
    named = False
    for flag, value in itertools.pairwise([*args, ""]):
        file = value if flag in ("-c", "--config") else flag.partition("--config=")[2]
        if file and _names_source(Path(file)):
            if named:
                replaced.append("--data.source=[]")
            named = True
        replaced.append(flag)
    return replaced


def _names_source(file: Path) -> bool:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # the parser says what is wrong with it
    for key in ("data", "init_args", "source"):
        content = content.get(key) if isinstance(content, dict) else None
    return isinstance(content, list) or (isinstance(content, dict) and "class_path" in content)


def _first_with_model(files: list[Path]) -> Path | None:
    for file in files:
        if "model" in (yaml.safe_load(file.read_text()) or {}):
            return file
    return files[0] if files else None


def _class_names() -> set[str]:
    packages = [sys.modules.get(name) for name in ("foundation", "datamodules", "heads")]
    public = {name for package in packages for name in getattr(package, "__all__", ())}
    waiting: list[type] = [LightningModule, LightningDataModule, Callback, Logger]
    while waiting:
        subclasses: list[type] = waiting.pop().__subclasses__()
        waiting += subclasses
        public |= {subclass.__name__ for subclass in subclasses}
    return {name for name in public if not name.startswith("_")}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
