"""Pictures: that they show the numbers they are given."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.channel.synthesis import synthesize
from datamodules.errors import InputError
from datamodules.plots.figures import plot_csi, plot_site, plot_statistics
from datamodules.sites.environment import Environment
from datamodules.sites.paths import Paths
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sources.deepmimo.v4 import DeepMIMO
from tests.data.deepmimo.data import BUILDINGS, write_scenario


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    root = tmp_path_factory.mktemp("scenarios")
    write_scenario(root, "street_3p5", num_users=200, seed=0)
    return DeepMIMO("street_3p5", str(root), download=False, cache=str(root / "cache")).sites()


def with_unserved(site: Site, num_users: int) -> Site:
    empty = {name: torch.zeros_like(value[:num_users]) for name, value in site.paths.as_dict().items()}
    empty["los"] -= 1
    return replace(site, links=Paths.cat([site.paths, Paths.from_dict(empty)]))


def draw(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")


def legend_of(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_map_shows_every_user_by_state(sites: list[Site]) -> None:
    site = with_unserved(sites[0], 7)
    figure = plot_site(site)
    draw(figure)
    axes = figure.axes[0]
    assert axes.get_aspect() == 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [m]", "y [m]")
    states = {state: int((site.paths.los == state).sum()) for state in (-1, 0, 1)}
    assert states[-1] == 7
    labels = [f"no path ({states[-1]})", f"line of sight ({states[1]})", f"no line of sight ({states[0]})"]
    assert legend_of(figure) == [*labels, "base station (z = 6 m), boresight"]
    drawn = {str(c.get_label()): len(np.asarray(c.get_offsets())) for c in axes.collections}
    assert [drawn[label] for label in labels] == [states[-1], states[1], states[0]]
    (buildings,) = [c for c in axes.collections if len(c.get_paths()) == len(BUILDINGS)]
    assert sorted(np.asarray(buildings.get_array()).tolist()) == sorted(BUILDINGS[:, 1, 2])
    inside = [axes.viewLim.contains(*xy) for xy in site.paths.position[:, :2].tolist()]
    assert all(inside)
    assert any(text.get_text() == "20 m" for text in axes.texts)


def test_few_users_are_drawn_large(sites: list[Site]) -> None:
    sizes = []
    for links in (sites[0].paths[:20], Paths.cat([sites[0].paths] * 5)):
        figure = plot_site(with_unserved(replace(sites[0], links=links), 10))
        marks = {str(c.get_label()).split(" (")[0]: c for c in figure.axes[0].collections}
        sizes += [float(marks[label].get_sizes()[0]) for label in ("line of sight", "no path")]  # type: ignore[attr-defined]
    assert min(sizes[:2]) > 20
    assert sizes[2:] == [7.0, 2.0]


def test_map_of_power(sites: list[Site]) -> None:
    site = with_unserved(sites[0], 7)
    figure = plot_site(site, "power")
    draw(figure)
    assert legend_of(figure) == ["no path (7)", "base station (z = 6 m), boresight"]
    values = [np.asarray(c.get_array()) for c in figure.axes[0].collections if c.get_array() is not None]
    power = 10 * np.log10(sites[0].paths.power.numpy())
    assert any(len(value) == len(power) and np.allclose(value, power, atol=1e-3) for value in values)
    assert "received power for 1 W sent [dB]" in [axes.get_ylabel() for axes in figure.axes[0].child_axes]


def test_boresight_follows_the_orientation(sites: list[Site]) -> None:
    figure = plot_site(replace(sites[0], bs_orientation=torch.tensor([torch.pi / 2, 0.1, 0.0])))
    (arrow,) = [text for text in figure.axes[0].texts if hasattr(text, "xyann")]
    offset = np.subtract(arrow.xy, arrow.xyann)
    assert abs(offset[0]) < 1e-4 < offset[1]


def test_map_of_one_user_in_an_open_field(sites: list[Site]) -> None:
    paths = sites[0].paths[:1]
    draw(plot_site(replace(sites[0], links=paths, environment=Environment.empty(paths.position.numpy()))))


def test_unknown_color(sites: list[Site]) -> None:
    with pytest.raises(InputError, match="color must be 'los' or 'power', got 'rainbow'"):
        plot_site(sites[0], "rainbow")  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", [False, True])
def test_csi_image_and_delay_profile(sites: list[Site], phase: bool) -> None:
    ofdm = OFDM(64, 64e6)
    csi = synthesize(sites[0].paths, Array(1, 8), Array(1, 2), ofdm)[3]
    figure = plot_csi(csi, ofdm.bandwidth, phase=phase)
    draw(figure)
    image = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(image, 20 * np.log10(csi.reshape(16, 64).abs().numpy()), atol=1e-3)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["0", "1"]
    (profile,) = [axes for axes in figure.axes if axes.get_title() == "delay profile"]
    assert profile.get_xlabel() == "delay [ns]"
    delay, level = (np.asarray(value) for value in profile.lines[0].get_data())
    assert level.max() == pytest.approx(0)
    # one tap is 1 / 64 MHz long, and the strongest path falls between two of them
    assert delay[level.argmax()] == pytest.approx(1e9 * float(sites[0].paths.delay[3, 0]), abs=1e9 / 64e6)
    images = [axes.images[0] for axes in figure.axes if axes.images and axes.get_xlabel() == "subcarrier"]
    assert len(images) == 1 + phase


def test_prediction_beside_csi() -> None:
    csi = torch.randn(8, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    figure = plot_csi(csi, None, prediction=0.9 * csi, phase=True)
    draw(figure)
    assert [axes.get_title() for axes in figure.axes if axes.images and axes.get_title()] == [
        "CSI",
        "prediction, NMSE -20.0 dB",
    ]
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images and axes.get_title()]
    assert limits[0] == limits[1]
    (profile,) = [axes for axes in figure.axes if axes.get_title() == "delay profile"]
    assert profile.get_xlabel() == "delay [taps]"
    assert len(profile.lines) == 2


def test_csi_of_a_link_with_no_path() -> None:
    draw(plot_csi(torch.zeros(4, 16, dtype=torch.complex64), 1e6, prediction=torch.zeros(4, 16, dtype=torch.complex64)))


@pytest.mark.parametrize(("shape", "other"), [((4,), None), ((1, 2, 3, 4), None), ((4, 8), (8, 4))])
def test_csi_of_a_wrong_shape(shape: tuple[int, ...], other: tuple[int, ...] | None) -> None:
    prediction = None if other is None else torch.zeros(other)
    with pytest.raises(InputError, match=r"CSI must have shape \(R, T, K\) or \(T, K\)"):
        plot_csi(torch.zeros(shape), None, prediction)


def test_statistics(sites: list[Site]) -> None:
    figure = plot_statistics([with_unserved(site, 5) for site in sites])
    draw(figure)
    _, amplitude, spread, count = (axes for axes in figure.axes if not axes.get_label().startswith("<colorbar"))
    for site, line in zip(sites, amplitude.lines, strict=True):
        level, share = (np.asarray(value) for value in line.get_data())
        np.testing.assert_allclose(level, np.sort(20 * np.log10(site.paths.gain.sum(1).abs().numpy())), atol=1e-3)
        assert share[-1] == 1
    assert spread.get_xlabel().startswith("delay spread [ns]")
    # per cent of links with 1, 2, 3 and 4 paths, as the steps of the histogram have it
    heights = {round(float(y), 3) for patch in count.patches for y in patch.get_xy()[:, 1]}  # type: ignore[attr-defined]
    for site in sites:
        shares = 100 * torch.bincount(site.paths.mask.sum(1))[1:] / len(site)
        assert {round(float(share), 3) for share in shares} <= heights


def test_delay_spread_of_two_equal_paths(sites: list[Site]) -> None:
    two = sites[0].paths[sites[0].paths.mask.sum(1) >= 2][:10]
    keep = torch.arange(two.num_paths) < 2
    delay = torch.tensor([1e-7, 2e-7, *[0.0] * (two.num_paths - 2)]).expand(10, -1)
    paths = replace(two, gain=torch.where(keep, 1 + 0j, 0j).expand(10, -1).to(torch.complex64), delay=delay)
    figure = plot_statistics([replace(sites[0], links=paths)])
    (spread,) = [axes for axes in figure.axes if axes.get_xlabel().startswith("delay spread")]
    assert spread.get_xlabel() == "delay spread [ns] (above 50 ns in the last bin)"


def test_statistics_pool_many_sites(sites: list[Site]) -> None:
    figure = plot_statistics([replace(sites[i % 2], name=f"site {i}") for i in range(8)])
    (line,) = figure.axes[1].lines
    assert line.get_label() == f"8 sites ({4 * (len(sites[0]) + len(sites[1])):,})"


@pytest.mark.parametrize("snapshots", [0, 3])
def test_recorded_csi(sites: list[Site], snapshots: int) -> None:
    csi = synthesize(sites[0].paths, Array(1, 2), Array(), OFDM(8, 10e6))
    first = csi[:, 0, 0, 0]
    recorded = csi[:, None].repeat(1, snapshots, 1, 1, 1) if snapshots else csi
    links = Recording.build(recorded, sites[0].paths.position, interval=0.01 if snapshots else 0.0)
    site = replace(sites[0], links=links, environment=Environment.empty(links.position.numpy()))
    figure = plot_site(site)
    draw(figure)
    assert legend_of(figure) == [f"line of sight unknown ({len(site)})", "base station (z = 6 m), boresight"]
    figure = plot_site(site, "power")
    draw(figure)
    (values,) = [np.asarray(c.get_array()) for c in figure.axes[0].collections if c.get_array() is not None]
    np.testing.assert_allclose(values, 10 * np.log10(csi.abs().square().mean((1, 2, 3)).numpy()), atol=0.02)
    figure = plot_statistics([site])
    draw(figure)
    level = np.asarray(figure.axes[1].lines[0].get_data()[0])
    assert len(level) == len(site) * max(1, snapshots)
    np.testing.assert_allclose(level[:: max(1, snapshots)], np.sort(20 * np.log10(first.abs().numpy())), atol=0.05)
    assert [axes.texts[0].get_text() for axes in figure.axes[2:4]] == ["recorded CSI: no rays"] * 2


def test_unknown_positions(sites: list[Site]) -> None:
    links = Recording.build(torch.ones(3, 1, 2, 4, dtype=torch.complex64), torch.full((3, 3), torch.nan))
    site = replace(sites[0], links=links)
    with pytest.raises(InputError, match=r"no user of site 'street_3p5_bs1' has a position"):
        plot_site(site)
    draw(plot_statistics([site]))


def test_statistics_of_nobody(sites: list[Site]) -> None:
    for nobody in ([], [replace(with_unserved(sites[0], 3), links=with_unserved(sites[0], 3).paths[-3:])]):
        with pytest.raises(InputError, match="no site with a user that has a path"):
            plot_statistics(nobody)


def test_importing_draws_in_no_matplotlib(tmp_path: Path) -> None:
    program = (
        "import sys, torch, datamodules.plots.figures as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.plot_csi(torch.ones(2, 4), None).savefig({str(tmp_path / 'csi.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "csi.png").read_bytes().startswith(b"\x89PNG")
