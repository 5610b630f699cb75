"""Twins and trees: what a canopy takes, where trees stand, and that a variant moves nobody."""

import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import shapely
import torch

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.errors import InputError
from datamodules.module import ChannelDataModule
from datamodules.sides.splits import split_links
from datamodules.sites.user_matching import pair
from datamodules.sources.llvm import use_llvm
from datamodules.sources.raytracing import tracing
from datamodules.sources.raytracing.foliage import Foliage, attenuation_at, chords, clear_of
from datamodules.sources.raytracing.scene_geometry import open_geometry
from datamodules.sources.raytracing.sionna_rt import SionnaRT
from datamodules.sources.raytracing.twins import LeafyTracer, Twins
from foundation.models.calibration import TwinCalibration
from tests.datamodules.town import write_town
from tests.raytracing import requires_sionna, skip_without_sionna, write_scene

BALL = np.array([[10.0, 0.0, 5.0, 3.0, 3.0]])
VARIANTS = {
    "bare": {},
    "leafy": {"foliage": True},
    "low": {"max_depth": 1, "diffraction": False},
    "mm": {"frequency": 28e9, "samples": 500, "scattering": 0.2},
}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    skip_without_sionna()
    return write_town(tmp_path_factory.mktemp("town"))


@pytest.fixture(scope="module")
def base(town):
    return SionnaRT(
        str(town), base_stations=[[4, 4, 6], [-44, 48, 6]], users="random", num_users=40, max_depth=2, samples=2000,
        diffraction=True, chunk=25,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(base, tmp_path_factory):
    return Twins(base, VARIANTS, cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def sites(source):
    return source.sites()


def test_chords_of_a_ball_have_their_closed_form():
    start = np.array([[0, 0, 5], [0, 1, 5], [0, 4, 5], [10, 0, 5], [0, 0, 5], [0, 0, 5], [10, 0, 5], [10, 0, 0]], float)
    end = np.array(
        [[20, 0, 5], [20, 1, 5], [20, 4, 5], [20, 0, 5], [8, 0, 5], [-9, 0, 5], [10, 0, 5], [10, 0, 9]], float
    )
    expected = [6, 2 * math.sqrt(8), 0, 3, 1, 0, 0, 6]
    np.testing.assert_allclose(chords(BALL, start, end), expected, atol=1e-9)
    two = np.concatenate([BALL, BALL + np.eye(5)[0] * 8])
    np.testing.assert_allclose(chords(two, start[:1], end[:1] + np.eye(3)[0] * 5), [12], atol=1e-9)


def test_chords_of_ellipsoids_equal_a_walk_along_the_line():
    rng = np.random.default_rng(0)
    canopies = np.column_stack([rng.uniform(0, 40, (30, 2)), rng.uniform(4, 7, 30), rng.uniform(1, 3, (30, 2))])
    start, end = (np.column_stack([rng.uniform(0, 40, (50, 2)), rng.uniform(0, 12, 50)]) for _ in range(2))
    steps = (np.arange(4000) + 0.5) / 4000
    points = start[:, None] + (end - start)[:, None] * steps[:, None]
    inside = np.zeros(points.shape[:2])
    for x, y, z, flat, high in canopies:
        inside += (((points - [x, y, z]) / [flat, flat, high]) ** 2).sum(-1) < 1
    walked = inside.mean(1) * np.linalg.norm(end - start, axis=1)
    np.testing.assert_allclose(chords(canopies, start, end), walked, atol=0.1)
    assert walked.max() > 3
    assert not chords(canopies[:0], start, end).any()


@pytest.mark.parametrize(("frequency", "rate", "conductivity"), [(3.5e9, 0.64, 0.4e-3), (28e9, 1.16, 0.7e-3)])
def test_leaves_are_the_material_that_the_docstring_names(frequency, rate, conductivity):
    assert attenuation_at(frequency) == pytest.approx(rate, rel=0.01)
    index = np.sqrt(1.05 - 1j * conductivity / (2 * math.pi * frequency * 8.8541878e-12))
    nepers = 2 * math.pi * frequency / 299_792_458 * -index.imag
    assert 20 * math.log10(math.e) * nepers == pytest.approx(rate, rel=0.05)
    assert 20 * math.log10(abs((index - 1) / (index + 1))) == pytest.approx(-38, abs=0.5)


@requires_sionna
def test_leaves_take_what_sionnas_own_slab_of_them_takes():
    use_llvm()
    import mitsuba as mi
    from sionna.rt.utils import complex_relative_permittivity, itu_coefficients_single_layer_slab

    # at 3.5 GHz: at 28, Sionna's single precision is wrong by a tenth of a decibel a metre
    eta = complex_relative_permittivity(mi.Float(1.05), mi.Float(0.4e-3), mi.Float(2 * math.pi * 3.5e9))
    _, _, passed, _ = itu_coefficients_single_layer_slab(mi.Float(1), eta, mi.Float(3), mi.Float(299_792_458 / 3.5e9))
    power = abs(complex(passed.real[0], passed.imag[0])) ** 2
    assert -10 * math.log10(power) == pytest.approx(3 * attenuation_at(3.5e9), rel=0.05)


@dataclass(frozen=True)
class OneTree(Foliage):
    def canopies(self, file):
        return BALL


@requires_sionna
def test_a_tree_takes_its_decibels_and_nothing_else(tmp_path):
    field = write_scene(tmp_path, {})
    stations, users = np.array([[0.0, 0, 5]], np.float32), np.array([[30.0, 0, 5], [30, 20, 5]], np.float32)
    facts = {"frequency": 28e9, "samples": 2000, "max_depth": 1}
    [bare] = tracing.Tracer(field, **facts)(stations, users)
    [leafy] = LeafyTracer(field, **facts, foliage=OneTree(attenuation=0.5))(stations, users)
    # the direct path to the first user passes 6 m of leaves, its ground reflection fewer, the second user's none
    loss = 20 * torch.log10(bare.gain.abs() / leafy.gain.abs())
    assert loss[0, 0] == pytest.approx(3.0, abs=1e-4)
    assert loss[1].tolist() == pytest.approx([0, 0], abs=1e-5)
    reflected = np.array([[15.0, 0, 0]])
    inside = chords(BALL, stations, reflected) + chords(BALL, reflected, users[:1])
    assert loss[0, 1] == pytest.approx(0.5 * inside[0], abs=1e-3)
    torch.testing.assert_close(leafy.gain.angle(), bare.gain.angle())
    for key in ("delay", "aod", "aoa", "los", "bounces", "position"):
        assert torch.equal(getattr(bare, key), getattr(leafy, key))
    [weaker] = LeafyTracer(field, **facts, foliage=OneTree())(stations, users)
    assert 20 * torch.log10(bare.gain.abs() / weaker.gain.abs())[0, 0] == pytest.approx(
        6 * attenuation_at(28e9), abs=1e-3
    )


@requires_sionna
def test_trees_stand_in_rows_along_the_facades(town):
    foliage = Foliage(spacing=8, setback=4, share=1.0)
    geometry, trees = open_geometry(town), foliage.canopies(town)
    facade = shapely.distance(shapely.union_all(geometry.buildings.polygons), shapely.points(trees[:, :2]))
    assert len(trees) > 100
    assert geometry.is_outdoors(trees[:, :2]).all()
    assert facade.max() < 4.01
    assert facade.min() > 3.6  # corners are rounded by straight pieces
    assert (facade > trees[:, 3]).all()
    np.testing.assert_allclose(trees[:, 2] - trees[:, 4], foliage.bottom, atol=1e-6)
    assert np.array_equal(trees, Foliage(spacing=8, setback=4, share=1.0).canopies(town))
    fewer = Foliage(spacing=8, setback=4, share=0.5, seed=1).canopies(town)
    assert len(fewer) / len(trees) == pytest.approx(0.5, abs=0.15)
    around = Foliage(setback=16.0).canopies(town)  # streets of 22 m are too narrow for that
    assert len(around) > 20
    assert (np.abs(around[:, :2]).max(1) > 93).all()


def test_no_base_station_stands_in_leaves():
    trees = np.concatenate([BALL, BALL + np.eye(5)[0] * 20])
    assert np.array_equal(clear_of(trees, np.array([[10.0, 3.5, 5], [-50, 0, 5]])), trees[1:])
    assert np.array_equal(clear_of(trees, np.array([[10.0, 0, 9.5]])), trees)


def test_variants_are_the_same_users_row_by_row(sites):
    assert [site.name for site in sites] == [f"town_{name}_bs{station}" for name in VARIANTS for station in (0, 1)]
    for site, twin in zip(sites[:2] * 4, sites, strict=True):
        assert torch.equal(site.paths.position, twin.paths.position)
        assert torch.equal(site.bs_position, twin.bs_position)
        assert site.area == twin.area == "town"
        assert torch.equal(site.paths.los == 1, twin.paths.los == 1)
    for first, second in pair(sites[:2], sites[2:4]):
        assert torch.equal(first, torch.arange(40))
        assert torch.equal(first, second)
    assert [site.domain["variant"] for site in sites[::2]] == list(VARIANTS)
    assert {site.carrier_frequency for site in sites[6:]} == {28e9}
    assert {site.carrier_frequency for site in sites[:6]} == {3.5e9}
    assert {site.provenance["source"] for site in sites} == {"twins"}


def test_variants_of_a_group_are_the_same_users_row_by_row(source, sites):
    data = ChannelDataModule(source, bs=Array(1, 8), ofdm=OFDM(4), group="variant", variants=list(VARIANTS)[1::-1])
    data.setup()
    links = data.sides["all"].links
    assert data.variants == [sites[link // 40].domain["variant"] for link in links[0]] == list(VARIANTS)[1::-1]
    position = torch.cat([site.paths.position for site in sites])[links]
    assert torch.equal(position[:, 0], position[:, 1])
    batch = data.finish(data.sides["test"].__getitems__([0, 1, 2]))
    assert batch["csi"].shape == (3, 2, 1, 8, 4)
    assert TwinCalibration(antennas=8).links(batch)["low"].shape[1:] == (1, 8, 4)


def test_no_split_parts_a_user_from_its_twin(sites):
    for side in split_links(sites, "spatial", (0.5, 0.2, 0.3), block=20):
        rows = side.reshape(len(sites), -1)
        assert (rows == rows[0]).all()


def test_leaves_weaken_what_they_hide(sites):
    affected = 0
    for bare, leafy in zip(sites[:2], sites[2:4], strict=True):
        before, after = bare.paths, leafy.paths
        assert torch.equal(before.los, after.los)
        # on single paths: their sum may also grow, where what was weakened had been in its way
        served = before.has_path
        assert (after.power[served] <= before.power[served] * 1.0001).all()
        loss = 10 * torch.log10(before.power[served] / after.power[served])
        hidden = loss > 0.1
        affected += int(hidden.sum())
        assert loss[hidden].median() > 0.5
    assert affected > 10


def test_low_fidelity_is_what_was_asked_for(sites):
    bare, low = sites[0].paths, sites[4].paths
    assert low.bounces.max() == 1
    assert bare.bounces.max() == 2
    assert low.mask.sum() < bare.mask.sum()


def test_variants_have_folders_of_their_own_and_travel(base):
    twins = Twins(base, VARIANTS)
    digests = [recipe.digest for recipe in twins.recipes()]
    assert len(set(digests)) == len(VARIANTS)
    again = [recipe.digest for recipe in pickle.loads(pickle.dumps(twins)).recipes()]
    assert again == digests
    other = Twins(base, VARIANTS, foliage=Foliage(spacing=12.0)).recipes()
    assert [recipe.digest == digest for recipe, digest in zip(other, digests, strict=True)] == [True, False, True, True]
    assert base.tracer.max_depth == 2
    assert twins.twins["low"].chunk == 50


@requires_sionna
@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({}, "at least one variant"),
        ({"low": {"depth": 2}}, "variant 'low' has the unknown entry 'depth': choose among max_depth, specular"),
        ({"low": {"samples": 0}}, "variant 'low': samples must be at least 1, got 0"),
        ({"low": {"scattering": 2}}, r"scattering must lie in \[0, 1\]"),
        ({"low": {"scattering": float("nan")}}, "scattering must be at least 0, got nan"),
    ],
)
def test_variants_that_cannot_be(base, variants, message):
    with pytest.raises(InputError, match=message):
        Twins(base, variants)


@pytest.mark.parametrize(
    "arguments",
    [
        {"radius": (2, 5)},
        {"top": (2, 3)},
        {"spacing": 0},
        {"attenuation": -1},
        {"attenuation": math.nan},
        {"spacing": math.inf},
    ],
)
def test_trees_that_cannot_be(arguments):
    with pytest.raises(InputError, match="foliage"):
        Foliage(**arguments)
