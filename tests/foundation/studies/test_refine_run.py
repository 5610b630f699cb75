"""A refinement on real runs, small ones, stopped at every stage: what it ends with is what it would have ended with."""

import json
from dataclasses import replace

import pytest
import torch

from datamodules import write_deepmimo
from foundation.models.csifeedback import CsiFeedback
from foundation.studies import refinement
from foundation.studies.continual import refine
from foundation.studies.rows import collect
from foundation.studies.study import Study
from foundation.studies.worlds import Worlds
from tests.datamodules.rays import random_site

pytestmark = pytest.mark.slow

NETWORK = "{class_path: CsiNet, init_args: {code_size: 4, rows: 8, antennas: 4}}"
METHODS = {"random": {"rule": "random"}, "mixed": {"rule": "top", "rehearse": True, "mix": 0.5}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    target = random_site("target", 60)
    weaker = replace(target.links, gain=target.links.gain * torch.linspace(1, 0.1, 7))
    for site in (target, replace(target, links=weaker, name="twin")):
        write_deepmimo([site], root, site.name)
    variants = {
        name: {"class_path": "DeepMIMO", "init_args": {"scenario": name, "root": str(root), "cache": str(root / "x")}}
        for name in ("target", "twin")
    }
    source = json.dumps({"class_path": "MatchedUsers", "init_args": {"variants": variants}})
    args = ["--model", "CsiFeedback", "--model.autoencoder", NETWORK, "--data", "ChannelDataModule"]
    args += ["--data.source", source, "--data.bs.cols", "4", "--data.ofdm.num_subcarriers", "16"]
    args += ["--data.split", "random", "--data.batch_size", "8", "--data.num_labels", "20", "--then_test", "true"]
    args += ["--data.train_on", "{variant: twin}", "--data.validate_on", "{variant: twin}"]
    args += ["--data.test_on", "{variant: target}", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
    args += ["--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"]
    return Study("x", [0], pretrain={"twin": args}, pretrain_per_seed=True, paper="csifeedback",
                 refine={"counts": [6], "methods": METHODS})  # fmt: skip


def results(runs, study):
    """Return all scores, the chosen links and the correlations."""
    links = {file.name: file.read_text() for file in (runs / "x").glob("*.json")}
    return {(row.run, row.metric): row.value for row in collect(runs, study)}, links


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """A refinement that nothing stopped."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        assert refine(study, runs) == 0
    return runs


def fails_at(monkeypatch, owner, name, call):
    """Let the given call of a function be the last one of this run of the program."""
    function, calls = getattr(owner, name), []

    def stopped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopped)


def test_a_refinement_ends_with_its_pictures(whole):
    assert {file.name for file in (whole / "x/plots").iterdir()} == {"figure4.png", "figure5.png"}
    scored = json.loads((whole / "x/mixed-n6-s0/summary.json").read_text())["metrics"]
    assert {"refine/replaces", "refine/held_nmse_db", "test/nmse_db", "test/pursuit_nmse_db"} <= scored.keys()


def test_rehearsal_takes_the_links_of_the_twin_that_the_model_knows(whole):
    counts = {}
    for name in METHODS:
        links = json.loads((whole / f"x/{name}-n6-s0.links.json").read_text())
        counts[name] = {site: len(rows) for site, rows in links.items()}
    assert counts == {"random": {"target_bs1_target": 6}, "mixed": {"target_bs1_target": 6, "target_bs1_twin": 20}}
    kept = json.loads((whole / "x/correlation-s0.json").read_text())["random"]
    assert len(kept) > 20, "of the target all links are candidates"


#: where it stops one time after the other, the exit status then, and what there is of it
STOPS = {
    "selection": (Worlds, "save", 2, None, {"random-n6-s0.links.json"}),
    # after two epochs of one step, in the second epoch of 5 steps of the second refinement
    "refinement": (CsiFeedback, "training_step", 2 + 7, 130, {"random-n6-s0", "mixed-n6-s0"}),
    "scores": (refinement, "add_metrics", 3, None, {"random-n6-s0", "mixed-n6-s0", "correlation-s0.json"}),
}


def test_a_refinement_goes_on_wherever_it_was_stopped(study, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {}
    for name, (owner, function, call, status, there) in STOPS.items():
        with monkeypatch.context() as patch:
            fails_at(patch, owner, function, call)
            if status is None:  # between two runs
                with pytest.raises(KeyboardInterrupt):
                    refine(study, tmp_path)
            else:
                assert refine(study, tmp_path) == status
        assert {path.name for path in (tmp_path / "x").iterdir()} >= there, name
        ended = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").glob("*/summary.json")}
        assert made.items() <= ended.items() or name == "scores", "a finished run was made again"
        made = ended
    assert refine(study, tmp_path) == 0
    scores, links = results(tmp_path, study)
    expected, expected_links = results(whole, study)
    assert links == expected_links
    assert scores == pytest.approx(expected, rel=1e-5)
