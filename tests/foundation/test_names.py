"""Classes by their public names, in checkpoints and in YAML."""

import pytest
import yaml

from foundation.cli import main
from foundation.names import current_paths


def test_class_paths_of_any_nesting_become_public_names() -> None:
    old = {"class_path": "heads.old.LOS", "init_args": {"a": [{"class_path": "torch.nn.Linear"}, "heads.old.LOS"]}}
    assert current_paths(old) == {
        "class_path": "heads.LOS", "init_args": {"a": [{"class_path": "torch.nn.Linear"}, "heads.old.LOS"]},
    }  # fmt: skip


def test_a_config_of_before_a_move_is_read(tmp_path, capsys) -> None:
    file = tmp_path / "config.yaml"
    tower = {"class_path": "foundation.resnet.ResNet", "init_args": {"width": 0.25}}
    source = {"class_path": "datamodules.sources.sionna_rt.SionnaRT", "init_args": {"scene": "etoile"}}
    settings = {
        "model": {
            "class_path": "foundation.csiclip.CSICLIP",
            "init_args": {"csi_encoder": tower, "cir_encoder": tower},
        },
        "data": {"class_path": "datamodules.channel_module.ChannelDataModule", "init_args": {"source": [source]}},
    }
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as leaving:
        main(["fit", "--config", str(file), "--print_config"])
    assert leaving.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"].endswith(".CSICLIP")
    assert config["model"]["init_args"]["csi_encoder"]["init_args"]["width"] == 0.25
    assert config["data"]["init_args"]["source"][0]["init_args"]["scene"] == "etoile"
