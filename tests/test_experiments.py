"""Every YAML under experiments/ is composed, and those with a model are run."""

import inspect
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

import datamodules
from datamodules.errors import InputError
from foundation.cli import main, run
from foundation.studies.reproduce import options
from foundation.studies.results import PAPERS
from foundation.studies.study import Study
from foundation.tuning.search_space import Search
from foundation.tuning.tune import check
from tests.foundation.towers import save_checkpoint, tiny_clip
from tests.raytracing import requires_sionna

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
CONTENT = {file: yaml.safe_load(file.read_text()) for file in FILES}
MODELS = [file for file in FILES if "class_path" in CONTENT[file].get("model", {})]
STUDIES = [file for file in FILES if "studies" in file.parts]
SEARCHES = [file for file in FILES if file.parent.name == "tune"]
OVERLAYS = [file for file in FILES if file not in MODELS + STUDIES + SEARCHES]
QUICK = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def settings_of(file: Path) -> dict[str, Any]:
    return CONTENT[file].get("data", {}).get("init_args", {})


def name(file: Path) -> str:
    return str(file.relative_to(ROOT / "experiments"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "x.ckpt"
    save_checkpoint(tiny_clip(), file)
    return str(file)


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory):
    from foundation import ChannelTransformer, EnvChannel, EnvironmentTransformer

    sizes = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}
    model = EnvChannel(ChannelTransformer(**sizes), EnvironmentTransformer(**sizes))
    file = tmp_path_factory.mktemp("checkpoint") / "y.ckpt"
    save_checkpoint(model, file)
    return str(file)


@pytest.mark.parametrize("file", [file for file in MODELS if file.stem != "calibration"], ids=name)
def test_models_run(file, street_data, checkpoint, two_towers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(file), *street_data, *QUICK]
    if file.stem.startswith("toft"):
        args += ["--model.checkpoint", two_towers, "--data.fractions", "[0.6, 0.2, 0.2]"]
        args += ["--data.base_stations", "null", "--model.base_stations", "1"]
    elif "finetune" in file.parts:
        args += ["--model.checkpoint", checkpoint, "--then_test", "false"]
    if "holdout" in CONTENT[file]["data"]["init_args"]:  # names places that the test's street is not
        args += ["--data.split", "spatial", "--data.holdout", "null", "--data.fractions", "[0.6, 0.2, 0.2]"]
    elif file.parts[-2:] == ("paper", "contwin.yaml"):  # its encoder is of one size
        args += ["--data.batch_size", "2"]
    elif file.parts[-2:] == ("paper", "csifeedback.yaml"):  # its worlds are variants, which the test's street lacks
        args += [part for side in ("train", "validate", "test") for part in (f"--data.{side}_on", "null")]
        args += ["--data.num_labels", "16"]
    elif "paper" in file.parts:
        args += ["--data.batch_size", "2", "--data.bs.rows", "2", "--data.bs.cols", "2"]
        args += ["--data.ofdm.num_subcarriers", "32"]
    commands = run(args)
    assert any(key.startswith(("val/", "test/")) for key in commands.trainer.callback_metrics)


TASKS = [file for file in MODELS if file.parent.name == "finetune" and not file.stem.startswith("toft")]


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_every_task_takes_the_two_tower_too(file, street_data, two_towers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(file), *street_data, *QUICK, "--then_test", "true"]
    args += ["--data.bs.rows", "1", "--data.bs.cols", "32"]  # what the tower was made for
    commands = run([*args, "--model.checkpoint", two_towers, "--data.fractions", "[0.6, 0.2, 0.2]"])
    assert commands.model.encoder.csi_size == (32, 64)
    assert any(key.startswith(f"test/{file.stem}/") for key in commands.trainer.callback_metrics)


def test_positioning_takes_the_map_by_one_word(street_data, two_towers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(ROOT / "experiments/finetune/toft_positioning.yaml"), *street_data, *QUICK]
    args += ["--model.mode", "probe", "--model.checkpoint", two_towers, "--data.fractions", "[0.6, 0.2, 0.2]"]
    commands = run([*args, "--model", "MapPositioning", "--model.tokens", "4"])
    assert type(commands.model).__name__ == "MapPositioning"
    assert len(commands.model.head.anchors) == 100  # as the YAML has it
    assert "test/positioning/mean_m" in commands.trainer.callback_metrics


@requires_sionna
def test_calibration_runs_on_twins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = {"scene": "simple_street_canyon", "base_stations": [[0, 0, 20]], "users": "random", "num_users": 40}
    variants = {"low": {"max_depth": 1, "samples": 1000}, "high": {"max_depth": 2, "samples": 1000}}
    sources = []
    for settings in ({"name": "etoile_grid"}, {"name": "etoile_offgrid", "seed": 1}):
        base = {"class_path": "SionnaRT", "init_args": {**scene, **settings}}
        sources.append({"class_path": "Twins", "init_args": {"base": base, "variants": variants}})
    args = ["fit", "--config", str(ROOT / "experiments/calibration.yaml"), "--data.source", yaml.safe_dump(sources)]
    commands = run([*args, *QUICK])
    areas = []
    for side in ("train", "test"):
        data = commands.datamodule.sides[side]
        areas.append({data.sites[data.starts.searchsorted(link, side="right") - 1].area for link in data.links[:, 0]})
    assert areas == [{"etoile_grid"}, {"etoile_offgrid"}]
    tested = commands.trainer.callback_metrics
    assert 0 < tested["test/cosine"] < tested["test/target_cosine"]
    with pytest.raises(InputError, match=r"low fidelity first, but the data have high, low: set data\.variants"):
        run([*args, "--data.variants", "[high, low]", *QUICK])


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_header_says_what_it_is_and_what_runs_it(file):
    header = list(takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    *described, last = header
    assert described
    command = last.removeprefix("# Run: ")
    assert command.startswith(("lightning ", "make ", "python -m ")), last
    words = command.split()
    named = [words[i + 1] for i, word in enumerate(words) if word == "--config" and "RUN_ID" not in words[i + 1]]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    named += [settings[key] for key in ("DATA",) if key in settings]
    folders = {"TASK": "finetune", "MODEL": "encoders", "EXPERIMENT": "tune"}
    named += [f"experiments/{folders[key]}/{value}.yaml" for key, value in settings.items() if key in folders]
    assert all((ROOT / path).is_file() for path in named)
    own = str(file.relative_to(ROOT))
    assert own in named or settings.get("STUDY") == file.stem or words[0] == "python"


@pytest.mark.parametrize("file", OVERLAYS, ids=name)
def test_overlays_compose(file, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = "experiments/finetune/los.yaml" if "encoders" in file.parts else "experiments/csiclip.yaml"
    with pytest.raises(SystemExit) as leaving:
        main(["fit", "--config", base, "--config", str(file), "--print_config"])
    assert leaving.value.code == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    given, composed = (content.get("data", {}).get("init_args", {}) for content in (CONTENT[file], composed))
    assert holds(composed, given)
    if "source" in given:
        for source, made in zip(listed(composed["source"]), listed(given["source"]), strict=True):
            assert source["init_args"] == with_defaults(source, made.get("init_args", {}))


@pytest.mark.parametrize("file", [file for file in OVERLAYS if "source" in settings_of(file)], ids=name)
def test_data_of_a_header_name_their_own_holdout(file):
    run = next(line for line in file.read_text().splitlines() if line.startswith("# Run: ")).split()
    bases = [ROOT / word for word in run if word.startswith("experiments/") and not file.samefile(ROOT / word)]
    if any("holdout" in settings_of(base) for base in bases if base.is_file()):
        assert "holdout" in settings_of(file), "that of the experiment names places which these data do not have"


def holds(composed: Any, given: Any) -> bool:
    """Say whether a composed value has all that a YAML gives; class names are composed to full ones."""
    if isinstance(given, dict):
        return all(
            composed[key].endswith(value) if key == "class_path" else holds(composed[key], value)
            for key, value in given.items()
        )
    if isinstance(given, list):
        return len(composed) == len(given) and all(map(holds, composed, given))
    return bool(composed == given)


def with_defaults(source: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a source of which a YAML gives some: nothing else may come from the experiment's own."""
    signature = inspect.signature(getattr(datamodules, source["class_path"].rsplit(".", 1)[-1]))
    expected = {}
    for key, value in source["init_args"].items():
        default = signature.parameters[key].default
        plain = isinstance(default, (bool, int, float, str, tuple, type(None)))
        expected[key] = value if key in given or not plain else list(default) if isinstance(default, tuple) else default
    return expected


def listed(sources: Any) -> list[Any]:
    return sources if isinstance(sources, list) else [sources]


@pytest.mark.parametrize("file", STUDIES, ids=name)
def test_studies_name_what_exists(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = Study.load(file)
    assert study.paper in PAPERS
    assert study.tuned_on, "say what it was tuned on, if only that it is not recorded"
    commands = study.commands(Path("runs"))
    assert len({run_id for run_id, _ in commands}) == len(commands)
    for _, args in commands:
        for flag, value in options(args):
            assert flag != "--trainer.enable_progress_bar", "the bar over all runs shows where each one is"
            if flag == "--config" and "runs/" not in value:
                assert Path(value).is_file(), value


@pytest.mark.parametrize("file", SEARCHES, ids=name)
def test_searches_vary_keys_that_there_are(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(Search.load(file))


def test_a_later_source_takes_nothing_over(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    scene = {"class_path": "SionnaRT", "init_args": {"scene": "munich", "base_stations": [[0, 0, 30]]}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {"init_args": {"source": scene}}}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", "experiments/csiclip.yaml", "--config", str(file), "--print_config"])
    source = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["source"]
    assert source["init_args"]["scene"] == "munich"
    assert source["init_args"]["window"] is None
    assert source["init_args"]["max_depth"] == inspect.signature(datamodules.SionnaRT).parameters["max_depth"].default
