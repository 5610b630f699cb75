"""The authors' curves of CSI feedback, drawn beside ours."""

from pathlib import Path

from foundation.evaluation.feedback_curves import _NAMES, PUBLISHED, published

ROOT = Path(__file__).parents[3]


def test_the_published_curves_are_those_of_the_authors():
    theirs = published(ROOT / PUBLISHED)
    assert theirs["samples"][:3] == [10, 20, 40]
    assert theirs["rehearsal, high NMSE"][2] == -19.8
    assert {len(values) for values in theirs.values()} == {11}


def test_a_curve_of_the_authors_has_the_colour_of_ours():
    theirs = published(ROOT / PUBLISHED)
    assert set(theirs) - {"samples"} <= set(_NAMES.values())
