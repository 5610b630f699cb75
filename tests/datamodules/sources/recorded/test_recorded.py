"""Recorded CSI: what goes in comes out, faults are named, nothing is unpickled, and heads train on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from datamodules.channel.arrays import Array
from datamodules.channel.ofdm import OFDM
from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.module import ChannelDataModule
from datamodules.sites.recording import Recording
from datamodules.sites.site import Site
from datamodules.sources.recorded.source import Recorded
from foundation.cli import main

FACTS: dict[str, Any] = {"carrier_frequency": 3.5e9, "bandwidth": 20e6}
U, N, R, T, K = 30, 5, 2, 4, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)) * 1e-5


def tensors(count: int = U) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "csi": draw(count, R, T, K),
        "position": torch.rand(count, 3, generator=g) * 100,
        "los": torch.randint(0, 2, (count,), generator=g, dtype=torch.int8),
        "timestamps": torch.arange(count, dtype=torch.float64) * 0.1 + 1.7e9,
    }


def write(file: Path, metadata: dict[str, Any] | None = None, **changed: Tensor | None) -> Path:
    """Write a recording with some tensors changed, or left out where None."""
    contents = {key: value for key, value in {**tensors(), **changed}.items() if value is not None}
    facts = {**FACTS, **(metadata or {})}
    text = {key: x if isinstance(x, str) else json.dumps(x) for key, x in facts.items() if x is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(contents, file, metadata=text)
    return file


def open_site(file: Path, **settings: Any) -> Site:
    (site,) = Recorded(str(file), cache=str(file.parent / "cache"), **settings).sites()
    return site


def links(site: Site) -> Recording:
    assert isinstance(site.links, Recording)
    return site.links


# --- the layout


def test_what_was_recorded_comes_out(tmp_path: Path) -> None:
    facts = {"bs_rows": 2, "bs_cols": 2, "ue_rows": 1, "ue_cols": 2, "num_subcarriers": K, "bs_position": [1, 2, 3]}
    site = open_site(write(tmp_path / "yard.safetensors", {**facts, "city": "campus"}))
    given = tensors()
    scale = given["csi"].abs().amax((1, 2, 3), keepdim=True)
    assert ((links(site).csi() - given["csi"]).abs() / scale).max() < 6e-4
    torch.testing.assert_close(site.links.position, given["position"])
    assert torch.equal(site.links.los, given["los"])
    assert links(site).interval == 0
    assert (site.name, site.area, site.city) == ("yard", "yard", "campus")
    assert site.bs_position.tolist() == [1, 2, 3]
    assert site.carrier_frequency == 3.5e9
    assert site.provenance["facts"]["bandwidth"] == 20e6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_real_pairs_are_complex(tmp_path: Path, dtype: torch.dtype) -> None:
    csi = draw(U, R, T, K) * 1e5
    site = open_site(write(tmp_path / "a.safetensors", csi=torch.view_as_real(csi).to(dtype).contiguous()))
    torch.testing.assert_close(links(site).csi(), csi, rtol=0, atol=5e-3)


def test_sequences_know_their_interval(tmp_path: Path) -> None:
    csi = draw(U, N, R, T, K)
    start = torch.arange(U, dtype=torch.float64)[:, None] + 1.7e9
    stamps = start + torch.arange(N) * 5e-3 + 2e-4 * torch.rand(U, N, dtype=torch.float64)
    assert links(open_site(write(tmp_path / "a.safetensors", csi=csi, timestamps=stamps))).interval == pytest.approx(
        5e-3, rel=0.05
    )
    site = open_site(write(tmp_path / "b.safetensors", {"interval": 0.01}, csi=csi, timestamps=start[:, 0]))
    assert links(site).interval == 0.01
    assert links(site).csi().shape == (U, N, R, T, K)
    with pytest.raises(InputError, match=r"need timestamps \(U, N\) or an interval"):
        open_site(write(tmp_path / "c.safetensors", csi=csi, timestamps=None))


def test_what_was_called_place_is_read_as_the_city(tmp_path: Path) -> None:
    assert open_site(write(tmp_path / "old.safetensors", {"place": "7"})).city == "7"
    assert open_site(write(tmp_path / "new.safetensors", {"city": "7"})).city == "7"
    with pytest.warns(FutureWarning, match="`place` of Recorded is now called `city`"):
        assert Recorded("old.safetensors", root=str(tmp_path), place="campus").city == "campus"
    with pytest.raises(InputError, match="`place` is the old name of `city`"):
        Recorded(city="campus", place="campus")


def test_several_files_are_several_sites(tmp_path: Path) -> None:
    for name, area in (("east", "hall"), ("west", "hall"), ("roof", None)):
        write(tmp_path / "data" / f"{name}.safetensors", {"area": area})
    sites = Recorded("*.safetensors", root=str(tmp_path / "data"), city="site", cache=str(tmp_path / "cache")).sites()
    assert [(s.name, s.area, s.city) for s in sites] == [
        ("east", "hall", "site"), ("roof", "roof", "site"), ("west", "hall", "site")
    ]  # fmt: skip
    chosen = Recorded(["west.safetensors", "west*"], root=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    assert [site.name for site in chosen.sites()] == ["west"]
    write(tmp_path / "more" / "east.safetensors")
    with pytest.raises(InputError, match="would be one site"):
        Recorded(["data/east*", "more/*"], root=str(tmp_path)).recipes()
    with pytest.raises(DatasetNotFoundError, match=r"no recording 'north\.safetensors' in .*: write one"):
        Recorded("north.safetensors", root=str(tmp_path)).recipes()


def test_a_file_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    before = open_site(write(tmp_path / "a.safetensors"))
    after = open_site(write(tmp_path / "a.safetensors", csi=draw(U, R, T, K, seed=9)))
    assert not torch.equal(links(before).pairs, links(after).pairs)


# --- faults


def with_value(tensor: Tensor, link: int, value: Any) -> Tensor:
    tensor = tensor.clone()
    tensor[(link, *[0] * (tensor.ndim - 1))] = value
    return tensor


SEQUENCES = draw(U, N, R, T, K)
STAMPS = 0.1 * torch.arange(U * N, dtype=torch.float64).reshape(U, N)


@pytest.mark.parametrize(
    ("changed", "metadata", "message"),
    [
        ({"csi": with_value(draw(U, R, T, K), 7, np.nan)}, {}, "csi of 1 of 30 links is not finite, first of link 7"),
        ({"csi": with_value(draw(U, R, T, K), 9, np.inf)}, {}, "csi of 1 of 30 links is not finite, first of link 9"),
        ({"csi": None}, {}, "holds no csi, but los, position, timestamps"),
        ({"csi": draw(U, T, K)}, {}, r"csi must have shape \(U, R, T, K\) or \(U, N, R, T, K\), got \(30, 4, 8\)"),
        ({"csi": torch.ones(U, R, T, K)}, {}, "csi must be complex64, or real pairs"),
        ({"csi": draw(0, R, T, K)}, {}, "csi must have shape"),
        ({"position": torch.zeros(U, 2)}, {}, r"position must be real and have shape \(30, 3\)"),
        ({"position": with_value(torch.zeros(U, 3), 4, np.inf)}, {}, "position of 1 of 30 links is infinite, first of"),
        ({"los": torch.zeros(U - 1, dtype=torch.int8)}, {}, r"los must be real and have shape \(30,\)"),
        ({"los": torch.full((U,), 2)}, {}, "los of 30 of 30 links is neither -1, 0 nor 1, first of link 0"),
        ({"los": torch.zeros(U)}, {}, "los must be integer"),
        ({"timestamps": torch.zeros(U, dtype=torch.float64)}, {}, "timestamps of 29 of 30 links is not after the one"),
        ({"timestamps": with_value(torch.arange(U).double(), 8, np.nan)}, {}, "timestamps of 2 of 30 links is not"),
        ({"timestamps": torch.zeros(U, 4)}, {}, r"timestamps must be real and have shape \(30,\)"),
        ({"csi": SEQUENCES, "timestamps": with_value(STAMPS, 3, 1.0)}, {}, "not 0.1 s apart, first of link 3"),
        ({"csi": SEQUENCES, "timestamps": with_value(STAMPS, 6, STAMPS[6, 1])}, {}, "not rising, first of link 6"),
        ({}, {"carrier_frequency": None}, r"the metadata lack carrier_frequency \[Hz\]"),
        ({}, {"bandwidth": -1}, "the metadata bandwidth must be a positive number, got '-1'"),
        ({}, {"bandwidth": "wide"}, "the metadata bandwidth must be a positive number, got 'wide'"),
        ({}, {"bs_position": [1, 2]}, r"the metadata bs_position must be \[x, y, z\] \[m\], got '\[1, 2\]'"),
        ({}, {"num_subcarriers": 9}, "the metadata say num_subcarriers 9, but csi has K = 8"),
        ({}, {"bs_rows": 2, "bs_cols": 3}, "the metadata say bs_rows 2, bs_cols 3, but csi has T = 4"),
        ({}, {"ue_rows": 2}, "the metadata say ue_rows 2, ue_cols missing, but csi has R = 2"),
    ],
)
def test_faults_are_named(tmp_path: Path, changed: Any, metadata: Any, message: str) -> None:
    file = write(tmp_path / "a.safetensors", metadata, **changed)
    with pytest.raises(InputError, match=message) as caught:
        open_site(file)
    assert str(caught.value).startswith(f"recording {file}: ")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("a-*"))


@pytest.mark.parametrize("cut", [5, 200])
def test_truncated_file(tmp_path: Path, cut: int) -> None:
    file = write(tmp_path / "a.safetensors")
    file.write_bytes(file.read_bytes()[: cut if cut == 5 else -cut])
    with pytest.raises(InputError, match=r"a\.safetensors is damaged") as caught:
        open_site(file)
    assert "\n" not in str(caught.value)


def test_links_without_label_power_or_position(tmp_path: Path) -> None:
    csi = draw(U, R, T, K)
    csi[:3] = 0
    site = open_site(write(tmp_path / "a.safetensors", csi=csi, position=None, los=None, timestamps=None))
    assert site.links.position.isnan().all()
    assert (site.links.los == -1).all()
    module = ChannelDataModule(
        Recorded(str(tmp_path / "a.safetensors"), cache=str(tmp_path / "cache")),
        split="random", bs=Array(1, T), ue=Array(1, R), ofdm=OFDM(K, 20e6), batch_size=8,
    )  # fmt: skip
    module.setup()
    assert module.describe()["dropped_no_path"] == 3
    assert module.sample()["csi"].isfinite().all()


# --- with models and heads


def test_batches_have_the_keys_of_every_other_source(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    module = ChannelDataModule(
        Recorded(str(tmp_path / "a.safetensors"), cache=str(tmp_path / "cache")),
        bs=Array(1, T), ue=Array(1, R), ofdm=OFDM(K, 20e6), num_beams=8, views=[], batch_size=8,
    )  # fmt: skip
    module.prepare_data()
    module.setup()
    batch = module.finish(next(iter(module.train_dataloader())))
    assert set(batch) == set(module.batch_keys)
    assert batch["csi"].shape[1:] == (R, T, K)
    assert batch["beam_power"].shape[1:] == (8,)
    torch.testing.assert_close(
        batch["csi"], tensors()["csi"][batch["user"]], rtol=0, atol=float(tensors()["csi"].abs().max()) * 6e-4
    )


def test_an_encoder_and_a_head_train_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count = 120
    los = torch.arange(count) % 2
    # with line of sight all antennas and subcarriers agree
    csi = torch.where(los[:, None, None, None] == 1, torch.full((count, R, T, K), 1e-5 + 0j), draw(count, R, T, K))
    position = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 200
    save_file(
        {"csi": csi, "position": position, "los": los}, "hall.safetensors", {k: json.dumps(v) for k, v in FACTS.items()}
    )
    config = {
        "experiment": "recorded",
        "model": {
            "class_path": "FineTune",
            "init_args": {
                "mode": "scratch",
                "head": {"class_path": "LOS"},
                "encoder": {
                    "class_path": "foundation.nets.resnet.ResNet",
                    "init_args": {"backbone": "resnet18", "width": 0.25, "norm": "group", "normalize": "link"},
                },
            },
        },
        "data": {
            "class_path": "ChannelDataModule",
            "init_args": {
                "source": {
                    "class_path": "datamodules.sources.recorded.source.Recorded",
                    "init_args": {"files": "hall.safetensors", "root": ".", "cache": "cache"},
                },
                "bs": {"rows": 1, "cols": T},
                "ue": {"rows": 1, "cols": R},
                "ofdm": {"num_subcarriers": K, "bandwidth": 20e6},
                "batch_size": 16,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 6, "enable_progress_bar": False},
    }
    Path("los.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "los.yaml", "--then_test", "true"]) == 0
    (summary,) = Path("runs/recorded").glob("*/summary.json")
    assert json.loads(summary.read_text())["metrics"]["test/los/balanced_accuracy"] > 0.9
