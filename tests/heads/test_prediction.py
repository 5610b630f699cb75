"""The head that predicts the channel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from heads import Prediction
from heads.linear_filter import combination_weights
from heads.prediction import prediction_error

N, H, R, T, K, D = 9, 2, 2, 4, 8, 6


def moving(
    links: int = 24, speed: float = 0.4, noise: float = 0.1, seed: int = 0, horizons: int = H
) -> dict[str, Tensor]:
    """Links of four paths that turn by up to `speed` [rad] a snapshot, seen with noise, and what comes next."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.rand(links, 4, 4, generator=g) * 2 * math.pi
    turn[:, :, 0] = speed * turn[:, :, 0].cos()
    gain = torch.randn(links, 4, dtype=torch.complex64, generator=g)
    axes = [torch.arange(n, dtype=torch.float32) for n in (N + horizons, R, T, K)]
    waves = [torch.exp(1j * turn[:, :, i, None] * axis) for i, axis in enumerate(axes)]
    csi = torch.einsum("bp,bpn,bpr,bpt,bpk->bnrtk", gain, *waves)
    csi = csi / csi.abs().square().mean((1, 2, 3, 4), keepdim=True).sqrt() * 1e-5
    seen = csi[:, :N] + noise * 1e-5 * torch.randn(csi[:, :N].shape, dtype=csi.dtype, generator=g)
    return {"csi": seen, "next_csi": csi[:, N:]}


def heads() -> dict[str, Prediction]:
    torch.manual_seed(0)
    size = {"num_antennas": R * T, "num_subcarriers": K}
    return {
        "filter": Prediction(D, horizons=H, taps=6, hidden=16),
        "direct": Prediction(D, "direct", horizons=H, hidden=32, **size),
        "table 6": Prediction(D, "direct", horizons=H, hidden=32, layers=2, **size),
    }


every_kind = pytest.mark.parametrize("kind", ["filter", "direct", "table 6"])


def perturbed(head: Prediction) -> Prediction:
    """Give a filter a last layer that does something."""
    if head.kind == "filter":
        torch.nn.init.normal_(head.network.exit.weight, std=0.2)
    return head


@every_kind
def test_declares_the_contract(kind: str) -> None:
    head = heads()[kind]
    assert head.inputs == ("csi",)
    assert head.target_key in head.requires
    assert head.monitor in head.metrics()
    batch = moving()
    assert head(torch.randn(24, D), batch["csi"]).shape == batch["next_csi"].shape


@every_kind
def test_one_horizon_may_come_without_its_axis(kind: str) -> None:
    batch = moving(horizons=1)
    prediction = batch["next_csi"] * 1.1
    flat = {**batch, "next_csi": batch["next_csi"][:, 0]}
    assert heads()[kind].loss(prediction, flat) == heads()[kind].loss(prediction, batch)


@every_kind
def test_nmse_is_the_mean_of_ratios_over_links_with_a_channel(kind: str) -> None:
    batch = moving(5)
    prediction = batch["next_csi"] + 0.3e-5 * torch.randn_like(batch["next_csi"])
    prediction[0] *= 100
    batch["next_csi"][2] = 0
    batch["next_csi"][3] = torch.nan
    ratios = [
        [float((abs(p - t) ** 2).sum() / (abs(t) ** 2).sum()) for p, t in zip(*pair, strict=True)]
        for i, pair in enumerate(zip(prediction.numpy(), batch["next_csi"].numpy(), strict=True))
        if i not in (2, 3)
    ]
    metrics = heads()[kind].metrics()
    for part in (slice(0, 1), slice(1, 5)):
        metrics.update(prediction[part], {key: value[part] for key, value in batch.items()})
    values = {name: float(value) for name, value in metrics.compute().items()}
    each = np.mean(ratios, 0)
    expected = {"nmse_db": np.mean(each), "nmse_db_1": each[0], "nmse_db_2": each[1]}
    kept = [0, 1, 4]
    error, level = (
        (abs(value.numpy()) ** 2)[kept].sum(-1)
        for value in (prediction.detach() - batch["next_csi"], batch["next_csi"])
    )
    expected["nmse_antenna_db"] = np.mean(error / level)
    assert values == pytest.approx({name: 10 * np.log10(value) for name, value in expected.items()}, abs=1e-4)
    nothing = {"next_csi": torch.zeros_like(batch["next_csi"])}
    none = heads()[kind].loss(prediction.requires_grad_(), nothing)
    none.backward()
    assert none == 0


@every_kind
def test_loss_is_the_mean_of_ratios_or_of_their_logarithms(kind: str) -> None:
    batch, head = moving(5), heads()[kind]
    prediction = batch["next_csi"] + 1e-7 * torch.tensor([0, 1, 10, 30, 100]).reshape(-1, 1, 1, 1, 1)
    batch["next_csi"][3] = 0
    truth, guess = (value.numpy().astype(complex) for value in (batch["next_csi"], prediction))
    errors = [
        np.mean([(abs(guess[b, h] - truth[b, h]) ** 2).sum() / (abs(truth[b, h]) ** 2).sum() for h in range(H)])
        for b in (0, 1, 2, 4)
    ]
    expected = np.mean(np.log(np.array(errors) + 1e-4)) if kind == "filter" else np.mean(errors)
    assert head.loss(prediction, batch).item() == pytest.approx(expected, rel=1e-4)
    assert head.labelled(batch) == 4


@pytest.mark.parametrize("kind", ["direct", "table 6"])
def test_layers_predict_in_units_of_the_past(kind: str) -> None:
    head, csi, features = heads()[kind], moving(5)["csi"], torch.randn(5, D)
    raw = head.network(features).reshape(5, H, R, T, K, 2)
    power = csi.abs().square().flatten(1)
    level = (power.mean(1) if kind == "direct" else power.amax(1)).sqrt()  # the tanh of Table 6 is at most 1
    expected = torch.complex(raw[..., 0], raw[..., 1]) * level.reshape(5, 1, 1, 1, 1)
    torch.testing.assert_close(head(features, csi), expected, rtol=1e-5, atol=0)


@every_kind
def test_loss_falls_on_one_batch(kind: str) -> None:
    head, batch, features = heads()[kind], moving(), torch.randn(24, D)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        error = prediction_error(head(features, batch["csi"]), batch).mean()
        loss = head.loss(head(features, batch["csi"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_filter_goes_along_with_gain_phase_and_delay() -> None:
    head, batch, features = perturbed(heads()["filter"]).eval(), moving(), torch.randn(24, D)
    prediction = head(features, batch["csi"])
    shift = torch.exp(-2j * math.pi * 3 * torch.arange(K) / K)
    for change in (torch.tensor(1e3), torch.exp(torch.tensor(2.0j)), shift):
        changed = head(features, batch["csi"] * change)
        assert (changed - prediction * change).norm() / (prediction * change).norm() < 1e-3


def test_the_filter_starts_as_the_mean_of_the_classical_predictors_and_reads_the_features() -> None:
    head, batch = heads()["filter"].train(), moving()
    one, other = (head(torch.randn(24, D), batch["csi"]) for _ in range(2))
    assert torch.equal(one, other)
    assert prediction_error(one, batch)[:, 0].mean() < 0.03
    perturbed(head)
    assert not torch.allclose(head(torch.randn(24, D), batch["csi"]), one, atol=1e-8)


@pytest.mark.parametrize("speed", [0.0, 0.4, 3.0])
def test_a_filter_that_errs_costs_little(speed: float) -> None:
    """Weights that were learned to nonsense stand for a shift: the past tells, and the classical predictors remain."""
    batch = moving(64, speed)
    features = torch.zeros(64, D)
    sound = heads()["filter"].eval()
    broken = heads()["filter"].eval()
    torch.nn.init.normal_(broken.network.exit.weight, std=3.0)
    without, guarded = (prediction_error(head(features, batch["csi"]), batch).mean(0) for head in (sound, broken))
    wild = prediction_error(broken.train()(features, batch["csi"]), batch).mean(0)
    assert (wild > 2).all()
    assert (guarded < 1.25 * without + 1e-3).all()
    assert (guarded < 1.1).all(), "and if none is of use, silence costs 0 dB"


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_trust_is_the_least_squares_of_nonnegative_weights_of_sum_one_or_less(strength: float) -> None:
    from scipy.optimize import nnls

    g = torch.Generator().manual_seed(0)
    guesses = torch.randn(3, 8, 40, 2, dtype=torch.complex64, generator=g)
    truth = strength * guesses[0] - 0.3 * guesses[1] + 0.5 * torch.randn(8, 40, 2, dtype=torch.complex64, generator=g)
    guesses[2, 3] = 0
    weights = combination_weights(guesses, truth)
    assert weights.shape == (3, 8, 2)
    for b in range(8):
        for h in range(2):
            columns, wanted = torch.view_as_real(guesses[:, b, :, h]).flatten(1).T, torch.view_as_real(truth[b, :, h])
            # one more weight takes up what is left of one, held by an equation of large weight
            padded = np.block([[columns.numpy(), np.zeros((len(columns), 1))], [np.full((1, 4), 1e3)]])
            expected = nnls(padded, np.append(wanted.flatten().numpy(), 1e3))[0][:3] * columns.any(0).numpy()
            told = (expected[:, None] * guesses[:, b, :, h].numpy()).sum(0)
            left, power = truth[b, :, h].numpy() - told, abs(told) ** 2
            gain = (abs(truth[b, :, h].numpy()) ** 2 - abs(left) ** 2).sum()
            chance = (expected > 0).sum() * (power * abs(left) ** 2).sum() / power.sum()
            np.testing.assert_allclose(weights[:, b, h], expected * max(0, 1 - chance / gain), atol=2e-3)
    assert not combination_weights(torch.zeros_like(guesses), truth).any()


def test_trust_never_amplifies_what_is_predicted() -> None:
    """Weights fitted while a link comes out of a fade would add up to more than one, and miss the next fade by far."""
    truth = torch.ones(1, 40, 1, dtype=torch.complex64)
    weights = combination_weights(torch.stack([0.3 * truth, 0.5 * truth, 0.2 * truth]), truth)
    assert float(weights.sum()) == pytest.approx(1, abs=0.02)


def test_guesses_that_fit_by_chance_are_not_trusted() -> None:
    g = torch.Generator().manual_seed(0)
    guesses = torch.randn(3, 500, 20, 1, dtype=torch.complex64, generator=g)
    guesses[:, :, 1:] *= 0.3
    truth = torch.randn(500, 20, 1, dtype=torch.complex64, generator=g)
    truth[:, 1:] *= 0.3
    future = torch.randn(500, 20, 1, dtype=torch.complex64, generator=g)
    future[:, 1:] *= 0.3
    told = torch.einsum("ebh,ebmh->bmh", combination_weights(guesses, truth).to(guesses.dtype), guesses)
    assert (told - future).abs().square().sum() < 1.05 * future.abs().square().sum(), "1.10 by least squares alone"


def test_links_without_a_channel_predict_zeros() -> None:
    batch = moving(3)
    batch["csi"][1] = 0
    for head in heads().values():
        for mode in (True, False):
            prediction = perturbed(head).train(mode)(torch.randn(3, D), batch["csi"])
            assert prediction.isfinite().all()
            assert not prediction[1].any()


@every_kind
def test_a_batch_of_no_links_has_no_prediction(kind: str) -> None:
    head = heads()[kind]
    for mode in (True, False):
        assert head.train(mode).answer(torch.zeros(0, D), {"csi": moving()["csi"][:0]}).shape == (0, H, R, T, K)


def test_figures_show_the_median_link() -> None:
    batch = moving(6)
    assert heads()["filter"].figures(batch["next_csi"] * 1.1, batch).keys() == {"nmse_cdf", "prediction"}
    silent = {**batch, "next_csi": torch.zeros_like(batch["next_csi"])}
    assert heads()["filter"].figures(batch["next_csi"], silent) == {}


def test_figures_show_channels_over_angle_and_delay() -> None:
    flat = torch.ones(3, H, R, T, K, dtype=torch.complex64)  # one path along boresight, without delay
    figure = heads()["filter"].figures(1.1 * flat, {"next_csi": flat})["prediction"]
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.get_title() in ("true", "predicted")]
    assert len(pictures) == 2
    for picture in pictures:
        assert sorted({(int(row) % T, int(tap)) for row, tap in np.argwhere(picture > 1e-3)}) == [(0, 0)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ar"}, "kind must be 'filter', 'direct' or 'given', got 'ar'"),
        ({"layers": 3}, "layers must be 2 or 4, got 3"),
        ({"horizons": 0}, "horizons must be at least 1, got 0"),
        ({"taps": 0}, "taps must be at least 1, got 0"),
    ],
)
def test_bad_arguments(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction(D, **settings)


def test_data_of_another_size_are_refused() -> None:
    batch, features = moving(2), torch.randn(2, D)
    with pytest.raises(ValueError, match=r"needs a past of 4 snapshots to predict 2, got 3: set data\.sequence"):
        heads()["filter"](features, batch["csi"][:, :3])
    with pytest.raises(ValueError, match="set num_antennas and num_subcarriers"):
        heads()["direct"](features, batch["csi"][..., :4])
    with pytest.raises(ValueError, match=r"reads a past \(B, N, R, T, K\), got \[\(2, 2, 4, 8\)\]: set data\.sequence"):
        heads()["direct"](features, batch["csi"][:, 0])
    with pytest.raises(ValueError, match=r"got \[\]"):
        heads()["filter"](features)
    with pytest.raises(ValueError, match="set horizons"):
        heads()["filter"].loss(batch["next_csi"][:, :1], batch)


@pytest.mark.parametrize("kind", ["filter", "direct"])
def test_half_precision_predicts_complex_numbers(kind: str) -> None:
    head, batch = heads()[kind], moving()
    exact = head(torch.ones(24, D), batch["csi"])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(torch.ones(24, D), batch["csi"])
    assert rounded.dtype == torch.complex64
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
