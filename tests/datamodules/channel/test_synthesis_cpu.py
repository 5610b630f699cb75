import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import datamodules
from datamodules.channel import synthesis as channel
from datamodules.channel import synthesis_cpu as fused
from datamodules.channel.arrays import Array, rotation_matrix
from datamodules.channel.ofdm import OFDM
from datamodules.channel.response import link_factors
from datamodules.channel.synthesis import synthesize
from datamodules.sites.paths import Paths
from tests.datamodules.channel.test_synthesis import reference
from tests.datamodules.rays import random_paths

TURNED = {"orientation": (0.4, -0.2, 0.1)}
ARRAYS = [
    (Array(1, 32), Array(), 64),
    (Array(8, 8), Array(2, 2), 256),
    (Array(1, 31), Array(2, 2), 100),
    (Array(3, 7, spacing=(0.7, 0.4)), Array(5, 1), 33),
    (Array(), Array(), 1),
    (Array(), Array(1, 3), 7),
    (Array(2, 4, **TURNED), Array(2, 2, orientation=(-2.0, 0.3, 0.0)), 48),
]


@pytest.fixture(params=["each link its width", "all one width"])
def calls(request, monkeypatch):
    """Count how often the compiled way is taken, with PyTorch's MKL and as without."""
    if request.param == "all one width":
        monkeypatch.setattr(fused, "batched_product", lambda: None)
    elif fused.batched_product() is None:
        pytest.skip("this PyTorch brings no MKL")
    seen = []
    for name in ("link_factors", "sum_paths"):
        ours = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *args, ours=ours: seen.append(1) or ours(*args))
    return seen


def tensor_way(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(channel, "_is_fusable", lambda *_: False)
        return synthesize(*args, **kwargs)


def worst(ours, exact):
    return np.abs(ours.numpy() - exact).max() / np.abs(exact).max()


def square(paths: Paths) -> Paths:
    """Turn all directions to the axes, where the float32 cosines of the tensor way round to what they are."""
    quarter = (paths.aod / (math.pi / 2)).round() * (math.pi / 2)
    return Paths(**{**paths.as_dict(), "aod": quarter, "aoa": quarter})


@pytest.mark.parametrize(("bs", "ue", "tones"), ARRAYS)
@pytest.mark.parametrize("phase", ["corner", "center"])
def test_is_at_least_as_close_to_the_formula_as_the_tensor_way(bs, ue, tones, phase, calls, monkeypatch):
    paths, ofdm = random_paths(), OFDM(tones, 20e6)
    exact = reference(paths, bs, ue, ofdm, phase == "center")
    ours = synthesize(paths, bs, ue, ofdm, reference=phase)
    assert calls
    assert worst(ours, exact) < 5e-7
    theirs = tensor_way(monkeypatch, paths, bs, ue, ofdm, reference=phase)
    assert worst(ours, exact) <= max(worst(theirs, exact), 2e-7)


@pytest.mark.parametrize(("bs", "ue", "tones"), [case for case in ARRAYS if not any(case[0].orientation)])
def test_equals_the_tensor_way_where_the_angles_are_exact(bs, ue, tones, monkeypatch):
    paths, ofdm = square(random_paths()), OFDM(tones, 20e6)
    theirs = tensor_way(monkeypatch, paths, bs, ue, ofdm)
    assert worst(synthesize(paths, bs, ue, ofdm), theirs.numpy()) < 1e-6


def test_long_delays_keep_their_phase(calls):
    # 100 us at 100 MHz: 10,000 turns over the band
    paths, ofdm = random_paths(max_delay=1e-4), OFDM(1024, 100e6)
    assert worst(synthesize(paths, Array(), Array(), ofdm), reference(paths, Array(), Array(), ofdm)) < 5e-7
    assert calls


def test_factors_have_the_shape_of_the_tensor_way_and_end_with_the_last_path():
    paths = random_paths().pad(12)
    space, tones = fused.link_factors(paths, Array(2, 3), Array(1, 2), OFDM(16))
    assert space.shape == (12, 12, 7)
    assert tones.shape == (16, 12, 7)
    for ours, theirs in zip((space, tones), link_factors(paths, Array(2, 3), Array(1, 2), OFDM(16)), strict=True):
        real = paths.mask[:, :7]
        assert worst(ours[:, real], theirs[:, :, :7][:, real].numpy()) < 2e-6


def test_no_path_is_exact_zero(calls):
    paths = random_paths()
    assert synthesize(paths, Array(2, 2), Array(), OFDM(8))[0].abs().max() == 0
    assert synthesize(paths[:1], Array(2, 2), Array(), OFDM(8)).abs().max() == 0
    none = paths.narrow(0)
    assert synthesize(none, Array(2, 2), Array(), OFDM(8)).abs().max() == 0
    assert synthesize(paths[:0], Array(2, 2), Array(), OFDM(8)).shape == (0, 1, 4, 8)
    assert len(calls) == 3


def test_batches_of_all_sizes_in_turn(calls):
    many, long = random_paths(), random_paths()[:2].pad(40)
    alone = [synthesize(paths, Array(1, 4), Array(), OFDM(8)) for paths in (many, long)]
    for paths, first in zip((many, long) * 2, alone * 2, strict=True):
        assert torch.equal(synthesize(paths, Array(1, 4), Array(), OFDM(8)), first)
    assert worst(alone[1], reference(long, Array(1, 4), Array(), OFDM(8))) < 5e-7


def test_padding_may_hold_anything(calls):
    paths = random_paths()
    noisy = Paths(**{**paths.as_dict(), "delay": torch.where(paths.mask, paths.delay, math.nan)})
    assert torch.equal(*(synthesize(p, Array(1, 4), Array(), OFDM(8)) for p in (paths, noisy)))
    assert calls


def test_out_is_reused(calls):
    paths, out = random_paths(), torch.full((12, 1, 8, 16), math.nan, dtype=torch.complex64)
    csi = synthesize(paths, Array(1, 8), Array(), OFDM(16), out=out)
    assert csi.data_ptr() == out.data_ptr()
    assert torch.equal(csi, synthesize(paths, Array(1, 8), Array(), OFDM(16)))
    assert not csi.is_inference()
    assert calls


def test_strided_and_inference_rays_do(calls):
    paths = random_paths()
    want = synthesize(paths, Array(1, 8), Array(), OFDM(16))
    apart = {key: torch.stack([value, value], -1)[..., 0] for key, value in paths.as_dict().items()}
    assert not apart["gain"].is_contiguous()
    assert torch.equal(synthesize(Paths(**apart), Array(1, 8), Array(), OFDM(16)), want)
    with torch.inference_mode():
        assert torch.equal(synthesize(paths[:], Array(1, 8), Array(), OFDM(16)), want)
    conjugated = Paths(**{**paths.as_dict(), "gain": paths.gain.conj().resolve_conj().conj()})
    assert torch.equal(synthesize(conjugated, Array(1, 8), Array(), OFDM(16)), want)
    assert len(calls) == 4


def test_mount_equals_orientation(calls):
    paths, orientation = random_paths(300), (0.3, 0.1, 0.2)
    mount = rotation_matrix(orientation).expand(300, 3, 3)
    turned = synthesize(paths, Array(2, 4, orientation=orientation), Array(), OFDM(8))
    assert torch.allclose(synthesize(paths, Array(2, 4), Array(), OFDM(8), mount=mount), turned, atol=1e-12)
    assert len(calls) == 6  # three chunks each
    with pytest.raises(RuntimeError, match="expand"):
        synthesize(paths, Array(2, 4), Array(), OFDM(8), mount=mount[:200])


def test_gradients_patterns_and_compilation_go_the_tensor_way(calls, monkeypatch):
    paths = random_paths()
    leaf = paths.delay.clone().requires_grad_()
    learnt = Paths(**{**paths.as_dict(), "delay": leaf})
    assert synthesize(learnt, Array(1, 4), Array(), OFDM(8)).requires_grad
    synthesize(paths, Array(1, 4, pattern="tr38901"), Array(), OFDM(8))
    synthesize(paths, Array(1, 4), Array(pattern="dipole"), OFDM(8))
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        synthesize(paths, Array(1, 4), Array(), OFDM(8))
    assert not calls
    with torch.no_grad():
        assert not synthesize(learnt, Array(1, 4), Array(), OFDM(8)).requires_grad
    assert calls


def test_many_threads_get_what_one_gets():
    paths = [random_paths(64, seed=seed) for seed in range(16)]

    def csi(part: Paths) -> torch.Tensor:
        return synthesize(part, Array(1, 32), Array(), OFDM(64))

    with ThreadPoolExecutor(4) as pool:
        for ours, want in zip(pool.map(csi, paths), map(csi, paths), strict=True):
            assert torch.equal(ours, want)


def run(program: str, **environment: str) -> None:
    root = str(Path(datamodules.__file__).parent.parent)
    variables = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SYNTHESIZE = """
import torch
from datamodules import OFDM, Array, synthesize
from tests.datamodules.rays import random_paths
def csi():
    return synthesize(random_paths(), Array(1, 8), Array(), OFDM(16))
"""


def test_the_compiler_is_imported_when_needed():
    run(
        f"""import sys, datamodules, datamodules.module
assert "numba" not in sys.modules
{SYNTHESIZE}
csi()
assert "numba" in sys.modules"""
    )


@pytest.mark.slow
@pytest.mark.parametrize("home", [True, False], ids=["home can be written", "nothing can be written"])
def test_a_package_that_cannot_be_written_compiles(home, tmp_path):
    # Numba's cache folders: beside the file, or below the user's cache folder; a file in place of a folder cannot be
    # written by anybody, root included
    package = tmp_path / "datamodules"
    shutil.copytree(Path(datamodules.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "channel" / "__pycache__").touch()
    cache = tmp_path / "cache"
    cache.mkdir() if home else cache.touch()
    run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SYNTHESIZE}\n"
        "from datamodules.channel import synthesis_kernels\n"
        f"assert synthesis_kernels.__file__ == {str(package / 'channel' / 'synthesis_kernels.py')!r}\n"
        "assert csi().abs().max() > 0",
        XDG_CACHE_HOME=str(cache),
        HOME=str(cache),
    )
    assert not home or list(cache.rglob("synthesis_kernels.fill_factors*.nb*"))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["rays", "channel"])
def test_shares_a_process_with_the_ray_tracer(first):
    # Dr.Jit loads an LLVM of its own
    run(
        f"""{SYNTHESIZE}
def rays():
    import drjit, mitsuba
    mitsuba.set_variant("llvm_ad_mono_polarized")
    x = drjit.llvm.Float([0.0, 1.0, 2.0])
    assert abs(drjit.sum(drjit.sin(x * x))[0] - 0.0846685) < 1e-5
steps = [rays, csi] if {first!r} == "rays" else [csi, rays]
for step in [*steps, *steps]:
    step()"""
    )


@pytest.mark.slow
def test_a_forked_process_goes_on():
    run(
        f"""{SYNTHESIZE}
import multiprocessing, torch
torch.set_num_threads(1)
want = csi()
def child(queue):
    queue.put(csi().numpy())
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
assert torch.equal(torch.from_numpy(queue.get(timeout=60)), want)
process.join()"""
    )
