"""Every model on a GPU through the real command line: training, resumption, and the way back to the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback
from safetensors.torch import load_file

from foundation import CSICLIP, ChannelTransformer, ConTwin, EnvChannel, EnvironmentTransformer, ResNet, load_encoder
from foundation.cli import run
from foundation.nets.contwin import CNNTransformer
from foundation.runtime.probe import OnlineProbe
from heads import Feedback
from tests.foundation.towers import save_checkpoint
from tests.gpu import DEVICE, ROOT, Town, near, on_cuda, requires_device  # noqa: F401

pytestmark = requires_device
PRECISIONS = ("32-true", "bf16-mixed")


@pytest.fixture
def command(tmp_path):
    """Return what makes a command on random rays, with its runs under the temporary folder."""

    def words(name, *files, precision="32-true", device=DEVICE):
        source = f"{{class_path: tests.gpu.Town, init_args: {{cache: {tmp_path / 'sites'}}}}}"
        settings = {
            "data.source": source, "data.batch_size": 16, "data.split": "random", "data.fractions": "[0.6, 0.2, 0.2]",
            "trainer.accelerator": "gpu" if device == "cuda" else device, "trainer.devices": 1,
            "trainer.precision": precision, "trainer.max_epochs": 1, "trainer.limit_train_batches": 2,
            "trainer.check_val_every_n_epoch": 1, "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false", "runs": tmp_path / "runs", "run_id": "a",
        }  # fmt: skip
        if name.startswith("fit"):
            settings["then_test"] = "false"
        configs = [word for file in files for word in ("--config", str(ROOT / "experiments" / file))]
        return [name, *configs, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]

    return words


SMALL = ["--data.bs.cols", "8", "--data.ofdm.num_subcarriers", "16"]
LINKED = [f"--data.{side}_on=null" for side in ("train", "validate", "test")]
#: models that pre-train, with the settings by which they read the town
MODELS = {
    "csiclip": [*SMALL, "--model.csi_encoder.width=0.25", "--model.cir_encoder.width=0.25"],
    "envchannel": ["--data.holdout=null"],
    "contwin": ["--model.encoder.layers=1"],
    "csifeedback": ["--data.ofdm.num_subcarriers=64"],
    "calibration": [*LINKED, "--data.variants=null", "--data.group=station", "--data.base_stations=2"],
}


def check_run(folder, tested=True):
    summary = json.loads((folder / "summary.json").read_text())
    assert all(value is not None for value in summary["validation"].values()), summary["validation"]
    assert all(value is not None for value in summary["metrics"].values()), summary["metrics"]
    assert bool(summary["metrics"]) == tested
    assert (summary["hardware"]["gpu"] is not None) == (DEVICE == "cuda")
    rows = load_file(folder / "predictions.safetensors")
    assert len(rows["user"]) > 100
    for key, value in rows.items():
        assert value.dtype != torch.bfloat16, key
        assert key in ("nmse", "position") or not value.is_floating_point() or value.isfinite().all(), key
    return rows


def fit_and_score(command, tmp_path, files, more, precision, tested=True):
    """Fit, test and predict; return the folder and the predictions."""
    trained = run([*command("fit", *files, precision=precision), *more])
    folder = trained.run.folder
    best = ["--ckpt_path", str(folder / "checkpoints" / "best.ckpt")]
    for name in ["validate", *["test"] * tested, "predict"]:
        run([*command(name, *files, precision=precision), *more, *best])
    return folder, check_run(folder, tested)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_models_train_and_go_back_to_the_cpu(model, precision, command, tmp_path):
    files, more, tested = (f"{model}.yaml",), MODELS[model], model not in ("csiclip", "contwin")
    folder, rows = fit_and_score(command, tmp_path, files, more, precision, tested)
    best = folder / "checkpoints" / "best.ckpt"
    assert all(weight.device.type == "cpu" for weight in load_encoder(best).state_dict().values())
    here = [*more, "--ckpt_path", str(best)]
    if tested:
        run([*command("test", *files, device="cpu"), *here])
    run([*command("predict", *files, device="cpu"), *here])
    again = load_file(folder / "predictions.safetensors")
    for key in ("position", "los", "site", "user"):
        assert torch.equal(rows[key].nan_to_num(), again[key].nan_to_num())
    if precision == "32-true" and "features" in rows and model != "contwin":  # whose noise differs between devices
        near(again["features"], rows["features"], 0.02)  # convolutions take TF32


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Untrained weights, by the data that they read."""
    sizes = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}
    towers = (ChannelTransformer(**sizes), EnvironmentTransformer(corridor=2, echoes=2, **sizes))
    size = {"width": 32, "layers": 1, "heads": 2, "channels": 8}
    models = {
        "links": CSICLIP(ResNet("resnet18", width=0.25), ResNet("resnet18", "cir", width=0.25)),
        "towers": EnvChannel(*towers, lambda d: Feedback(d, 32, 64, rank=2, width=32, layers=1, heads=2)),
        "past": ConTwin(CNNTransformer(10, 16, 64, **size)),
    }
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp("weights") / f"{name}.ckpt"
        save_checkpoint(model, found[name])
    return found


#: tasks, with the checkpoint and the encoder that they read
TASKS = {task: ("links", "csiclip") for task in ("los", "positioning", "beam", "feedback")}
TASKS |= {"prediction": ("past", "contwin")}
#: adaptations of the two-tower
TOFT = {
    "toft_joint": [],
    "toft_beam_both": [],
    "toft_stations": [],
    "toft_feedback": ["--model.mode=scratch", "--config", str(ROOT / "experiments/encoders/envchannel.yaml")],
    "toft_positioning": ["--model", "MapPositioning", "--model.tokens=4"],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", ["probe", "finetune", "scratch", "control"])
@pytest.mark.parametrize("task", TASKS)
def test_every_head_adapts_in_every_mode(task, mode, precision, checkpoints, command, tmp_path):
    weights, encoder = TASKS[task]
    files, more = [f"finetune/{task}.yaml"], ["--data.num_labels=null", "--data.num_workers=0", "--model.mode", mode]
    if mode in ("probe", "finetune"):
        more += ["--model.checkpoint", str(checkpoints[weights])]
    else:
        files.append(f"encoders/{encoder}.yaml")
    fit_and_score(command, tmp_path, files, more, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", TOFT)
def test_the_two_tower_is_adapted(task, precision, checkpoints, command, tmp_path):
    more = ["--model.checkpoint", str(checkpoints["towers"]), *TOFT[task]]
    if "scratch" in str(more):
        more = more[2:]
    fit_and_score(
        command,
        tmp_path,
        [f"finetune/{task}.yaml"],
        [*more, "--data.predict_on=all", "--data.num_workers=0"],
        precision,
    )


@pytest.mark.parametrize("kind", ["direct", "link_ar", "wiener", "kalman"])
def test_other_predictors_run(kind, command, tmp_path):
    files = ["finetune/prediction.yaml"] + [f"encoders/{kind}.yaml"] * (kind != "direct")
    more = ["--model.mode=control", "--data.num_labels=null"]
    if kind == "direct":
        files.append("encoders/contwin.yaml")
        more = ["--model.mode=scratch", "--data.num_labels=null", "--model.head.kind=direct"]
    run([*command("fit", *files, precision="bf16-mixed"), *more, "--then_test", "true"])


class Where(Callback):
    """Remembers the devices of what the optimizers of model and probe hold, and channels of the GPU."""

    def __init__(self):
        self.found, self.channels = {}, []

    def on_train_start(self, trainer, module):
        data = trainer.datamodule
        rows = data.sides["train"].__getitems__(list(range(8)))
        self.channels = [data.finish(part)["csi"] for part in (move_data_to_device(rows, module.device), rows)]

    def on_train_batch_end(self, trainer, module, *_):
        [probe] = [callback for callback in trainer.callbacks if isinstance(callback, OnlineProbe)]
        for name, optimizer in (("probe", probe.optimizer), ("model", trainer.optimizers[0])):
            moments = [state["exp_avg"] for state in optimizer.state.values()]
            self.found[name] = {value.device.type for value in moments}


def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("high")  # the command line takes it back, see `cli.run`
    more = [*MODELS["envchannel"], "--model.schedule=constant", "--model.rebuild_first=0", "--model.optimizer=muon"]
    more += ["--trainer.deterministic", "warn", "--trainer.benchmark", "false"]
    start, where = command("fit", "envchannel.yaml"), [Where(), Where()]
    try:
        run([*start, *more, "--run_id", "whole", "--trainer.max_epochs", "2"], [where[0]])
        run([*start, *more, "--run_id", "part"])
        run([*start, *more, "--run_id", "part", "--trainer.max_epochs", "2", "--ckpt_path", "last"], [where[1]])
    finally:
        torch.use_deterministic_algorithms(False)
    for watched in where:
        assert watched.found == {"probe": {DEVICE}, "model": {DEVICE}}
        near(*watched.channels)
    files = [tmp_path / "runs/envchannel" / name / "checkpoints/last.ckpt" for name in ("whole", "part")]
    whole, part = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    assert whole["global_step"] == part["global_step"] == 4
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(part["state_dict"][key], value, rtol=1e-5, atol=1e-6, msg=key)
    [probe] = [key for key in whole["callbacks"] if key.startswith("OnlineProbe")]
    for key, value in whole["callbacks"][probe]["net"].items():
        torch.testing.assert_close(part["callbacks"][probe]["net"][key], value, rtol=1e-4, atol=1e-5, msg=key)


# --- NCCL, which has no collectives of CPU tensors; one process is what one GPU takes


def program(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("model", [*MODELS, "los", "prediction", "feedback"])
def test_models_train_as_one_of_several_processes(model, checkpoints, command, tmp_path):
    more = MODELS.get(model)
    if more is None:
        weights = str(checkpoints[TASKS[model][0]])
        more = ["--model.checkpoint", weights, "--data.num_labels=null"]
    file = f"{model}.yaml" if model in MODELS else f"finetune/{model}.yaml"
    words = [*command("fit", file), *more, "--trainer.strategy", "ddp"]
    words[words.index("--then_test") + 1] = str(model not in ("csiclip", "contwin")).lower()
    program("-m", "foundation", *words)


@on_cuda
def test_collectives_take_every_kind_of_tensor(tmp_path):
    program(
        "-c",
        f"from tests.foundation.models.test_cuda_models import collectives; collectives({str(tmp_path / 'store')!r})",
    )


def collectives(store):
    """Check gathers and sums of a NCCL group of one process."""
    from foundation.gather import gather, gather_rows, mean, total

    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    kinds = (torch.float32, torch.bfloat16, torch.complex64, torch.int8, torch.int64, torch.bool)
    for kind in kinds:
        value = torch.ones(3, 2, dtype=kind, device="cuda")
        assert torch.equal(gather(value), value), kind
        assert torch.equal(gather_rows({"x": value})["x"], value), kind
    weight = torch.ones(3, device="cuda", requires_grad=True)
    (gather(weight) * 2).sum().backward()
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]
    assert float(total(weight).sum()) == float(mean(weight).sum()) == 3.0
    torch.distributed.destroy_process_group()
