import pytest
import torch

from datamodules.sides.domains import UNKNOWN
from foundation.losses.domain_similarity import adversarial_pairs, class_speed, positive_pairs, similarity

# scenario, los, mobility, tilt [degrees], frequency [MHz]
BASE = [1, 0, 1, 10, 3500]


def changed(**values):
    axes = ["scenario", "los", "mobility", "tilt", "frequency"]
    return [values.get(name, value) for name, value in zip(axes, BASE, strict=True)]


def pair(one, other, **options):
    return bool(adversarial_pairs(torch.tensor([one]), torch.tensor([other]), **options))


def test_similarity_counts_the_axes_that_agree():
    labels = torch.tensor([BASE, changed(los=1), changed(los=1, tilt=0)])
    assert similarity(labels, labels).tolist() == [[5, 4, 3], [4, 5, 4], [3, 4, 5]]
    weighted = similarity(labels, labels[:1], {"los": 0.5, "tilt": 2.0})
    assert weighted.flatten().tolist() == [5.5, 5.0, 3.0]
    assert positive_pairs(labels, labels).tolist() == torch.eye(3, dtype=torch.bool).tolist(), "the paper's rho is 5"
    assert positive_pairs(labels, labels, rho=4).sum() == 7
    weights = dict.fromkeys(("scenario", "los", "mobility", "tilt", "frequency"), 0.1)
    assert positive_pairs(labels, labels, 0.5, weights).any()


def test_unknown_conditions_neither_agree_nor_differ():
    unknown = torch.tensor([changed(los=UNKNOWN, mobility=UNKNOWN)])
    assert similarity(unknown, unknown).item() == 3
    assert not adversarial_pairs(unknown, torch.tensor([changed(los=1, mobility=2)]))


@pytest.mark.parametrize(
    ("change", "is_negative"),
    [
        ({}, False),
        ({"scenario": 2}, True),
        ({"los": 1}, True),
        ({"tilt": 15}, False),
        ({"tilt": 16}, True),
        ({"tilt": 4}, True),
        ({"frequency": 28000}, False),  # 24.5 GHz apart
        ({"frequency": 28500}, True),  # the table's one criterion that includes its threshold
        ({"mobility": 0}, False),
        ({"mobility": 2}, True),
    ],
)
def test_criteria_are_those_of_table_4(change, is_negative):
    assert pair(BASE, changed(**change)) is is_negative
    assert pair(changed(**change), BASE) is is_negative


def test_speeds_of_classes_are_those_in_the_middle_of_appendix_b():
    speed = class_speed(torch.tensor([0, 1, 2, UNKNOWN]))
    assert speed[:3].tolist() == pytest.approx([0, 4.5 / 3.6, 75 / 3.6])
    assert speed[3].isnan()


def test_weights_below_one_need_several_axes():
    half = dict.fromkeys(("scenario", "los", "mobility", "tilt", "frequency"), 0.5)
    assert not pair(BASE, changed(los=1), weights=half)
    assert pair(BASE, changed(los=1, tilt=0), weights=half)
    assert not pair(BASE, changed(los=1), weights={"los": 0.0})


def test_refuses_unknown_names_and_weights():
    with pytest.raises(ValueError, match="not speed"):
        pair(BASE, BASE, weights={"speed": 1.0})
    with pytest.raises(ValueError, match=r"weights must lie in \[0, 1\]"):
        pair(BASE, BASE, weights={"los": 1.5})
    with pytest.raises(ValueError, match="thresholds must be of"):
        pair(BASE, BASE, thresholds={"los": 1.0})
