import math

import pytest
import torch

from datamodules.channel.draws import LinkDraws, _box_muller, _drawn_in_turn, uniform

COUNT = 20_000
SITE, USER = torch.zeros(COUNT, dtype=torch.long), torch.arange(COUNT)


def splitmix(seed: int, site: int, user: int, count: int) -> list[float]:
    """The stream of one link in Python's whole numbers."""
    wrap, step = 2**64, 0x9E3779B97F4A7C15

    def mix(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % wrap
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % wrap
        return state ^ (state >> 31)

    state = seed
    for part in (site, user):
        state = mix((state + part + step) % wrap)
    return [(mix((state + i * step) % wrap) >> 40) / 2**24 for i in range(1, count + 1)]


def test_numbers_are_those_of_splitmix() -> None:
    site, user = torch.tensor([0, 3, 12345]), torch.tensor([0, 77, 2**31])
    drawn = uniform(9, site, user, count=4)
    expected = [splitmix(9, s, u, 4) for s, u in zip(site.tolist(), user.tolist(), strict=True)]
    assert drawn.tolist() == expected


def test_numbers_are_uniform_and_do_not_hang_together() -> None:
    streams = [LinkDraws(0, SITE + site, USER) for site in range(2)]
    drawn = torch.cat([uniform(0, SITE, USER, count=3), *(s.uniform(2) for s in streams), streams[0].uniform(2)], 1)
    assert 0 <= drawn.min() < 1e-3
    assert 0.999 < drawn.max() < 1
    shares = torch.histc(drawn, 10, 0, 1) / drawn.numel()
    assert (shares - 0.1).abs().max() < 0.004
    assert (torch.corrcoef(drawn.T) - torch.eye(9)).abs().max() < 0.03
    neighbours = torch.stack([drawn[:-1, 0], drawn[1:, 0]])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.03


@pytest.mark.parametrize("draw", [_drawn_in_turn, _box_muller])
def test_normal_numbers_are_normal_and_of_their_link_alone(draw) -> None:
    keys = LinkDraws(1, SITE[:2000], USER[:2000])._next()
    drawn = draw(keys, 50)
    assert drawn.shape == (2000, 50)
    assert torch.isfinite(torch.view_as_real(drawn)).all()
    assert torch.equal(draw(keys[7:9], 50), drawn[7:9])
    parts = torch.view_as_real(drawn).flatten().double() * math.sqrt(2)
    # mean, variance and kurtosis of 200,000 numbers, within four standard errors
    for power, moment, error in ((1, 0, 0.0022), (2, 1, 0.0032), (4, 3, 0.022)):
        assert abs(parts.pow(power).mean() - moment) < 4 * error
    by_number = torch.view_as_real(drawn).flatten(1)
    assert (torch.corrcoef(by_number.T) - torch.eye(100)).abs().max() < 0.12
    assert (torch.corrcoef(by_number[:100]) - torch.eye(100)).abs().max() < 0.5


def test_every_call_draws_anew() -> None:
    draws, again = (LinkDraws(0, SITE[:3], USER[:3]) for _ in range(2))
    first, second = draws.normal(1, 2, 4), draws.normal(1, 2, 4)
    assert first.shape == (3, 1, 2, 4)
    assert first.dtype == torch.complex64
    assert not torch.equal(first, second)
    assert torch.equal(again.normal(1, 2, 4), first)
    assert len({*first.flatten().tolist()}) == 24, "links draw alike"
    assert len(LinkDraws(0, SITE[:0], USER[:0]).normal(2, 3)) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    here, there = LinkDraws(3, SITE, USER), LinkDraws(3, SITE.cuda(), USER.cuda())
    assert torch.equal(here.uniform(3), there.uniform(3).cpu())
    torch.testing.assert_close(there.normal(8).cpu(), _box_muller(here._next(), 8))
