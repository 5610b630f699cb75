import dataclasses
import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.sites import inventory
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.site import Site
from datamodules.sources.base import Recipe, make
from tests.datamodules.rays import random_paths, random_site


def test_paths_are_sorted_cut_and_cleaned():
    gain = torch.tensor([[1e-6, 3e-6, float("nan"), 2e-6]], dtype=torch.complex64)
    paths = Paths.build(
        gain=gain,
        delay=torch.tensor([[1e-6, 2e-6, 3e-6, float("inf")]]),
        aod=torch.ones(1, 4, 2),
        aoa=torch.ones(1, 4, 2),
        position=torch.zeros(1, 3),
        bounces=torch.tensor([[0, 1, 0, 2]]),
        max_paths=3,
    )
    assert torch.allclose(paths.gain.abs(), torch.tensor([[3e-6, 1e-6, 0.0]]))
    assert paths.mask.tolist() == [[True, True, False]]
    assert paths.bounces.tolist() == [[1, 0, 0]]
    assert paths.los.tolist() == [1]


def test_line_of_sight_outlives_the_cut():
    gain = torch.tensor([[1e-6, 3e-6]], dtype=torch.complex64)
    rest = {"delay": torch.ones(1, 2), "aod": torch.ones(1, 2, 2), "aoa": torch.ones(1, 2, 2)}
    paths = Paths.build(gain=gain, **rest, position=torch.zeros(1, 3), bounces=torch.tensor([[0, 1]]), max_paths=1)
    assert paths.los.tolist() == [1]


def test_padding_is_no_line_of_sight():
    gain = torch.tensor([[0.0, 3e-6], [2e-6, 0.0], [0.0, 0.0]], dtype=torch.complex64)
    rest = {"delay": torch.ones(3, 2), "aod": torch.ones(3, 2, 2), "aoa": torch.ones(3, 2, 2)}
    paths = Paths.build(gain=gain, **rest, position=torch.zeros(3, 3), bounces=torch.tensor([[0, 1]] * 3))
    assert paths.los.tolist() == [0, 1, -1]


def test_padding_and_joining_keep_links():
    a, b = random_paths(5, 3), random_paths(4, 6, seed=1)
    both = Paths.cat([a, b])
    assert both.num_paths == 6
    assert torch.equal(both[:5].gain[:, :3], a.gain)
    assert not both.mask[:5, 3:].any()


def test_wrong_fields_are_named():
    fields = random_paths().as_dict()
    with pytest.raises(InputError, match=r"Paths.delay must be torch.float32 of shape \(12, 7\), got torch.float64"):
        Paths(**{**fields, "delay": fields["delay"].double()})


def test_round_trip(tmp_path):
    outline = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])
    site = dataclasses.replace(
        random_site(domain={"scenario": "urban"}), environment=Environment((outline,), np.array([7.5]), (0, 0, 9, 9))
    )
    site.save(tmp_path / "x")
    read = Site.load(tmp_path / "x")
    for name, value in site.paths.as_dict().items():
        assert torch.equal(getattr(read.paths, name), value)
    assert (read.name, read.area, read.city, read.domain) == (site.name, site.area, site.city, site.domain)
    assert np.array_equal(read.environment.footprints[0], outline)
    assert read.environment.bounds == (0, 0, 9, 9)


def test_a_site_of_before_its_place_was_called_city_is_read(tmp_path):
    random_site(city="munich").save(tmp_path / "x")
    file = tmp_path / "x" / "site.json"
    facts = json.loads(file.read_text())
    facts["place"] = facts.pop("city")
    del facts["facts_sha256"]  # as in releases that wrote none
    file.write_text(json.dumps(facts))
    assert Site.load(tmp_path / "x").city == inventory.row(tmp_path / "x")[3] == "munich"


@pytest.mark.parametrize("at", [0, 9, 1000, -1])
def test_a_flipped_bit_is_found(tmp_path, at):
    random_site().save(tmp_path / "x")
    file = tmp_path / "x" / "paths.safetensors"
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"paths.safetensors is damaged"):
        Site.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("paths.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-100]), "paths.safetensors is damaged"),
        ("paths.safetensors", lambda f: f.unlink(), "paths.safetensors is damaged"),
        ("site.json", lambda f: f.write_text(f.read_text()[:200]), "site.json is damaged"),
        ("site.json", lambda f: f.write_text("{}"), "site.json is damaged"),
        ("site.json", lambda f: f.unlink(), r"no site in .*x, site.json is missing: delete .*x to remake it"),
        ("site.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), "format": 99})), "format 99"),
    ],
)
def test_half_written_sites_are_named(tmp_path, name, spoil, message):
    random_site().save(tmp_path / "x")
    spoil(tmp_path / "x" / name)
    with pytest.raises(InputError, match=message):
        Site.load(tmp_path / "x")


def test_no_site_is_a_missing_file(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no site in .*nothing: make it with its source"):
        Site.load(tmp_path / "nothing")


def test_a_full_disk_leaves_no_half_site(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.sites.site.save_file", full)
    with pytest.raises(InputError, match=r"cannot write site 'site' .*No space left"):
        random_site().save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def _make_slowly(cache, log, value):
    def slow(work):
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        yield random_site("s")

    make(Recipe(("s",), {"value": value}, slow), cache)


def test_two_processes_make_a_site_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make_slowly, args=(tmp_path, tmp_path / "log", 1)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len((tmp_path / "log").read_text().split()) == 1
    assert len(list(tmp_path.glob("s-*/site.json"))) == 1


def test_other_parameters_make_another_site(tmp_path):
    for value in (1, 2, 1):
        _make_slowly(tmp_path, tmp_path / "log", value)
    assert len(list(tmp_path.glob("s-*/site.json"))) == 2
    assert len((tmp_path / "log").read_text().split()) == 2


def test_a_cache_can_be_read_by_others_as_the_umask_has_it(tmp_path):
    before = os.umask(0o022)
    try:
        random_site().save(tmp_path / "cache" / "site")
    finally:
        os.umask(before)
    for file in (tmp_path / "cache" / "site").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644, file.name


def test_a_changed_fact_is_found_and_older_sites_still_read(tmp_path):
    random_site(domain={"speed": (1, 2)}, provenance={"seeds": {3: "x", 20: "y"}}).save(tmp_path / "x")
    file = tmp_path / "x" / "site.json"
    facts = json.loads(file.read_text())
    assert Site.load(tmp_path / "x").carrier_frequency == facts["carrier_frequency"]
    file.write_text(json.dumps({**facts, "carrier_frequency": 7.0}))
    with pytest.raises(InputError, match=r"site.json was changed .* delete .*x to remake it"):
        Site.load(tmp_path / "x", verify=False)
    del facts["facts_sha256"]
    file.write_text(json.dumps(facts))
    assert Site.load(tmp_path / "x").carrier_frequency == facts["carrier_frequency"]
    file.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"site.json is missing: delete .*x to remake it"):
        Site.load(tmp_path / "x")
