"""Lists of runs: what is done already, goes on, or is left for the next call."""

from foundation.runtime.runs import write_summary
from foundation.studies.run_list import run_all


def test_a_terminated_run_ends_the_list_and_a_stopped_one_goes_on(tmp_path, monkeypatch, capfd):
    write_summary(tmp_path / "x/finished/summary.json", {"metrics": {}})
    (tmp_path / "x/stopped/checkpoints").mkdir(parents=True)
    (tmp_path / "x/stopped/checkpoints/last.ckpt").touch()
    (tmp_path / "x/stopped-early").mkdir()  # before its first checkpoint
    names = ("finished", "stopped", "stopped-early", "terminated", "later")
    called = []

    def program(args):
        called.append(args)
        return 143 if args[0] == "terminated" else 0

    monkeypatch.setattr("foundation.cli.main", program)
    assert run_all("x", [(name, [name]) for name in names], tmp_path) == 143
    assert called == [["stopped", "--ckpt_path", "last"], ["stopped-early"], ["terminated"]]
    told = capfd.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("[")][-1] == "[3/4] x/terminated"
    assert "stopped: the same command resumes with this run" in told.err
