"""The authors' curves of CSI feedback, drawn beside ours."""

from pathlib import Path

from matplotlib.colors import to_hex

from foundation.evaluation.feedback_curves import _NAMES, PUBLISHED, figure4, published
from foundation.studies.rows import rows_of
from foundation.studies.study import Study

ROOT = Path(__file__).parents[3]


def test_the_published_curves_are_those_of_the_authors():
    theirs = published(ROOT / PUBLISHED)
    assert theirs["samples"][:3] == [10, 20, 40]
    assert theirs["rehearsal, high NMSE"][2] == -19.8
    assert {len(values) for values in theirs.values()} == {11}


def test_a_curve_of_the_authors_has_the_colour_of_ours():
    theirs = published(ROOT / PUBLISHED)
    assert set(theirs) - {"samples"} <= set(_NAMES.values())


def drawn(*variants):
    """Return the label of the horizontal axis, and marker and colour of each curve, of models by their variant."""
    summaries = [
        {"experiment": "x", "run_id": f"pretrain-{name}-s0", "n_train": 40, "metrics": {"test/nmse_db": -8.0}}
        for name in variants
    ]
    rows = [row for summary in summaries for row in rows_of(summary, Study("x", [0]))]
    [axes] = figure4(rows, published(ROOT / PUBLISHED)).axes
    theirs = [line for line in axes.lines if not line.get_label().startswith("_")]
    lines = {line.get_label(): (line.get_marker(), to_hex(line.get_color())) for line in theirs}
    for container in axes.containers:
        lines[container.get_label()] = (container[0].get_marker(), to_hex(container[0].get_color()))
    return axes.get_xlabel(), lines


def test_a_model_of_another_place_is_not_drawn_as_a_refined_one_nor_in_the_colour_of_another_curve():
    label, lines = drawn("square-n1280")
    marker, color = lines.pop("square, ours")
    assert marker == "o"
    assert color not in [other for _, other in lines.values()]
    assert "squares" not in label
    assert not any("refined" in name or "rehearsal" in name for name in lines), "the authors' have none to compare with"
    label, lines = drawn("twin-n40", "random-n40")
    assert (lines["twin, ours"][0], lines["refined, random, ours"][0]) == ("o", "s")
    assert "target links of the refinement (squares)" in label
    assert "rehearsal, high NMSE [authors]" in lines
