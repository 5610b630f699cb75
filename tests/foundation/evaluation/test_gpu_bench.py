from itertools import count

import pytest

from foundation.evaluation import gpu_bench
from foundation.evaluation.gpu_bench import MODELS, main, synthesis, training


@pytest.fixture
def works(monkeypatch):
    """What is timed, each said to take half a second."""
    found = []
    monkeypatch.setattr(gpu_bench, "_timed", lambda work, *_: (found.append(work), (0.5, 0.0))[1])
    return found


def test_time_is_that_of_a_call(monkeypatch):
    calls, clock = [], count()
    monkeypatch.setattr(gpu_bench.time, "perf_counter", lambda: 2.0 * len(calls))
    spent, peak = gpu_bench._timed(lambda: calls.append(next(clock)), "cpu", seconds=30.0)
    assert (spent, peak, len(calls)) == (2.0, 0.0, 3 + 1 + 3 * 5)


def test_channels_are_timed(tmp_path, works):
    assert synthesis(4, "cpu", str(tmp_path)).step == 0.5
    [work] = works
    assert work().shape == (4, 4, 64, 256)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_every_model_is_timed(name, tmp_path, works, monkeypatch):
    made = []
    build, size = MODELS[name]
    monkeypatch.setitem(MODELS, name, (lambda: made.append(build()) or made[0], size))
    mode = "bf16-mixed" if name == "ConTwin" else "fp32"
    speed = training(name, mode, 8, "cpu", str(tmp_path))
    assert (speed.step, speed.make, speed.peak) == (0.5, 0.5, 0.0)
    make, step = works
    assert len(make()["csi"]) == 8
    before = [p.detach().clone() for p in made[0][0].parameters()]
    step()
    assert any((p != old).any() for p, old in zip(made[0][0].parameters(), before, strict=True))


@pytest.mark.parametrize(("device", "gpus", "found"), [("cuda:1", 1, "1"), ("cuda", 0, "none"), ("gpu", 1, "1")])
def test_no_gpu_is_one_line(device, gpus, found, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("sys.argv", ["gpu_bench", "--device", device])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == f"error: --device {device} must be cuda or cuda:N of a GPU; PyTorch finds {found}\n"
    )
