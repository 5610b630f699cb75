"""The environment-channel two-tower: its losses, sizes and training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from datamodules import WorldSymmetry
from datamodules.errors import InputError
from datamodules.sites.environment import Environment
from foundation import ChannelTransformer, EnvChannel, EnvironmentTransformer, FineTune, PositionFeatures, load_encoder
from foundation.models.zeroshot import ZeroShot
from heads import LOS, Beam, Feedback
from tests.datamodules.rays import random_site
from tests.datamodules.test_module import build
from tests.test_experiments import ROOT

SMALL = {"width": 32, "layers": 1, "shared_layers": 1, "heads": 2, "embed_dim": 16}


def small(decoder=True, environment=True, **settings):
    torch.manual_seed(0)
    return EnvChannel(
        ChannelTransformer(num_antennas=4, num_subcarriers=8, patch=(2, 4), **SMALL),
        EnvironmentTransformer(map_patch=32, frequencies=2, corridor=2, echoes=2, **SMALL) if environment else None,
        (lambda d: Feedback(d, 4, 8, (2, 4), width=32, layers=1, heads=2)) if decoder else None,
        **settings,
    )


def town_site(name, seed, area="area"):
    site = random_site(name, 120, seed=seed, area=area)
    houses = (np.array([[-60.0, 10.0], [-10.0, 10.0], [-10.0, 40.0], [-60.0, 40.0]]),)
    object.__setattr__(site, "environment", Environment(houses, np.array([9.0]), (-100.0, -100.0, 100.0, 100.0)))
    return site


def data(tmp_path, **settings):
    sites = [town_site("a", 0), town_site("b", 1)]
    return build(tmp_path / "sites", sites, extras=["map", "geometry"], **settings)


def fit(model, datamodule, tmp_path, epochs=2, test=False):
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=datamodule)
    if test:
        trainer.test(model, datamodule=datamodule, verbose=False)
    return trainer


def test_losses_equal_a_slow_reference(tmp_path):
    datamodule = data(tmp_path)
    batch = datamodule.finish(next(iter(datamodule.train_dataloader())))
    model = small(counterfactuals=0.5, profile=2.0)
    channel, environment = model(batch)
    losses = model._losses(batch, channel, environment)
    a, b = (x.detach().double().numpy() for x in (channel, environment))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    scale = 1 / 0.07
    rows = 0.0
    for i in range(len(a)):
        for one, other in ((a, b), (b, a)):
            similarity = np.array([scale * one[i] @ other[j] for j in range(len(a))])
            rows -= similarity[i] - np.log(np.exp(similarity).sum())
    assert losses["contrast"].item() == pytest.approx(rows / (2 * len(a)), rel=1e-5)
    # eq 11 on channels of unit power, aligned in phase
    error, unit = 0.0, []
    rebuilt = model.decoder(channel).detach().numpy()
    for h, guess in zip(batch["csi"].numpy().astype(complex), rebuilt, strict=True):
        h = np.fft.fft(np.fft.ifft(h[0], axis=1), axis=0)
        h /= np.sqrt((abs(h) ** 2).mean())
        h *= np.conj(h.flat[abs(h).argmax()]) / abs(h).max()
        error += (abs(h - guess) ** 2).mean()
        unit.append(h)
    assert losses["rebuild"].item() == pytest.approx(error / len(a), rel=1e-4)
    logs = np.log1p(10 * abs(np.array(unit)).reshape(len(a), -1))
    weight, bias = (parameter.detach().numpy().astype(float) for parameter in model.profile_layer.parameters())
    error = [((x.detach().numpy() @ weight.T + bias - logs) ** 2).mean() for x in (channel, environment)]
    assert losses["profile"].item() == pytest.approx(2.0 * np.mean(error) / logs.var(), rel=1e-4)
    wrong = 0.0
    with torch.no_grad():
        for i in range(len(a)):
            scaled = i % 8 < 2 or batch["los"][i] == 0
            options = batch["geometry"][i].repeat(1 + 2 * scaled + (i % 8 >= 6), 1)
            image = batch["map"][i].repeat(len(options), 1, 1, 1)
            if scaled:
                options[1:3, 7] *= torch.tensor([0.8, 1.2])
            if i % 8 == 6:
                options[-1, 6] = 1 - options[-1, 6]
            elif i % 8 == 7 and batch["los"][i] == 0:
                for row, column in np.ndindex(64, 64):
                    pixel = np.array([column + 0.5, row + 0.5]) / 64
                    start, end = options[0, 0:2].double().numpy(), options[0, 3:5].double().numpy()
                    share = np.clip((pixel - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
                    if np.linalg.norm(pixel - start - share * (end - start)) <= 2.5 / 64:
                        image[-1, 0, row, column] = 0
            elif i % 8 == 7:
                image[-1] = torch.rot90(image[-1], 2, (1, 2))
            e = model.environment_encoder(image, options).double().numpy()
            similarity = scale * (e / np.linalg.norm(e, axis=1, keepdims=True)) @ a[i]
            wrong -= similarity[0] - np.log(np.exp(similarity).sum())
    assert losses["counterfactual"].item() == pytest.approx(0.5 * wrong / len(a), rel=1e-4)


def test_validation_compares_a_link_with_the_same_environments_in_any_order(tmp_path):
    datamodule, model = data(tmp_path), small(counterfactuals=1.0).eval()
    batch = datamodule.finish(next(iter(datamodule.val_dataloader())))
    order = torch.randperm(len(batch["user"]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.validation_step(batch, 0)
        model.validation_step({key: value[order] for key, value in batch.items()}, 1)
    first, second = (part["counterfactual"] for part in model._kept)
    assert first.count_nonzero() > 4
    torch.testing.assert_close(second, first[order])


def test_links_without_power_count_in_no_reconstruction(tmp_path):
    datamodule, model = data(tmp_path), small(profile=2.0)
    heard = datamodule.finish(next(iter(datamodule.train_dataloader())))
    batch = {**heard, "csi": torch.cat([heard["csi"][:-4], torch.zeros_like(heard["csi"][:4])])}
    heard = {key: value[:-4] for key, value in heard.items()}
    with torch.no_grad():
        rows = [model._rows(each, *model(each), None) for each in (batch, heard)]
    losses, expected = (model._of_rows(each) for each in rows)
    assert losses.keys() == expected.keys() == {"rebuild", "profile"}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name
    scores = []
    for each in (batch, heard):
        zero_shot = ZeroShot(datamodule.sides["test"].sites)
        channel, _ = model(each)
        zero_shot.add(each, channel, None, model.decoder(channel).detach(), None)
        scores.append(zero_shot.scores()["nmse_db"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"counterfactuals": 1.0, "profile": 1.0, "rebuild_first": 0.25, "withheld": 0.5},
        {"decoder": False},
        {"share": False, "optimizer": "muon"},
        {"environment": False, "rebuild_first": 0.5, "withheld": 0.5},
    ],
)
def test_pre_training_learns_and_tests_zero_shot(settings, tmp_path):
    model = small(lr=3e-3, **settings)
    datamodule = data(tmp_path, symmetry=WorldSymmetry(stretch=(0.8, 1.2)))
    first = fit(model, datamodule, tmp_path, 1).callback_metrics["val/loss"]
    trainer = fit(model, datamodule, tmp_path, 8)
    assert trainer.callback_metrics["val/loss"] < first
    trainer = fit(model, datamodule, tmp_path, 1, test=True)
    names = {name.removeprefix("test/") for name in trainer.callback_metrics if name.startswith("test/")}
    rebuilt = {"nmse_db"} if settings.get("decoder", True) else set()
    tasks = {f"{task}{end}" for task in ("los", "scale", "map") for end in ("_accuracy", "_chance")}
    tasks |= {f"match_{who}{end}" for who in ("user", "area") for end in ("", "_chance")}
    assert names == rebuilt | (tasks if settings.get("environment", True) else set())


def test_muon_moves_the_attention_blocks_by_orthogonal_steps():
    model = small(optimizer="muon", schedule="constant")
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = model.configure_optimizers().param_groups
    orthogonal = {names[p] for group in groups if group["orthogonal"] for p in group["params"]}
    blocks = {n for n, p in model.named_parameters() if (".blocks." in n or ".shared." in n) and p.ndim == 2}
    assert orthogonal == blocks
    assert len(blocks) == 4 * 4, "of both towers, of what they share and of the decoder"
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_the_reconstruction_may_come_first(tmp_path):
    model, datamodule = small(rebuild_first=0.5, share=False, schedule="cosine"), data(tmp_path)
    parts = {"channel": model.channel_encoder, "environment": model.environment_encoder}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    moved, rates = {}, []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            for name, part in parts.items():
                # weight decay alone shrinks a weight by less than a thousandth here
                change = sum((p - q).norm() for p, q in zip(part.parameters(), before[name], strict=True))
                size = sum(q.norm() for q in before[name])
                moved.setdefault(name, []).append(bool(change > 1e-3 * size))

    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(model, datamodule=datamodule)
    half = len(rates) // 2
    assert all(moved["channel"][1:half])
    assert not any(moved["environment"][:half])
    assert moved["environment"][-1]
    assert min(rates[half - 2 : half]) < 0.2 * max(rates[:half]), "a cosine for each part"
    assert max(rates[half:]) > 0.8 * max(rates)


def test_a_training_without_an_end_has_no_first_share():
    model = small(rebuild_first=0.5, schedule="constant")
    model._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"), precision="32-true")
    with pytest.raises(InputError, match=r"rebuild_first is a share of the training: set trainer\.max_epochs"):
        model.configure_optimizers()


def test_some_links_do_not_tell_their_line_of_sight():
    model = small(withheld=0.25)
    batch = {"geometry": torch.zeros(8, 8), "csi": None}
    assert model._withhold(batch)["geometry"][:, 6].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert not batch["geometry"].any(), "the batch itself is left as it is"


def test_shared_blocks_are_one():
    shared, apart = small(), small(share=False)
    assert shared.environment_encoder.shared is shared.channel_encoder.shared
    assert apart.environment_encoder.shared is not apart.channel_encoder.shared
    blocks = sum(p.numel() for p in shared.channel_encoder.shared.parameters())
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in shared.parameters()) == blocks


def test_either_tower_comes_out_of_a_checkpoint(tmp_path):
    datamodule, model = data(tmp_path, num_beams=4), small(lr=3e-3)
    trainer = fit(model, datamodule, tmp_path)
    file = tmp_path / "x.ckpt"
    trainer.save_checkpoint(file)
    batch = datamodule.finish(next(iter(datamodule.val_dataloader())))
    for tower, expected in (("channel", model.channel_encoder), ("environment", model.environment_encoder)):
        assert torch.equal(load_encoder(file, tower=tower).encode(batch), expected.encode(batch))
    assert torch.equal(load_encoder(file).encode(batch), model.channel_encoder.encode(batch))
    with pytest.raises(InputError, match="holds no part 'map': choose one of channel, environment, decoder"):
        load_encoder(file, tower="map")
    both = FineTune(
        lambda d: Beam(d, num_beams=4, hidden=8), checkpoint=str(file), mode="probe", tower=["channel", "environment"]
    )
    before = {k: v.clone() for k, v in both.state_dict().items() if not k.startswith("head")}
    logged = fit(both, datamodule, tmp_path, 2, test=True).callback_metrics
    assert {"test/beam/channel_top1", "test/beam/environment_top1"} <= set(logged)
    assert all(torch.equal(v, both.state_dict()[k]) for k, v in before.items()), "a frozen tower has moved"
    trained = sum(p.numel() for p in both.parameters() if p.requires_grad)
    assert trained == 16 * 8 + 8 + 8 * 4 + 4


def test_the_papers_sizes(capsys):
    """Section IV-B and Table III: 19.1 M in all, CFENN 7,117,312, EPNN 7,518,720, LOS 258, beam 10,336, MLP 10,720."""
    settings = yaml.safe_load((ROOT / "experiments/paper/envchannel.yaml").read_text())["model"]["init_args"]
    parts = {key: settings[key]["init_args"] for key in ("channel_encoder", "environment_encoder", "decoder")}
    model = EnvChannel(
        ChannelTransformer(**parts["channel_encoder"]),
        EnvironmentTransformer(**parts["environment_encoder"]),
        lambda d: Feedback(d, **parts["decoder"]),
    )
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in (
        ("CFENN", model.channel_encoder), ("EPNN", model.environment_encoder), ("CRNN", model.decoder),
        ("MSNN", model.channel_encoder.shared), ("all", model),
    )}  # fmt: skip
    with capsys.disabled():
        print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    assert counts["CFENN"] == pytest.approx(7_117_312, rel=0.01)
    assert counts["EPNN"] == pytest.approx(7_518_720, rel=0.01)
    assert counts["all"] == pytest.approx(19.1e6, rel=0.01)
    size = model.channel_encoder.num_features
    assert sum(p.numel() for p in LOS(size, hidden=None).parameters()) == 258
    beam = sum(p.numel() for p in Beam(size, num_beams=32, hidden=64).parameters())
    assert beam == 10_336
    assert beam + sum(p.numel() for p in PositionFeatures(128).parameters()) == 10_720


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small(decoder=False, rebuild_first=0.5),
            "rebuild_first and model.profile need model.decoder, and there is none",
        ),
        (lambda: small(rebuild_first=1.5), r"rebuild_first must be in \[0, 1\], got 1.5"),
        (lambda: small(withheld=-0.1), r"withheld must be in \[0, 1\], got -0.1"),
        (lambda: small(decoder=False, environment=False), "needs model.environment_encoder, model.decoder, or both"),
        (
            lambda: EnvChannel(ChannelTransformer(embed_dim=8), EnvironmentTransformer(embed_dim=16)),
            "both towers must have the same embed_dim, got 8 and 16",
        ),
        (
            lambda: EnvChannel(ChannelTransformer(width=64), EnvironmentTransformer(width=32)),
            "the towers differ in width or shared_layers",
        ),
    ],
)
def test_towers_that_do_not_fit(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_data_without_a_map(tmp_path):
    with pytest.raises(InputError, match=r"reads map, geometry, which the data lack: add to data\.extras"):
        fit(small(), build(tmp_path / "sites", [town_site("a", 0)]), tmp_path, 1)
