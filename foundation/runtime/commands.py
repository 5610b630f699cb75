"""The commands of `lightning`: the command line of Lightning with a folder for every run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import yaml
from filelock import FileLock
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden

from datamodules.config_errors import condense
from datamodules.errors import InputError
from foundation.checkpoint import read_checkpoint
from foundation.runtime.callbacks import PredictionFile, RunSummary, SaveConfig
from foundation.runtime.loggers import Csv, Wandb
from foundation.runtime.parser import Parser, ParserError, check_settings, whole_numbers_first
from foundation.runtime.progress import RunProgress
from foundation.runtime.resume import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ExactResume,
    LastCheckpoint,
    first_step_after,
)
from foundation.runtime.run_choice import check_yaml, choose, config_files, replacing_sources
from foundation.runtime.runs import Run, first_process
from foundation.runtime.stopping import requeue_alone, terminate


class Commands(LightningCLI):
    """`lightning fit|validate|test|predict`.

    Beyond the command line of Lightning: a run folder with config, checkpoints, metrics and summary; `--ckpt_path best`
    and `last`; checkpoints that are read without execution of code in them. A model may have `monitor` and
    `monitor_mode`, which select the best checkpoint, and `describe()`; a datamodule may have `describe()` (see
    `RunSummary`).

    Args:
        args: The command line.
        callbacks: Further callbacks of the trainer.
        dry: Whether model, data and trainer are built and checked only.

    Attributes:
        run: The run, None with `fast_dev_run`, which writes no files.
    """

    run: Run | None = None
    _claim: FileLock | None = None

    def __init__(self, args: list[str], callbacks: Sequence[Callback] = (), dry: bool = False) -> None:
        self._args, self._callbacks, self._dry = args, callbacks, dry
        args = replacing_sources(args)
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
                parser_kwargs={"prog": "lightning"},
                # Optimizers belong to the model, whose checkpoint must be able to rebuild them.
                auto_configure_optimizers=False,
                args=args,
            )
        except BaseException as error:
            self._stop_helpers()
            if note := self._resume_hint():
                error.add_note(note)
            raise
        finally:
            self._close()

    def _close(self) -> None:
        trainer = getattr(self, "trainer", None)
        for logger in trainer.loggers if trainer is not None else []:
            if isinstance(logger, Wandb):
                logger.close()
        if self.run is not None and first_process():
            self.run.release(self._claim)

    def _resume_hint(self) -> str:
        """Return how a stopped run is resumed; empty without a started run."""
        if self.run is None or self.subcommand != "fit" or not (self.run.folder / "config.yaml").exists():
            return ""
        if self.run.latest is None:
            return f"no epoch was finished; the same command with `--run_id {self.run.id}` starts the run over"
        command = f"`--run_id {self.run.id} --ckpt_path last`"
        return f"the same command with {command} goes on after the last finished epoch"

    def _stop_helpers(self) -> None:
        """End the processes started by the launcher of Lightning, which would otherwise wait for this one."""
        trainer = getattr(self, "trainer", None)
        kill = getattr(trainer.strategy.launcher, "kill", None) if trainer is not None else None
        if callable(kill):
            kill(signal.SIGKILL)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run."""
        parser.add_argument("--experiment", type=str | None, help="Name of the experiment [--config's].")
        parser.add_argument("--run_id", type=str | None, help="Name of the run [date, time and seed].")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all experiments.")
        parser.add_argument("--then_test", type=bool, default=False, help="After fit, test the best checkpoint.")
        whole_numbers_first(parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, with the arguments of `Trainer` methods that are no options."""
        commands = LightningCLI.subcommands()
        return {name: skip | {"weights_only", "verbose", "return_predictions"} for name, skip in commands.items()}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":  # the words of Lightning know no runs
                action.help = "Checkpoint, or `last` or `best` of the newest run of the experiment, or of --run_id."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, with errors of one line."""
        check_yaml(self._args)  # names the line of what is no YAML, and a key that stands twice
        try:
            super().parse_arguments(parser, args)
        except ParserError as complaint:
            keys = [action.dest for action in complaint.parser._actions]
            line = condense(str(complaint), config_files(self._args), self._args, keys, _class_names())
            raise InputError(line) from complaint
        command = self.config.subcommand
        check_settings(self.config[command], command)

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint's hyperparameters overrule the configuration, silently, up to the class of
        # the model.
        pass

    def before_instantiate_classes(self) -> None:
        """Find or name the run, and check the checkpoint."""
        config = self.config[self.subcommand]
        self._first_step: int | None = None
        if config.trainer.fast_dev_run:
            return
        command = str(self.subcommand)
        chosen = choose(config, command, config_files(self._args), self._composed)
        self.run, config.ckpt_path = chosen.run, chosen.checkpoint
        config.experiment = self.run.experiment
        if first_process() and (command == "fit" or not self.run.has_result):
            self._claim = self.run.claim()
        if command == "fit":
            self._first_step = 0  # of a run that starts over, the rows go
        if config.ckpt_path is None or "://" in str(config.ckpt_path):
            return
        checkpoint = read_checkpoint(config.ckpt_path)
        _check_class(checkpoint, config)
        if command == "fit" and "optimizer_states" not in checkpoint:
            raise InputError(
                f"{config.ckpt_path} holds weights alone, from which no training goes on: start a new one from them by "
                "--model.start_from"
            )
        if chosen.resumes:
            self._first_step = first_step_after(checkpoint)

    def _composed(self) -> dict[str, Any]:
        """Return the settings of the command as plain data."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        return dict(yaml.safe_load(text))

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a ValueError of a constructor becomes an `InputError`."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException = error
            # jsonargparse wraps what a constructor says; behind an error of our own lies what it has translated
            while cause.__cause__ is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if isinstance(cause, (ValueError, FileNotFoundError)):
                raise InputError(str(cause)) from error
            raise
        tests = self.subcommand == "test" or (self.subcommand == "fit" and self._get(self.config, "then_test"))
        if tests and not is_overridden("test_step", self.model, LightningModule):
            raise InputError(
                f"{type(self.model).__name__} has no test of its own: leave then_test out, and adapt it to a task, by "
                "`make finetune`, whose head is tested"
            )
        if callable(check := getattr(self.model, "check_settings", None)):
            check(self.datamodule, str(self.subcommand))  # before minutes in which data are made
        untrained = self.subcommand != "fit" and self.config[self.subcommand].ckpt_path is None
        if self.run is not None and untrained and any(p.requires_grad for p in self.model.parameters()):
            raise InputError(
                f"`{self.subcommand}` without a checkpoint would use random weights: give --ckpt_path best, for the "
                f"newest run of {self.run.experiment}, or a .ckpt file"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the callbacks and loggers of every run."""
        given = self.config_init[self.subcommand].trainer
        callbacks = [*_listed(given.callbacks), *self._callbacks]
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
            if given.logger in (None, True):
                # what Lightning takes in the end; its own choice comes with a notice about TensorBoard
                kwargs["logger"] = DummyLogger()
            return self._ended_at_once(super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs))
        if given.default_root_dir is None:
            # where Lightning looks for what it has saved on SLURM's signal: not among those of other runs
            kwargs["default_root_dir"] = str(self.run.folder)
        loggers = [logger for logger in _listed(given.logger) if isinstance(logger, Logger)]
        for logger in loggers:
            if isinstance(logger, Wandb):
                logger.attach(self.run, self.model)
        seed = self._get(self.config, "seed_everything")
        callbacks += [*self._run_callbacks(self.run, seed, given.enable_checkpointing is not False)]
        loggers.insert(0, Csv(self.run, self._first_step))
        trainer = super().instantiate_trainer(logger=loggers, callbacks=callbacks, plugins=plugins, **kwargs)
        return self._ended_at_once(trainer)

    @staticmethod
    def _ended_at_once(trainer: Trainer) -> Trainer:
        """Return the trainer, with SIGTERM ending the command immediately and with the exit status of that signal.

        Lightning would defer it to the end of a training batch, call a collective operation within another, and exit
        with status 0. For that, all processes would ask the first one in every step, and wait for their GPUs.
        """
        trainer._signal_connector._sigterm_notifier_fn = terminate  # type: ignore[method-assign, assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        requeue_alone(trainer)
        return trainer

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
        if subcommand == "predict":
            return kwargs | {"return_predictions": False}
        return kwargs | {"verbose": not hasattr(self.model, "table")} if subcommand == "test" else kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if not self._dry:
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Test the best checkpoint, with `--then_test`."""
        if not self._get(self.config, "then_test"):
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        listed = not hasattr(self.model, "table")  # else it has a table of its own, see `RunSummary`
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, weights_only=True, verbose=listed)


def _check_class(checkpoint: dict[str, Any], config: Any) -> None:
    written = str(checkpoint.get("hyper_parameters", {}).get("_class_path", "")).rsplit(".", 1)[-1]
    asked = str(config.model.class_path).rsplit(".", 1)[-1]
    if written and written != asked:
        raise InputError(f"checkpoint {config.ckpt_path} is of a {written}, but the configured model is a {asked}")


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
