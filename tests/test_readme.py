"""What README.md shows, works."""

import re
from pathlib import Path

import torch

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
