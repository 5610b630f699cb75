from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import yaml

from datamodules.errors import InputError
from foundation.cli import main, run
from foundation.runtime.loggers import Wandb, _host, wandb_key_configured
from foundation.runtime.runs import Run

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    """Work in an empty folder, at a home that holds no key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)


class TestWandb:
    def test_key_is_found_where_wandb_finds_it(self, tmp_path, monkeypatch):
        assert not wandb_key_configured()
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        assert wandb_key_configured()
        monkeypatch.delenv("WANDB_API_KEY")
        (tmp_path / "home").mkdir()
        # as `wandb login` writes it
        wbauth = pytest.importorskip("wandb.sdk.lib.wbauth")
        wbauth.write_netrc_auth(host=_host(), api_key="0" * 40)
        assert wandb_key_configured()
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
        assert not wandb_key_configured()
        wbauth.write_netrc_auth(host="https://wandb.example.org", api_key="0" * 40)
        assert wandb_key_configured()

    def test_online_without_a_key_is_bad_input(self, monkeypatch):
        with pytest.raises(InputError, match="WANDB_API_KEY"):
            Wandb(offline=False)
        with pytest.raises(InputError, match="log_model"):
            Wandb(log_model="all")
        monkeypatch.setenv("WANDB_MODE", "online")
        with pytest.raises(InputError, match="WANDB_MODE is online but no key is configured"):
            Wandb()

    def test_a_server_that_does_not_answer_costs_seconds_and_no_training(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
            monkeypatch.setattr("foundation.runtime.loggers._PATIENCE", 0.2)
            started = time.monotonic()
            logger = Wandb()
            with pytest.warns(UserWarning, match=rf"127.0.0.1:{port} does not answer: offline; upload later"):
                logger.attach(Run(tmp_path, "toy", "1"))
        assert time.monotonic() - started < 5
        assert logger._wandb_init["mode"] == "offline"

    def test_a_key_that_is_refused_costs_no_training(self, tmp_path, monkeypatch):
        import wandb

        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr("foundation.runtime.loggers._responds", lambda _: True)
        opened = wandb.init

        def init(**settings):
            if settings["mode"] == "online":
                raise wandb.errors.AuthenticationError("API key verification failed\nfor host x")
            return opened(**settings)

        monkeypatch.setattr(wandb, "init", init)
        logger = Wandb()
        logger.attach(Run(tmp_path, "toy", "1"))
        with pytest.warns(UserWarning, match=r"wandb: API key verification failed for host x: offline; upload later"):
            logger.log_metrics({"a": 1.0}, step=0)
        logger.close()
        assert len(list((tmp_path / "toy/1/wandb").glob("offline-run-*-toy-1"))) == 1

    def write_config(self):
        config = {
            "model": {"class_path": "Toy", "init_args": {"head": {"class_path": "ToyHead"}}},
            "data": {"class_path": "ToyData", "init_args": {"n": 8}},
            "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
        }
        Path("toy.yaml").write_text(yaml.safe_dump(config))
        return ["fit", "--config", "toy.yaml", "--config", str(REPOSITORY / "experiments/wandb.yaml")]

    def test_offline_run_never_asks_and_stays_in_its_folder(self, tmp_path):
        import tests.foundation.toy  # noqa: F401 - makes the bare class names known

        assert main([*self.write_config(), "--run_id", "1"]) == 0  # pytest lets nobody read from the terminal
        assert len(list(Path("runs/toy/1/wandb").glob("offline-run-*-toy-1"))) == 1
        assert (tmp_path / "runs/toy/1/metrics.csv").exists()  # the CSV file comes first, always
        assert {path.name for path in tmp_path.iterdir()} <= {"runs", "toy.yaml", "home"}

    def test_composed_config_is_logged_and_each_run_has_its_own_record(self):
        import tests.foundation.toy  # noqa: F401 - makes the bare class names known

        arguments = self.write_config()
        first, second = (run([*arguments, "--run_id", name, "--model.lr", "0.2"]).trainer for name in "ab")
        config = first.loggers[1].experiment.config
        assert config["model"]["init_args"]["lr"] == 0.2
        assert config["data"]["init_args"]["n"] == 8
        assert first.loggers[1].version == "toy-a"
        assert second.loggers[1].version == "toy-b"
