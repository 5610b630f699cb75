"""What README.md and docs/ show, works."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import datamodules.__main__
import foundation.cli

ROOT = Path(__file__).parents[1]
QUICK = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_head_of_the_readme_is_complete_in_thirty_lines():
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "(Head)" in block]
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
    assert torch.isclose(head.loss(torch.cat([prediction, prediction[:1]]), silent), head.loss(prediction, batch))


def test_files_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    for name in re.findall(r"(?:experiments|docs)/[\w/.]+\.(?:yaml|png|csv)", README):
        if "pathloss" not in name:
            assert (root / name).exists(), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_blocks_of_the_docs_run(page, tmp_path, monkeypatch):
    """Run the blocks of a page in order, in one folder; trainings for one batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSI_DATA", raising=False)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    names: dict[str, object] = {}
    blocks = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert {language for language, _ in blocks} <= {"sh", "python"}
    for language, block in blocks:
        if language == "python":
            exec(block, names)
        else:
            for command in block.replace("\\\n", " ").splitlines():
                assert call(shlex.split(command, comments=True)) == 0, command


def call(words):
    """Run a command in this process."""
    if words[:3] == ["python", "-m", "datamodules"]:
        return datamodules.__main__.main(words[3:])
    assert words[0] == "lightning", f"the test knows no {words[0]}"
    return foundation.cli.main([*words[1:], *QUICK])
