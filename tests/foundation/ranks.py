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

from datamodules.channel.arrays import Array
from datamodules.channel.impairments import CommonPhase, Noise
from datamodules.channel.motion import Sequence
from datamodules.dataset import ChannelDataset
from foundation import ClassicalPredictor, ConTwin, CsiFeedback, CSINetPlus, FineTune, TwinCalibration
from foundation.cli import main
from foundation.runtime.probe import OnlineProbe
from heads import LOS, Feedback, Joint, Positioning, Prediction
from tests.datamodules.test_module import build
from tests.foundation.models.test_envchannel import small, town_site
from tests.foundation.towers import TinyEncoder, tiny_clip

WORLD = int(os.environ.get("WORLD_SIZE", 1))
#: links on the validation side
SIDES = (1, 3, 11)
#: of the channel, so that a head has its weights when it is built: DDP seeds anew what comes later
SIZE = {"num_antennas": 4, "num_subcarriers": 8}


def adapted():
    torch.manual_seed(0)
    return FineTune(lambda d: Joint(d, [LOS, lambda d: Positioning(d, hidden=8)]), TinyEncoder(), mode="scratch")


def predicting():
    torch.manual_seed(0)
    return FineTune(lambda d: Prediction(d, hidden=8), TinyEncoder(), mode="scratch")


def without_weights(folder):
    """Return what the training of a predictor without weights logs; one of two processes validates no link."""
    encoder = ClassicalPredictor("link_ar", 4, **SIZE)
    model = FineTune(lambda d: Prediction(d, "given"), encoder, mode="control")
    fit = trainer(folder, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=0)
    fit.fit(model, datamodule=data(folder / "sites", 1, sequence=Sequence(4)))
    return {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("val/")}


def compressing():
    torch.manual_seed(0)
    return FineTune(lambda d: Feedback(d, **SIZE, rank=2, width=8, layers=1, heads=2), TinyEncoder(), mode="scratch")


def two_tower():
    return small(counterfactuals=1.0, profile=1.0)


def twin_contrast(**settings):
    torch.manual_seed(0)
    return ConTwin(TinyEncoder(), embed_dim=8, rho=3, pool="all", **settings)


def feedback():
    torch.manual_seed(0)
    return CsiFeedback(CSINetPlus(code_size=8, rows=8, antennas=4, blocks=1))


def calibration():
    torch.manual_seed(0)
    return TwinCalibration(antennas=8)


MODELS = {
    "CSICLIP": tiny_clip,
    "ConTwin": twin_contrast,
    "EnvChannel": two_tower,
    "FineTune": adapted,
    "Prediction": predicting,
    "Feedback": compressing,
    "CsiFeedback": feedback,
    "TwinCalibration": calibration,
}
#: models that train to the same on any number of processes
TRAINED = (tiny_clip, twin_contrast)
#: further settings of data; a user's links to two stations stand for its two variants
DATA = {"TwinCalibration": {"base_stations": 2, "bs": Array(1, 8)}, "Prediction": {"sequence": Sequence(4)}}
#: what a test scores beside the model
CONTROLLED = ("CsiFeedback", "TwinCalibration", "Prediction", "Feedback")


def data(folder, links, batch_size=4, **settings):
    """A validation side of so many links, seen in noise."""
    sites = [town_site(name, 0) for name in "ab"[: settings.get("base_stations", 1)]]
    views = [Noise(), CommonPhase()]
    extras = ["map", "geometry", "domain"]
    module = build(folder, sites, batch_size=batch_size, views=views, observation=views, extras=extras, **settings)
    served = module.sides["all"].links
    module.sides["validation"] = module.sides["test"] = ChannelDataset(sites, served[:links])
    module.sides["train"] = ChannelDataset(sites, served[links:])
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
        for links in SIDES[:2] if name in ("Prediction", "Feedback") else SIDES:
            torch.manual_seed(1)
            model, module = make(), data(folder / name, links, **DATA.get(name, {}))
            model.prepare_from(module)
            score = trainer(folder)
            [found[f"{name} {links}"]] = score.validate(model, datamodule=module, verbose=False)
            if name in CONTROLLED:
                found[f"{name} {links}"] |= score.test(model, datamodule=module, verbose=False)[0]
            found[f"{name} {links}"] = {k: v for k, v in found[f"{name} {links}"].items() if not k.endswith("cpu_ms")}
    return found


def trained(folder, make=tiny_clip):
    """Return what a short training on clean channels logs, and the numbers of its online probe.

    Its validation side is not as many batches on all processes.
    """
    torch.manual_seed(1)
    model, module = make(schedule="constant"), data(folder / "sites", 9, 16 // WORLD)
    module._make.views, module._make.observation = [], []
    train = module.sides["train"]
    module.sides["train"] = ChannelDataset(train.sites, train.links[:96])
    fit = trainer(folder, max_epochs=2, num_sanity_val_steps=0)
    fit.fit(model, datamodule=module)
    [probe] = [callback for callback in fit.callbacks if isinstance(callback, OnlineProbe)]
    numbers = torch.cat([value.double().flatten() for value in probe.net.state_dict().values()])
    logged = {name: float(value) for name, value in fit.callback_metrics.items()}
    return logged | {f"probe/{number}": float(value) for number, value in enumerate(numbers)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if (folder / "scores").exists():
        found = {**scores(folder), **{make.__name__: trained(folder, make) for make in TRAINED}}
        found["without weights"] = without_weights(folder)
        if torch.distributed.get_rank() == 0:
            (folder / "scores" / "scores.json").write_text(json.dumps(found))
    for command in json.loads((folder / "commands.json").read_text()):
        assert main(command) == 0, command
