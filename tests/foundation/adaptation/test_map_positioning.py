"""Positioning by head and map together, where what fits is known."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from datamodules.errors import InputError
from datamodules.maps.area_maps import AreaMaps
from foundation import ChannelTransformer, EnvChannel, EnvironmentTransformer, MapPositioning
from foundation.adaptation.map_positioning import candidates, embed_candidates
from heads import LOS, Positioning
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.foundation.adaptation.test_finetune import fit
from tests.foundation.towers import save_checkpoint

SIZES = {"width": 16, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 8}


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / "x.ckpt", EnvironmentTransformer(**SIZES))


def save(file, environment, **settings):
    torch.manual_seed(0)
    model = EnvChannel(
        ChannelTransformer(num_antennas=4, num_subcarriers=8, patch=(4, 4), **SIZES), environment, **settings
    )
    save_checkpoint(model, file)
    return str(file)


def test_candidates_are_the_grid_points_around_users():
    rng = np.random.default_rng(0)
    users = np.column_stack([rng.uniform(-40, 40, (60, 2)), rng.uniform(1, 2, 60)]).astype(np.float32)
    users[7, 1] = np.nan
    places = candidates(users, 3.0).numpy()
    known = users[np.isfinite(users).all(1)]
    expected = {
        (x, y)
        for x in range(-20, 21)
        for y in range(-20, 21)
        if any(abs(3 * x - a) <= 10 and abs(3 * y - b) <= 10 for a, b in known[:, :2])
    }
    assert {tuple(place) for place in np.round(places[:, :2] / 3).astype(int).tolist()} == expected
    assert len(places) == len(expected)
    assert set(places[:, 2].tolist()) <= set(known[:, 2].tolist())
    assert candidates(users[7:8], 3.0).shape == (0, 3)


def test_candidates_are_embedded_as_users_there_would_be():
    site = random_site(num_users=300)
    torch.manual_seed(0)
    tower = EnvironmentTransformer(**SIZES).eval()
    position = site.links.position
    found = embed_candidates(tower, AreaMaps.draw([site]), site.bs_position, position)
    maps, where = AreaMaps.draw([site, site]), torch.ones(300, dtype=torch.long)
    vector = maps.geometry(where, site.bs_position.expand(300, 3), position, torch.full((300,), -1))
    expected = torch.nn.functional.normalize(tower(maps.map(where), vector), dim=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_answers_equal_a_slow_loop(checkpoint, tmp_path):
    data = build(tmp_path / "sites")
    model = MapPositioning(lambda n: Positioning(n, hidden=8, anchors=5), checkpoint, radius=30.0, lr=1e-2)
    trainer = fit(model, data, tmp_path)
    trainer.test(model, datamodule=data, verbose=False)
    batch = data.finish(next(iter(data.test_dataloader())))
    model.eval()
    with torch.no_grad():
        features = model.encoder.encode(batch)
        head, answer = model.head(features).numpy(), model.answer(features, batch).numpy()
    assert np.array_equal(answer[:, 2:], head[:, 2:]), "the logits of the head's own anchors stay"
    assert batch["site"].unique().tolist() == [0, 1]
    train, channel = data.sides["train"], features.numpy()
    for row, number in enumerate(batch["site"].tolist()):
        site = train.sites[number]
        places = candidates(train.positions(number).numpy(), 3.0)
        fits = embed_candidates(model.environment, AreaMaps.draw([site]), site.bs_position, places).numpy()
        weights = []
        for place, fit_of in zip(places.numpy() - site.bs_position.numpy(), fits, strict=True):
            far = (head[row, 0] - place[0]) ** 2 + (head[row, 1] - place[1]) ** 2
            match = float(fit_of @ channel[row]) / np.linalg.norm(channel[row])
            weights.append(np.exp(20 * match - far / (2 * 30.0**2)))
        offset = (places.numpy() - site.bs_position.numpy())[:, :2]
        expected = np.average(offset, axis=0, weights=weights)
        assert np.allclose(answer[row, :2], expected, atol=1e-2)


def test_a_match_finds_the_user_that_the_head_misses(checkpoint):
    torch.manual_seed(0)
    model = MapPositioning(lambda n: Positioning(n, hidden=8), checkpoint, sharpness=200.0, radius=12.0).eval()
    places = candidates(np.random.default_rng(0).uniform(-40, 40, (200, 3)).astype(np.float32), 3.0)[:, :2]
    embeddings = torch.nn.functional.normalize(torch.randn(len(places), 8), dim=-1)
    model._candidates = {0: (places, embeddings)}
    true = torch.arange(0, len(places), 9)
    features, batch = 3 * embeddings[true], {"site": torch.zeros(len(true), dtype=torch.long)}
    off = places[true] + torch.tensor([6.0, -5.0])
    model.head.forward = lambda features: off
    found = model.answer(features, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.answer(features, batch), found), "metres are not rounded"
    assert (found - places[true]).norm(dim=1).max() < 0.1
    assert torch.equal(off, places[true] + torch.tensor([6.0, -5.0])), "what the head says is left as it was"
    model.train()
    assert torch.equal(model.answer(features, batch), off), "the head learns by its own answer"
    model.eval()
    model._candidates = {0: (places[:0], embeddings[:0])}
    assert torch.equal(model.answer(features, batch), off), "no place known: the head's answer"


def test_only_the_head_learns(checkpoint, tmp_path):
    model = MapPositioning(lambda n: Positioning(n, hidden=8), checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, build(tmp_path / "sites"), tmp_path)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head"}
    assert not model.train().environment.training
    assert model.describe() == {"model": "EnvChannel", "head": "positioning", "mode": "probe"}


def test_what_it_cannot_do_is_said(checkpoint, tmp_path):
    def head(n):
        return Positioning(n)

    with pytest.raises(InputError, match="to probe, not scratch"):
        MapPositioning(head, checkpoint, mode="scratch")
    with pytest.raises(InputError, match="needs the head Positioning, not LOS"):
        MapPositioning(lambda n: LOS(n), checkpoint)
    for setting in ({"step": 0.0}, {"radius": -1.0}, {"radius": float("nan")}, {"step": float("inf")},
                    {"sharpness": float("nan")}):  # fmt: skip
        with pytest.raises(InputError, match=r"must (not be negative|be positive)"):
            MapPositioning(head, checkpoint, **setting)
    alone = save(tmp_path / "y.ckpt", None, decoder=lambda n: _decoder(n))
    with pytest.raises(InputError, match="no part 'environment'"):
        MapPositioning(head, alone)


def test_the_match_reads_the_embedding_also_where_the_head_reads_tokens(checkpoint, tmp_path):
    data = build(tmp_path / "sites")
    models = [MapPositioning(lambda n: Positioning(n, hidden=8), checkpoint, tokens=tokens) for tokens in (None, 2)]
    answers = []
    for model in models:
        trainer = fit(model, data, tmp_path)
        trainer.test(model, datamodule=data, verbose=False)
        batch = data.finish(next(iter(data.test_dataloader())))
        here = torch.zeros(len(batch["csi"]), 2)
        model.head.forward = lambda features, here=here: here
        with torch.no_grad():
            answers.append(model.eval().answer(model.features(batch, model.encoder), batch))
    assert torch.allclose(*answers, atol=1e-4)
    assert answers[0].unique(dim=0).shape[0] > 1


def test_other_data_have_candidates_of_their_own(checkpoint, tmp_path):
    data = build(tmp_path / "sites")
    model = MapPositioning(lambda n: Positioning(n, hidden=8), checkpoint)
    trainer = fit(model, data, tmp_path)
    trainer.test(model, datamodule=data, verbose=False)
    before = model._candidates[0][0]
    other = build(tmp_path / "others", [random_site("c", 150, seed=5), random_site("d", 100, seed=6)])
    trainer.test(model, datamodule=other, verbose=False)
    assert not torch.equal(model._candidates[0][0][: len(before)], before[: len(model._candidates[0][0])])
    alone = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match="give one, not loaders"):
        alone.test(model, dataloaders=other.test_dataloader(), verbose=False)


def _decoder(width):
    from heads import Feedback

    return Feedback(width, num_antennas=4, num_subcarriers=8, patch=(4, 4), width=16, layers=1, heads=2)
