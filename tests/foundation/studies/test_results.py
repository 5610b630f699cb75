"""Results: what a row says of its run, and what a table makes of the rows."""

import csv
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from foundation.demo import pretraining_effect
from foundation.studies import results
from foundation.studies.matrix import matrix
from foundation.studies.results import legend, publish
from foundation.studies.rows import read, rows_of, with_rows, write
from foundation.studies.study import Study
from foundation.studies.tables import table

STUDY = Study("x", [0, 1], areas={"a": [], "b": []}, tuned_on="areas 207-223")


def run(data="", seed=0, value=1.0, city="munich", mode="scratch", study=STUDY, **facts):
    """Return the rows of a run of a study, of one metric; the data `a` and `b` are areas."""
    where = f"-@{data}" if data else ""
    return rows_of(
        {
            "experiment": study.name, "run_id": f"vit-positioning-scratch{where}-s{seed}", "head": "positioning",
            "mode": mode, "seed": seed, "split": "spatial", "train_cities": [city], "test_cities": [city],
            "n_train": 100, "metrics": {"test/positioning/mean_m": value}, **facts,
        },
        study,
    )  # fmt: skip


def lines(rows):
    """Return the lines of a table as dicts by column."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    return [dict(zip(head, cells, strict=True)) for cells in body]


def test_the_spread_is_over_seeds_and_not_over_areas():
    values = {("a", 0): 2.0, ("b", 0): 10.0, ("a", 1): 4.0, ("b", 1): 11.0}
    (line,) = lines([row for (area, seed), value in values.items() for row in run(area, seed, value)])
    assert line["mean_m [m]"] == f"6.75 ± {statistics.stdev([6.0, 7.5]):.2f}"
    assert (line["place"], line["seeds"]) == ("2 areas of munich", "2")
    (line,) = lines([*run("a", 0, 2.0), *run("b", 0, 10.0)])
    assert (line["mean_m [m]"], line["seeds"]) == ("6.00", "1")


def test_a_seed_that_lacks_a_place_is_compared_on_those_that_all_have():
    rows = [*run("a", 0, 2.0), *run("b", 0, 10.0), *run("a", 1, 4.0)]
    (line,) = lines(rows)
    assert (line["mean_m [m]"], line["place"]) == (f"3.00 ± {statistics.stdev([2.0, 4.0]):.2f}", "a")


def test_data_that_are_no_areas_are_not_averaged():
    found = lines([*run("snr_0", value=2.0), *run("snr_30", value=4.0)])
    assert [(line["data"], line["mean_m [m]"]) for line in found] == [("snr_0", "2.00"), ("snr_30", "4.00")]
    assert "place" not in found[0], "one city, which the line above the table names"


def test_two_cities_of_equal_size_stand_on_two_lines():
    found = lines([*run("newyork", city="city_0", value=3.0), *run("losangeles", city="city_1", value=5.0)])
    assert [(line["place"], line["mean_m [m]"]) for line in found] == [("city_0", "3.00"), ("city_1", "5.00")]
    unnamed = lines([*run(city="city_0", value=3.0), *run(city="city_1", value=5.0)])  # by --data.source, say
    assert [(line["place"], line["mean_m [m]"]) for line in unnamed] == [("city_0", "3.00"), ("city_1", "5.00")]


def test_a_row_says_its_place_its_data_and_what_it_was_tuned_on():
    (row,) = run("los-angeles", city="city_1")
    assert (row.place, row.data, row.variant) == ("city_1", "los-angeles", "vit")
    assert (row.run, row.tuned_on, row.metrics) == ("vit-positioning-scratch-@los-angeles-s0", "areas 207-223", 1)
    (row,) = run("a")
    assert (row.place, row.data, row.test_cities) == ("a", "", "munich")
    assert not {"place", "data"} & set(lines(run())[0])


def test_summaries_from_when_cities_were_called_places_are_read():
    summary = {"experiment": "x", "run_id": "y-s0", "metrics": {"test/f1": 0.5}}
    (row,) = rows_of({**summary, "train_places": ["a", "b"], "test_places": ["c"]}, STUDY)
    assert (row.train_cities, row.test_cities, row.place) == ("a+b", "c", "c")


def test_a_table_says_the_guard_band():
    assert lines(run(guard=5.0))[0]["split"] == "spatial, guard 5 m"
    assert lines(run(guard=0.0))[0]["split"] == lines(run())[0]["split"] == "spatial", "none, and from before there was"


def test_a_table_says_by_how_many_links_the_checkpoint_was_chosen():
    assert lines(run(n_validation=246, validations=6))[0]["checkpoint"] == "best of 6 by 246 links"
    assert lines(run(n_validation=246, validations=1))[0]["checkpoint"] == "last"
    assert lines(run())[0]["checkpoint"] == ""


def test_rows_are_read_as_they_were_written_and_the_page_names_every_city(tmp_path):
    rows = [*run("newyork", city="city_0"), *run("losangeles", city="city_1", n_validation=7, validations=2)]
    write(tmp_path / "results.csv", rows)
    assert read(tmp_path / "results.csv") == rows
    publish(rows, tmp_path / "RESULTS.md", tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`make study STUDY=x`: city_0, city_1; " in page
    assert "Tuned on: areas 207-223." in page


def test_the_page_has_the_matrix_first_and_then_the_papers(tmp_path):
    for name, paper in (("matrix", ""), ("x", "envchannel"), ("y", "csiclip"), ("z", "")):
        (tmp_path / paper).mkdir(exist_ok=True)
        (tmp_path / paper / f"{name}.yaml").write_text(f"# About {name}.\nseeds: [0]\npaper: '{paper}'\n")
    rows = [row for name in ("z", "x", "y", "matrix") for row in run(study=Study(name, [0]))]
    publish(rows, tmp_path / "RESULTS.md", tmp_path)
    page = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith(("#", "About"))]
    assert page == [
        "# Results", "## Every model by every head", "About matrix.", "## CSI-CLIP", "### y", "About y.",
        "## Environment-channel", "### x", "About x.", "## Several papers", "### z", "About z.",
    ]  # fmt: skip


def test_a_study_of_another_paper_is_on_the_page_too(tmp_path):
    (tmp_path / "x.yaml").write_text("# About x.\nseeds: [0]\npaper: mine\n")
    publish(run(), tmp_path / "RESULTS.md", tmp_path)
    assert "## Several papers\n\n### x\n\nAbout x.\n" in (tmp_path / "RESULTS.md").read_text()


def test_the_matrix_has_the_best_in_bold_and_says_why_a_cell_is_empty():
    def cell(variant, mode, head, metric, *values, data="munich"):
        return [
            row
            for seed, value in enumerate(values)
            for row in run(
                seed=seed, mode=mode, head=head, metrics={f"test/{head}/{metric}": value, f"test/{head}/other": 1.0},
                run_id=f"{variant}-{head}-{mode}-@{data}-s{seed}", study=Study("matrix", [0, 1]),
            )
        ]  # fmt: skip

    rows = [
        *cell("csiclip", "probe", "positioning", "mean_m", 10.0, 12.0),
        *cell("raw", "control", "positioning", "mean_m", 20.0, 20.0),
        *cell("csiclip", "probe", "beam", "top1", 0.25, 0.35), *cell("raw", "control", "beam", "top1", 0.5, 0.5),
        *cell("csiclip", "probe", "positioning", "mean_m", 30.0, data="losangeles"),
    ]  # fmt: skip
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in matrix(rows).splitlines()]
    found = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in body}
    clip, raw = found["munich", "CSI-CLIP"], found["munich", "raw CSI, a linear model"]
    assert clip["positioning, mean error"] == "**11.00 ± 1.41 m**"
    assert raw["positioning, mean error"] == "20.00 ± 0.00 m"
    assert (clip["beam, top-1"], raw["beam, top-1"]) == ("30.0 ± 7.1 %", "**50.0 ± 0.0 %**")
    assert (clip["feedback, NMSE"], raw["feedback, NMSE"]) == ("not made", "none: raw CSI is no code")
    assert found["losangeles", "CSI-CLIP"]["positioning, mean error"] == "**30.00 m**"


def test_a_run_made_again_takes_the_place_of_its_rows():
    rows = [*run(study=Study("y", [0])), *run(seed=0, value=1.0), *run(seed=1, value=2.0)]
    merged = with_rows([rows[0], rows[2]], run(seed=0, value=5.0))
    assert [(row.experiment, row.seed, row.value) for row in merged] == [("y", 0, 1.0), ("x", 0, 5.0), ("x", 1, 2.0)]
    assert with_rows(rows, run(seed=1, value=3.0))[2].value == 3.0


def test_rows_of_runs_that_lie_elsewhere_stay_and_those_that_the_study_no_longer_has_go():
    study = Study("x", [0, 1], tasks=["positioning"], baselines={"vit": ["--model.mode", "scratch"]})
    rows = [*run(study=Study("y", [0])), *run(seed=0), *run(seed=1), *run(seed=7)]
    merged = results.updated(rows, run(seed=0, value=5.0), study)
    assert [(row.experiment, row.seed, row.value) for row in merged] == [("y", 0, 1.0), ("x", 0, 5.0), ("x", 1, 1.0)]
    assert results.updated(rows, [], study) == rows[:3]  # a folder without runs costs no row


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nonsense"], "error: no study 'nonsense' in experiments/studies: must be one of abl"),
        (["views", "--runs", "nowhere"], "error: no finished run in nowhere/views: make study STUDY=views comes first"),
    ],
)
def test_what_has_no_results_is_refused(monkeypatch, capsys, args, said):
    monkeypatch.setattr(sys, "argv", ["results", *args])
    with pytest.raises(SystemExit) as leaving:
        results.main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_the_demo_says_what_pretraining_bought():
    def line(*tuned):
        values = {"finetune": tuned, "scratch": (20.0, 30.0), "control": (21.0, 21.0)}
        return pretraining_effect(
            [r for mode, pair in values.items() for s in (0, 1) for r in run("", s, pair[s], mode=mode)]
        )

    assert "fine-tuned, 25.00 ± 7.07 m from scratch: a gain with every seed." in line(10.0, 29.0)
    assert ": no gain that holds with every seed." in line(10.0, 31.0)
    worse = ": a loss with every seed, but hand-made profiles in place of the encoder have 21.00 ± 0.00 m."
    assert worse in line(21.0, 31.0)


def test_references_of_a_wide_table_have_lines_of_their_own_each_once():
    names = ("cosine", "cosine_los", "cosine_nlos", "rate", *(f"cosine_of_{count}" for count in range(1, 9)))

    def of(variant, value, grid):
        own = {f"test/{name}": value for name in names}
        references = {
            f"test/{kind}_{name}": level for kind, level in (("grid", grid), ("bound", 1.0)) for name in names
        }
        return run(run_id=f"pretrain-{variant}-s0", head=None, mode="pretrain", metrics={**own, **references})

    found = lines([*of("full", 0.5, 0.25), *of("twin", 0.4, 0.25), *of("top4", 0.45, 0.2)])
    assert [(line["pre-training"], line["mode"], line["cosine_los"], line["cosine_of_8"]) for line in found] == [
        ("full", "pretrain", "0.500", "0.500"), ("twin", "pretrain", "0.400", "0.400"),
        ("top4", "pretrain", "0.450", "0.450"), ("grid beside full", "control", "0.250", "0.250"),
        ("bound", "control", "1.000", "1.000"), ("grid beside top4", "control", "0.200", "0.200"),
    ]  # fmt: skip


def test_costs_have_a_table_of_their_own_so_that_a_reference_timed_twice_stays_one_line():
    def of(variant, seconds):
        own = {f"test/{name}": -10.0 for name in ("nmse_db", "beam_top1", "rate_loss", *(f"x{n}" for n in range(9)))}
        hold = {f"test/hold_{name}": -1.0 for name in ("nmse_db", "beam_top1", "rate_loss")}
        costs = {"test/macs": 4e6, "test/cpu_ms": seconds, "test/hold_macs": 0.0, "test/hold_cpu_ms": seconds / 8}
        return run(run_id=f"{variant}-s0", head=None, mode="probe", metrics={**own, **hold, **costs}, params_total=7)

    scores, costs = table([*of("a1", 4.0), *of("a2", 8.0)]).split("\n\n")
    assert [line.split(" | ")[0] for line in scores.splitlines()[2:]] == ["| a1", "| a2", "| hold"]
    assert "cpu_ms" not in scores
    spent = [line.split(" | ")[-2:] for line in costs.splitlines()[2:]]
    assert spent == [["4e+06", "4 |"], ["4e+06", "8 |"], ["0", "0.75 |"]]


def test_a_reference_has_the_statistics_of_the_data_of_its_run():
    own = {f"test/{name}": -10.0 for name in ("nmse_db", "beam_top1", "rate_loss", *(f"x{n}" for n in range(9)))}
    hold = {f"test/hold_{name}": -1.0 for name in ("nmse_db", "beam_top1", "rate_loss")}
    data = {"test/fd_t": 0.25, "test/snr_db": 15.0}
    found = lines([*run(run_id="filter-s0", metrics=own | hold | data), *run(run_id="other-s0", metrics=own | data)])
    shown = [(line["positioning"], line["fd_t"], line["snr_db [dB]"]) for line in found]
    assert shown == [("filter", "0.250", "15"), ("other", "0.250", "15"), ("hold", "0.250", "15")]


def test_a_metric_is_known_by_the_end_of_its_name_or_its_start():
    metrics = {"test/beam/left_tower_top1": 0.25, "test/door_chance": 0.5, "test/match_house": 0.75, "test/f1": 0.5}
    (line,) = lines(run(metrics=metrics))
    shown = {key: value for key, value in line.items() if key.partition(" ")[0] in {k.split("/")[-1] for k in metrics}}
    assert shown == {"left_tower_top1 [%]": "25.0", "door_chance [%]": "50.0", "match_house [%]": "75.0", "f1": "0.500"}


def test_a_study_that_tells_one_metric_sets_its_variants_side_by_side():
    def of(variant, data, seed, **metrics):
        at = {"variant": variant, "data": data, "seed": seed, "n_train": 75}
        return [replace(run()[0], metric=name, value=value, **at) for name, value in metrics.items()]

    rows = of(
        "filter", "fast", 0, nmse_db=-12.0, hold_nmse_db=-1.0, hold_rate=0.5, fd_t=0.25, beam=0.9, macs=2e6, hold_macs=8
    )
    rows += of("filter", "fast", 1, nmse_db=-14.0, hold_nmse_db=-2.0, hold_rate=0.6, fd_t=0.25, beam=0.8, macs=2e6)
    rows += of("direct", "fast", 0, nmse_db=0.5, hold_nmse_db=-1.0, hold_rate=0.5, fd_t=0.25, beam=0.7)
    scores, costs = table(rows, "nmse_db").split("\n\n")
    assert scores.splitlines() == [
        "| nmse_db [dB] by data | fast |", "|---|---|", "| fd_t | 0.250 ± 0.000 |", "| filter | -13.00 ± 1.41 |",
        "| direct | 0.50 |", "| *hold* | -1.50 ± 0.71 |", "| seeds | 2 |",
    ]  # fmt: skip
    ordered = table([*of("filter", "snr_10", 0, nmse_db=-2.0), *of("filter", "snr_5", 0, nmse_db=-1.0)], "nmse_db")
    assert ordered.startswith("| nmse_db [dB] by data | snr_5 | snr_10 |")
    head, _, of_filter, of_direct, of_hold = costs.splitlines()
    assert head == "| model | labels | parameters | multiply-adds a link |"
    assert of_filter.startswith("| filter | 75 | ")
    assert of_filter.endswith("| 2e+06 |")
    assert of_direct.endswith("|  |")
    assert of_hold == "| *hold* |  |  | 8 |"


def test_a_wide_table_leaves_out_details_and_tells_apart_what_a_reference_scored_in_different_runs():
    names = (
        "cosine",
        "cosine_los",
        "cosine_nlos",
        "rate",
        "hit_rate",
        *(f"cosine_of_{count}" for count in range(1, 9)),
    )

    def of(variant, grid):
        own = {f"test/{name}": 0.5 for name in names}
        references = {f"test/grid_{name}": grid for name in names}
        return run(run_id=f"pretrain-{variant}-s0", head=None, mode="pretrain", metrics={**own, **references})

    found = lines([*of("full", 0.25), *of("twin", 0.25), *of("top4", 0.2)])
    assert [line["pre-training"] for line in found] == ["full", "twin", "top4", "grid beside full", "grid beside top4"]
    assert "cosine_nlos" in found[0]
    assert "cosine_of_8" not in found[0]


def test_a_variant_is_named_without_its_task():
    (line,) = lines(run(run_id="vit-toft_beam-scratch-s0", head="beam", metrics={"test/beam/top1": 0.25}))
    assert line["beam"] == "vit"


def test_the_legend_explains_every_metric_of_the_published_results():
    with (Path(__file__).parents[3] / "experiments/results.csv").open(newline="") as stream:
        published = {row["metric"] for row in csv.DictReader(stream)}
    assert len(published) > 100
    assert [
        metric for metric in sorted(published) if not any("metric | meaning" in each for each in legend({metric}))
    ] == []
    assert not any("metric | meaning" in each for each in legend({"nonsense"}))


def test_the_page_says_what_the_metrics_mean_and_all_hardware(tmp_path):
    rows = [replace(row, hardware="2 cores A") for row in run(metrics={"test/top1": 0.25, "test/los_chance": 0.5})]
    rows += [replace(row, run="other", wall_s=7200.0, hardware="1 cores B") for row in rows]
    rows += [replace(row, run="other-@fast", data="fast", wall_s=7200.0) for row in rows]  # the same model
    publish(rows, tmp_path / "page.md", tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert "| `top1`, `top3`, `top5` | share of links" in page
    assert "| `chance` |" in page
    assert "`nmse_db`" not in page
    assert "2.0 h of training on 2 cores A and 1 core B." in page
