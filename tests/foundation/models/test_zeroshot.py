"""Zero-shot tasks by hand-made embeddings, where the right answer is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from datamodules.sites.environment import Environment
from foundation.losses.clip import credit
from foundation.models.zeroshot import (
    ZeroShot,
    compare,
    los_credit,
    los_options,
    matching,
    move_obstacle,
    scale_credit,
    scale_options,
    similarities,
)
from tests.datamodules.rays import random_site


def test_options_differ_in_one_entry_alone():
    geometry = torch.rand(5, 8)
    los, scale = los_options(geometry), scale_options(geometry)
    assert los[:, :, 6].tolist() == [[0.0, 1.0]] * 5, "0 LOS, 1 NLOS, as env_channel III-B1 has them"
    assert torch.equal(scale[:, 1], geometry)
    assert torch.allclose(scale[:, :, 7], geometry[:, None, 7] * torch.tensor([0.8, 1.0, 1.2]))
    others = [i for i in range(8) if i not in (6, 7)]
    for options in (los, scale):
        assert torch.equal(options[:, :, others], geometry[:, None, others].expand(-1, options.shape[1], -1))


def test_the_nearest_by_angle_is_chosen():
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    options = torch.tensor([[[9.0, 9.0], [0.1, 0.0]], [[0.0, 0.3], [5.0, 5.0]]])
    assert similarities(queries, options).argmax(1).tolist() == [1, 0]


def test_a_tie_counts_as_chance():
    similarity = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.5], [0.2, 0.9, 0.9], [0.9, 0.2, 0.2], [torch.nan] * 3])
    assert credit(similarity, similarity[:, 0]).tolist() == pytest.approx([1 / 2, 1 / 3, 0, 1, 0])
    assert credit(similarity, similarity[:, 0], top=2).tolist() == pytest.approx([1, 2 / 3, 0, 1, 0])
    near = torch.tensor([[0.5, 0.5 + 1e-6]])  # the same embedding, made in batches of another size
    assert credit(near, near[:, 0]).item() == 0.5
    same = torch.full((4, 3), 0.7)
    assert scale_credit(same).tolist() == pytest.approx([1 / 3] * 4)
    assert los_credit(same[:, :2], torch.tensor([0, 1, 0, 1], dtype=torch.int8)).tolist() == [0.5] * 4
    known = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    assert los_credit(known, torch.tensor([1, 0], dtype=torch.int8)).tolist() == [1, 0]


def test_choosing_equals_a_comparison_with_every_option_made_anew():
    draw = torch.Generator().manual_seed(0)
    geometry, image = torch.rand(6, 8, generator=draw), torch.rand(6, 1, 4, 4, generator=draw)
    geometry[:, 6] = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 0.5])  # 0.5 is unknown
    channel, weights = torch.randn(6, 5, generator=draw), torch.randn(24, 5, generator=draw)
    embedded = []

    def encoder(image, vector):
        embedded.append(len(vector))
        return torch.cat([image.flatten(1), vector], dim=1) @ weights

    environment = encoder(image, geometry)
    for options, anew in ((los_options(geometry), 4 + 2 * 2), (scale_options(geometry), 2 * 6)):
        cosines = compare(encoder, {"map": image, "geometry": geometry}, options, channel, environment)
        assert embedded[-1] == anew, "what is as it is need not be embedded again"
        every = torch.stack([encoder(image, option) for option in options.unbind(1)], dim=1)
        cosine = torch.nn.functional.cosine_similarity(channel[:, None], every, dim=-1)
        assert torch.allclose(cosines, cosine, atol=1e-6)


def test_matching_equals_a_slow_loop():
    draw = torch.Generator().manual_seed(0)
    queries, options = torch.randn(2, 40, 6, generator=draw)
    options = queries + 0.8 * options
    group = torch.randint(0, 5, (40,), generator=draw)
    hit, chance = matching(queries, options, group)
    a, b = queries.numpy(), options.numpy()
    for row in range(40):
        mates = [m for m in range(40) if group[m] == group[row]]
        cosines = [a[row] @ b[m] / np.linalg.norm(a[row]) / np.linalg.norm(b[m]) for m in mates]
        assert hit[row] == (mates[int(np.argmax(cosines))] == row)
        assert chance[row] == pytest.approx(1 / len(mates))
    assert 0.2 < hit.float().mean() < 1


def test_a_collapsed_model_matches_by_chance():
    hit, chance = matching(torch.ones(10, 4), torch.ones(10, 4), torch.zeros(10, dtype=torch.long))
    assert hit.tolist() == pytest.approx(chance.tolist())


def test_towers_blind_to_a_task_score_its_chance():
    wall = np.array([[-5.0, 20.0], [5.0, 20.0], [5.0, 24.0], [-5.0, 24.0]])
    site = random_site("a", 60, area="x")
    position = site.paths.position.clone()
    position[:, 0], position[:, 1] = 0.0, 60.0  # behind the wall, all of them
    los = torch.zeros_like(site.paths.los)
    paths = dataclasses.replace(site.paths, position=position, los=los)
    environment = Environment((wall,), np.array([9.0]), (-100.0, -100.0, 100.0, 100.0))
    site = dataclasses.replace(site, links=paths, environment=environment)
    count = len(site)
    batch = {
        "site": torch.zeros(count, dtype=torch.long), "user": torch.arange(count), "los": los, "position": position,
        "bs_position": site.bs_position.expand(count, 3), "map": torch.zeros(count, 1, 64, 64),
        "geometry": torch.rand(count, 8),
    }  # fmt: skip
    blind, channel = torch.randn(8), torch.randn(count, 8)
    zero_shot = ZeroShot([site])
    for rows in (slice(1), slice(1, None)):  # a last batch may have a single link
        part = {key: value[rows] for key, value in batch.items()}
        embedding = blind.expand(len(part["site"]), 8)
        zero_shot.add(part, channel[rows], embedding, None, lambda image, vector: blind.expand(len(vector), 8))
    scores = zero_shot.scores()
    assert scores["map_accuracy"] == scores["map_chance"] == 0.5
    assert scores["los_accuracy"] == 0.5
    for task in ("scale", "match_user", "match_area"):
        accuracy = scores.get(f"{task}_accuracy", scores.get(task))
        assert accuracy == pytest.approx(scores[f"{task}_chance"]), task


def test_the_obstacle_moves_off_the_line():
    wall = np.array([[-5.0, 20.0], [5.0, 20.0], [5.0, 24.0], [-5.0, 24.0]])
    far = wall + np.array([200.0, 0.0])
    environment = Environment((far, wall), np.array([9.0, 9.0]), (-100.0, -100.0, 300.0, 100.0))
    users = np.array([[0.0, 60.0, 1.5], [60.0, 0.0, 1.5]], dtype=np.float32)
    moved, cleared = move_obstacle(environment, np.array([0.0, 0.0, 6.0], dtype=np.float32), users)
    assert cleared.tolist() == [True, False]
    assert np.array_equal(moved.footprints[0], far)
    shift = moved.footprints[1] - wall
    assert np.allclose(np.linalg.norm(shift, axis=1), 10.0), "its own width"
    assert np.ptp(shift, axis=0).max() < 1e-9
    assert move_obstacle(environment, np.array([0.0, 0.0, 6.0], dtype=np.float32), users[1:]) is None


def test_scores_of_a_model_that_knows_and_of_one_that_guesses():
    site = random_site("a", 60, area="x")
    count = 59  # the first user has no path
    los = site.paths.los[1:].clone()
    los[:20] = 1
    geometry = torch.rand(count, 8, generator=torch.Generator().manual_seed(0))  # scales near 0 would be hard to tell
    geometry[:, 7] += 0.1
    geometry[:, 6] = 1 - los.float()
    batch = {
        "site": torch.zeros(count, dtype=torch.long), "user": torch.arange(1, count + 1), "los": los,
        "position": site.paths.position[1:], "bs_position": site.bs_position.expand(count, 3),
        "map": torch.zeros(count, 1, 64, 64), "geometry": geometry,
    }  # fmt: skip
    knowing = ZeroShot([site])
    # an encoder that hands the vector on: the true one alone equals the query
    centred = geometry - 0.5
    knowing.add(batch, centred, centred, None, lambda image, vector: vector - 0.5)
    scores = knowing.gathered().scores()
    assert scores["los_accuracy"] == scores["scale_accuracy"] == 1.0
    assert scores["match_user"] == scores["match_area"] == 1.0
    assert scores["match_user_chance"] == pytest.approx(1 / count)
    share = float((los == 1).float().mean())
    assert scores["los_chance"] == pytest.approx(max(share, 1 - share))
    assert scores["scale_chance"] == pytest.approx(1 / 3)
    assert "map_accuracy" not in scores, "an open field has no building to move"
    guessing = ZeroShot([site])
    noise = torch.Generator().manual_seed(0)
    guessing.add(batch, torch.randn(count, 8, generator=noise), centred, None, lambda image, vector: vector - 0.5)
    assert guessing.scores()["match_user"] < 0.2
    assert not math.isnan(guessing.scores()["scale_accuracy"])
