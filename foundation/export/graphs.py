"""Encoders and heads as ONNX graphs of real numbers."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from foundation.contract import csi_shape
from foundation.encoder import Encoder
from foundation.export.real_pairs import RealPairs
from foundation.nets.autoencoder import Autoencoder
from foundation.nets.handcrafted import HandFeatures
from heads import Head

#: largest absolute error of a graph over the largest magnitude of the PyTorch output
_PARITY = 1e-5
#: batch sizes that a graph is verified with
_TRIED = (1, 3, 5)
_LINK_SHAPES = {"geometry": (8,), "position": (3,), "bs_position": (3,)}


@dataclass(frozen=True)
class Graph:
    """Specification of one ONNX file.

    Attributes:
        name: Name of the file.
        compute: The function of its inputs.
        module: The module that holds its weights.
        inputs: Shapes of one link's inputs by name; complex inputs are real pairs (..., 2).
        complex_inputs: Names of the complex inputs.
        output: Name of the output.
        scale: Amplitude of the CSI that it is verified with, that of the training data.
    """

    name: str
    compute: Callable[..., Tensor]
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    complex_inputs: tuple[str, ...]
    output: str
    scale: float = 1.0


class _OfReals(nn.Module):
    """Wraps a graph as a module of real inputs in the order of the graph, complex ones as pairs (..., 2)."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph, self.held = graph, graph.module

    def forward(self, *values: Tensor) -> Tensor:
        with RealPairs():
            return _computed(self.graph, values)


def _computed(graph: Graph, values: tuple[Tensor, ...]) -> Tensor:
    """Return the real output of a graph for real inputs."""
    given = zip(graph.inputs, values, strict=True)
    out = graph.compute(*(torch.view_as_complex(v) if k in graph.complex_inputs else v for k, v in given))
    return torch.view_as_real(out) if out.is_complex() else out


def graphs_of(part: str, module: nn.Module, data: Mapping[str, Any]) -> list[Graph]:
    """Return the graphs of one part of a checkpoint; an autoencoder has two, encoder and decoder.

    Args:
        part: Its name.
        module: An encoder or a head, in eval mode.
        data: Description of the training data in the checkpoint.

    Raises:
        InputError: The size of an input is not known.
    """
    scale = 10 ** (data.get("power_db", (0.0, 1.0))[0] / 20)
    if isinstance(module, Encoder):
        inputs = {key: _shape(key, module, data) for key in module.input_keys}
        graphs = [Graph(part, module.forward, module, inputs, ("csi",) * ("csi" in inputs), "features", scale)]
        if isinstance(module, Autoencoder):
            code: dict[str, tuple[int, ...]] = {"features": (module.num_features,)}
            graphs.append(Graph(f"{part}_decoder", module.decode, module, code, (), "channel"))
        return graphs
    if not isinstance(module, Head):
        raise InputError(f"{part} is a {type(module).__name__}, neither encoder nor head")
    read = {key: _shape(key, None, data) for key in module.inputs}
    complex_inputs = tuple(key for key in read if key == "csi")
    inputs = {"features": (module.in_features,), **read}
    return [Graph(part, module.forward, module, inputs, complex_inputs, "prediction", scale)]


def _shape(key: str, encoder: Encoder | None, data: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of one link's input."""
    if key == "map" and encoder is not None:
        return (1, encoder.hparams["map_size"], encoder.hparams["map_size"])
    if key in _LINK_SHAPES:
        return _LINK_SHAPES[key]
    size = csi_shape(data, encoder) if key == "csi" else None
    if size is None and isinstance(encoder, HandFeatures):
        size = (1, *encoder.size)
    if size is None and isinstance(encoder, Autoencoder):
        size = (1, encoder.antennas, encoder.rows)
    if size is None:
        raise InputError(
            f"the checkpoint does not say the shape of {key}: it is older than `lightning export`, or its data were "
            "not of the suite; train it again, or resume it by --ckpt_path last, and export the new checkpoint"
        )
    if encoder is not None and "N" not in encoder.input_axes["csi"].split():
        return size
    snapshots = getattr(encoder, "snapshots", None) or data.get("snapshots")
    return size if snapshots is None else (int(snapshots), *size)


def write_graph(graph: Graph, file: Path) -> float:
    """Write a graph as ONNX with a free batch size, and verify it in ONNX Runtime.

    Args:
        graph: The graph.
        file: The file to write.

    Returns:
        The largest absolute error over random batches, relative to the largest magnitude of the PyTorch output.

    Raises:
        InputError: It cannot be written in ONNX, or its error exceeds the tolerance.
    """
    import onnxruntime

    print(f"writing {file.name}", file=sys.stderr, flush=True)  # takes about ten seconds
    module = _OfReals(graph).eval()
    # the exporter takes a batch size of one for a constant
    values = _drawn(graph, 2)
    batch = torch.export.Dim("batch")
    level = logging.getLogger("torch.onnx").level
    try:  # gives a clear message where an operation has no form in real numbers
        with torch.no_grad():
            module(*values)
    except Exception as error:  # any exception means that the graph cannot be written
        uses = "it uses " * isinstance(error, NotImplementedError)
        raise InputError(f"{_named(graph)} has no ONNX form: {uses}{' '.join(str(error).split())}") from error
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                module, values, dynamo=True, dynamic_shapes={"values": tuple({0: batch} for _ in values)},
                input_names=list(graph.inputs), output_names=[graph.output], verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise InputError(f"{_named(graph)} has no ONNX form: {cause[0] if cause else type(error).__name__}") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    if program is None:
        raise InputError(f"{_named(graph)} has no ONNX form")
    file.parent.mkdir(parents=True, exist_ok=True)
    program.save(file)
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        # not `max` of Python, which passes over a NaN that is not the first
        worst = float(np.max([_error(graph, session, count) for count in _TRIED]))
    except Exception as error:  # exceptions of ONNX Runtime have no common base class
        file.unlink()
        raise InputError(f"{_named(graph)} has no ONNX form that runs: {str(error).strip().splitlines()[0]}") from error
    if not worst <= _PARITY:
        file.unlink()
        raise InputError(f"{_named(graph)} as ONNX errs by {worst:.1e}, more than {_PARITY}: it is not written")
    return worst


def _named(graph: Graph) -> str:
    return f"{graph.name}, a {type(graph.module).__name__},"


def _drawn(graph: Graph, count: int) -> tuple[Tensor, ...]:
    """Draw random inputs of `count` links."""
    generator = torch.Generator().manual_seed(count)
    values = []
    for key, shape in graph.inputs.items():
        if key in graph.complex_inputs:
            values.append(graph.scale * torch.randn(count, *shape, 2, generator=generator))
            continue
        # maps and geometry vectors are in [0, 1]
        draw = torch.rand if key in ("map", "geometry") else torch.randn
        values.append(draw(count, *shape, generator=generator))
    return tuple(values)


@torch.no_grad()
def _error(graph: Graph, session: Any, count: int) -> float:
    values = _drawn(graph, count)
    wanted = _computed(graph, values).numpy()
    fed = {key: value.numpy() for key, value in zip(graph.inputs, values, strict=True)}
    # the exporter drops inputs that the output does not depend on
    given = session.run(None, {each.name: fed[each.name] for each in session.get_inputs()})[0]
    return float(np.abs(given - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))
