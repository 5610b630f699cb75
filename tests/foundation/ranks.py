"""What every process of a job does, for `test_ranks.py`: python -m tests.foundation.ranks FOLDER.

The folder holds `commands.json`, a list of command lines. Where it holds `scores`, a folder, the values that models log
are written there too.
"""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from datamodules.channel.impairments import CommonPhase, Noise
from datamodules.dataset import ChannelDataset
from foundation import ConTwin, FineTune
from foundation.cli import main
from heads import LOS, Joint, Positioning
from tests.datamodules.test_module import build
from tests.foundation.models.test_envchannel import small, town_site
from tests.foundation.towers import TinyEncoder, tiny_clip

WORLD = int(os.environ.get("WORLD_SIZE", 1))
#: links on the validation side
SIDES = (1, 3, 11)


def adapted():
    torch.manual_seed(0)
    return FineTune(lambda d: Joint(d, [LOS, lambda d: Positioning(d, hidden=8)]), TinyEncoder(), mode="scratch")


def two_tower():
    return small(counterfactuals=1.0, profile=1.0)


def twin_contrast(**settings):
    torch.manual_seed(0)
    return ConTwin(TinyEncoder(), embed_dim=8, rho=3, pool="all", **settings)


MODELS = {"CSICLIP": tiny_clip, "ConTwin": twin_contrast, "EnvChannel": two_tower, "FineTune": adapted}


#: models that train to the same on any number of processes
TRAINED = (tiny_clip, twin_contrast)


def data(folder, links, batch_size=4):
    """A validation side of so many links, seen in noise."""
    site = town_site("a", 0)
    views = [Noise(), CommonPhase()]
    extras = ["map", "geometry", "domain"]
    module = build(folder, [site], batch_size=batch_size, views=views, observation=views, extras=extras)
    served = module.sides["all"].links
    module.sides["validation"] = ChannelDataset([site], served[:links])
    module.sides["train"] = ChannelDataset([site], served[links:])
    return module


def trainer(folder, **settings):
    return Trainer(
        default_root_dir=folder, accelerator="cpu", devices=WORLD, strategy="auto" if WORLD == 1 else "ddp",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **settings,
    )  # fmt: skip


def scores(folder):
    """Return what each model logs of untrained weights on each side, and at the end of a short training."""
    found = {}
    for name, make in MODELS.items():
        for links in SIDES:
            torch.manual_seed(1)
            model, module = make(), data(folder / "sites", links)
            model.prepare_from(module)
            logged = trainer(folder).validate(model, datamodule=module, verbose=False)
            found[f"{name} {links}"] = logged[0]
    return found


def trained(folder, make=tiny_clip):
    """Return what a short training on clean channels logs, its validation side not as many batches on all processes."""
    torch.manual_seed(1)
    model, module = make(schedule="constant"), data(folder / "sites", 9, 16 // WORLD)
    module._make.views, module._make.observation = [], []
    train = module.sides["train"]
    module.sides["train"] = ChannelDataset(train.sites, train.links[:96])
    fit = trainer(folder, max_epochs=2, num_sanity_val_steps=0)
    fit.fit(model, datamodule=module)
    return {name: float(value) for name, value in fit.callback_metrics.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if (folder / "scores").exists():
        found = {**scores(folder), **{make.__name__: trained(folder, make) for make in TRAINED}}
        if torch.distributed.get_rank() == 0:
            (folder / "scores" / "scores.json").write_text(json.dumps(found))
    for command in json.loads((folder / "commands.json").read_text()):
        assert main(command) == 0, command
