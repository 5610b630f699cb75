import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import datamodules
import foundation.cli
from datamodules import MatchedUsers, Source
from datamodules.errors import DatasetNotFoundError, InputError
from foundation import CsiFeedback, CSINetPlus, FineTune, HandFeatures, embed, load_encoder, load_part
from foundation.export.card import card
from foundation.export.command import main
from foundation.export.graphs import graphs_of
from heads import LOS, Prediction
from tests.foundation.export.cases import DATA
from tests.foundation.towers import save_checkpoint

ROOT = Path(__file__).parents[3]


def saved(model, path):
    model.trained_on = DATA
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    encoder = HandFeatures(4, 16)
    encoder.mean.normal_()
    return saved(FineTune(lambda n: LOS(n), encoder, mode="scratch"), tmp_path / "x.ckpt")


def test_a_folder_loads_as_its_checkpoint_does(checkpoint, tmp_path):
    folder = main([str(checkpoint), "--to", "safetensors"])
    assert folder == tmp_path / "x-export"
    csi = torch.randn(3, 2, 4, 16, dtype=torch.complex64)
    assert torch.equal(load_encoder(folder)(csi), load_encoder(checkpoint)(csi))
    features = torch.randn(2, 21)
    assert torch.equal(load_part(folder, "head")(features), load_part(checkpoint, "head")(features))
    assert (embed(folder, 1e-5 * csi.numpy()) == embed(checkpoint, 1e-5 * csi.numpy())).all()
    # again, of the folder, and one part of it alone
    main([str(folder), "--to", "safetensors", "--part", "head", "--out", str(tmp_path / "y")])
    with pytest.raises(InputError, match="holds no part 'encoder': choose one of head"):
        load_part(tmp_path / "y", "encoder")


def test_a_damaged_folder_is_one_line(checkpoint):
    folder = main([str(checkpoint), "--to", "safetensors"])
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"x")
    with pytest.raises(InputError, match=r"is not what config.json gives the checksum of"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is damaged or no exported model"):
        load_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"holds no config.json"):
        load_encoder(folder)


def test_the_card_tells_data_licence_input_and_controls(tmp_path):
    run = tmp_path / "runs/csifeedback/one"
    path = saved(CsiFeedback(CSINetPlus(8, 8, 8)), run / "checkpoints/best.ckpt")
    metrics = {"test/nmse_db": -5.0, "test/csi_nmse_db": -4.0, "test/pca_nmse_db": -7.0, "test/chance_nmse_db": 3.0}
    (run / "summary.json").write_text(json.dumps({"split": "spatial", "seed": 3, "metrics": metrics}))
    folder = main([str(path), "--to", "safetensors"])
    assert folder == run / "export"
    text = (folder / "README.md").read_text()
    for part in (
        "| `autoencoder` | `foundation.CSINetPlus` |", "DeepMIMO", "non-commercial", "newyork",
        "(N, R, T, K) = (4, 2, 4, 16)", "-100.0 dB", "SNR: 0 to 20 dB", "split `spatial`, seed 3",
        "- Control beaten: `chance_nmse_db` 3, this model -5.",
        "- Control *not* beaten: `pca_nmse_db` -7, this model -5.",
        json.loads((folder / "config.json").read_text())["sha256"],
    ):  # fmt: skip
        assert part in text
    # exported again from the folder, it still knows
    main([str(folder), "--to", "safetensors", "--out", str(tmp_path / "again")])
    assert (tmp_path / "again/README.md").read_text() == text


def test_the_card_knows_the_controls_of_every_model():
    metrics = {
        "prediction/nmse_db": -9.0, "prediction/hold_nmse_db": -5.0, "prediction/link_ar_nmse_db": -10.0,
        "prediction/limit_nmse_db": -20.0, "prediction/rate_loss": 0.1, "prediction/hold_rate_loss": 0.2,
        "los_accuracy": 0.9, "los_chance": 0.6, "match_user": 0.01, "match_user_chance": 0.02, "beam/top1": 0.3,
        "prediction/nmse_db_1": -8.0, "prediction/hold_nmse_db_1": -9.0, "prediction/zero_nmse_db_1": 0.0,
    }  # fmt: skip
    text = card({"parts": {}, "summary": {"metrics": {f"test/{k}": v for k, v in metrics.items()}}}, {})
    lines = [line for line in text.splitlines() if line.startswith("- Control")]
    assert lines == [
        "- Control beaten: `prediction/hold_nmse_db` -5, this model -9.",
        "- Control beaten: `prediction/hold_rate_loss` 0.2, this model 0.1.",
        "- Control beaten: `los_chance` 0.6, this model 0.9.",
        "- Control beaten: `prediction/zero_nmse_db_1` 0, this model -8.",
        "- Control *not* beaten: `prediction/link_ar_nmse_db` -10, this model -9.",
        "- Control *not* beaten: `match_user_chance` 0.02, this model 0.01.",
        "- Control *not* beaten: `prediction/hold_nmse_db_1` -9, this model -8.",
    ]
    assert "| prediction/limit_nmse_db | -20 |" in text


def test_the_card_knows_the_terms_of_every_source():
    for name in datamodules.__all__:
        kind = getattr(datamodules, name)
        if isinstance(kind, type) and issubclass(kind, Source) and kind not in (Source, MatchedUsers):
            text = card({"parts": {}, "data": {"sources": [name]}}, {})
            assert f"- {name}: " in text
            assert "see its publisher" not in text, name


def test_the_card_of_an_adapted_model_names_the_data_of_its_pre_training(tmp_path, street, street_data):
    pretrained = saved(FineTune(lambda n: LOS(n), HandFeatures(4, 16), mode="scratch"), tmp_path / "x.ckpt")
    args = ["fit", "--config", "experiments/finetune/los.yaml", *street_data, "--runs", str(tmp_path), "--run_id", "y"]
    args += ["--data.bs", "{rows: 1, cols: 4}", "--data.ofdm.num_subcarriers", "16", "--then_test", "false"]
    args += ["--model.checkpoint", str(pretrained), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert foundation.cli.main(args) == 0
    folder = main([str(tmp_path / "los/y/checkpoints/best.ckpt"), "--to", "safetensors"])
    assert load_encoder(folder).hparams == load_encoder(pretrained).hparams
    assert "- Cities: street, newyork." in (folder / "README.md").read_text()


def test_a_model_hub_reads_the_card(checkpoint):
    hub = pytest.importorskip("huggingface_hub")
    folder = main([str(checkpoint), "--to", "safetensors"])
    data = hub.ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.license) == ("csi-foundation", "other")


def test_bad_input_ends_with_one_line(checkpoint, capsys):
    for args, message in (
        ([], "the following arguments are required"),
        ([str(checkpoint), "--to", "tflite"], "invalid choice: 'tflite'"),
        (["nowhere.ckpt", "--to", "onnx"], "nowhere.ckpt does not exist"),
        ([str(checkpoint), "--to", "onnx", "--part", "tail"], "holds no part 'tail': choose one of encoder, head"),
    ):
        assert foundation.cli.main(["export", *args]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_part_that_has_no_onnx_form_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("foundation.export.command.write_graph", lambda graph, file: _no_filter(graph))
    model = FineTune(lambda n: Prediction(n), HandFeatures(4, 16), mode="scratch")
    path = saved(model, tmp_path / "x.ckpt")
    main([str(path), "--to", "onnx", "--out", str(tmp_path)])
    out = capsys.readouterr()
    assert "encoder.onnx" in out.out
    assert out.err == "left out: no filter\n"
    with pytest.raises(InputError, match="no filter"):
        main([str(path), "--to", "onnx", "--part", "head", "--out", str(tmp_path)])


def test_a_part_is_not_written_over_the_folder_that_it_is_taken_from(checkpoint, tmp_path):
    folder = main([str(checkpoint), "--to", "safetensors", "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="would lose all parts but head: give another folder by --out"):
        main([str(folder), "--to", "safetensors", "--part", "head"])
    assert load_encoder(folder) is not None
    main([str(folder), "--to", "safetensors", "--part", "head", "--out", str(tmp_path / "head")])


def _no_filter(graph):
    if isinstance(graph.module, Prediction):
        raise InputError("no filter")
    return 0.0


def test_an_autoencoder_is_a_graph_at_either_end():
    assert [graph.name for graph in graphs_of("autoencoder", CSINetPlus(8, 8, 8), DATA)] == [
        "autoencoder", "autoencoder_decoder"
    ]  # fmt: skip


@pytest.mark.parametrize("part", [[], ["--part", "head"]])
def test_a_missing_extra_is_asked_for(checkpoint, monkeypatch, part):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'csi-foundation\[export\]'"):
        main([str(checkpoint), "--to", "onnx", *part])


@pytest.mark.slow
def test_the_lines_of_the_docs_need_numpy_onnxruntime_and_safetensors_alone(checkpoint):
    pytest.importorskip("onnxscript")
    folder = main([str(checkpoint), "--to", "onnx"])
    main([str(checkpoint), "--to", "safetensors"])
    [lines] = re.findall(r"```text\n(import numpy as np\n.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    lines = lines.replace("runs/csiclip/RUN_ID/export/csi.onnx", "encoder.onnx").replace(
        "(200, 1, 32, 64)", "(7, 2, 4, 16)"
    )
    lines = lines.replace("runs/csiclip/RUN_ID/export/", "")
    program = f"""
import sys

class Only:
    # what `pip install numpy onnxruntime safetensors` brings
    allowed = {{"numpy", "onnxruntime", "safetensors", "flatbuffers", "google", "packaging", "sympy", "mpmath"}}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Only())
{lines}
assert features.shape == (7, 21)
assert weights["encoder.mean"].shape == (21,)
[logits] = onnxruntime.InferenceSession("head.onnx").run(None, {{"features": features}})
assert logits.shape == (7, 2)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [sys.executable, "-c", program.replace("import numpy as", "import torch, numpy as")], cwd=folder
    )
    assert refused.returncode == 1
