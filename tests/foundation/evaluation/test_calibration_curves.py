"""Cosine and hit rate of twin calibration over the number of codewords, from the rows of results."""

from foundation.evaluation.calibration_curves import plot_sweep, swept
from foundation.studies.results import publish
from foundation.studies.rows import rows_of
from foundation.studies.study import Study

STUDY = Study("x", [0, 1])


def rows(variant, seed, split="random", **metrics):
    named = {"experiment": "x", "run_id": f"pretrain-{variant}-s{seed}", "mode": "pretrain", "seed": seed}
    scores = {f"test/{name}": value for name, value in metrics.items()}
    return rows_of({**named, "split": split, "metrics": scores}, STUDY)


MADE = [
    *rows("full", 0, cosine=0.8, cosine_of_2=0.8, cosine_of_1=0.7, grid_cosine_of_1=0.5, hit_rate_of_1=0.9),
    *rows("full", 1, cosine_of_1=0.9, grid_cosine_of_1=0.7),
    *rows("top4", 0, cosine_of_1=0.6, grid_cosine_of_1=0.1),
    *rows("full_spatial", 0, split="spatial", cosine_of_1=0.4, grid_cosine_of_1=0.2),
]


def test_lines_are_means_over_seeds_and_references_those_beside_full_labels():
    found = swept(MADE)
    cosine = {"full": {1: 0.8, 2: 0.8}, "grid_": {1: 0.6}, "top4": {1: 0.6}}
    assert found["random", "cosine"] == cosine
    assert found["spatial", "cosine"] == {"full": {1: 0.4}, "grid_": {1: 0.2}}
    assert found["random", "hit_rate"] == {"full": {1: 0.9}}


def test_the_picture_has_a_panel_a_score_and_split_and_a_line_a_method():
    figure = plot_sweep(swept(MADE))
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 1, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "nearest training user", "calibrated, labels of the whole channel", "calibrated, labels of reported codewords",
    ]  # fmt: skip
    assert len(plot_sweep(swept(MADE[:2])).axes) == 1, "a score that no row has takes no room"


def test_the_page_of_results_shows_it(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "x.yaml").write_text("seeds: [0]\npaper: calibration\n")
    publish(MADE, tmp_path / "RESULTS.md", tmp_path / "studies")
    assert "](docs/x.png)" in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "docs" / "x.png").stat().st_size
