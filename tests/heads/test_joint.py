"""Several heads on one network equal the heads alone."""

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MetricCollection

from heads import LOS, Beam, Feedback, Head, Joint, Positioning
from tests.heads.conftest import D, Q


def build() -> Joint:
    torch.manual_seed(0)
    return Joint(D, [Positioning, lambda d: Beam(d, num_beams=Q), lambda d: LOS(d, hidden=None)])


def test_loss_and_metrics_are_those_of_the_parts(batches, features, statistics):
    joint = build()
    joint.prepare(statistics)
    batch = batches[0]
    prediction = joint(features)
    assert prediction.shape == (len(features), 2 + Q + 2)
    alone = list(joint.heads.values())
    assert torch.allclose(joint.loss(prediction, batch), sum(head.loss(head(features), batch) for head in alone))
    metrics = joint.metrics().clone(prefix="test/")
    metrics.update(prediction, batch)
    found = metrics.compute()
    for head in alone:
        expected = head.metrics()
        expected.update(head(features), batch)
        for name, value in expected.compute().items():
            assert torch.equal(found[f"test/{name}"], value), name
    metrics.reset()
    metrics.update(joint(features[:12]), batches[1])
    assert metrics.compute()["test/mean_m"] != found["test/mean_m"]


def test_answers_side_by_side(features):
    torch.manual_seed(0)
    joint = Joint(D, [lambda d: Positioning(d, anchors=5), lambda d: Beam(d, num_beams=Q), LOS])
    position, beam, los = (head.predict(head(features)) for head in joint.heads.values())
    answer = joint.predict(joint(features))
    assert answer.shape == (len(features), 4)
    assert answer.dtype == torch.float32
    assert torch.equal(answer[:, :2], position)
    assert torch.equal(answer[:, 2].long(), beam)
    assert torch.equal(answer[:, 3].long(), los)


class Level(Head):
    """Predicts one number a link, (B,), as the head of the README does."""

    target_key, requires, monitor, monitor_mode = "beam_power", ("beam_power",), "error_db", "min"

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.layers = torch.nn.Sequential(torch.nn.BatchNorm1d(in_features), torch.nn.Linear(in_features, 1))

    def forward(self, features):
        return self.layers(features).squeeze(1)

    def loss(self, prediction, batch):
        return (prediction - self.target(batch)).square().mean()

    @staticmethod
    def target(batch):
        return batch["beam_power"].amax(1)

    def metrics(self):
        return MetricCollection({"error_db": LevelError()}, compute_groups=False)


class LevelError(MeanAbsoluteError):
    def update(self, prediction, batch):
        super().update(prediction, Level.target(batch))


def test_predictions_of_any_shape_and_complex_ones(batch, features):
    torch.manual_seed(0)
    sizes = {"num_antennas": 4, "num_subcarriers": 6, "rank": 2, "width": 8, "layers": 1, "heads": 2}
    joint = Joint(D, [Level, lambda d: Feedback(d, **sizes), lambda d: Beam(d, num_beams=Q)]).eval()
    batch = batch | {"csi": torch.randn(len(features), 2, 2, 6, dtype=torch.complex64)}
    with torch.no_grad():
        prediction = joint(features)
    assert prediction.shape == (len(features), 1 + 2 * 4 * 6 + Q)
    level, feedback, beam = alone = [head.eval() for head in joint.heads.values()]
    expected = sum(head.loss(head(features), batch) for head in alone)
    assert joint.loss(prediction, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(joint.predict(prediction[:1]), joint.predict(prediction)[:1]), "a single link"
    answer = joint.predict(prediction)
    rebuilt = torch.complex(*answer[:, 1:49].reshape(-1, 4, 6, 2).unbind(-1))
    assert torch.equal(answer[:, 0], level(features))
    assert torch.equal(rebuilt, feedback(features))
    assert torch.equal(answer[:, 49].long(), beam.predict(beam(features)))
    metrics = joint.metrics()
    metrics.update(prediction, batch)
    for head in alone:
        own = head.metrics()
        own.update(head(features).detach(), batch)
        for name, value in own.compute().items():
            assert torch.equal(metrics.compute()[name], value), name
    assert {"feedback_reconstruction", "beam_confusion"} <= set(joint.figures(prediction, batch))


def test_metrics_of_one_name_are_not_lost():
    with pytest.raises(ValueError, match="two of its heads have gain_db, se_ratio, top1, top3, top5"):
        Joint(D, [Beam, type("Other", (Level,), {"metrics": lambda self: Beam(D).metrics()})])


def test_what_it_asks_for(batch, features):
    joint = build()
    assert joint.requires == ("position", "bs_position", "beam", "beam_power", "los")
    assert (joint.monitor, joint.monitor_mode) == ("mean_m", "min")
    assert {"positioning_error_cdf", "beam_confusion", "los_confusion"} <= set(
        joint.figures(joint(features).detach(), batch)
    )


@pytest.mark.parametrize("heads", [[], [LOS, LOS]])
def test_bad_heads(heads):
    with pytest.raises(ValueError, match="each of another kind"):
        Joint(D, heads)
