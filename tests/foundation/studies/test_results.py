"""Results: what a row says of its run, and what a table makes of the rows."""

import statistics

from foundation.demo import bought
from foundation.studies.results import publish, read, rows_of, table


def run(place="", seed=0, value=1.0, city="munich", mode="scratch", **facts):
    """Return the rows of a run of a study, of one metric."""
    where = f"-@{place}" if place else ""
    return rows_of(
        {
            "experiment": "x", "run_id": f"vit-positioning-scratch{where}-s{seed}", "head": "positioning",
            "mode": mode, "seed": seed, "split": "spatial", "train_places": [city], "test_places": [city],
            "n_train": 100, "metrics": {"test/positioning/mean_m": value}, **facts,
        }
    )  # fmt: skip


def lines(rows):
    """Return the lines of a table as dicts by column."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    return [dict(zip(head, cells, strict=True)) for cells in body]


def test_the_spread_is_over_seeds_and_not_over_areas():
    values = {("a", 0): 2.0, ("b", 0): 10.0, ("a", 1): 4.0, ("b", 1): 11.0}
    (line,) = lines([row for (place, seed), value in values.items() for row in run(place, seed, value)])
    assert line["mean_m [m]"] == f"6.75 ± {statistics.stdev([6.0, 7.5]):.2f}"
    assert (line["place"], line["seeds"]) == ("2 of munich", "2")
    (line,) = lines([*run("a", 0, 2.0), *run("b", 0, 10.0)])
    assert (line["mean_m [m]"], line["seeds"]) == ("6.00", "1")


def test_a_seed_that_lacks_a_place_is_compared_on_those_that_all_have():
    rows = [*run("a", 0, 2.0), *run("b", 0, 10.0), *run("a", 1, 4.0)]
    (line,) = lines(rows)
    assert (line["mean_m [m]"], line["place"]) == (f"3.00 ± {statistics.stdev([2.0, 4.0]):.2f}", "a")


def test_two_cities_of_equal_size_stand_on_two_lines():
    found = lines([*run("newyork", city="city_0", value=3.0), *run("losangeles", city="city_1", value=5.0)])
    assert [(line["place"], line["mean_m [m]"]) for line in found] == [("newyork", "3.00"), ("losangeles", "5.00")]


def test_a_place_may_have_a_hyphen_and_a_table_without_places_no_column():
    (row,) = run("los-angeles")
    assert (row.place, row.variant) == ("los-angeles", "vit")
    assert "place" not in lines(run())[0]


def test_a_table_says_the_guard_band():
    assert lines(run(guard=5.0))[0]["split"] == "spatial, guard 5 m"
    assert lines(run(guard=0.0))[0]["split"] == lines(run())[0]["split"] == "spatial", "none, and from before there was"


def test_a_table_says_by_how_many_links_the_checkpoint_was_chosen():
    assert lines(run(n_validation=246, validations=6))[0]["checkpoint"] == "best of 6 by 246 links"
    assert lines(run(n_validation=246, validations=1))[0]["checkpoint"] == "last"
    assert lines(run())[0]["checkpoint"] == ""


def test_rows_are_read_as_they_were_written_and_the_page_names_every_city(tmp_path):
    rows = [*run("newyork", city="city_0"), *run("losangeles", city="city_1", n_validation=7, validations=2)]
    publish(rows, tmp_path, tmp_path / "RESULTS.md")
    assert read(tmp_path / "results.csv") == rows
    assert "`make study STUDY=x`: city_0, city_1; " in (tmp_path / "RESULTS.md").read_text()


def test_the_demo_says_what_pretraining_bought():
    def line(*tuned):
        values = {"finetune": tuned, "scratch": (20.0, 30.0), "control": (21.0, 21.0)}
        return bought([r for mode, pair in values.items() for s in (0, 1) for r in run("", s, pair[s], mode=mode)])

    assert "fine-tuned, 25.00 ± 7.07 m from scratch: a gain with every seed." in line(10.0, 29.0)
    assert ": no gain that holds with every seed." in line(10.0, 31.0)
    assert ": a loss with every seed, but hand-made profiles without a network have 21.00 ± 0.00 m." in line(21.0, 31.0)


def test_a_metric_is_known_by_the_end_of_its_name_or_its_start():
    metrics = {"test/beam/left_tower_top1": 0.25, "test/door_chance": 0.5, "test/match_house": 0.75, "test/f1": 0.5}
    (line,) = lines(run(metrics=metrics))
    shown = {key: value for key, value in line.items() if key.partition(" ")[0] in {k.split("/")[-1] for k in metrics}}
    assert shown == {"left_tower_top1 [%]": "25.0", "door_chance [%]": "50.0", "match_house [%]": "75.0", "f1": "0.500"}
