"""CSI feedback against NumPy."""

import numpy as np
import pytest
import torch

from heads import Feedback
from heads.feedback import relative_error, target_channel

SIZES = {"num_antennas": 8, "num_subcarriers": 16, "patch": (4, 4), "width": 32, "layers": 1, "heads": 2}


def make(count: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"csi": torch.randn(count, 2, 4, 16, dtype=torch.complex64, generator=draw) * 1e-5}


def numpy_target(csi: torch.Tensor) -> np.ndarray:
    h = csi.numpy().astype(np.complex128)
    channel = np.fft.fft(np.fft.ifft(h, axis=-1, norm="ortho"), axis=-2, norm="ortho").reshape(len(h), -1, h.shape[-1])
    channel /= np.sqrt((np.abs(channel) ** 2).mean((1, 2), keepdims=True))
    for link in channel:
        strongest = link.flat[np.abs(link).argmax()]
        link *= strongest.conj() / np.abs(strongest)
    return channel


def test_scores_equal_numpy() -> None:
    batch, other = make(), make(3, 1)
    metrics = Feedback(6, **SIZES).metrics()
    errors, cosines = [], []
    for part in (batch, other):
        prediction = torch.randn(len(part["csi"]), 8, 16, dtype=torch.complex64)
        metrics.update(prediction, part)
        true, guess = numpy_target(part["csi"]), prediction.numpy().astype(np.complex128)
        errors += list((np.abs(guess - true) ** 2).sum((1, 2)) / (np.abs(true) ** 2).sum((1, 2)))
        inner = np.abs((guess.conj() * true).sum((1, 2)))
        cosines += list(inner / np.linalg.norm(guess, axis=(1, 2)) / np.linalg.norm(true, axis=(1, 2)))
    found = metrics.compute()
    assert found["nmse_db"].item() == pytest.approx(10 * np.log10(np.mean(errors)), abs=1e-4)
    assert found["cosine"].item() == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_perfect_rebuild_and_an_empty_one() -> None:
    batch = make()
    assert relative_error(target_channel(batch), batch).abs().max() < 1e-6
    assert torch.allclose(relative_error(torch.zeros(5, 8, 16, dtype=torch.complex64), batch), torch.ones(5))


def test_the_target_is_the_clean_channel() -> None:
    noisy, clean = make(), make(5, 1)
    batch = {"csi": noisy["csi"], "clean_csi": clean["csi"]}
    assert torch.equal(target_channel(batch), target_channel(clean))


def test_the_target_of_a_sequence_is_its_last_snapshot() -> None:
    past = torch.randn(5, 3, 1, 8, 16, dtype=torch.complex64)
    assert torch.equal(target_channel({"csi": past}), target_channel({"csi": past[:, -1]}))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_is_kept_and_enough_for_as_many_paths(rank: int) -> None:
    torch.manual_seed(0)
    head = Feedback(6, **SIZES, rank=rank)
    channel = head(torch.randn(4, 6)).detach()
    assert channel.shape == (4, 8, 16)
    assert (torch.linalg.matrix_rank(channel) == rank).all()
    assert relative_error(channel, make(4)).sub(1).abs().max() < 0.05, "it starts near the guess of no knowledge"
    profiles = head.unpatch(head.norm(head.blocks(head.expand(torch.ones(1, 6)).reshape(1, rank, 32) + head.position)))
    values = profiles.detach().double().numpy().reshape(rank, 24, 2) @ [1, 1j]
    slow = sum(np.outer(v[:8], v[8:]) for v in values)
    assert np.allclose(head(torch.ones(1, 6))[0].detach().numpy(), slow, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 8])
def test_it_learns_a_few_channels_by_heart(rank: int) -> None:
    torch.manual_seed(0)
    batch, features = make(8), torch.eye(8)
    head = Feedback(8, **SIZES, rank=rank)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(150):
        loss = head.loss(head(features), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_a_link_without_power_counts_in_nothing() -> None:
    batch = make(5)
    guess = target_channel(batch) * 0.5
    silent = {**batch, "csi": torch.cat([batch["csi"], torch.zeros_like(batch["csi"][:2])])}
    head, more = Feedback(6, **SIZES), torch.cat([guess, torch.ones_like(guess[:2])])
    assert head.labelled(silent) == 5
    assert head.loss(more, silent) == head.loss(guess, batch)
    for given, (prediction, served) in {"all": (guess, batch), "some": (more, silent)}.items():
        metrics = head.metrics()
        metrics.update(prediction, served)
        assert metrics["nmse_db"].compute() == pytest.approx(10 * np.log10(0.25), abs=1e-4), given
        assert metrics["cosine"].compute() == pytest.approx(1.0, abs=1e-5), given
    assert set(head.figures(more, silent)) == {"nmse_cdf", "reconstruction"}
    assert head.figures(more[5:], {"csi": silent["csi"][5:]}) == {}


def test_figures() -> None:
    batch = make()
    figures = Feedback(6, **SIZES).figures(target_channel(batch) * 0.9, batch)
    assert set(figures) == {"nmse_cdf", "reconstruction"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": (3, 4)}, "does not divide"),
        ({"heads": 5}, "must be a multiple of"),
        ({"layers": -1}, "layers"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feedback(6, **{**SIZES, **change})  # type: ignore[arg-type]


def test_a_channel_of_another_size() -> None:
    with pytest.raises(ValueError, match="set its num_antennas and num_subcarriers"):
        Feedback(6, **SIZES).loss(torch.zeros(5, 8, 32, dtype=torch.complex64), make())


def test_a_code_of_its_own_is_what_the_channel_is_rebuilt_from() -> None:
    head = Feedback(6, **SIZES, code_size=3)
    assert (head.compress.in_features, head.compress.out_features, head.expand.in_features) == (6, 3, 3)
    with torch.no_grad():
        head.unpatch.weight.normal_()
        features = torch.randn(2, 6)
        unseen = torch.linalg.svd(head.compress.weight)[2][-1]  # a direction that the code does not tell
        assert torch.allclose(head(features), head(features + 5 * unseen), atol=1e-5)
        assert not torch.allclose(head(features), head(features + 5 * head.compress.weight[0]), atol=1e-3)
    assert Feedback(6, **SIZES).code_size == 6
    with pytest.raises(ValueError, match="code_size"):
        Feedback(6, **SIZES, code_size=0)
