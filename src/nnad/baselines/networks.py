"""The networks of the self-supervised baselines, and what every trained baseline shares."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.baselines.contract import Arrays, Baseline, Images, check_images
from nnad.errors import InputError
from nnad.training import digest, torch_device, train

M = TypeVar("M", bound=nn.Module)
Learn = Callable[..., None]
_LEAST_SIDE = 32


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko and Komodakis, 2016), pre-activated: (B, C, H, W) -> (B, D).

    D = 64 * widen. Averaged over the whole map, so any size of image will do.

    Args:
        channels: C.
        depth: 6 n + 4 for n blocks in each of three groups.
        widen: 1 is the thinnest.
        skip_norm: leave out what stands between the two convolutions of a block: GOAD's public code
            does so by mistake.
    """

    def __init__(self, channels: int, depth: int, widen: int, *, skip_norm: bool = False) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"depth={depth}; expected 10, 16, 22 ...")
        self.dim = 64 * widen
        blocks, before = [], 16
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for place in range((depth - 4) // 6):
                blocks.append(_WideBlock(before, width, 1 if place else stride, skip_norm))
                before = width
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(self.dim)
        _set_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return functional.relu(self.norm(self.blocks(self.stem(x)))).mean(dim=(2, 3))


class _WideBlock(nn.Module):
    def __init__(self, before: int, width: int, stride: int, skip_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = None if skip_norm else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = before == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.norm1(x))
        out = self.conv1(activated)
        if self.norm2 is not None:
            out = functional.relu(self.norm2(out))
        kept = x if self.shortcut is None else self.shortcut(activated)
        return torch.add(kept, self.conv2(out))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016) without its classifier: (B, C, H, W) -> (B, 512)."""

    dim = 512

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks, before = [], 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_Block(before, width, stride), _Block(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        _set_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 512)."""
        maps: Tensor = self.blocks(self.stem(x))
        return maps.mean(dim=(2, 3))


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if before != width or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.inner(x) + self.shortcut(x))


def _set_weights(network: nn.Module) -> None:
    """He's initialisation by the number of outputs, as in GOAD's public code."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))


class NetworkBaseline(Baseline):
    """A baseline whose learnt state is that of one network, weights and buffers.

    Attributes: `network`; `losses`, of each training step, by stage.
    """

    network: Any  # a module
    losses: dict[str, NDArray[np.float64]]

    def fit(
        self, images: Images, *, checkpoints: str | Path | None = None, progress: bool = True
    ) -> Self:
        """See `Baseline.fit`."""
        images = check_images(images, least=2)
        self.shape = images.shape[1:]
        self.losses = {}
        run = {"baseline": self.name, "preset": self.preset, "settings": self.settings}
        learn = partial(
            self._learn,
            folder=None if checkpoints is None else Path(checkpoints),
            run={**run, "data": digest(images)},
            progress=progress,
        )
        try:
            self.network = self._seeded(self._build)
            self._train(images, learn)
        except BaseException:
            self.shape = None
            raise
        return self

    def score(self, images: Images) -> NDArray[np.float64]:
        """See `Baseline.score`."""
        images = self._check_new(images)
        self.network.eval()
        with torch.inference_mode():
            scores = [self._scores(inputs) for inputs in self._batches(images)]
        return np.concatenate([np.empty(0), *scores])

    def features(self, images: Images) -> NDArray[np.float32]:
        """Images (N, H, W, C) -> what the network gives before its heads (N, D).

        Raises:
            InputError: see `score`.
        """
        images = self._check_new(images)
        body = self._body().eval()
        with torch.inference_mode():
            found = [body(inputs).cpu().numpy() for inputs in self._batches(images)]
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    def _body(self) -> nn.Module:
        """The network without its heads."""
        body: nn.Module = self.network[0]
        return body

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network for images of `self.shape`, with random weights."""

    @abstractmethod
    def _train(self, images: Images, learn: Learn) -> None:
        """Train `self.network` by `learn`, which is `_learn` of this fit, and set its buffers."""

    @abstractmethod
    def _scores(self, inputs: Tensor) -> NDArray[np.float64]:
        """What `_inputs` made (B, C, H, W) -> (B,); in eval mode, without gradients."""

    def _inputs(self, images: Images) -> Tensor:
        """Bytes (B, H, W, C) -> numbers in [-1, 1] (B, C, H, W), 28 pixels and other small sides
        padded with black to 32, as GEOM's public code does; then shrunk, where the settings say.
        """
        inputs = (
            torch.from_numpy(images.copy()).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        down, across = (max(_LEAST_SIDE - side, 0) for side in inputs.shape[2:])
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        inputs = functional.pad(inputs, edges, value=-1.0)
        return functional.avg_pool2d(inputs, self.settings["shrink"])

    def _batches(self, images: Images) -> Iterator[Tensor]:
        for start in range(0, len(images), self.settings["batch_size"]):
            yield self._inputs(images[start : start + self.settings["batch_size"]])

    def _learn(
        self,
        stage: str,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor], Tensor],
        items: int,
        model: nn.Module | None = None,
        *,
        folder: Path | None,
        **arguments: Any,
    ) -> None:
        """`nnad.training.train` on `model`, the network by default, with the stage's checkpoint."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.losses[stage] = train(
            self.network if model is None else model,
            optimizer,
            loss,
            items,
            seed=self.seed,
            checkpoint=None if folder is None else folder / f"{stage}.safetensors",
            label=f"{self.full_title}, {stage}",
            **arguments,
        )

    def _seeded(self, build: Callable[[], M]) -> M:
        """The network that `build` makes, with the random weights of this seed, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = build().to(torch_device(self.device))
        for weight in network.parameters():
            if weight.ndim == 4:  # a layout that is faster on a CPU
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return network

    def _state(self) -> Arrays:
        return {name: t.detach().cpu().numpy() for name, t in self.network.state_dict().items()}

    def _restore(self, state: Arrays) -> None:
        self.network = self._seeded(self._build).eval()
        self.network.load_state_dict({name: torch.tensor(a) for name, a in state.items()})


def check_square(shape: tuple[int, ...] | None, title: str) -> int:
    """C of images (H, H, C), or an `InputError` if sides differ: they will be turned."""
    if shape is None or shape[0] != shape[1]:
        raise InputError(f"images: {shape}; {title} turns them by 90 degrees: make them square")
    return shape[2]
