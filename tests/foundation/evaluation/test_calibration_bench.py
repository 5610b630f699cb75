import pytest

from datamodules import SionnaRT, Twins
from foundation.evaluation import bench, calibration_bench, tracing_bench
from foundation.evaluation.calibration_bench import cost_table, costs
from tests.raytracing import requires_sionna


@requires_sionna
def test_the_cost_of_a_user_is_that_of_its_tracing(tmp_path):
    base = SionnaRT(scene="simple_street_canyon", base_stations=[[0, 0, 20]], chunk=8, cache=str(tmp_path))
    source = Twins(base, {"low": {"max_depth": 1, "samples": 1000}, "high": {"max_depth": 3, "samples": 30000}})
    spent = costs(source, rounds=1)
    assert spent["high"][1] > spent["low"][1] > 0
    assert spent["calibrated"][0] == pytest.approx(spent["low"][0] + spent["calibrator"][0])
    assert "| low-fidelity tracing" in cost_table(spent)


def test_the_table_says_how_many_times_less_than_high_fidelity():
    spent = {"high": (0.02, 0.04), "low": (0.001, 0.002), "calibrator": (0.0, 0.002), "calibrated": (0.001, 0.004)}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in cost_table(spent).splitlines()]
    assert lines[-1] == ["low fidelity and calibrator", "1.00", "4.00", "10.0 x"]


@pytest.mark.parametrize(("bench", "message"), [(calibration_bench, "calibration.yaml"), (tracing_bench, "'few'")])
def test_a_bench_that_cannot_run_ends_with_one_line(bench, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", *["few"] * (bench is tracing_bench)])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("program", [bench, calibration_bench])
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--nonsense", 2)])
def test_a_bench_without_options_does_not_start_for_one(program, option, status, monkeypatch):
    for work in ("report", "activity"):
        monkeypatch.setattr(program, work, lambda *_: pytest.fail("it has started"), raising=False)
    monkeypatch.setattr("sys.argv", ["bench", option])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == status
