"""Recorded CSI: what goes in comes out, faults are named, nothing is unpickled, and heads train on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from datamodules.arrays import Array
from datamodules.channel import OFDM
from datamodules.errors import DatasetNotFoundError, InputError
from datamodules.module import ChannelDataModule
from datamodules.recording import Recording
from datamodules.site import Site
from datamodules.sources.recorded import Recorded, read_recording
from datamodules.sources.recorded_import import import_recording
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
    site = open_site(write(tmp_path / "yard.safetensors", {**facts, "place": "campus"}))
    given = tensors()
    scale = given["csi"].abs().amax((1, 2, 3), keepdim=True)
    assert ((links(site).csi() - given["csi"]).abs() / scale).max() < 6e-4
    torch.testing.assert_close(site.links.position, given["position"])
    assert torch.equal(site.links.los, given["los"])
    assert links(site).interval == 0
    assert (site.name, site.area, site.place) == ("yard", "yard", "campus")
    assert site.bs_position.tolist() == [1, 2, 3]
    assert site.carrier_frequency == 3.5e9
    assert site.provenance["facts"]["bandwidth"] == 20e6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_real_pairs_are_complex(tmp_path: Path, dtype: torch.dtype) -> None:
    csi = draw(U, R, T, K) * 1e5
    site = open_site(write(tmp_path / "a.safetensors", csi=torch.view_as_real(csi).to(dtype).contiguous()))
    torch.testing.assert_close(links(site).csi(), csi, rtol=0, atol=5e-3)


def test_large_files_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = read_recording(write(tmp_path / "a.safetensors"))
    monkeypatch.setattr("datamodules.sources.recorded._READ_SIZE", 7 * R * T * K)
    pieces, _ = read_recording(tmp_path / "a.safetensors")
    assert torch.equal(whole.pairs, pieces.pairs)
    assert torch.equal(whole.scale, pieces.scale)


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
    with pytest.raises(InputError, match=r"need timestamps \(U, N\) \[s\], or the metadata interval"):
        open_site(write(tmp_path / "c.safetensors", csi=csi, timestamps=None))


def test_several_files_are_several_sites(tmp_path: Path) -> None:
    for name, area in (("east", "hall"), ("west", "hall"), ("roof", None)):
        write(tmp_path / "data" / f"{name}.safetensors", {"area": area})
    sites = Recorded("*.safetensors", root=str(tmp_path / "data"), place="site", cache=str(tmp_path / "cache")).sites()
    assert [(s.name, s.area, s.place) for s in sites] == [
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


def test_snapshots_that_are_missing_or_turn_back(tmp_path: Path) -> None:
    stamps = torch.arange(U * N, dtype=torch.float64).reshape(U, N)
    gap, back = stamps.clone(), stamps.clone()
    gap[3, 2:] += 0.5
    back[6, 1] = back[6, 0]
    for name, value, message in (
        ("gap", gap, "not 1 s apart, first of link 3"),
        ("back", back, "not rising, first of"),
    ):
        with pytest.raises(InputError, match=message):
            open_site(write(tmp_path / f"{name}.safetensors", csi=draw(U, N, R, T, K), timestamps=value))


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
    assert module.dropped == 3
    assert module.sample()["csi"].isfinite().all()


# --- from other formats


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    given = tensors()
    return {key: value.numpy() for key, value in given.items()}


@pytest.mark.parametrize(
    ("axes", "reorder", "counts"),
    [
        ("U R T K", lambda csi: csi, {}),
        ("K T R U", lambda csi: csi.transpose(3, 2, 1, 0), {}),
        ("u k (r t)", lambda csi: csi.transpose(0, 3, 1, 2).reshape(U, K, R * T), {"bs_rows": 2, "bs_cols": 2}),
        ("(T R) K U", lambda csi: csi.transpose(2, 1, 3, 0).reshape(T * R, K, U), {"ue_rows": 1, "ue_cols": R}),
        ("C U R T K", lambda csi: np.stack([csi.real, csi.imag]), {}),
        ("U R T K C", lambda csi: np.stack([csi.real, csi.imag], -1).astype(np.float64), {}),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat"])
def test_import(tmp_path: Path, axes: str, reorder: Any, counts: dict[str, int], suffix: str) -> None:
    given = arrays()
    source = tmp_path / f"measured{suffix}"
    contents = {**given, "csi": reorder(given["csi"])}
    names: dict[str, Any] = {"position": "position", "los": "los", "timestamps": "timestamps"}
    if suffix == ".npy":
        np.save(source, contents["csi"])
        for key in names:
            np.save(tmp_path / f"{key}.npy", given[key])
            names[key] = str(tmp_path / f"{key}.npy")
    elif suffix == ".npz":
        np.savez_compressed(source, **contents)
    else:
        contents["los"] = given["los"].astype(np.float64)
        scipy.io.savemat(source, contents, oned_as="column")
    out = import_recording(str(source), str(tmp_path / "new" / "a.safetensors"), axes=axes, **FACTS, **names, **counts)
    recording, facts = read_recording(out)
    scale = np.abs(given["csi"]).max((1, 2, 3), keepdims=True)
    assert (np.abs(recording.csi().numpy() - given["csi"]) / scale).max() < 6e-4
    np.testing.assert_allclose(recording.position, given["position"], rtol=1e-6)
    np.testing.assert_array_equal(recording.los, given["los"])
    assert facts == {**FACTS, **counts}
    assert [path.name for path in out.parent.iterdir()] == ["a.safetensors"]


def test_import_of_sequences_of_one_antenna(tmp_path: Path) -> None:
    csi = draw(U, N, K).numpy()
    np.savez(tmp_path / "a.npz", h=csi, xy=np.ones((U, 2)))
    out = import_recording(
        str(tmp_path / "a.npz"), str(tmp_path / "a.safetensors"), axes="U N K", csi="h", position="xy", interval=5e-3,
        bs_position=[0.0, 0.0, 8.0], area="lab", place="here", **FACTS,
    )  # fmt: skip
    recording, facts = read_recording(out)
    assert recording.csi().shape == (U, N, 1, 1, K)
    assert recording.interval == 5e-3
    assert recording.position.tolist() == [[1, 1, 0]] * U
    assert (facts["area"], facts["place"], facts["bs_position"]) == ("lab", "here", [0, 0, 8])


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_import_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    bomb = np.array([Bomb(marker)], dtype=object)
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", csi=bomb, allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(bomb.dumps())
    scipy.io.savemat(tmp_path / "a.mat", {"csi": {"nested": 1}})
    scipy.io.savemat(tmp_path / "b.mat", {"csi": np.array(["text", 1], dtype=object)})
    for name in ("a.npy", "a.npz", "b.npy", "a.mat", "b.mat"):
        with pytest.raises(InputError, match=rf"{name}.* (holds Python objects|holds no array of numbers)") as caught:
            import_recording(str(tmp_path / name), str(tmp_path / "o.safetensors"), axes="U K", **FACTS)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "U T K"}, r"axes 'U T K' do not fit an array of shape \(30, 2, 4, 8\)"),
        ({"axes": "R T K"}, "axes must name U and K"),
        ({"axes": "U U T K"}, "axes must name U and K"),
        ({"axes": "U R T X"}, "axes must name U and K"),
        ({"axes": "U R T K C"}, "name an axis C, of pairs"),
        ({"axes": "U (R T K"}, "do not fit"),
        ({"axes": "U R T K", "bs_rows": 3, "bs_cols": 1}, "T = 3 do not fit an array"),
        ({"position": "where"}, "holds no 'where', but csi, position, los, timestamps"),
        ({"position": "where.npy"}, r"where\.npy does not exist"),
        ({"csi": "position"}, "name no axis C for pairs"),
        ({"los": "position"}, r"los \(position\) must be -1, 0 or 1"),
        ({"timestamps": "los"}, r"recording .*a\.npz: timestamps of \d+ of 30 links is not after"),
        ({"bandwidth": 0.0}, "the metadata bandwidth must be a positive number"),
        ({"out": "a.npz"}, r"out must end in \.safetensors"),
        ({"source": "none.npz"}, r"none\.npz does not exist"),
        ({"source": "a.txt"}, r"a\.txt is neither \.npy, \.npz nor \.mat"),
        ({"source": "cut.npz"}, r"cut\.npz cannot be read"),
        ({"source": "cut.npy"}, r"cut\.npy cannot be read"),
        ({"source": "cut.mat"}, r"cut\.mat cannot be read"),
        ({"source": "hdf5.mat"}, r"hdf5\.mat is of MATLAB version 7\.3: save it with -v7"),
        ({"source": "bad.npz"}, r"recording bad\.npz: csi of 1 of 30 links is not finite, first of link 5"),
    ],
)
def test_import_faults(tmp_path: Path, settings: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = arrays()
    np.savez("a.npz", **given)
    np.savez("bad.npz", csi=with_value(tensors()["csi"], 5, np.nan).numpy())
    np.save("whole.npy", given["csi"])
    scipy.io.savemat("whole.mat", given)
    Path("a.txt").write_text("1 2 3")
    for suffix, whole in ((".npz", "a.npz"), (".npy", "whole.npy"), (".mat", "whole.mat")):
        content = Path(whole).read_bytes()
        Path(f"cut{suffix}").write_bytes(content[: len(content) // 2])
    Path("hdf5.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600))
    before = sorted(tmp_path.iterdir())
    defaults = {"source": "a.npz", "out": "out.safetensors", "axes": "U R T K", **FACTS}
    with pytest.raises(InputError, match=message) as caught:
        import_recording(**{**defaults, **settings})
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


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
    assert batch["csi"].shape == (8, R, T, K)
    assert batch["beam_power"].shape == (8, 8)
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
                    "class_path": "datamodules.sources.recorded.Recorded",
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
