from pathlib import Path

import pytest
import yaml


@pytest.fixture
def toy_folder(tmp_path, monkeypatch):
    """Work in an empty folder that holds `toy.yaml`."""
    monkeypatch.chdir(tmp_path)
    head = {"class_path": "WideToyHead", "init_args": {"width": 5}}
    config = {
        "model": {"class_path": "Toy", "init_args": {"head": head}},
        "data": {"class_path": "ToyData", "init_args": {"n": 22}},
        "trainer": {"accelerator": "cpu", "max_epochs": 4, "log_every_n_steps": 2, "num_sanity_val_steps": 0},
    }
    Path("toy.yaml").write_text(yaml.safe_dump(config))
    return tmp_path
