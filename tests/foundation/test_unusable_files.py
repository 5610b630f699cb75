"""A file in the place of a folder, or a folder in that of a file, is one line that names it, in every command."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

import datamodules.__main__
import foundation.cli
from datamodules.errors import InputError, remedied
from datamodules.sources.recorded.example import write_example
from datamodules.sources.recorded.importing import import_recording
from foundation import CsiFeedback
from foundation.evaluation import prediction_curves
from foundation.nets.csinetplus import CSINetPlus
from foundation.runtime.resume import AtomicCheckpointIO
from foundation.studies import dashboard, results, run
from foundation.tuning import tune
from tests.foundation.towers import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    model = CsiFeedback(CSINetPlus(8, 8, 8, blocks=0))
    save_checkpoint(model, tmp_path / "x.ckpt")
    return str(tmp_path / "x.ckpt")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").touch()
    return str(tmp_path / "file")


def one_line(capsys, *words):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


def test_an_export_names_what_it_cannot_write(checkpoint, file, tmp_path, capsys):
    assert foundation.cli.main(["export", checkpoint, "--to", "safetensors", "--out", file]) == 2
    one_line(capsys, f"{file}: File exists: give another folder")
    (tmp_path / "out/model.safetensors").mkdir(parents=True)
    assert foundation.cli.main(["export", checkpoint, "--to", "safetensors", "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, f"cannot write {tmp_path / 'out/model.safetensors'}: ")


def test_a_cache_that_is_a_file_is_named(file, street, tmp_path, capsys):
    source = {"class_path": "DeepMIMO", "init_args": {"scenario": "street", "root": str(street), "cache": file}}
    (tmp_path / "x.yaml").write_text(json.dumps({"data": {"init_args": {"source": source}}}))
    assert datamodules.__main__.main(["make", "--config", str(tmp_path / "x.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(f"{file}: File exists: give another folder" in line for line in lines if line.startswith("error: "))
    assert "Error:" not in "".join(lines)


def test_a_search_a_study_and_a_workspace_name_it(file, tmp_path, capsys, monkeypatch):
    pytest.importorskip("optuna")
    assert tune.main(["experiments/tune/beam.yaml", "--runs", file]) == 2
    one_line(capsys, file, "Not a directory")
    (tmp_path / "runs/a/b").mkdir(parents=True)
    (tmp_path / "runs/a/b/config.yaml").write_text("model: 1\n")
    monkeypatch.setattr(dashboard, "publish", lambda *_: open(tmp_path))
    assert dashboard.main(["--runs", str(tmp_path / "runs")]) == 2
    one_line(capsys, str(tmp_path), "Is a directory")
    assert dashboard.main([str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    one_line(capsys, "is no plain name")


@pytest.mark.parametrize(("module", "args"), [(run, ["x"]), (results, ["x"]), (prediction_curves, [])])
def test_programs_of_studies_end_alike(module, args, file, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", *args])
    monkeypatch.setattr("foundation.studies.study.Study.named", lambda _: open(f"{file}/x"))
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    one_line(capsys, f"{file}/x", "Not a directory")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_no_bug(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w") as full:
        full.write("text")
    assert remedied(caught.value) == "No space left on device: give another folder, or free the disk"
    assert remedied(OSError(errno.EPERM, "Operation not permitted")) is None, "of no file"

    def into_full(checkpoint, file):
        with open("/dev/full", "wb") as full:
            full.write(bytes(10))

    monkeypatch.setattr("torch.save", into_full)
    (tmp_path / "last.ckpt").write_text("earlier")
    with pytest.raises(OSError, match="No space left") as caught:
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert remedied(caught.value).startswith(f"{tmp_path / 'last.ckpt'}: No space left on device: give another folder")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("last.ckpt", "earlier")]


@pytest.mark.parametrize("module", ["example", "importing"])
def test_a_recording_that_cannot_be_written_is_named(module, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    np.save(tmp_path / "csi.npy", np.ones((4, 1, 2, 8), dtype=np.complex64))
    monkeypatch.setattr(f"datamodules.sources.recorded.{module}.save_file", full)
    out, facts = tmp_path / "out" / "example.safetensors", {"carrier_frequency": 1e9, "bandwidth": 1e7}
    write = {
        "example": lambda: write_example(out.parent),
        "importing": lambda: import_recording(str(tmp_path / "csi.npy"), str(out), axes="U R T K", **facts),
    }[module]
    with pytest.raises(InputError, match=f"cannot write {out}: .*No space left"):
        write()
