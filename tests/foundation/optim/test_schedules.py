"""Learning rates by step, and what is decayed, against values computed by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from foundation.optim.schedules import cosine, plateau
from foundation.task import FoundationTask
from heads.layers import attention_blocks


def optimizer():
    return SGD([nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(steps, **settings):
    """Return the factor of the learning rate of every step, and of one more."""
    made = optimizer()
    schedule = cosine(made, steps, **settings)
    factors = []
    for _ in range(steps + 1):
        factors.append(schedule.get_last_lr()[0] / 2.0)
        made.step()
        schedule.step()
    return factors


def test_a_cosine_rises_for_a_twentieth_of_the_steps_and_ends_at_zero():
    warmup = [n / 6 for n in range(1, 6)]
    fall = [(1 + math.cos(math.pi * n / 95)) / 2 for n in range(96)]
    assert rates(100) == pytest.approx([*warmup, *fall])


def test_stages_are_cosines_of_their_own():
    alone = [[1 / 2, *((1 + math.cos(math.pi * n / (size - 1))) / 2 for n in range(size - 1))] for size in (10, 20)]
    assert rates(30, stages=(1 / 3, 1.0)) == pytest.approx([*alone[0], *alone[1], 0.0], abs=1e-12)


@pytest.mark.parametrize(("mode", "better"), [("min", -1.0), ("max", 1.0)])
def test_a_plateau_takes_a_fifth_off_at_the_eleventh_score_without_improvement(mode, better):
    made = optimizer()
    schedule = plateau(made, mode)
    found = []
    for score in [0.0, better, *[0.5 * better] * 22]:
        schedule.step(score)
        found.append(made.param_groups[0]["lr"])
    assert found == pytest.approx([2.0] * 12 + [1.6] * 11 + [1.28])


class Task(FoundationTask):
    def __init__(self, schedule, optimizer="adamw"):
        super().__init__(1.0, 0.3, schedule, optimizer)
        self.net = nn.Sequential(nn.Linear(4, 8), attention_blocks(1, 8, 2))
        self._trainer = SimpleNamespace(estimated_stepping_batches=70, precision="32-true")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_alone_are_decayed(optimizer):
    task = Task("constant", optimizer)
    groups = task.configure_optimizers().param_groups
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {name: decay[p] for name, p in task.named_parameters()} == {
        name: 0.3 if p.ndim == 2 else 0.0 for name, p in task.named_parameters()
    }


def test_restarts_are_three_cosines_each_twice_as_long_step_by_step():
    configured = Task("restarts").configure_optimizers()
    scheduling = configured["lr_scheduler"]
    assert scheduling["interval"] == "step"
    found = []
    for _ in range(70):
        found.append(scheduling["scheduler"].get_last_lr()[0])
        configured["optimizer"].step()
        scheduling["scheduler"].step()
    assert [n for n, rate in enumerate(found) if rate == 1.0] == [1, 11, 32], "after a warm-up of 1, 1 and 2 steps"
    rises = [n for n in range(1, 70) if found[n] > found[n - 1]]
    assert rises == [1, 10, 11, 30, 31, 32]
