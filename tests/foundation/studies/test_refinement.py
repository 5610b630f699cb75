"""The three phases of a refinement and what comes after: what is run, which model is kept, and what is shown."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from datamodules import DeepMIMO
from datamodules.dataset import ChannelDataset
from datamodules.errors import InputError
from foundation.adaptation.refine import Selection
from foundation.adaptation.rehearsal import RehearsalDataModule, RehearsalSampler, in_world
from foundation.evaluation.feedback_curves import figure4, figure5
from foundation.studies import continual, refinement
from foundation.studies.continual import refine
from foundation.studies.results import publish
from foundation.studies.rows import collect
from foundation.studies.study import Study
from tests.datamodules.rays import random_site


def study(**changes):
    settings = {
        "name": "x", "seeds": [0], "pretrain": {"twin": ["--config", "a.yaml"]}, "pretrain_per_seed": True,
        "adapt": ["--model.lr", "1e-3"],
        "refine": {
            "counts": [2],
            "methods": {
                "naive": {"rule": "top"},
                "mixed": {"rule": "random", "rehearse": True, "mix": 0.5},
                "longer": {"rule": "random", "rehearse": True, "mix": 0.0, "counts": [1]},
            },
        },
    }  # fmt: skip
    return Study(**{**settings, **changes})


class Worlds:
    """Errors of models by name and world: the naive one got worse, the mixed one better."""

    def __init__(self, offline, names):
        self.names = names

    def links(self, world):
        return np.array([10, 11]) + 100 * self.names.index(world)

    def choose(self, run, world, rule, count, threshold_db, seed):
        return self.links(world)[:count]

    def save(self, file, links):
        file.write_text(json.dumps(links.tolist()))

    def read(self, file):
        return np.array(json.loads(file.read_text()))

    def errors(self, run, side, world):
        known = {"naive-n2-s0": 0.2, "mixed-n2-s0": 0.01, "naive-to-target-s0": 0.01, "mixed-to-target-s0": 0.01}
        if (run.name, world) == ("naive-to-station-s0", "target"):
            return torch.full((4,), 1.0)
        return torch.full((4,), known.get(run.name, 0.1))

    def correlations(self, world, seed):
        return {"high_NMSE": torch.tensor([0.5, 0.3]), "random": torch.tensor([0.9, 0.7])}


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs of a study, that write what `lightning fit` would."""
    commands = []

    def run_all(experiment, given, runs):
        for run_id, _ in given:
            folder = runs / experiment / run_id
            folder.mkdir(parents=True, exist_ok=True)
            known = {"experiment": experiment, "run_id": run_id, "mode": "pretrain", "seed": int(run_id[-1])}
            known |= {"split": "random", "n_train": 15}
            scores = {"test/nmse_db": -5.0, "test/pursuit_nmse_db": -26.0}
            if not (folder / "summary.json").is_file():
                (folder / "summary.json").write_text(json.dumps({**known, "metrics": scores}))
        commands.extend(given)
        return 0

    monkeypatch.setattr("foundation.dry_run.check_followers", lambda given: None)  # no run is real
    for module in (refinement, continual):
        monkeypatch.setattr(module, "run_all", run_all)
        monkeypatch.setattr(module, "worlds_of", Worlds)
    return commands


def flag(args, name):
    return args[len(args) - args[::-1].index(name)]


def metrics(folder):
    return json.loads((folder / "summary.json").read_text())["metrics"]


def test_a_refined_model_is_kept_only_where_it_is_better_on_links_held_out(ran, tmp_path, capsys):
    assert refine(study(), tmp_path) == 0
    folder = tmp_path / "x"
    assert [run_id for run_id, _ in ran] == ["pretrain-twin-s0", "naive-n2-s0", "mixed-n2-s0", "longer-n1-s0"]
    replaced = {name: metrics(folder / name)["refine/replaces"] for name, _ in ran[1:]}
    assert replaced == {"naive-n2-s0": 0.0, "mixed-n2-s0": 1.0, "longer-n1-s0": 0.0}
    assert metrics(folder / "mixed-n2-s0")["refine/held_nmse_db"] == pytest.approx(-20)
    offline = metrics(folder / "pretrain-twin-s0")
    assert offline["refine/held_nmse_db"] == pytest.approx(-10)
    assert (offline["refine/correlation_high_NMSE"], offline["refine/correlation_random"]) == pytest.approx((0.4, 0.8))
    assert json.loads((folder / "correlation-s0.json").read_text())["high_NMSE"] == [0.3, 0.5]
    assert all((folder / "plots" / f"figure{number}.png").is_file() for number in (4, 5))
    out = capsys.readouterr().out
    assert "held_nmse_db [dB]" in out
    assert f"model to use: {folder}/mixed-n2-s0/checkpoints/best.ckpt, NMSE -20.00 dB" in out
    assert "-10.00 dB before the refinement" in out


def test_the_offline_model_stays_in_use_where_none_is_better(ran, tmp_path, capsys):
    given = study()
    del given.refine["methods"]["mixed"]
    refine(given, tmp_path)
    told = "x/pretrain-twin-s0/checkpoints/best.ckpt, NMSE -10.00 dB on held-out target links, no refined model is"
    assert told in capsys.readouterr().out


def test_a_link_without_power_decides_nothing_and_a_model_without_numbers_is_not_kept(ran, tmp_path, monkeypatch):
    def errors(worlds, run, side, world):
        known = {"pretrain-twin-s0": 0.1, "longer-n1-s0": math.nan}.get(run.name, 0.01)
        return torch.tensor([known, known, math.nan])

    monkeypatch.setattr(Worlds, "errors", errors)
    refine(study(), tmp_path)
    mixed, longer = (metrics(tmp_path / "x" / name) for name in ("mixed-n2-s0", "longer-n1-s0"))
    assert (mixed["refine/replaces"], longer["refine/replaces"]) == (1.0, 0.0)
    assert longer["refine/held_nmse_db"] is None, "NaN is no JSON"


def test_each_way_trains_on_its_links_of_its_worlds(ran, tmp_path):
    refine(study(), tmp_path)
    naive, mixed, longer = (args for _, args in ran[1:])
    start = str(tmp_path / "x/pretrain-twin-s0/checkpoints/best.ckpt")
    for args, worlds in ((naive, "[target]"), (mixed, "[twin, target]"), (longer, "[twin, target]")):
        assert flag(args, "--model.start_from") == start
        assert flag(args, "--data.train_on") == f"{{variant: {worlds}}}"
        assert flag(args, "--data.validate_on") == flag(args, "--data.test_on") == "{variant: target}"
    assert "--data" not in naive
    assert flag(mixed, "--data") == "RehearsalDataModule"
    assert (flag(mixed, "--data.mix"), flag(longer, "--data.mix")) == ("0.5", "0.0")
    links = [json.loads(Path(flag(args, "--data.train_links")).read_text()) for args in (naive, mixed, longer)]
    assert links == [[110, 111], [10, 11, 110, 111], [10, 11, 110]]


def test_a_finished_refinement_is_not_run_again(ran, tmp_path):
    refine(study(), tmp_path)
    done = len(ran)
    refine(study(), tmp_path)
    assert [run_id for run_id, _ in ran[done:]] == ["pretrain-twin-s0"]  # `run_all` passes over what is finished


def test_all_of_a_seed_comes_before_the_next_and_the_largest_size_is_refined(ran, tmp_path):
    refine(study(seeds=[0, 1], sizes=[10, 20], pretrain={"twin": [], "target": []}), tmp_path)
    of_seed = ["pretrain-twin-n10", "pretrain-twin-n20", "pretrain-target-n10", "pretrain-target-n20"]
    of_seed += ["naive-n2", "mixed-n2", "longer-n1"]
    assert [run_id for run_id, _ in ran] == [f"{name}-s{seed}" for seed in (0, 1) for name in of_seed]
    start = flag(ran[4][1], "--model.start_from")
    assert start == str(tmp_path / "x/pretrain-twin-n20-s0/checkpoints/best.ckpt")


def test_a_world_that_changes_on_tells_what_is_forgotten(ran, tmp_path):
    given = study()
    given.refine["continual"] = {"worlds": ["target", "station"], "count": 1, "methods": ["naive", "mixed"]}
    assert refine(given, tmp_path) == 0
    folder, runs = tmp_path / "x", dict(ran)
    last = {name: metrics(folder / f"{name}-to-station-s0") for name in ("naive", "mixed")}
    assert last["naive"]["refine/target_nmse_db"] == pytest.approx(0, abs=1e-6)
    assert last["naive"]["refine/target_forgotten_db"] == pytest.approx(20)
    assert last["mixed"]["refine/target_forgotten_db"] == pytest.approx(10)
    assert last["mixed"]["refine/station_forgotten_db"] == pytest.approx(10)
    assert metrics(folder / "pretrain-twin-s0")["refine/station_nmse_db"] == pytest.approx(-10)
    naive, mixed = runs["naive-to-station-s0"], runs["mixed-to-station-s0"]
    assert flag(naive, "--model.start_from") == str(folder / "naive-to-target-s0/checkpoints/best.ckpt")
    assert flag(naive, "--data.test_on") == "{variant: station}"
    assert flag(mixed, "--data.train_on") == "{variant: [twin, target, station]}"
    assert flag(mixed, "--data.target") == "station"
    links = [json.loads(Path(flag(args, "--data.train_links")).read_text()) for args in (naive, mixed)]
    assert links == [[210], [10, 11, 110, 210]]


def test_what_is_forgotten_is_told_also_after_a_kill_amid_the_scores(ran, tmp_path, monkeypatch):
    given = study()
    given.refine["continual"] = {"worlds": ["target", "station"], "count": 1, "methods": ["naive"]}
    add, last = continual.add_metrics, tmp_path / "x" / "naive-to-station-s0" / "summary.json"

    def killed(file, found):
        add(file, found)
        if file == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(continual, "add_metrics", killed)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            refine(given, tmp_path)
        monkeypatch.setattr(continual, "add_metrics", add)
        assert "refine/target_forgotten_db" in metrics(last.parent)
    assert {"refine/target_nmse_db", "refine/target_forgotten_db"} <= metrics(last.parent).keys()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"rule": "high"}, "rule must be one of random, threshold, top, got high"),
        ({"rule": "threshold"}, "b: "),
        ({"rule": "threshold", "threshold_db": math.nan}, "needs threshold_db, an NMSE .dB., got nan"),
        ({"rule": "top", "rehearse": True, "mix": 1.5}, "mix must be in .0, 1. and needs rehearse, got mix 1.5"),
        ({"rule": "top", "mix": 0.5}, "needs rehearse, got mix 0.5, rehearse False"),
        ({"rule": "top", "counts": [0]}, r"counts must be a list of whole numbers of 1 or more, got \[0\]"),
        ({"rule": "top", "counts": "40"}, "counts must be a list"),
        ({}, "b: .*rule"),
        ("top", "b: "),
    ],
)
def test_a_method_that_cannot_be_applied_is_named(method, message, ran, tmp_path):
    with pytest.raises(InputError, match=f"study x: refine needs methods by name .*{message}"):
        refine(study(refine={"counts": [2], "methods": {"a": {"rule": "top"}, "b": method}}), tmp_path)
    assert not ran, "before anything is trained"


@pytest.mark.parametrize(
    "changes",
    [
        {"refine": {"counts": [2]}},
        {"refine": {"methods": {"a": {"rule": "top"}}}},
        {"refine": {"counts": [2], "methods": {"a": {"rule": "top", "colour": 1}}}},
        {"refine": {"counts": [2], "methods": {}, "mix": 1}},
        {"refine": {"counts": [2], "methods": {"a": {"rule": "top"}}, "continual": {"worlds": ["b"], "count": 1}}},
        {"refine": {"counts": [2], "methods": {"a": {"rule": "top"}},
                    "continual": {"worlds": ["b"], "count": 1, "methods": ["c"]}}},
        {"refine": {"counts": [2], "methods": {"a": {"rule": "top"}},
                    "continual": {"worlds": "target", "count": 1, "methods": ["a"]}}},
        {"refine": {"counts": [2], "methods": {"a": {"rule": "top"}},
                    "continual": {"worlds": ["b"], "count": 1.5, "methods": ["a"]}}},
        {"pretrain": {"target": []}},
        {"pretrain_per_seed": False},
    ],
)  # fmt: skip
def test_a_study_that_refines_nothing_is_refused(changes, tmp_path):
    with pytest.raises(InputError, match="study x: "):
        refine(study(**changes), tmp_path)


def test_figures_draw_ours_over_the_authors(ran, tmp_path):
    given = study(seeds=[0, 1], sizes=[20])
    refine(given, tmp_path)
    rows = collect(tmp_path, given)
    rows.append(dataclasses.replace(rows[0], variant="naive-to-station", metric="pursuit_nmse_db", value=0.0))
    [axes] = (figure := figure4(rows, {"samples": [10, 40], "target": [1.8, -1.4]})).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["target [authors]"] == [[10, 1.8], [40, -1.4]]
    bars = {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in axes.containers}
    assert bars == {
        "longer, ours": [[1, -5]], "mixed, ours": [[2, -5]], "naive, ours": [[2, -5]], "twin, ours": [[15, -5]]
    }, "of what is trained from scratch the links that it had, not those asked for"  # fmt: skip
    assert [bar[0].get_marker() for bar in axes.containers] == ["o", "s", "s", "s"], "refined models have squares"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ours", "the authors', random split", "twin", "longer", "mixed", "naive", "target"]
    assert axes.get_title() == "mean of 2 seeds, bars from the lowest to the highest; split: random"
    level = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "-."]
    assert level == pytest.approx([-26])
    figure = figure5([{"random": [0.8, 0.9]}, {"random": [0.6, 0.7]}])
    [axes] = figure.axes
    values, shares = axes.lines[0].get_data()
    assert (values[0], values[-1]) == pytest.approx((0.6, 0.9))
    assert (shares[0], shares[-1]) == (0, 1)
    assert axes.get_legend().get_texts()[0].get_text() == "random links, 4, mean 0.75"


def test_the_page_of_results_shows_the_figure(ran, tmp_path):
    refine(study(), tmp_path)
    rows = collect(tmp_path, study())
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "x.yaml").write_text("seeds: [0]\npaper: csifeedback\n")
    publish(rows, tmp_path / "RESULTS.md", tmp_path / "studies")
    assert "(docs/x.png)" in (tmp_path / "RESULTS.md").read_text()
    once = (tmp_path / "docs" / "x.png").read_bytes()
    publish(rows, tmp_path / "RESULTS.md", tmp_path / "studies")
    assert (tmp_path / "docs" / "x.png").read_bytes() == once, "the file changes without a new result"


def test_a_study_takes_every_rule_of_selection():
    assert refinement.RULES == get_args(Selection)


def test_a_mix_of_worlds_is_not_balanced_as_well(tmp_path):
    with pytest.raises(InputError, match=r"data\.balance.*data\.mix"):
        RehearsalDataModule(DeepMIMO("street", root=str(tmp_path)), mix=0.5, balance=["los"])
    with pytest.raises(InputError, match=r"data\.group cannot be used"):
        RehearsalDataModule(DeepMIMO("street", root=str(tmp_path)), mix=0.5, base_stations=2)


def test_epochs_of_rehearsal_have_the_share_that_is_asked_for():
    from dataclasses import replace

    sites = [replace(random_site(name, 30), domain={"variant": name}) for name in ("target", "twin")]
    dataset = ChannelDataset(sites, np.array([3, 7, 30, 31, 32, 33, 34, 35]))
    is_target = in_world(dataset, "target")
    assert is_target.tolist() == [True, True, *[False] * 6]
    sampler = RehearsalSampler(dataset, is_target, 0.5, batch_size=4, seed=0)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 4]
        orders.append(np.concatenate(batches).tolist())
        assert sorted(orders[-1]) == [0, 0, 0, 1, 1, 1, *range(2, 8)]
    assert orders[0] != orders[1]
    assert sorted(np.concatenate(list(RehearsalSampler(dataset, is_target, None, 4, 0)))) == list(range(8))
