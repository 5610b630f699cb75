"""What models log of a side, over batches of different sizes, against loops over links."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foundation import ConTwin, CsiFeedback, CSINetPlus, Encoder, FineTune
from foundation.losses.clip import spread
from heads import LOS, Joint, Positioning
from tests.foundation.losses.test_clip import reference
from tests.foundation.losses.test_ntxent import reference as slow_ntxent
from tests.foundation.models.test_calibration import model as calibration
from tests.foundation.models.test_calibration import street
from tests.foundation.models.test_envchannel import data as environment_data
from tests.foundation.models.test_envchannel import small as envchannel
from tests.foundation.towers import TinyEncoder, tiny_clip


def draw(*shape, seed=0, **settings):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **settings)


def captured(model, name="log_whole"):
    """Return a dict of what the model logs by one of its methods."""
    found = {}
    setattr(model, name, (lambda values, *_: found.update(values)) if name == "log_whole" else found.update)
    return found


def metrics_of(model):
    """Return a dict of the metrics that the model logs, and silence its logging."""
    found = {}
    model.log = lambda name, value, **_: found.__setitem__(name, value)
    return found


def retrieved(queries, options):
    a, b = (x.numpy() / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, options))
    return np.mean([(a[i] @ b.T).argmax() == i for i in range(len(a))])


def test_spread_is_one_of_uniform_directions_whatever_their_norm():
    uniform = draw(20_000, 16) * (0.1 + 10 * torch.rand(20_000, 1))
    assert spread(uniform).item() == pytest.approx(1, abs=0.02)
    # half of the directions +, half of them -: a deviation of 1 along one of four axes
    line = torch.tensor([3.0, 0.0, 0.0, 0.0]) * torch.tensor([1.0, -1.0]).repeat(1000)[:, None]
    assert spread(line).item() == pytest.approx(math.sqrt(4) * 1 / 4, rel=1e-3)
    assert spread(torch.tensor([1.0, 2.0]).repeat(9, 1)).item() == pytest.approx(0, abs=1e-6)


def test_csi_clip_scores_both_directions():
    model = tiny_clip()
    found = captured(model)
    a = draw(40, 8)
    b = a + draw(40, 8, seed=1) + torch.tensor([2.0] + [0.0] * 7)  # drawn to one side, so that the directions differ
    model._validated = [{"a": a[:33], "b": b[:33]}, {"a": a[33:], "b": b[33:]}]
    model.on_validation_epoch_end()
    assert found["val/loss"].item() == pytest.approx(reference(a.numpy(), b.numpy(), 0.07), rel=1e-4)
    forth, back = retrieved(a, b), retrieved(b, a)
    assert forth != back
    assert found["val/csi_to_cir/retrieval_top1"].item() == pytest.approx(forth)
    assert found["val/cir_to_csi/retrieval_top1"].item() == pytest.approx(back)
    same = torch.ones(300, 8)
    model._validated = [{"a": same, "b": same}]
    model.on_validation_epoch_end()
    assert found["val/loss"].item() == pytest.approx(math.log(128), rel=1e-5), "mean over whole groups of 128"


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_csi_clip_pairs_the_two_views(step):
    model, views = tiny_clip(), [draw(6, 1, 4, 8, dtype=torch.complex64, seed=seed) for seed in (0, 1)]
    logged = captured(model, "log_training") if step == "training_step" else captured(model)
    with torch.no_grad():
        a = model.csi_projection(model.csi_encoder(views[0]))
        b = model.cir_projection(model.cir_encoder(views[1]))
        made = getattr(model, step)({"csi": draw(6, 1, 4, 8, dtype=torch.complex64, seed=2), "views": views}, 0)
    expected = pytest.approx(reference(a.double().numpy(), b.double().numpy(), 0.07), rel=1e-4)
    if step == "validation_step":
        model.on_validation_epoch_end()
        assert logged["val/loss"].item() == expected
    else:
        assert made["loss"].item() == logged["loss"].item() == expected


class Plain(Encoder):
    """Hands on the first numbers of a channel, so that the embeddings of different channels differ."""

    num_features = 16

    def forward(self, csi):
        return torch.view_as_real(csi).flatten(1)[:, :16]


def contwin(**settings):
    torch.manual_seed(0)
    return ConTwin(Plain(), embed_dim=8, rho=None, pool="all", negatives="none", **settings)


def test_contwin_pairs_the_views_of_each_link():
    count = 6
    views = [draw(count, 1, 4, 8, dtype=torch.complex64, seed=seed) for seed in (0, 1)]
    # links of two sites, whose sums of site and user are equal
    site, user = torch.arange(count) % 2, 5 + torch.arange(count) // 2 - torch.arange(count) % 2
    batch = {"views": views, "site": site, "user": user, "domain": torch.zeros(count, 5, dtype=torch.int64)}
    other = np.eye(2 * count, k=count, dtype=bool) | np.eye(2 * count, k=-count, dtype=bool)
    every = np.ones((2 * count, 2 * count), bool)
    model = contwin()
    logged = captured(model, "log_training")
    with torch.no_grad():
        q = torch.cat([model(view)[1] for view in views]).double().numpy()
        model.training_step(batch, 0)
        model.eval()
        model.validation_step({key: v[:4] if key != "views" else [x[:4] for x in v] for key, v in batch.items()}, 0)
        model.validation_step({key: v[4:] if key != "views" else [x[4:] for x in v] for key, v in batch.items()}, 1)
    expected = pytest.approx(slow_ntxent(q, other, every, 0.1, "none", None), rel=1e-4)
    assert logged["loss"].item() == expected != pytest.approx(math.log(2 * count - 1), abs=0.1)
    assert logged["positives"].item() == 1
    assert logged["pool"].item() == 2 * count - 2
    found = captured(model)
    rows = {key: torch.cat([part[key] for part in model._validated]) for key in ("one", "other")}
    model.on_validation_epoch_end()
    assert found["val/loss"].item() == expected
    assert found["val/views/retrieval_top1"].item() == pytest.approx(retrieved(rows["one"], rows["other"]))


def test_contwin_validates_in_whole_groups():
    model, count = contwin(), 300
    found, same = captured(model), torch.ones(300, 8)
    link, domain = torch.arange(count), torch.zeros(count, 5, dtype=torch.int64)
    model._validated = [{"one": same, "other": same, "link": link, "domain": domain}]
    model.on_validation_epoch_end()
    assert found["val/loss"].item() == pytest.approx(math.log(255), rel=1e-5), "of 128 links with two views each"
    assert found["val/embedding_spread"].item() == pytest.approx(0, abs=1e-6)


def test_environment_channel_weighs_batches_by_their_links():
    model = envchannel(reconstruction=0.25)
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=4), strategy=None)
    kept = {"channel": draw(6, 16), "environment": draw(6, 16, seed=1)}
    kept["rebuild"] = torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 0.0]] + [[4.0, 1.0], [0.0, 0.0]])
    terms = model._terms(kept)
    a, b = kept["channel"].numpy(), kept["environment"].numpy()
    contrast = (4 * reference(a[:4], b[:4], 0.07) + 2 * reference(a[4:], b[4:], 0.07)) / 6
    assert terms["contrast"].item() == pytest.approx(contrast, rel=1e-5)
    assert terms["rebuild"].item() == pytest.approx(0.25 * (4 * 1.0 + 2 * 4.0) / 6)
    assert terms["loss"].item() == pytest.approx(contrast + 0.5, rel=1e-5)


def test_csi_feedback_scores_equal_numpys_over_uneven_batches():
    torch.manual_seed(0)
    model = CsiFeedback(CSINetPlus(code_size=8, rows=8, antennas=8, blocks=1)).eval()
    logged, links = metrics_of(model), []
    for size, seed in ((5, 0), (2, 1)):
        csi = draw(size, 2, 4, 16, dtype=torch.complex64, seed=seed) * 1e-6
        with torch.no_grad():
            compared = model.compare({"csi": csi})
            model._score("val", model.val_metrics, compared)
        links += zip(csi.numpy().astype(complex), compared["rebuilt"].numpy(), strict=True)
    expected = {name: [] for name in ("cosine", "kept_energy", "rate", "perfect_rate", "se_ratio", "csi_nmse")}
    for h, rebuilt in links:
        bins = np.fft.fft(np.fft.ifft(h, axis=2, norm="ortho"), axis=1, norm="ortho")
        cut = bins[..., :8].transpose(2, 0, 1).reshape(8, 8)  # taps, antenna pairs
        expected["kept_energy"].append(np.linalg.norm(cut) ** 2 / np.linalg.norm(h) ** 2)
        expected["cosine"].append(abs(np.vdot(rebuilt, cut)) / np.linalg.norm(rebuilt) / np.linalg.norm(cut))
        whole = np.zeros((2, 4, 16), complex)
        whole[..., :8] = rebuilt.reshape(8, 2, 4).transpose(1, 2, 0)
        known = np.fft.fft(np.fft.ifft(whole, axis=1, norm="ortho"), axis=2, norm="ortho")
        noise = (abs(h) ** 2).mean() / 10  # 10 dB between single antennas
        rates = [
            np.mean([
                np.log2(1 + np.linalg.norm(h[..., k] @ np.linalg.svd(w[..., k])[2][0].conj()) ** 2 / noise)
                for k in range(16)
            ])
            for w in (known, h)
        ]  # fmt: skip
        expected["rate"].append(rates[0])
        expected["perfect_rate"].append(rates[1])
        expected["se_ratio"].append(rates[0] / rates[1])
        # scaled and turned as the base station knows it
        turn = np.exp(1j * np.angle(cut.flat[abs(cut).argmax()])) * np.linalg.norm(cut)
        expected["csi_nmse"].append(np.linalg.norm(known * turn - h) ** 2 / np.linalg.norm(h) ** 2)
    for name in ("cosine", "kept_energy", "rate", "perfect_rate", "se_ratio"):
        assert logged[f"val/{name}"].compute().item() == pytest.approx(np.mean(expected[name]), rel=1e-4), name
    error = 10 * np.log10(np.mean(expected["csi_nmse"]))
    assert logged["val/csi_nmse_db"].compute().item() == pytest.approx(error, abs=1e-3)


def test_calibration_loss_and_rate_equal_numpys():
    net, batch = calibration(snr_db=7.0), street(6)
    logged = captured(net, "log_training")
    links = net.links(batch)
    net.eval()
    with torch.no_grad():
        refined, known = net(links["low"], links["position"]), links["low"]
        net.training_step(batch, 0)
        scores = metrics_of(net)
        net._score("direct_", links, known)
    expected, rates = [], []
    for h, w, guess in zip(links["high"].numpy()[:, 0], known.numpy()[:, 0], refined.numpy(), strict=True):
        weights = np.sqrt((abs(net.codebook.numpy() @ h) ** 2).mean(1))
        expected.append(((weights / weights.sum() - guess) ** 2).sum())
        noise = (abs(h) ** 2).mean() / 10**0.7
        beams = w.conj() / np.linalg.norm(w, axis=0)
        rates.append(np.log2(1 + abs((h * beams).sum(0)) ** 2 / noise).mean())
    assert logged["loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert scores["test/direct_rate"].compute().item() == pytest.approx(np.mean(rates), rel=1e-4)


def test_an_adaptation_validates_over_labelled_links_whatever_their_batches():
    torch.manual_seed(0)
    heads = lambda d: Joint(d, [LOS, lambda n: Positioning(n, hidden=8)])  # noqa: E731
    model = FineTune(heads, TinyEncoder(), mode="scratch").eval()
    found, _ = captured(model), metrics_of(model)
    batch = {
        "csi": draw(7, 1, 4, 8, dtype=torch.complex64), "position": 9 * draw(7, 3), "bs_position": torch.zeros(7, 3),
        "los": torch.tensor([1, -1, 0, -1, -1, 1, 0], dtype=torch.int8),
    }  # fmt: skip
    batch["position"][[0, 6]] = torch.nan
    with torch.no_grad():
        for number, rows in enumerate((slice(0, 5), slice(5, 7))):
            model.validation_step({key: value[rows] for key, value in batch.items()}, number)
        whole, raw = model.head.loss(model(batch), batch), model(batch)
        several = model._loss([raw, 0.5 * raw], batch)
        assert several.item() == pytest.approx((whole + model.head.loss(0.5 * raw, batch)).item() / 2, rel=1e-5)
    model.on_validation_epoch_end()
    assert found["val/loss"].item() == pytest.approx(whole.item(), rel=1e-5)


def test_environment_channel_scores_both_directions_of_all_batches():
    model = envchannel(decoder=False)
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=64), strategy=None)
    found = captured(model)
    a = draw(40, 16)
    b = a + draw(40, 16, seed=1) + torch.tensor([2.0] + [0.0] * 15)
    known = torch.tensor([1.0, 0.0, torch.nan, 1.0] * 10)
    rows = {"channel": a, "environment": b, "los_accuracy": known, "scale_accuracy": torch.arange(40.0)}
    model._kept = [{key: value[part] for key, value in rows.items()} for part in (slice(0, 33), slice(33, 40))]
    model.on_validation_epoch_end()
    forth, back = retrieved(a, b), retrieved(b, a)
    assert forth != back
    assert found["val/channel_to_environment/retrieval_top1"].item() == pytest.approx(forth)
    assert found["val/environment_to_channel/retrieval_top1"].item() == pytest.approx(back)
    assert found["val/los_accuracy"].item() == pytest.approx(2 / 3)
    assert found["val/scale_accuracy"].item() == pytest.approx(19.5)
    assert found["val/loss"].item() == pytest.approx(reference(a.numpy(), b.numpy(), 0.07), rel=1e-4)


def test_environment_channel_tells_line_of_sight_and_scale_by_the_nearest_environment(tmp_path):
    model, module = envchannel(decoder=False).eval(), environment_data(tmp_path)
    batch = module.finish(next(iter(module.val_dataloader())))
    with torch.no_grad():
        model.validation_step(batch, 0)
        channel, kept, tower = model(batch)[0], model._kept[0], model.environment_encoder
        for i in range(0, len(channel), 5):
            vector = batch["geometry"][i].repeat(5, 1)
            vector[:2, 6] = torch.tensor([0.0, 1.0])  # 0 is line of sight
            vector[2:, 7] *= torch.tensor([0.8, 1.0, 1.2])
            made = tower(batch["map"][i].repeat(5, 1, 1, 1), vector)
            cosine = torch.nn.functional.cosine_similarity(made, channel[i : i + 1])
            if batch["los"][i] >= 0:
                assert kept["los_accuracy"][i] == float(cosine[:2].argmax() == 1 - batch["los"][i])
            assert kept["scale_accuracy"][i] == float(cosine[2:].argmax() == 1)
