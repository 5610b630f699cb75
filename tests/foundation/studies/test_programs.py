"""What the programs behind `make` say of themselves, before they do anything."""

import importlib

import pytest

PROGRAMS = [
    "evaluation.csi4cast", "evaluation.gpu_bench", "evaluation.prediction_curves", "report.__main__",
    "studies.reproduce", "studies.results", "studies.run",
]  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_the_command(name, capsys, monkeypatch):
    module = importlib.import_module(f"foundation.{name}")
    monkeypatch.setattr("sys.argv", ["x.py", "--help"])
    with pytest.raises(SystemExit) as leaving:
        module.main()
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m foundation.{name.removesuffix('.__main__')} [-h]")


def test_the_demo_takes_no_options(capsys, monkeypatch):
    from foundation import demo

    monkeypatch.setattr(demo, "run_study", lambda *_: pytest.fail("it has started"))
    for option, status, said in (
        ("--help", 0, "usage: make demo"),
        ("--seed=1", 2, "unrecognized arguments: --seed=1"),
    ):
        monkeypatch.setattr("sys.argv", ["demo.py", option])
        with pytest.raises(SystemExit) as leaving:
            demo.main()
        assert leaving.value.code == status
        assert said in "".join(capsys.readouterr())
