"""A network of a few thousand weights to adapt, and pictures for it."""

import numpy as np
import torch
from torch import nn

from nnad.adaptation.networks import Network, resnet
from nnad.preprocessing import Preprocessing

torch.set_num_threads(1)
SMALL = Preprocessing(32, mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0))


class TinyResNet(nn.Module):
    """In the way of torchvision: modules one after the other, then a mean and a classifier."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.relu = nn.ReLU()
            for i, (a, b) in enumerate([(8, 8), (8, 12), (12, 16), (16, 24)], 1):
                conv = nn.Conv2d(a, b, 3, 1 + i % 2, 1, bias=False)
                setattr(self, f"layer{i}", nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU()))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(24, 5)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer4(self.layer3(self.layer2(x)))).flatten(1))


def tiny(train_from=None, seed=0, name="tiny") -> Network:
    return resnet(TinyResNet(seed), name, SMALL, train_from)


def state(network):
    return {name: t.clone() for name, t in network.module.state_dict().items()}


def equal(one, other):
    return same_weights(one.module, other.module)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def noise(count=40, seed=0):
    """Pictures (8, 8, 3)."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
