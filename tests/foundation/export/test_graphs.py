from types import SimpleNamespace

import pytest
import torch

from datamodules.channel import transforms
from datamodules.errors import InputError
from foundation import ClassicalPredictor
from foundation.export.graphs import _computed, _drawn, _OfReals, graphs_of, write_graph
from foundation.export.real_pairs import Pair, RealPairs
from heads import Prediction
from tests.foundation.export.cases import CASES, DATA, DATA_OF, case

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("name", CASES)
def test_real_pairs_compute_what_complex_numbers_do(name):
    for graph in graphs_of(name, case(name), DATA_OF.get(name, DATA)):
        values = _drawn(graph, 3)
        with torch.no_grad():
            wanted, given = _computed(graph, values), _OfReals(graph)(*values)
        assert wanted.abs().max() > 1e-9
        assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max(), graph.name


def test_links_of_zeros_have_the_same_features():
    for name in ("profiles", "channel_angle_delay", "csinetplus"):
        [graph, *_] = graphs_of(name, case(name), DATA)
        zeros = (torch.zeros(2, 2, 4, 16, 2),)
        with torch.no_grad():
            assert torch.allclose(_OfReals(graph)(*zeros), _computed(graph, zeros), atol=1e-5), name


def test_what_has_no_real_form_is_said():
    pair = Pair(torch.randn(3, 4, 2))
    with RealPairs(), pytest.raises(NotImplementedError, match="cumsum of complex numbers"):
        pair.cumsum(0)


@pytest.mark.parametrize("transform", [transforms.to_delay, transforms.to_angle])
def test_dfts_are_products_with_matrices(transform):
    csi = torch.randn(3, 1, 4, 8, dtype=torch.complex64)
    with RealPairs():
        given = transform(Pair(torch.view_as_real(csi))).parts
    assert torch.allclose(torch.view_as_complex(given), transform(csi), atol=1e-6)


def test_a_graph_takes_any_batch_and_is_held_against_torch(tmp_path):
    [graph] = graphs_of("profiles", case("profiles"), DATA)
    assert write_graph(graph, tmp_path / "x.onnx") <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    [read] = session.get_inputs()
    assert (read.name, read.shape) == ("csi", ["batch", 2, 4, 16, 2])
    assert [each.name for each in session.get_outputs()] == ["features"]


def test_a_graph_that_gives_nan_is_not_written(tmp_path, monkeypatch):
    errors = iter([1e-7, float("nan"), 1e-7])
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: SimpleNamespace(save=lambda file: file.touch()))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: None)
    monkeypatch.setattr("foundation.export.graphs._error", lambda *_: next(errors))
    [graph] = graphs_of("profiles", case("profiles"), DATA)
    with pytest.raises(InputError, match="errs by nan"):
        write_graph(graph, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("module", [Prediction(16), ClassicalPredictor("link_ar", 4, 1, 8, 16)])
def test_what_onnx_cannot_hold_is_one_line(module, tmp_path):
    [graph] = graphs_of("part", module.eval(), DATA)
    with pytest.raises(InputError, match=r"part, a \w+, has no ONNX form: it uses \w+ of complex numbers$"):
        write_graph(graph, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_csi_of_unknown_size_is_one_line():
    with pytest.raises(InputError, match="does not say the shape of csi"):
        graphs_of("encoder", case("resnet_csi"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_gives_what_torch_gives(name, tmp_path):
    for graph in graphs_of(name, case(name), DATA_OF.get(name, DATA)):
        error = write_graph(graph, tmp_path / f"{graph.name}.onnx")
        print(graph.name, f"{error:.1e}")
        assert error <= 1e-5
