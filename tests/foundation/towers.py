"""A pair of towers small enough for tests, and checkpoints as a training writes them."""

import torch
from torch import nn

from datamodules.channel.transforms import image, to_delay
from foundation.encoder import Encoder
from foundation.models.csiclip import CSICLIP


class TinyEncoder(Encoder):
    def __init__(self, width: int = 16, delay: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.LazyConv2d(width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU())
        self.net[0].in_channels = 2
        self.net[0].initialize_parameters(torch.zeros(1, 2, 4, 4))
        self.register_buffer("scale", torch.ones(()))
        self.delay, self.num_features = delay, width

    def prepare(self, batch):
        self.scale.copy_(1 / batch["csi"].abs().square().mean().sqrt())

    def forward(self, csi):
        csi = to_delay(csi) if self.delay else csi
        return self.net(image(csi * self.scale)).mean((2, 3))


def tiny_clip(**settings) -> CSICLIP:
    torch.manual_seed(0)
    return CSICLIP(TinyEncoder(), TinyEncoder(delay=True), embed_dim=8, **settings)


def save_checkpoint(model, file, **hyper_parameters) -> dict:
    content = {"state_dict": model.state_dict(), "hyper_parameters": hyper_parameters}
    model.on_save_checkpoint(content)
    torch.save(content, file)
    return content


def batch_norms(model) -> list[str]:
    """Return a list that is filled with the names of the batch norms that a model passes, in order."""
    passed: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(lambda *_, name=name: passed.append(name))
    return passed
