"""Networks that can be adapted: a list of pieces, the first ones frozen, the last ones trained.

    normalised images (B, 3, H, W) -> stem, frozen -> maps (B, C, h, w) -> tail, trained -> (B, D)

Trained by default are, of ResNets, `layer3` and `layer4`, as in PANDA (Reiss et al., CVPR 2021),
and of EfficientNet-Lite its last convolution, `head`. The whole network stays in eval
mode: batch norm keeps the statistics of the pretraining, and its scale and shift are trained where
they are in the tail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnad import efficientnet
from nnad.adaptation.efficientnet_torch import EfficientNetLite
from nnad.errors import BackboneError, InputError
from nnad.preprocessing import Preprocessing
from nnad.probes import largest_difference, probe_images
from nnad.torch_export import normalised

_SAME = 1e-5  # largest difference of a feature between a network and its pieces, by its length
_LAYERS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Network:
    """A network cut into pieces that follow each other.

    Attributes:
        name: what it is called in errors.
        preprocessing: what makes its input.
        module: the whole network, normalised images (B, 3, H, W) -> features (B, D).
        pieces: its parts by name, in order; they share their weights with it.
        train_from: the first piece that is trained.
        classifier: weights (K, D) and biases (K,) of the pretraining's classes, where known.
    """

    name: str
    preprocessing: Preprocessing
    module: nn.Module
    pieces: dict[str, nn.Module]
    train_from: str
    classifier: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        names = list(self.pieces)
        if self.train_from not in names[1:]:
            raise InputError(
                f"train_from={self.train_from!r}; {self.name} can be trained from one of "
                f"{', '.join(names[1:])}"
            )
        self.module.eval().requires_grad_(False)
        self.tail.requires_grad_(True)
        if not any(True for _ in self.tail.parameters()):
            raise InputError(f"train_from={self.train_from!r}: leaves nothing to train")

    @property
    def device(self) -> torch.device:
        """Where its weights are: on the CPU, until its module is moved."""
        return next(self.module.parameters()).device

    @property
    def last_frozen(self) -> str:
        """The piece before the first that is trained."""
        names = list(self.pieces)
        return names[names.index(self.train_from) - 1]

    @property
    def stem(self) -> nn.Sequential:
        """The frozen pieces."""
        return nn.Sequential(*self._parts(trained=False))

    @property
    def tail(self) -> nn.Sequential:
        """The trained pieces."""
        return nn.Sequential(*self._parts(trained=True))

    def _parts(self, *, trained: bool) -> Iterator[nn.Module]:
        first = list(self.pieces).index(self.train_from)
        for place, piece in enumerate(self.pieces.values()):
            if (place >= first) is trained:
                yield piece

    def normalised(self, pixels: NDArray[Any]) -> Tensor:
        """(B, h, w, 3) uint8 -> (B, 3, h, w), on its device."""
        return normalised(pixels, self.preprocessing).to(self.device)


def load_network(
    name: str = "efficientnet-lite0",
    *,
    weights: Any = None,
    geometry: str | None = None,
    train_from: str | None = None,
) -> Network:
    """A network that can be adapted, by the name it has as a backbone.

    Args:
        name: `efficientnet-lite0`, `-lite1`, `-lite2`, or `torchvision:NAME` of a ResNet.
        weights, geometry: see `nnad.load_backbone`.
        train_from: the first piece that is trained; by default `head` or `layer3`. The pieces are
            `stem`, `s4`, `s8`, `s16a`, `s16b`, `s32a`, `s32b`, `head`, or the ResNet's modules.

    Raises:
        BackboneError: unknown, not installed, or a network of another kind.
        InputError: another argument is wrong.
    """
    kind, _, place = name.partition(":")
    if name in efficientnet.VARIANTS:
        if weights is not None:
            raise InputError(f"weights: goes with torchvision:NAME; {name} has its own")
        arrays = efficientnet.load_weights(name)
        lite = EfficientNetLite(name, arrays)
        return Network(
            name,
            Preprocessing(efficientnet.VARIANTS[name].image_size).changed(geometry=geometry),
            lite,
            lite.pieces(),
            train_from or "head",
            (torch.tensor(arrays["_fc.weight"]), torch.tensor(arrays["_fc.bias"])),
        )
    if kind == "torchvision":
        from nnad.torch_networks import torch_network

        module, preprocessing, _told = torch_network(kind, place, None, weights)
        return resnet(module, name, preprocessing.changed(geometry=geometry), train_from)
    raise BackboneError(
        f"backbone {name!r} cannot be adapted; there are: {', '.join(efficientnet.VARIANTS)}, "
        f"torchvision:NAME of a ResNet"
    )


def resnet(
    module: nn.Module, name: str, preprocessing: Preprocessing, train_from: str | None = None
) -> Network:
    """A network in the way of torchvision's ResNets.

    Its modules follow each other up to `layer4`, then comes the mean over places, then perhaps a
    classifier `fc`, which is taken off. The module is taken over, not copied.

    Raises:
        BackboneError: it has no `layer1` to `layer4`, or is more than its modules in their order.
    """
    pieces = dict(module.named_children())
    missing = [layer for layer in _LAYERS if layer not in pieces]
    if missing:
        raise BackboneError(
            f"backbone {name!r}: has no {missing[0]}; a ResNet with layer1 to layer4 is expected"
        )
    classifier = pieces.get("fc")
    if isinstance(classifier, nn.Linear):
        module.fc = nn.Identity()
    for after in list(pieces)[list(pieces).index("layer4") + 1 :]:
        del pieces[after]
    pieces["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    known = (
        (classifier.weight.detach().clone(), classifier.bias.detach().clone())
        if isinstance(classifier, nn.Linear)
        else None
    )
    network = Network(name, preprocessing, module, pieces, train_from or "layer3", known)
    inputs = network.normalised(probe_images(preprocessing.size))
    with torch.no_grad():
        whole, cut = module(inputs).flatten(1), network.tail(network.stem(inputs))
    if whole.shape != cut.shape or largest_difference(cut, whole) > _SAME:
        raise BackboneError(
            f"backbone {name!r}: is more than its modules one after the other and a mean over "
            f"places; it cannot be cut into a frozen and a trained part"
        )
    return network
