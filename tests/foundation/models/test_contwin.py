import pytest
import torch

from datamodules.channel.impairments import CommonPhase, Noise
from datamodules.channel.motion import Sequence
from datamodules.errors import InputError
from foundation import CNNTransformer, ConTwin, ResNet, load_encoder
from foundation.models.contwin import _link
from foundation.nets.contwin import past_image
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.foundation.models.test_csiclip import fit
from tests.foundation.towers import save_checkpoint

SEQUENCE = Sequence(4, 1e-3, {"static": 1, "vehicular": 1})


def small(**settings):
    torch.manual_seed(0)
    size = {"channels": 8, "patch": (2, 4), "width": 16, "layers": 1, "heads": 2, "dropout": 0.0}
    return ConTwin(CNNTransformer(4, 4, 8, **size), embed_dim=8, **settings)


def data(folder, **settings):
    sites = [random_site("a", 150, city="uma"), random_site("b", 100, seed=1, city="umi")]
    shared = {"sequence": SEQUENCE, "extras": ["domain"], "views": [Noise((10, 20)), CommonPhase()]}
    return build(folder / "sites", sites, **{**shared, **settings})


def test_pre_training_learns_and_logs(tmp_path):
    module, model = data(tmp_path), small(lr=3e-3)
    first = fit(model, module, tmp_path, epochs=1).callback_metrics["val/loss"].item()
    logged = fit(model, module, tmp_path, epochs=6).callback_metrics
    assert logged["val/loss"] < first
    assert logged["train/pool"] > 1
    assert logged["train/positives"] > 1
    assert 0 <= logged["val/views/retrieval_top1"] <= logged["val/views/retrieval_top5"] <= 1
    assert "val/probe/los/balanced_accuracy" in logged
    assert logged["val/embedding_spread"] > 0.1


def test_links_without_power_have_no_part_in_the_reconstruction(tmp_path):
    module = data(tmp_path, views=[], observation=[Noise((10, 20))], extras=None)
    model, batch = small(objective="reconstruction").eval(), module.finish(next(iter(module.train_dataloader())))
    model.log_training = lambda **_: None
    heard = {key: [v[4:] for v in value] if key == "views" else value[4:] for key, value in batch.items()}
    batch["clean_csi"] = batch["clean_csi"].clone()
    batch["clean_csi"][:4] = 0
    assert model.training_step(batch, 0)["loss"].item() == pytest.approx(model.training_step(heard, 0)["loss"].item())


def test_reconstruction_in_the_place_of_contrast_learns(tmp_path):
    module = data(tmp_path, views=[Noise((10, 20))], observation=[Noise((10, 20))], extras=None)
    model = small(objective="reconstruction", lr=1e-2)
    first = fit(model, module, tmp_path, epochs=1).callback_metrics["val/loss"].item()
    logged = fit(model, module, tmp_path, epochs=8).callback_metrics
    assert logged["val/loss"] < first - 0.05
    assert 0 < logged["val/loss"] < first < 1.4, "rebuilding nothing costs 1"
    batch = module.finish(next(iter(module.train_dataloader())))
    clean = past_image(batch["clean_csi"], 4, (4, 8), "cir").flatten(1)
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(clean[0])
        error, counted = model.reconstruction_error(torch.zeros(len(clean), 16), batch).unbind(1)
    assert error[0].item() == pytest.approx(0, abs=1e-6)
    expected = (clean[1:] - clean[0]).square().sum(1) / clean[1:].square().sum(1)
    torch.testing.assert_close(error[1:], expected)
    assert counted.tolist() == [1.0] * len(clean)
    assert all(p.grad is None for p in model.projection.parameters())
    with pytest.raises(InputError, match="objective must be one of contrast, reconstruction, got both"):
        small(objective="both")


def test_an_encoder_without_statistics_asks_for_no_sample(tmp_path, monkeypatch):
    module = data(tmp_path)
    monkeypatch.setattr(module, "sample", lambda: pytest.fail("thousands of channels were made for nothing"))
    assert not CNNTransformer(4, 4, 8).takes_statistics
    assert ResNet("resnet10t").takes_statistics
    small().prepare_from(module)


@pytest.fixture
def batch(tmp_path):
    module = data(tmp_path)
    return module.finish(next(iter(module.train_dataloader())))


def test_positives_and_pool_are_those_of_the_domains(batch):
    link, domain = torch.cat([_link(batch)] * 2), torch.cat([batch["domain"]] * 2)
    same_link = link.unsqueeze(1) == link
    same_domain = (domain.unsqueeze(1) == domain).all(-1)
    assert same_link.sum() == 2 * len(link), "two views of each link"
    assert torch.equal(small().pairs(link, domain, link, domain)[0], same_domain | same_link)
    assert not torch.logical_and(*small(rho=3).pairs(link, domain, link, domain)).any(), "both of some pairs"
    positives, pool = small(rho=None).pairs(link, domain, link, domain)
    assert torch.equal(positives, same_link)
    scenario, los, mobility = ((domain[:, None, a] != domain[:, a]) for a in (0, 1, 2))
    assert torch.equal(pool, scenario | los | mobility)
    assert torch.equal(
        small(rho=None, lambdas={"los": 0, "mobility": 0}).pairs(link, domain, link, domain)[1], scenario
    )
    assert torch.equal(small(rho=None, pool="all").pairs(link, domain, link, domain)[1], ~same_link)
    slow = small(rho=None, thresholds={"mobility": 100.0}).pairs(link, domain, link, domain)[1]
    assert torch.equal(slow, scenario | los), "no user is 100 m/s faster than another"


def test_both_views_reach_the_loss(batch):
    model, seen = small(), []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.log_training = lambda **values: seen.append(values)
    step = model.training_step(batch, 0)
    assert torch.equal(seen[0], torch.cat(batch["views"]))
    assert step["features"].shape == (len(batch["los"]), 16)
    step["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_encoder_is_read_from_a_checkpoint(tmp_path):
    model = small()
    save_checkpoint(model, tmp_path / "x.ckpt")
    past = torch.randn(3, 4, 1, 4, 8, dtype=torch.complex64)
    torch.testing.assert_close(load_encoder(tmp_path / "x.ckpt").eval()(past), model.encoder.eval()(past))


def test_prediction_names_its_rows(tmp_path):
    module, model = data(tmp_path), small()
    trainer = fit(model, module, tmp_path, epochs=1)
    rows = trainer.predict(model, datamodule=module)
    assert set(rows[0]) == {"features", "embedding", "position", "site", "user", "los", "domain"}
    assert sum(len(part["user"]) for part in rows) == 248


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": None}, "ConTwin needs views, which the data lack: set data.views"),
        ({"extras": []}, "ConTwin needs domain, which the data lack: add to data.extras"),
    ],
)
def test_says_what_the_data_lack(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(small(), data(tmp_path, **settings), tmp_path, epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "hard"}, "pool must be one of adversarial, all, got hard"),
        ({"weights": {"speed": 1.0}}, "weights must be of the axes .*, not speed"),
        ({"lambdas": {"los": 2.0}}, r"weights must lie in \[0, 1\]"),
        ({"thresholds": {"los": 1.0}}, "thresholds must be of mobility, tilt, frequency"),
        ({"thresholds": {"tilt": -1.0}}, "thresholds must be numbers of at least 0"),
        ({"thresholds": {"tilt": float("nan")}}, "thresholds must be numbers of at least 0"),
        ({"rho": 0.0}, "rho must be positive"),
    ],
)
def test_refuses_what_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        small(**settings)
