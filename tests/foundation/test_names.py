"""Classes by their public names, in checkpoints and in YAML."""

import pytest
import torch
import yaml

from foundation.checkpoint import load_part
from foundation.cli import main
from foundation.names import current_paths
from heads import Positioning


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


def test_weights_of_older_releases_go_by_their_names_of_today(tmp_path) -> None:
    head = Positioning(4, hidden=3, anchors=5)
    weights = {f"head.{key.replace('anchors', 'places')}": value for key, value in head.state_dict().items()}
    assert "head.places" in weights
    entry = {"class": "heads.Positioning", "prefix": "head.", "init_args": {"in_features": 4, "hidden": 3, "places": 5}}
    torch.save({"state_dict": weights, "parts": {"head": entry}}, tmp_path / "old.ckpt")
    with pytest.warns(FutureWarning, match="anchors"):
        loaded = load_part(tmp_path / "old.ckpt", "head")
    assert torch.equal(loaded.anchors, head.anchors)
