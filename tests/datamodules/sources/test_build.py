"""The factory: many processes, failures, kills, full disks, and Ray."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from datamodules.__main__ import main, read_sources
from datamodules.errors import InputError
from datamodules.sources.base import Recipe, Source
from datamodules.sources.build import build
from tests.data.deepmimo.data import write_scenario
from tests.datamodules.rays import random_site
from tests.datamodules.town import write_town
from tests.raytracing import requires_sionna

ROOT = Path(__file__).parents[3]


class Toy(Source):
    """Makes sites in a blink, says so in a file, and fails where it is told to."""

    def __init__(self, names, cache, log, wrong=(), fatal=(), once=(), seconds=0.0):
        super().__init__(str(cache))
        self.names, self.log, self.seconds = names, log, seconds
        self.wrong, self.fatal, self.once = wrong, fatal, once

    def recipes(self):
        return [Recipe((f"{name}_bs0", f"{name}_bs1"), {"toy": name}, partial(self._make, name)) for name in self.names]

    def _make(self, name, work):
        with self.log.open("a") as log:
            log.write(f"{name} {os.getpid()} {len(os.sched_getaffinity(0))}\n")
        time.sleep(self.seconds)
        if name in self.wrong:
            raise InputError(f"{name} cannot\nbe made")
        if name in self.fatal or (name in self.once and self.log.read_text().count(f"{name} ") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        for station in (0, 1):
            yield random_site(f"{name}_bs{station}", num_users=5)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return partial(Toy, list("abcdef"), tmp_path / "cache", tmp_path / "log")


def made(source):
    return sorted(folder.name[:5] for folder in source.cache.glob("?_bs?-*"))


def content(cache):
    """Checksum of every file of every finished site."""
    files = [file for file in sorted(cache.glob("*/*")) if not file.parent.name.startswith(".")]
    return {str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_recipes_are_dealt_to_processes_once_each(toy, capsys):
    source = toy(seconds=0.2)
    assert build(source, workers=2) == {}
    assert made(source) == [f"{name}_bs{station}" for name in "abcdef" for station in (0, 1)]
    lines = [line.split() for line in source.log.read_text().splitlines()]
    assert sorted(name for name, _, _ in lines) == list("abcdef")
    assert len({process for _, process, _ in lines}) == 2
    shares = {max(1, len(os.sched_getaffinity(0)) // 2 + part) for part in (0, 1)}
    assert {int(cores) for _, _, cores in lines} <= shares
    assert capsys.readouterr().err.count("making sites") >= 1
    assert build(source, workers=2) == {}
    assert len(source.log.read_text().splitlines()) == 6


def test_failures_stop_nobody_and_are_told(toy):
    source = toy(wrong="bd")
    assert build(source, workers=2) == {"b_bs0": "b cannot be made", "d_bs0": "d cannot be made"}
    assert made(source) == [f"{name}_bs{station}" for name in "acef" for station in (0, 1)]
    for names in ("abcef", "abcdef"):  # a single missing recipe is made in this process
        assert build(Toy(list(names), source.cache, source.log)) == {}
    assert len(made(source)) == 12


def test_a_process_that_dies_takes_only_its_own_recipe_along(toy):
    source = toy(fatal="b", once="e")
    failures = build(source, workers=2)
    assert list(failures) == ["b_bs0"]
    assert "its process died, killed or out of memory" in failures["b_bs0"]
    assert made(source) == [f"{name}_bs{station}" for name in "acdef" for station in (0, 1)]


def test_sources_are_joined_and_one_recipe_stays_in_this_process(toy, tmp_path):
    other = Toy(["z"], tmp_path / "other", tmp_path / "log")
    assert build([other, toy()], workers=1) == {}
    assert len(made(other)) == 2
    single = Toy(["y"], tmp_path / "other", tmp_path / "log")
    assert build(single) == {}
    assert f"y {os.getpid()} " in (tmp_path / "log").read_text()


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_what_a_killed_run_left_is_removed_and_no_site_is_made_again(toy, sites):
    source = toy()
    source.sites()
    source.log.write_text("")
    recipe = source.recipes()[2]
    for folder in recipe.folders(source.cache)[sites:]:
        folder.rename(source.cache / f".{folder.name}.0123abcd.tmp")
    recipe.work(source.cache).mkdir()
    (recipe.work(source.cache) / "0000000.0.safetensors").write_text("a chunk")
    before = content(source.cache)
    assert build(source, workers=2) == {}
    assert len(source.log.read_text().splitlines()) == (sites < 2)
    assert len(made(source)) == 12
    assert before.items() <= content(source.cache).items()
    assert not [folder for folder in source.cache.glob(".*") if folder.suffix != ".lock"]


SCRIPT = """
from pathlib import Path
from tests.datamodules.sources.test_build import Toy, build
log = Path("{log}")
with log.open("a") as file:
    file.write("the script runs\\n")
build(Toy(list("abc"), "{cache}", log), workers=2)
"""


def test_workers_do_not_run_the_script_that_asks_for_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(log=tmp_path / "log", cache=tmp_path / "cache"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 4
    assert lines.count("the script runs") == 1


def test_workers_below_one(toy):
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        build(toy(), workers=0)


def test_two_processes_make_a_site_once(tmp_path):
    code = (
        "from pathlib import Path; from tests.datamodules.sources.test_build import Toy, build; "
        f"build(Toy(['a'], '{tmp_path}/cache', Path('{tmp_path}/log'), seconds=2.0))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert len(list((tmp_path / "cache").glob("a_bs?-*"))) == 2


# --- Ray


def test_ray_is_asked_for_and_not_installed(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"^Ray is asked for \(auto\) but not installed: pip install 'csi-foundation\[ray\]'"
    ):
        build(toy(), address="auto")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(InputError, match="ray://head:10001"):
        build(toy())


class FakeRay:
    """Ray's few calls, done at once; the third task is lost."""

    class exceptions:
        RayError = RuntimeError

    def __init__(self):
        self.calls = []

    def init(self, address, **_):
        self.calls.append(address)

    def remote(self, **resources):
        self.calls.append(resources)
        return lambda function: SimpleNamespace(remote=lambda *arguments: (object(), function, arguments))

    def wait(self, running, num_returns):
        return running[:num_returns], running[num_returns:]

    def get(self, reference):
        _, function, arguments = reference
        if arguments[-1] == 2:
            raise RuntimeError("node\ndied")
        return function(*arguments)


def test_a_ray_cluster_gets_a_task_a_recipe(toy, monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("TQDM_DISABLE", "")
    source = toy(wrong="b")
    assert build(source, address="auto") == {"b_bs0": "b cannot be made", "c_bs0": "RuntimeError: node died"}
    assert ray.calls == ["auto", {"num_cpus": 1}]
    assert made(source) == [f"{name}_bs{station}" for name in "adef" for station in (0, 1)]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "auto"])
def test_a_cluster_that_does_not_answer(toy, monkeypatch, address):
    ray = FakeRay()
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("could not find any\ninstance")))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(
        InputError, match=rf"^no Ray cluster answers at {address} \((\[Errno|could not find any inst).*ray start"
    ):
        build(toy(), address=address)


def test_sites_made_where_nobody_sees_them_are_no_success(toy, monkeypatch):
    ray = FakeRay()
    ray.get = lambda reference: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    failures = build(toy(), address="auto")
    assert len(failures) == 6
    assert all("must be storage that all machines share" in problem for problem in failures.values())


# --- the whole program, and what happens to machines


def make(config, cache, *arguments):
    command = [sys.executable, "-m", "datamodules", "make", "--config", str(config), *arguments]
    environment = {**os.environ, "CSI_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def write_config(folder, class_path, **arguments):
    file = folder / "data.yaml"
    source = {"class_path": class_path, "init_args": arguments}
    file.write_text(yaml.safe_dump({"data": {"init_args": {"source": source}}}))
    return file


@requires_sionna
def test_killed_while_tracing_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    config = write_config(
        tmp_path, "datamodules.sources.raytracing.areas.Areas", cities=[str(write_town(tmp_path))], areas_per_city=4,
        size=[60, 90], base_stations=2, users=12, samples=4000,
    )  # fmt: skip
    cache = tmp_path / "killed"
    process = make(config, cache, "--workers", "2")
    deadline = time.monotonic() + 120
    while len(list(cache.glob("town_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    workers_end = time.monotonic() + 20
    while _is_in_use(cache) and time.monotonic() < workers_end:
        time.sleep(0.1)
    assert not _is_in_use(cache)
    finished = content(cache)
    areas = {name[:9] for name in finished}
    assert 1 <= len(areas) < 4

    stamps = {name: (cache / name).stat().st_mtime_ns for name in finished}
    monkeypatch.setenv("CSI_CACHE", str(cache))
    assert main(["make", "--config", str(config), "--workers", "1"]) == 0
    assert stamps == {name: (cache / name).stat().st_mtime_ns for name in finished}
    assert not list(cache.glob(".*.partial"))

    whole = tmp_path / "whole"
    monkeypatch.setenv("CSI_CACHE", str(whole))
    read_sources([config])[0].sites()
    assert content(whole) == content(cache)
    assert len(content(whole)) == 4 * 2 * 2


def _is_in_use(cache):
    """Return whether a process has a file of the cache open, such as a lock."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(str(cache)):
                return True
        except OSError:
            continue
    return False


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    ) if os.getuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip(f"only root may mount a small disk here: {mounted.stderr.strip() if mounted else 'not root'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_leaves_no_half_site(small_disk, tmp_path, monkeypatch):
    write_scenario(tmp_path, "street", num_users=3000, seed=0)
    config = write_config(tmp_path, "DeepMIMO", scenario="street", root=str(tmp_path), download=False)
    process = make(config, small_disk / "sites", "--workers", "2")
    errors = [line for line in process.communicate()[1].splitlines() if "error" in line]
    assert process.returncode == 2
    assert len(errors) in (1, 2)
    assert all("error: street_bs" in line and "No space left on device" in line for line in errors)
    assert not list(small_disk.glob("sites/.*.tmp"))
    assert len(list(small_disk.glob("sites/*/site.json"))) == 2 - len(errors)

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    monkeypatch.setenv("CSI_CACHE", str(small_disk / "sites"))
    assert main(["make", "--config", str(config), "--workers", "1"]) == 0
    assert len(list(small_disk.glob("sites/*/site.json"))) == 2
