"""What a training step asks of a GPU that it has to wait for, found without one, on tensors without content.

Each answer that Python needs of a GPU, and each copy to it, waits until all that was asked of it before is done.
"""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules.channel import arrays, impairments, response, transforms
from datamodules.channel.arrays import Array
from datamodules.channel.motion import Sequence
from datamodules.maps.augmentation import WorldSymmetry
from foundation import CNNTransformer, ConTwin, FineTune
from foundation.runtime.probe import OnlineProbe
from heads import LOS, Beam, Joint, Positioning, Prediction
from tests.datamodules.test_module import build
from tests.foundation import ranks
from tests.foundation.models.test_envchannel import town_site
from tests.foundation.towers import TinyEncoder, tiny_clip

aten = torch.ops.aten
GPU = torch.device("cuda")
CACHES = (transforms.constant, arrays.array_frame, response._array_runs, response._link_runs)


class Waits(TorchDispatchMode):
    """Records what would wait for a GPU, and goes on as if all links had a label and power."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name, kwargs = call.overloadpacket, kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if any(value.device.type == "cuda" for value in tensors):
            if name in (aten._local_scalar_dense, aten.equal):
                return self.answer("item", True)
            if name is aten.nonzero:
                rows = torch.empty(args[0].shape[-1], args[0].ndim, dtype=torch.int64, device=GPU)
                return self.answer("nonzero", rows)
            if name is aten.index and any(index is not None and index.dtype == torch.bool for index in args[1]):
                return self.answer("mask", args[0].clone())
            if name in (aten.masked_select, aten.repeat_interleave, aten._unique2, aten.bincount):
                return self.answer(name.__name__, args[0].clone())
            if name is aten._linalg_check_errors:
                return self.answer("solve", None)
        result = call(*args, **kwargs)
        if name in (aten._to_copy, aten.copy_) and not kwargs.get("non_blocking"):
            if {value.device.type for value in (*tensors, result)} == {"cpu", "cuda"}:
                self.found.append("copy")
        return result

    def answer(self, kind, value):
        self.found.append(kind)
        return value


def placed(module, mode):
    """Put parameters and buffers on the GPU that is not there."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is not None:
                    with mode:
                        moved = mode.from_tensor(value.detach()).to(GPU)
                    held[name] = torch.nn.Parameter(moved) if isinstance(value, torch.nn.Parameter) else moved
        if hasattr(part, "_device"):
            part._device = GPU


def waits(model, data, monkeypatch):
    """Return the waits of a batch and of a training step on it, with its online probe, the second time."""
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)  # its engine asks for a real GPU
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model._trainer = SimpleNamespace(global_step=9, estimated_stepping_batches=10)
    rows = next(iter(data.train_dataloader()))
    model.prepare_from(data)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    placed(model, mode)
    probes = [callback for callback in model.configure_callbacks() if isinstance(callback, OnlineProbe)]
    for probe in probes:
        placed(probe.net, mode)
    with mode:
        rows = move_data_to_device(rows, GPU)
        for _ in range(2):  # the first step copies constants
            with Waits() as made:
                batch = data.finish(rows, 0, True)
            with Waits() as trained:
                step = model.training_step(batch, 0)
                for callback in (model, *probes):
                    own = () if callback is model else (None, model)
                    callback.on_train_batch_end(*own, step, batch, 0)
    return made.found, trained.found


LINK = [
    impairments.Noise(), impairments.CommonPhase(), impairments.PartialSubcarriers(), impairments.TimingOffset(),
    impairments.AmplitudeScaling(), impairments.AntennaPermutation(), impairments.PhaseJitter(),
]  # fmt: skip
PAST = {"sequence": Sequence(4), "observation": [impairments.Noise()]}
SECTOR = {"bs": Array(2, 2, pattern="tr38901", orientation=(0.1, 0.2, 0.0)), "ue": Array(1, 2, pattern="dipole")}


def past_encoder():
    return CNNTransformer(4, 4, 8, width=16, layers=1, heads=2, channels=4)


def tuned(head):
    return FineTune(head, TinyEncoder(), mode="scratch")


def predicted():
    return FineTune(lambda d: Prediction(d, hidden=8), past_encoder(), mode="scratch")


#: model, settings of data, and the waits of a step that have no cheaper way
CASES = {
    "csiclip": (tiny_clip, {"views": LINK, "observation": LINK, "num_beams": 8, "extras": ["domain"]}, []),
    "sectors": (tiny_clip, {"views": LINK, "num_beams": 4, **SECTOR}, []),
    "contwin": (
        lambda: ConTwin(past_encoder(), embed_dim=8),
        {"views": [*LINK, impairments.TimeShift()], "extras": ["domain"], "sequence": Sequence(4, window=25e-3)},
        [],
    ),
    "envchannel": (
        ranks.two_tower,
        {"extras": ["map", "geometry"], "symmetry": WorldSymmetry(stretch=(0.8, 1.25))},
        ["nonzero"],  # of the counterfactuals
    ),
    "csifeedback": (ranks.feedback, {"observation": [impairments.Noise()]}, ["item"]),  # whether all have power
    "calibration": (ranks.calibration, ranks.DATA["TwinCalibration"], ["item"]),
    "los": (lambda: tuned(LOS), {}, []),
    "positioning": (lambda: tuned(lambda d: Positioning(d, anchors=4)), {}, []),
    "beam": (lambda: tuned(lambda d: Beam(d, 8, loss="focal")), {"num_beams": 8}, []),
    "joint": (lambda: tuned(lambda d: Joint(d, [LOS, Positioning])), {}, []),
    "feedback": (ranks.compressing, {}, []),
    "prediction": (predicted, PAST, []),
}


@pytest.fixture(autouse=True)
def no_constants_without_content():
    """Forget what was cached on the device, before and after."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_does_not_wait_for_the_gpu(name, tmp_path, monkeypatch):
    make, settings, expected = CASES[name]
    sites = [town_site(site, 0) for site in "ab"[: settings.get("base_stations", 1)]]
    made, trained = waits(make(), build(tmp_path, sites, batch_size=16, **settings), monkeypatch)
    assert made == []
    assert trained == expected
