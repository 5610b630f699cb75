"""The three phases of a refinement: what is run, which model is kept, and what is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.dataset import ChannelDataset
from datamodules.errors import InputError
from foundation.adaptation.rehearsal import RehearsalSampler, in_world
from foundation.studies import refinement
from foundation.studies.refinement import Result, figure4, refine, result_table
from foundation.studies.study import Study
from tests.datamodules.rays import random_site


def study(**changes):
    settings = {
        "name": "x", "seeds": [0], "pretrain": {"twin": ["--config", "a.yaml"]}, "pretrain_per_seed": True,
        "adapt": ["--model.lr", "1e-3"],
        "refine": {
            "counts": [2],
            "ways": {"naive": {"rule": "top"}, "mixed": {"rule": "random", "rehearse": True, "mix": 0.5}},
        },
    }  # fmt: skip
    return Study(**{**settings, **changes})


class World:
    """Errors of models by name: the naive one got worse, the mixed one better."""

    def __init__(self, *_):
        self.chosen = []

    def choose(self, way, count, file, seed):
        self.chosen.append((way.rule, count, file.name))

    def errors(self, run, side):
        assert side == "validation"
        return torch.full((4,), {"naive-n2-s0": 0.2, "mixed-n2-s0": 0.01}.get(run.name, 0.1))


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Runs of a study, that write what `lightning fit` would."""
    commands = []

    def run_all(experiment, given, runs):
        for run_id in ("pretrain-twin-s0", *dict(given)):
            folder = runs / experiment / run_id
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps({"metrics": {"test/nmse_db": -5.0}}))
        commands.extend(given)
        return 0

    monkeypatch.setattr(refinement, "run_all", run_all)
    monkeypatch.setattr(refinement, "_World", World)
    (tmp_path / "x" / "pretrain-twin-s0").mkdir(parents=True)
    return commands


def flag(args, name):
    return args[len(args) - args[::-1].index(name)]


def test_a_refined_model_is_kept_only_where_it_is_better_on_links_held_out(ran, tmp_path, capsys):
    assert refine(study(), tmp_path) == 0
    told = json.loads((tmp_path / "x/pretrain-twin-s0/refinement.json").read_text())
    assert {name: entry["replaces"] for name, entry in told.items()} == {
        "pretrain-twin-s0": False, "naive-n2-s0": False, "mixed-n2-s0": True
    }  # fmt: skip
    assert told["mixed-n2-s0"]["held_nmse_db"] == pytest.approx(-20)
    assert (tmp_path / "x/plots/figure4.png").is_file()
    assert "nothing (twin only)" in capsys.readouterr().out
    naive, mixed = dict(ran).values()
    start = str(tmp_path / "x/pretrain-twin-s0/checkpoints/best.ckpt")
    for args, worlds in ((naive, "{variant: target}"), (mixed, "{variant: [twin, target]}")):
        assert flag(args, "--model.start_from") == start
        assert flag(args, "--data.train_on") == worlds
        assert flag(args, "--data.validate_on") == "{variant: target}"
    assert "--data" not in naive
    assert flag(mixed, "--data") == "RehearsalDataModule"
    assert flag(mixed, "--data.mix") == "0.5"
    assert flag(naive, "--data.train_links").endswith("naive-n2-s0.links.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"refine": {"counts": [2]}},
        {"refine": {"counts": [2], "ways": {"a": {"rule": "top", "colour": 1}}}},
        {"refine": {"counts": [2], "ways": {}, "mix": 1}},
        {"pretrain": {"target": []}},
        {"pretrain_per_seed": False},
    ],
)
def test_a_study_that_refines_nothing_is_refused(changes, tmp_path):
    with pytest.raises(InputError, match="study x: "):
        refine(study(**changes), tmp_path)


def test_the_table_has_a_line_for_each_way_and_count():
    results = [
        Result("twin", 0, -10.0, -11.0, False), Result("twin", 0, -12.0, -11.0, False),
        Result("top", 40, -14.0, -13.0, True), Result("top", 40, -12.0, -10.0, False),
    ]  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result_table(results).splitlines()]
    assert lines[2:] == [
        ["nothing (twin only)", "0", "-11.00 ± 1.41", "-11.00 ± 0.00", ""],
        ["top", "40", "-13.00 ± 1.41", "-11.50 ± 2.12", "1 of 2"],
    ]
    [axes] = figure4(results, {"samples": [10, 40], "target": [1.8, -1.4]}).axes
    drawn = {line.get_label(): np.ravel(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["target [authors]"] == [1.8, -1.4]
    assert drawn["top, ours"] == [-13.0]


def test_the_published_curves_are_those_of_the_authors():
    theirs = refinement.published(Path(__file__).parents[3] / refinement.PUBLISHED)
    assert theirs["samples"][:3] == [10, 20, 40]
    assert theirs["rehearsal, high NMSE"][2] == -19.8
    assert {len(values) for values in theirs.values()} == {11}


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
