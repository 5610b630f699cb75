"""Every YAML under experiments/ is composed, and those with a model are run."""

import itertools
from pathlib import Path

import pytest
import yaml

from foundation.cli import main, run
from foundation.evaluation.study import Study
from tests.foundation.towers import tiny_clip

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
CONTENT = {file: yaml.safe_load(file.read_text()) for file in FILES}
MODELS = [file for file in FILES if "class_path" in CONTENT[file].get("model", {})]
STUDIES = [file for file in FILES if file.parent.name == "studies"]
OVERLAYS = [file for file in FILES if file not in MODELS + STUDIES and "paper" not in file.parts]
QUICK = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def name(file: Path) -> str:
    return str(file.relative_to(ROOT / "experiments"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch

    content = {"state_dict": (model := tiny_clip()).state_dict(), "hyper_parameters": {}}
    model.on_save_checkpoint(content)
    file = tmp_path_factory.mktemp("checkpoint") / "x.ckpt"
    torch.save(content, file)
    return str(file)


@pytest.mark.parametrize("file", MODELS, ids=name)
def test_models_run(file, street_data, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(file), *street_data, *QUICK]
    if "finetune" in file.parts:
        args += ["--model.checkpoint", checkpoint, "--then_test", "false"]
    if "paper" in file.parts:
        args += ["--data.batch_size", "2", "--data.bs.rows", "2", "--data.bs.cols", "2"]
        args += ["--data.ofdm.num_subcarriers", "32"]
    commands = run(args)
    assert any(key.startswith("val/") for key in commands.trainer.callback_metrics)


@pytest.mark.parametrize("file", OVERLAYS, ids=name)
def test_overlays_compose(file, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = "experiments/finetune/los.yaml" if "finetune" in file.parts else "experiments/csiclip.yaml"
    with pytest.raises(SystemExit) as leaving:
        main(["fit", "--config", base, "--config", str(file), "--print_config"])
    assert leaving.value.code == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    for key, value in CONTENT[file].get("data", {}).get("init_args", {}).items():
        if key == "source":
            assert composed["data"]["init_args"]["source"]["class_path"].endswith(value["class_path"])


@pytest.mark.parametrize("file", STUDIES, ids=name)
def test_studies_name_what_exists(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = Study.load(file).commands(Path("runs"))
    assert len({run_id for run_id, _ in commands}) == len(commands)
    for _, args in commands:
        for flag, value in itertools.pairwise(args):
            if flag == "--config":
                assert Path(value).is_file(), value
