import os

import pytest

from datamodules.files import write_whole


def test_two_processes_may_write_a_file_at_once(tmp_path, monkeypatch):
    file, replace = tmp_path / "results.csv", os.replace

    def in_between(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write_whole(file, "other")
        assert file.read_text() == "other"
        replace(source, target)

    monkeypatch.setattr(os, "replace", in_between)
    write_whole(file, "own")
    assert file.read_text() == "own"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_whole(file, "old")

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
