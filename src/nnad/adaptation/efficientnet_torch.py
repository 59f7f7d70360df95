"""EfficientNet-Lite in torch, for training: the network of `nnad.efficientnet`, piece by piece.

Batch norm is not folded here, and modules are named as in the weights' package, so that what was
trained goes back into `nnad.efficientnet.build_network` without any renaming.
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.efficientnet import STAGES, repeats_and_strides

Weights = Mapping[str, NDArray[Any]]
EPSILON = 1e-3  # of batch norm


class EfficientNetLite(nn.Module):
    """Normalised images (B, 3, H, W) -> features (B, 1280).

    Args:
        name: one of `nnad.efficientnet.VARIANTS`.
        weights: its state dict, see `nnad.efficientnet.load_weights`.
    """

    def __init__(self, name: str, weights: Weights) -> None:
        super().__init__()
        self._conv_stem = _SameConv(weights["_conv_stem.weight"].shape, stride=2)
        self._bn0 = _norm(self._conv_stem.out_channels)
        self._blocks = nn.ModuleList()
        self._ends = []  # number of blocks up to the end of each stage
        for repeats, first_stride in repeats_and_strides(name):
            for repeat in range(repeats):
                at = f"_blocks.{len(self._blocks)}."
                self._blocks.append(_MBConv(weights, at, first_stride if repeat == 0 else 1))
            self._ends.append(len(self._blocks))
        self._conv_head = _SameConv(weights["_conv_head.weight"].shape)
        self._bn1 = _norm(self._conv_head.out_channels)
        state = {key: torch.tensor(weights[key]) for key in self.state_dict() if key in weights}
        self.load_state_dict(state, strict=False)  # no counters of batches in some packages
        self.eval()

    def pieces(self) -> dict[str, nn.Module]:
        """The network cut into `stem` and `nnad.efficientnet.STAGES`, in order."""
        first, *ends = self._ends
        pieces: dict[str, nn.Module] = {
            "stem": nn.Sequential(self._conv_stem, self._bn0, nn.ReLU6(), *self._blocks[:first])
        }
        for stage, start, end in zip(STAGES, self._ends, ends, strict=False):
            pieces[stage] = nn.Sequential(*self._blocks[start:end])
        pieces["head"] = nn.Sequential(
            self._conv_head, self._bn1, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        return pieces

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1280)."""
        for piece in self.pieces().values():
            x = piece(x)
        return x


class _SameConv(nn.Conv2d):
    """A convolution without bias and with padding SAME, the odd pixel right and below."""

    def __init__(self, shape: tuple[int, ...], stride: int = 1, groups: int = 1) -> None:
        out_channels, in_channels, kernel, _ = shape
        super().__init__(
            in_channels * groups, out_channels, kernel, stride, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for side in (x.shape[3], x.shape[2]):
            total = (-(-side // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - side
            padding += [max(total, 0) // 2, max(total, 0) - max(total, 0) // 2]
        return super().forward(functional.pad(x, padding) if any(padding) else x)


class _MBConv(nn.Module):
    """Inverted residual block: expand (1x1), depthwise, project (1x1), and the skip connection."""

    def __init__(self, weights: Weights, at: str, stride: int) -> None:
        super().__init__()
        depthwise = weights[f"{at}_depthwise_conv.weight"].shape
        project = weights[f"{at}_project_conv.weight"].shape
        channels_in = depthwise[0]
        self._expand_conv = None
        if f"{at}_expand_conv.weight" in weights:
            expand = weights[f"{at}_expand_conv.weight"].shape
            channels_in = expand[1]
            self._expand_conv = _SameConv(expand)
            self._bn0 = _norm(expand[0])
        self._depthwise_conv = _SameConv(depthwise, stride, groups=depthwise[0])
        self._bn1 = _norm(depthwise[0])
        self._project_conv = _SameConv(project)
        self._bn2 = _norm(project[0])
        self._skips = stride == 1 and channels_in == project[0]

    def forward(self, x: Tensor) -> Tensor:
        inputs = x
        if self._expand_conv is not None:
            x = functional.relu6(self._bn0(self._expand_conv(x)))
        x = functional.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self._skips else x


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)
