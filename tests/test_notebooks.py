"""Every notebook of docs/notebooks runs from top to bottom, in its folder."""

import json
import re
from pathlib import Path

import pytest

import datamodules.__main__
from tests.foundation.towers import save_checkpoint, tiny_clip

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with the example recording and a pre-training on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSI_DATA", raising=False)
    assert datamodules.__main__.main(["example"]) == 0
    checkpoints = tmp_path / "runs/csiclip/one/checkpoints"
    checkpoints.mkdir(parents=True)
    model = tiny_clip()
    model.trained_on = {"csi": [1, 4, 32]}
    save_checkpoint(model, checkpoints / "best.ckpt")
    (tmp_path / "docs/notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs/notebooks")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(file, clone, capsys):
    book = json.loads(file.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in code:
        exec(cell, names)
    assert re.search(r"16 features of 1500 snapshots, median error [\d.]+ m", capsys.readouterr().out)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_notebooks_name_exists(file):
    text = "".join("".join(cell["source"]) for cell in json.loads(file.read_text())["cells"])
    assert len(re.findall(r"experiments/[\w/]+\.yaml", text)) == 2
    assert all((ROOT / name).is_file() for name in re.findall(r"experiments/[\w/]+\.yaml", text))
    assert all((file.parent / link).exists() for link in re.findall(r"\]\((?!http)([^)#]+)", text))
