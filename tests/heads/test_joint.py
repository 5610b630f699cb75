"""Several heads on one network equal the heads alone."""

import pytest
import torch

from heads import LOS, Beam, Joint, Positioning
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
    joint = Joint(D, [lambda d: Positioning(d, places=5), lambda d: Beam(d, num_beams=Q), LOS])
    position, beam, los = (head.predict(head(features)) for head in joint.heads.values())
    answer = joint.predict(joint(features))
    assert answer.shape == (len(features), 4)
    assert answer.dtype == torch.float32
    assert torch.equal(answer[:, :2], position)
    assert torch.equal(answer[:, 2].long(), beam)
    assert torch.equal(answer[:, 3].long(), los)


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
