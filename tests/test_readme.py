"""What README.md and docs/ show, works."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest
import torch

import datamodules.__main__
import foundation.cli
from foundation.studies.study import studies
from tests.data.deepmimo.data import write_scenario

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text() for page in PAGES}
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHORT = [
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    *(f"--trainer.limit_{side}_batches=2" for side in ("train", "val", "test", "predict")),
]  # fmt: skip
#: stands in for data that take minutes to make
STREET = [
    "--data.source", "{class_path: DeepMIMO, init_args: {scenario: city_0_newyork_3p5}}",
    "--data.split", "spatial", "--data.holdout", "null", "--data.fractions", "[0.6, 0.2, 0.2]",
]  # fmt: skip
#: data that are there, or that a command brings itself
AT_HAND = ("newyork", "losangeles", "recorded.yaml", "--data.source ")


def test_the_head_of_the_readme_is_complete_in_thirty_lines():
    [code] = [block for language, block in BLOCK.findall(README) if language == "python" and "(Head)" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    names: dict[str, type] = {}
    exec(code, names)
    head = names["PathLoss"](16)
    batch = {"beam_power": torch.rand(8, 64) * 1e-9}
    prediction = head(torch.randn(8, 16))
    metrics = head.metrics()
    metrics.update(prediction, batch)
    expected = (prediction - 10 * batch["beam_power"].amax(1).log10()).abs().mean()
    assert torch.isclose(metrics.compute()[head.monitor], expected)
    head.loss(prediction, batch).backward()
    silent = {"beam_power": torch.cat([batch["beam_power"], torch.full((1, 64), torch.nan)])}
    answered = torch.cat([prediction, prediction[:1]])
    assert torch.isclose(head.loss(answered, silent), head.loss(prediction, batch))
    metrics.update(answered, silent)
    assert torch.isclose(metrics.compute()[head.monitor], expected)


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 150


def test_figures_of_the_readme_are_those_of_the_results():
    figures = re.findall(r"[-\d.]+ ± [\d.]+", README)
    assert figures
    results = (ROOT / "RESULTS.md").read_text()
    assert [figure for figure in figures if figure not in results] == []


def test_results_describe_studies_as_their_files_do():
    results = (ROOT / "RESULTS.md").read_text()
    shown = [
        file for file in studies(ROOT / "experiments/studies") if re.search(f"STUDY={file.stem}`(: | and )", results)
    ]
    assert len(shown) > 15
    for file in shown:
        header = takewhile(lambda line: not line.startswith("# Run:"), file.read_text().splitlines())
        assert "\n".join(line.removeprefix("#").strip() for line in header) in results, file


@pytest.mark.parametrize("page", [*TEXT, "CONTRIBUTING.md"])
def test_files_and_links_exist(page):
    file = next((each for each in PAGES if each.name == page), ROOT / page)
    text = file.read_text()
    for name in re.findall(r"(?:experiments|docs)/[\w/.]+\.(?:yaml|png|csv|md)", text):
        if "pathloss" not in name:
            assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", BLOCK.sub("", text)):
        assert (file.parent / link).exists(), link


def test_extras_that_are_named_can_be_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path.read_text() for room in ("datamodules", "foundation") for path in (ROOT / room).rglob("*.py")]
    named = re.findall(r"csi-foundation\[([\w,]+)\]", "".join([*TEXT.values(), *sources]))
    named += re.findall(r"\bneeds\(\"(\w+)\"", "".join(sources))
    assert {"umap", "tr38901", "ray"} <= {name for group in named for name in group.split(",")} <= set(extras)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A clone with two scenarios, in which programs that `make` starts write down their arguments."""
    monkeypatch.chdir(tmp_path)
    for name in ("CSI_DATA", "MAKEFLAGS", "ARGS"):  # `make test ARGS=` would hand its own to every make of a page
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "umap", None)  # takes longer than all else
    for name in ("experiments", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for seed, name in enumerate(("city_0_newyork_3p5", "city_1_losangeles_3p5")):
        write_scenario(tmp_path / "data/deepmimo", name, num_users=160, seed=seed, num_base_stations=3)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs.parent / ".ready").touch()
    for name in ("lightning", "python", "ruff", "mypy"):
        (programs / name).write_text(f"#!/bin/sh\nprintf '%s\\n' {name} \"$@\" '' >> called\n")
        (programs / name).chmod(0o755)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:  # what a page wrote
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore:the picture of embeddings is drawn without UMAP")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("page", TEXT)
def test_blocks_run(page, folder):
    """Run the blocks of a page in order, in one folder; trainings for two batches.

    A block of `python` whose first line names a file, as `# x.py`, becomes that file. Of `sh not-run` the arguments are
    checked alone. A block of `yaml` is a part of an experiment, which is composed with it.
    """
    names: dict[str, object] = {}
    for kind, block in BLOCK.findall(TEXT[page]):
        if kind == "python":
            if file := re.match(r"# (\w+\.py)\n", block):
                (folder / file[1]).write_text(block)
            else:
                exec(newest(block), names)
        elif kind == "yaml":
            (folder / "block.yaml").write_text(block)
            compose(["fit", "--config", "experiments/csiclip.yaml", "--config", "block.yaml"])
        elif kind in ("sh", "sh not-run"):
            for command in block.replace("\\\n", " ").splitlines():
                call(shlex.split(newest(command), comments=True), run=kind == "sh")
        else:
            assert kind in ("text", "bibtex"), kind


def newest(text):
    """Put the newest run in the place of RUN_ID."""

    def run(found):
        return str(max(Path(found[1]).iterdir(), key=os.path.getmtime))

    return re.sub(r"(runs/\w+)/RUN_ID", run, text)


def call(words, run):
    """Run a command in this process, or check its arguments."""
    while words and ("=" in words[0] or words[0] in ("srun", "torchrun")):
        words = words[1:] if "=" in words[0] else words[words.index("lightning" if "lightning" in words else "-m") :]
    if words[:2] == ["-m", "foundation"]:
        words = ["lightning", *words[2:]]
    match words:
        case ["lightning", "export", *args]:
            if run:
                assert foundation.cli.main(["export", *args]) == 0, args
        case ["lightning", *args]:
            text = " ".join(args)
            own = "--config runs/" in text and "experiments/data/" not in text  # goes on with the data of a run
            args += [] if own else ["--data.batch_size", "16"]
            args += [] if own or any(part in text for part in AT_HAND) else STREET
            if run:
                assert foundation.cli.main([*args, *SHORT]) == 0, text
            else:
                compose(args)
        case ["python", "-m", "datamodules", *args]:
            if run:
                assert datamodules.__main__.main(args) == 0, args
        case ["make", *args]:
            Path("called").write_text("")
            subprocess.run(["make", "--no-print-directory", *args], check=True, capture_output=True)
            for program in Path("called").read_text().split("\n\n")[:-1]:
                call(program.splitlines(), run)
        case _:
            assert not words or words[0] in ("git", "cd", "source", "pip", "python", "ruff", "mypy", "hf", "wandb"), (
                words
            )


def compose(args):
    """Check the arguments of `lightning`."""
    with pytest.raises(SystemExit) as leaving:
        foundation.cli.run([*args, "--print_config"])
    assert leaving.value.code == 0
