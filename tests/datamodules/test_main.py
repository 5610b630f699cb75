"""`python -m datamodules`, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.__main__ import main, read_sources
from datamodules.errors import InputError
from datamodules.sites import inventory as listing
from datamodules.sites.site import Site
from tests.datamodules.rays import random_site


def config(folder, source, name="data.yaml"):
    file = folder / name
    file.write_text(yaml.safe_dump({"data": {"init_args": {"source": source, "batch_size": 3}}, "model": {"x": 1}}))
    return str(file)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of two base stations of one area and one of another."""
    folder = tmp_path / "sites"
    monkeypatch.setenv("CSI_CACHE", str(folder))
    for name, area in (("a_bs0", "a"), ("a_bs1", "a"), ("b_bs0", "b")):
        site = random_site(name, num_users=40, area=area, provenance={"source": "toy", "seed": 3})
        site.save(folder / f"{name}-0123456789")
    return folder


def errors(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_make_reads_experiment_files(street, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSI_CACHE", str(tmp_path / "sites"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = config(tmp_path, {"class_path": "DeepMIMO", "init_args": {"scenario": "street", "root": str(street)}})
    change = config(tmp_path, {"init_args": {"base_stations": [2]}}, "change.yaml")
    assert main(["make", "--config", file, "--config", change]) == 0
    assert main(["ls"]) == 0
    name, links, size, unit, *rest = capsys.readouterr().out.splitlines()[1].split()
    assert (name, unit, rest) == ("street_bs2", "KB", ["street", "street", "DeepMIMO"])
    [folder] = listing.folders()
    assert int(links) == len(Site.load(folder))
    assert float(size) > 1


def test_later_files_overrule_earlier_ones(tmp_path):
    first = config(tmp_path, {"class_path": "DeepMIMO", "init_args": {"scenario": "x", "max_paths": 3}}, "1.yaml")
    second = config(tmp_path, {"init_args": {"scenario": "y"}}, "2.yaml")
    whole = config(tmp_path, {"class_path": "DeepMIMO", "init_args": {"scenario": "y"}}, "4.yaml")
    other = config(
        tmp_path, [{"class_path": "WAIRD"}, {"class_path": "DeepMIMO", "init_args": {"scenario": "z"}}], "3.yaml"
    )
    [source] = read_sources([Path(first), Path(second)])
    assert (source.scenario, source.max_paths) == ("y", 3)
    [source] = read_sources([Path(first), Path(whole)])
    assert (source.scenario, source.max_paths) == ("y", 20), "a source that names its class takes nothing over"
    assert [type(source).__name__ for source in read_sources([Path(first), Path(other)])] == ["WAIRD", "DeepMIMO"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"class_path": "DeepMemo"}, "data.yaml, line 5): did you mean 'DeepMIMO'?"),
        ({"class_path": "DeepMIMO"}, "missing 'data.source.scenario'"),
        ({"class_path": "DeepMIMO", "init_args": {"scenari": "x"}}, "unknown key 'data.source.scenari' ("),
        ({"class_path": "DeepMIMO", "init_args": {"scenari": "x"}}, "data.yaml, line 7): did you mean 'scenario'?"),
        (
            {"class_path": "DeepMIMO", "init_args": {"scenario": "x", "max_paths": "few"}},
            "must be a whole number, got 'few'",
        ),
        (
            {"class_path": "DeepMIMO", "init_args": {"scenario": "x", "max_paths": 0}},
            "max_paths must be at least 1, got 0",
        ),
        (
            {"class_path": "DeepMIMO", "init_args": {"scenario": "x", "root": "nowhere", "download": False}},
            ": set scenario, root",
        ),
        (None, "no data.init_args.source in"),
        (3, "must be class_path of a Source, got '3'"),
    ],
)
def test_make_says_in_one_line_what_is_wrong(source, message, tmp_path, capsys):
    assert main(["make", "--config", config(tmp_path, source)]) == 2
    line = errors(capsys)
    assert line.startswith("error: ")
    assert message in line


def test_files_that_are_no_config(tmp_path, capsys):
    assert main(["make", "--config", str(tmp_path / "nope.yaml")]) == 2
    assert "nope.yaml cannot be read" in errors(capsys)
    (tmp_path / "odd.yaml").write_text("a: [")
    assert main(["make", "--config", str(tmp_path / "odd.yaml")]) == 2
    assert "odd.yaml, line 1, column 5" in errors(capsys)


def test_failures_are_a_line_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datamodules.sources.build.build", lambda sources, workers: {"a_bs0": "no", "b_bs0": "never"})
    file = config(tmp_path, {"class_path": "DeepMIMO", "init_args": {"scenario": "x"}})
    assert main(["make", "--config", file, "--workers", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: a_bs0: no", "error: b_bs0: never"]


def test_ls_lists_and_sums_up(cache, capsys):
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "links", "size", "city", "area", "source"]
    assert [line.split()[0] for line in lines[1:-1]] == ["a_bs0", "a_bs1", "b_bs0"]
    assert lines[1].split()[1] == "40"
    assert lines[-1].startswith("3 sites, ")
    (cache / "a_bs1-0123456789" / "site.json").write_text("{")
    assert main(["ls", "--cache", str(cache)]) == 0
    assert "a_bs1-0123456789 (damaged)" in capsys.readouterr().out
    assert main(["ls", "--cache", str(cache / "none")]) == 2
    assert "no site in" in errors(capsys)


@pytest.mark.parametrize(("number", "words"), [(0, "0 B"), (999, "999 B"), (26_100, "26.1 KB"), (4e12, "4e+03 GB")])
def test_sizes_in_words(number, words):
    assert listing.in_bytes(number) == words


def test_show_counts_what_is_there(cache, capsys):
    assert main(["show", "a_bs1"]) == 0
    text = capsys.readouterr().out
    paths = Site.load(cache / "a_bs1-0123456789").paths
    assert f"40: {int((paths.los == 1).sum())} in line of sight, {int((paths.los == 0).sum())} not, 1 without" in text
    served = paths[paths.has_path]
    power = 10 * np.log10(served.power.numpy())
    assert f"{power.min():.1f} to {power.max():.1f} dB" in text
    assert f"{served.mask.sum(1).float().mean():.1f} on average" in text
    weight = (served.gain.abs().numpy() ** 2).astype(float)
    delay = served.delay.numpy().astype(float)
    mean = (weight * delay).sum(1) / weight.sum(1)
    spread = np.sqrt((weight * (delay - mean[:, None]) ** 2).sum(1) / weight.sum(1))
    assert f"{1e9 * np.sort(spread)[(len(spread) - 1) // 2]:.1f} ns" in text
    assert json.dumps({"source": "toy", "seed": 3}) in text
    assert main(["show", "a"]) == 0
    assert capsys.readouterr().out.count("\n  carrier") == 2
    assert main(["show", "c"]) == 2
    assert errors(capsys) == "error: no site or area is named 'c': `ls` lists them"


def test_verify_names_every_damaged_file(cache, capsys):
    assert main(["verify"]) == 0
    assert "3 of 3 sites are intact" in capsys.readouterr().out
    flipped, cut = (cache / f"{name}-0123456789" / "paths.safetensors" for name in ("a_bs0", "b_bs0"))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    assert main(["verify"]) == 2
    said = capsys.readouterr()
    assert "1 of 3 sites are intact" in said.out
    named = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert [str(flipped) in named[0], str(cut) in named[1], len(named)] == [True, True, 2]


def test_plot_draws_a_site_or_an_area(cache, tmp_path, capsys):
    for name in ("a_bs0", "a"):
        out = tmp_path / "pictures" / f"{name}.png"
        assert main(["plot", name, "--out", str(out)]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        assert out.read_bytes()[:4] == b"\x89PNG"
    assert main(["plot", "a", "--out", str(tmp_path / "a.xyz")]) == 2
    assert "a.xyz" in errors(capsys)


def test_import_writes_a_recording(tmp_path, capsys):
    np.save(tmp_path / "csi.npy", np.ones((7, 4), dtype=np.complex64))
    out = tmp_path / "csi.safetensors"
    given = [str(tmp_path / "csi.npy"), str(out), "--axes", "U K", "--carrier_frequency", "3.5e9", "--bandwidth", "1e7"]
    assert main(["import", *given]) == 0
    assert out.is_file()
    capsys.readouterr()
    assert main(["import", "nowhere.npy", *given[1:]]) == 2
    assert errors(capsys) == "error: nowhere.npy does not exist"
    assert main(["import", *given[:4]]) == 2
    assert "carrier_frequency, bandwidth" in errors(capsys)
    for value in ("-1e-3", "-.5", "-1"):
        assert main(["import", *given, "--interval", value]) == 2
        assert f"interval must be a positive number, got '{float(value)}'" in errors(capsys)
    assert main(["import", *given, "--bs_row", "1"]) == 2
    assert "bs_row" in errors(capsys)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "COMMAND"),
        (["mkae"], "invalid choice: 'mkae'"),
        (["make"], "--config"),
        (["plot", "a"], "--out"),
        (["make", "--config", "x", "--workers", "many"], "--workers: invalid int value: 'many'"),
        (["make", "--config", "x", "--work", "2"], "--work"),
    ],
)
def test_command_lines_that_cannot_be(args, message, capsys):
    assert main(args) == 2
    assert message in errors(capsys)


def test_leaving_early_is_no_error(cache):
    command = f"{sys.executable} -m datamodules ls | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("name")


def test_interrupted(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("datamodules.sources.build.build", interrupt)
    file = config(tmp_path, {"class_path": "DeepMIMO", "init_args": {"scenario": "x"}})
    assert main(["make", "--config", file]) == 130
    assert errors(capsys) == "interrupted: the same command goes on from here"


def test_debugging_shows_where(monkeypatch, cache):
    monkeypatch.setitem(os.environ, "CSI_DEBUG", "1")
    with pytest.raises(InputError):
        main(["show", "c"])
