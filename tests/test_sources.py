"""Every YAML of data is trained on: its own data, in small."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import DatasetNotFoundError
from datamodules.export.waird import write_waird
from datamodules.sources.recorded.importing import import_recording
from foundation.cli import run
from tests.data.deepmimo.data import write_scenario
from tests.datamodules.export.test_waird import random_area
from tests.datamodules.rays import random_site
from tests.datamodules.sources.deepmimo.test_deepmimo_v3 import write_v3
from tests.raytracing import skip_without_sionna

ROOT = Path(__file__).parents[1]
PROTOCOLS = ("contwin_table3", "contwin_table5", "csi4cast", "lwm")  # data of papers that stand alone
FILES = sorted((ROOT / "experiments" / "data").rglob("*.yaml"))
FILES += [ROOT / "experiments" / "paper" / f"data_{name}.yaml" for name in PROTOCOLS]
MODEL = [
    "--model.csi_encoder.width", "0.25", "--model.cir_encoder.width", "0.25",
    "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    "--data.batch_size", "16", "--data.block", "5.0",
]  # fmt: skip
#: what CSI-CLIP, whose towers read single channels, changes of a YAML's data, and what the catalogue does with the
#: scenarios that are written below
CHANGED = {
    "catalogue": ["--data.source.missing", "skip"],
    "data_contwin_table5": ["--data.sequence", "null"],
    "data_csi4cast": ["--data.sequence", "null"],
    "munich_sequences": ["--data.sequence", "null"],
    "prediction": ["--data.sequence", "null"],
    "twins_calibration": ["--data.group", "null", "--data.variants", "null"],
}
#: settings of sources that make their data small
CAPS = {"num_users": 100, "samples": 10000, "sequences": 20, "links": 20, "areas_per_city": 2, "areas_per_place": 2}
#: a city is read and traced, which takes up to half a minute
TRACED = ("areas", "etoile", "munich", "munich_ahead", "munich_sequences", "twins", "twins_calibration")
TRACED += ("area", "twins_feedback")
#: many models are drawn from, which takes a quarter of one
DRAWN = ("data_contwin_table3", "data_contwin_table5", "data_csi4cast", "prediction")


def reduced(settings):
    """Return settings with every number of `CAPS`, also of a list, capped."""
    if isinstance(settings, list):
        return [reduced(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {key: capped(value, CAPS[key]) if key in CAPS else reduced(value) for key, value in settings.items()}


def capped(value, most):
    return [min(one, most) for one in value] if isinstance(value, list) else min(value, most)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder like that of CSI_DATA, each source in its own layout."""
    root = tmp_path_factory.mktemp("data")
    for seed, scenario in enumerate(("city_0_newyork_3p5", "city_1_losangeles_3p5")):
        write_scenario(root / "deepmimo", scenario, num_users=120, seed=seed)
    for scenario in ("city_11_santaclara", "city_12_fortworth", "city_15_indianapolis", "city_19_oklahoma"):
        write_v3(root / "deepmimo_v3", f"{scenario}_3p5", num_users=80, num_base_stations=3)
    # on both sides of the area by which waird.yaml parts training and test
    write_waird([random_area(seed, 2, 40, 6.0) for seed in range(5)], root / "waird", first_id=999)
    site = random_site(num_users=80)
    csi = synthesize(site.paths, Array(1, 32), Array(), OFDM(64, 10e6))
    np.savez(root / "measured.npz", csi=csi.numpy(), position=site.paths.position.numpy())
    import_recording(
        str(root / "measured.npz"), str(root / "recorded" / "measured.safetensors"), axes="U R T K",
        carrier_frequency=3.5e9, bandwidth=10e6, position="position",
    )  # fmt: skip
    return root


def fit(file, data, tmp_path, monkeypatch, *more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSI_DATA", str(data))
    monkeypatch.setenv("CSI_CACHE", str(tmp_path / "sites"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    small = tmp_path / file.name
    small.write_text(yaml.safe_dump(reduced(yaml.safe_load(file.read_text()))))
    return run(["fit", "--config", str(ROOT / "experiments" / "csiclip.yaml"), "--config", str(small), *MODEL, *more])


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.slow] * (file.stem in TRACED + DRAWN), id=file.stem) for file in FILES],
)
def test_a_model_is_trained_on_every_source(file, data, tmp_path, monkeypatch):
    if file.stem in TRACED:
        skip_without_sionna()
    commands = fit(file, data, tmp_path, monkeypatch, *CHANGED.get(file.stem, []))
    given = yaml.safe_load(file.read_text())["data"]["init_args"]
    module = commands.datamodule
    assert len(module.sources) == (len(given["source"]) if isinstance(given["source"], list) else 1)
    assert all(len(side) for side in module.sides.values())
    assert math.isfinite(commands.trainer.callback_metrics["train/loss"])
    assert math.isfinite(commands.trainer.callback_metrics["val/loss"])


def test_missing_scenarios_of_the_catalogue_are_named(data, tmp_path, monkeypatch):
    with pytest.raises(DatasetNotFoundError, match=r"33 of 35 DeepMIMO scenarios are not in .*: city_2_chicago_3p5, "):
        fit(ROOT / "experiments" / "data" / "catalogue.yaml", data, tmp_path, monkeypatch)
