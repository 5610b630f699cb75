"""What holds for every head."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

import heads
from heads import LOS, Beam, Head, Joint, Positioning, keep_labelled
from heads.base import check_declared, statistic
from heads.figures import confusion_figure
from tests.heads.conftest import D, Q

Batch = dict[str, Tensor]
Factory = Callable[[int], Head]

FACTORIES: dict[str, Factory] = {
    "positioning2": lambda d: Positioning(d),
    "positioning3": lambda d: Positioning(d, dims=3, dropout=0.1),
    "anchors": lambda d: Positioning(d, anchors=5),
    "beam": lambda d: Beam(d, num_beams=Q),
    "focal": lambda d: Beam(d, num_beams=Q, loss="focal"),
    "los": lambda d: LOS(d),
    "los_linear": lambda d: LOS(d, hidden=None, balanced=True),
    "beam_linear": lambda d: Beam(d, num_beams=Q, hidden=None),
    "positioning_linear": lambda d: Positioning(d, hidden=None),
}
OUTPUTS = {"positioning2": 2, "positioning3": 3, "anchors": 7, "beam": Q, "focal": Q, "los": 2, "los_linear": 2}
OUTPUTS |= {"beam_linear": Q, "positioning_linear": 2}
LINEAR = [FACTORIES[name] for name in FACTORIES if name.endswith("_linear")]
every_head = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


def without_labels(batch: Batch) -> Batch:
    return {
        **batch,
        "position": torch.full_like(batch["position"], torch.nan),
        "los": torch.full_like(batch["los"], -1),
        "beam": torch.full_like(batch["beam"], -1),
    }


@pytest.mark.parametrize("name", FACTORIES)
def test_forward_shape(name: str, features: Tensor) -> None:
    assert FACTORIES[name](D)(features).shape == (len(features), OUTPUTS[name])


@every_head
def test_declares_the_contract(factory: Factory) -> None:
    head = factory(D)
    assert head.in_features == D
    assert head.target_key in head.requires
    assert head.monitor in head.metrics()
    assert head.monitor_mode in ("min", "max")


@every_head
def test_loss_falls_on_one_batch(factory: Factory, features: Tensor, batch: Batch, statistics: Batch) -> None:
    torch.manual_seed(0)
    head = factory(D)
    head.prepare(statistics)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = head.loss(head(features), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # one linear layer cannot remember random labels, it can only get nearer
    assert losses[-1] < (0.9 if factory in LINEAR else 0.3) * losses[0]


@every_head
def test_an_unlabelled_sample_changes_nothing(factory: Factory, features: Tensor, batch: Batch) -> None:
    head = factory(D).eval()
    prediction = head(features)
    keep = batch["los"] >= 0
    assert not keep.all()
    kept = {key: value[keep] for key, value in batch.items()}
    torch.testing.assert_close(head.loss(prediction, batch), head.loss(prediction[keep], kept))
    whole, reduced = head.metrics(), head.metrics()
    whole.update(prediction, batch)
    reduced.update(prediction[keep], kept)
    torch.testing.assert_close(whole.compute(), reduced.compute())


@every_head
def test_unlabelled_batch_gives_zero_loss_with_zero_gradient(factory: Factory, features: Tensor, batch: Batch) -> None:
    head = factory(D)
    prediction = head(features)
    unlabelled = without_labels(batch)
    loss = head.loss(prediction, unlabelled)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in head.parameters())
    metrics = head.metrics()
    metrics.update(prediction.detach(), unlabelled)
    assert all(value.isnan() for value in metrics.compute().values())
    assert head.figures(prediction.detach(), unlabelled) == {}


@every_head
def test_an_unlabelled_batch_does_not_move_the_metrics(factory: Factory, features: Tensor, batch: Batch) -> None:
    head = factory(D).eval()
    prediction = head(features)
    one, both = head.metrics(), head.metrics().clone(prefix="test/")
    one.update(prediction, batch)
    both.update(prediction, without_labels(batch))
    both.update(prediction, batch)
    torch.testing.assert_close({f"test/{name}": value for name, value in one.compute().items()}, both.compute())


@every_head
def test_metrics_are_fresh(factory: Factory, features: Tensor, batch: Batch) -> None:
    head = factory(D)
    used = head.metrics()
    used.update(head(features), batch)
    assert all(metric.update_count == 0 for metric in head.metrics().values())


@every_head
def test_figures_can_be_saved(factory: Factory, features: Tensor, batch: Batch, tmp_path: Path) -> None:
    head = factory(D)
    figures = head.figures(head(features).detach(), batch)
    assert figures
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{name}.png", dpi=40)


@every_head
def test_state_survives_a_checkpoint(factory: Factory, features: Tensor, statistics: Batch, tmp_path: Path) -> None:
    trained, loaded = factory(D).eval(), factory(D).eval()
    trained.prepare(statistics)
    torch.save(trained.state_dict(), tmp_path / "head.pt")
    loaded.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(trained(features), loaded(features))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LOS(0), "in_features must be at least 1, got 0"),
        (lambda: LOS(8, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: Positioning(8, dims=1), "dims must be 2 or 3, got 1"),
        (lambda: Positioning(8, anchors=-1), "anchors must be at least 0, got -1"),
        (lambda: Positioning(8, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Beam(8, num_beams=1), "num_beams must be at least 2, got 1"),
        (lambda: Beam(8, gamma=-1.0), "gamma must be at least 0, got -1.0"),
        (lambda: Beam(8, gamma=float("nan")), "gamma must be at least 0, got nan"),
        (lambda: Beam(8, loss="hinge"), "loss must be 'cross_entropy' or 'focal', got 'hinge'"),
        (lambda: Beam(8, snr_db=float("inf")), "snr_db must be finite, got inf"),
    ],
)
def test_bad_arguments(build: Callable[[], Head], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()


def test_statistic_names_what_is_wrong() -> None:
    statistics = {"los_counts": torch.ones(2)}
    with pytest.raises(ValueError, match=r"no 'position_std', only \['los_counts'\]"):
        Positioning(D).prepare(statistics)
    with pytest.raises(ValueError, match=r"'los_counts' must have shape \(3,\), got \(2,\)"):
        statistic(statistics, "los_counts", 3)


@pytest.mark.parametrize(
    ("factory", "label"),
    [
        (Positioning, "position"),
        (LOS, "los"),
        (lambda d: Beam(d, num_beams=Q), "beam"),
        (lambda d: Joint(d, [Positioning, LOS]), "los"),
    ],
)
def test_data_without_the_label_are_refused(factory: Factory, label: str) -> None:
    counts = {f"labelled_{key}": torch.tensor(5) for key in ("position", "los", "beam")}
    head = factory(D)
    head.check(counts)
    with pytest.raises(ValueError, match=rf"head \w+ needs {label}, which no link of the train side has"):
        head.check(counts | {f"labelled_{label}": torch.tensor(0)})


def test_a_class_without_a_sample_is_no_row_of_zeros() -> None:
    figure = confusion_figure(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 2]]), "title")
    [picture] = figure.axes[0].images
    assert picture.get_array().mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert "grey: no sample" in figure.axes[1].get_ylabel()
    named = confusion_figure(torch.tensor([[0, 0], [1, 3]]), "title", ("a", "b"))
    assert [text.get_text() for text in named.axes[0].texts] == ["no sample", "no sample", "25.0%\n(1)", "75.0%\n(3)"]
    assert "grey" not in confusion_figure(torch.eye(2, dtype=torch.long), "title").axes[1].get_ylabel()


def test_an_error_map_shows_buildings_and_training_users(features: Tensor, batch: Batch) -> None:
    head = Positioning(D)
    more = {"walls": torch.rand(6, 2, 2) * 40, "train_position": torch.rand(9, 3) * 40}
    axes = head.figures(head(features).detach(), batch | more)["error_map"].axes[0]
    [walls] = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(walls.get_segments()) == 6
    [users] = [line for line in axes.lines if line.get_label() == "training users"]
    [shown] = [c for c in axes.collections if not isinstance(c, LineCollection)]
    known = batch["position"].isfinite().all(1)
    assert torch.allclose(torch.tensor(shown.get_offsets().data).float(), batch["position"][known, :2])
    assert len(users.get_xdata()) == 9


def test_keep_labelled() -> None:
    other = torch.arange(4)
    label, kept = keep_labelled(torch.tensor([1, -1, 0, -7], dtype=torch.int8), other)
    assert label.tolist() == [1, 0]
    assert kept.tolist() == [0, 2]
    position = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [2.0, torch.inf], [3.0, 3.0]])
    assert keep_labelled(position, other)[1].tolist() == [0, 3]
    assert keep_labelled(torch.tensor([0.0, torch.nan, 2.0, -torch.inf]), other)[1].tolist() == [0, 2]
    assert keep_labelled(torch.zeros(0), other[:0])[1].tolist() == []


#: where datamodules holds pure channel math, which everything may import
PURE_MATH = "datamodules.channel."


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(PURE_MATH):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(Path(heads.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    module = ast.parse(path.read_text())
    # read, not run: torchmetrics imports matplotlib on its own account
    assert imported(module.body) <= {*sys.stdlib_module_names, "heads", "einops", "numpy", "torch", "torchmetrics"}
    assert not imported(ast.walk(module)) & {"datamodules", "foundation"}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({}, None),
        ({"target_key": None, "monitor_mode": None}, "head Own declares no target_key and no monitor_mode: set them"),
        ({"requires": "los"}, "requires of head Own must be a tuple of keys, got 'los'"),
        (
            {"monitor": "accurracy"},
            "head Own monitors 'accurracy', but its metrics are accuracy, balanced_accuracy, f1",
        ),
    ],
)
def test_what_a_head_declares_is_checked(own, message):
    declared = {name: getattr(LOS, name) for name in ("target_key", "requires", "monitor", "monitor_mode")} | own
    methods = {name: getattr(LOS, name) for name in ("forward", "loss", "metrics")}
    kind = type("Own", (Head,), methods | {name: value for name, value in declared.items() if value is not None})
    if message is None:
        check_declared(kind(D))
    else:
        with pytest.raises(ValueError, match=message):
            check_declared(kind(D))
