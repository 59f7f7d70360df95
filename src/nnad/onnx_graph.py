"""Put a network between RGB bytes and one feature vector, all in one ONNX graph.

    image (B, h, w, 3) uint8 -> (x - mean) / std, colour order, layout -> network
        -> stages (B, C, H, W), (B, T, C) or (B, C) -> each pooled to (B, C)
        -> with several stages each scaled to length 1 -> side by side: features (B, D) float32

or, with the pooling `map`, the stages themselves: one output (B, H, W, C) float32 each.

So normalisation and pooling cannot be forgotten or done twice by whoever uses the file.
"""

import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nnad.errors import BackboneError, InputError
from nnad.preprocessing import Preprocessing

POOLINGS = ("mean", "max", "gem", "cls", "map")
GEM_POWER = 3  # Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval", 2018
GEM_SMALLEST = 1e-6  # smaller values, and so all negative ones, count as this
_OLDEST_OPSET = 11
_OURS = "nnad/"  # before the names of all that is put around the network, but `image`, `features`
_THEIRS = "network/"  # before those of its names that would clash
_UNIT = re.compile(f"{_OURS}unit_(\\d+)/ones")  # a constant of each stage, see `_unit`
Shape = tuple[int, ...]


class Graph:
    """Nodes and constants in the making; every method returns the name of its output."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix = prefix

    def constant(self, name: str, value: Any) -> str:
        """A tensor that is stored in the file."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), self._prefix + name))
        return self._prefix + name

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper

        output = output or f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output


def assemble(
    network: Any,
    preprocessing: Preprocessing,
    stages: Mapping[str, Shape],
    *,
    pooling: str | None = None,
    layout: str = "nchw",
    stage_layout: str = "nchw",
    prefix_tokens: int = 1,
) -> bytes:
    """The ONNX file of a backbone.

    Args:
        network: an `onnx.ModelProto` with one float input, the normalised image.
        preprocessing: whose mean, std and colour order are put before it.
        stages: name -> shape of the tensors to pool, in the order of the feature.
        pooling: `mean`, `max` or `gem` over places, or `cls`, a ViT's class token. By default the
            mean of a map, the class token of tokens. Stages that are vectors are taken as they are.
            `map` pools nothing; tokens are put back into their square.
        layout: of the network's input, `nchw` or `nhwc`.
        stage_layout: of its four-dimensional stages.
        prefix_tokens: how many of a (B, T, C) stage's tokens stand for no place of the image.

    Raises:
        InputError: the pooling is unknown or does not fit a stage.
        BackboneError: the network's operator set is too old.
    """
    import onnx
    from onnx import TensorProto, helper

    check_pooling(pooling)
    opset = max((o.version for o in network.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise BackboneError(
            f"the network uses ONNX opset {opset}; export it with opset {_OLDEST_OPSET} or newer"
        )
    network = _with_free_names(network)
    source = network_input(network)
    graph = Graph(_OURS)
    _normalise(graph, source, preprocessing, layout)
    before = len(graph.nodes)
    channels = [_channels(shape, stage_layout) for shape in stages.values()]
    batch = source.type.tensor_type.shape.dim[0].dim_value or "B"  # some files take one image only
    outputs: dict[str, list[Any]] = {}  # name -> shape
    if pooling == "map":
        for (name, shape), width in zip(stages.items(), channels, strict=True):
            stage_map = _map(graph, name, shape, stage_layout, prefix_tokens)
            outputs[stage_map] = [batch, None, None, width]
    else:
        vectors = [
            _pool(graph, name, shape, pooling, stage_layout, prefix_tokens)
            for name, shape in stages.items()
        ]
        if len(vectors) > 1:
            vectors = [_unit(graph, x, width) for x, width in zip(vectors, channels, strict=True)]
        graph.add("Concat", vectors, output="features", axis=1)
        outputs["features"] = [batch, sum(channels)]

    assembled = onnx.ModelProto()
    assembled.CopyFrom(network)
    assembled.producer_name, assembled.producer_version = "nnad", ""
    del assembled.metadata_props[:]
    assembled.doc_string = ""
    del assembled.graph.value_info[:], assembled.graph.input[:], assembled.graph.output[:]
    nodes = [*graph.nodes[:before], *network.graph.node, *graph.nodes[before:]]
    constants = [*network.graph.initializer, *graph.constants]
    _keep_what_is_needed(assembled.graph, nodes, constants, set(outputs))
    assembled.graph.input.append(
        helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, "H", "W", 3])
    )
    assembled.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in outputs.items()
    )
    onnx.checker.check_model(assembled)
    content: bytes = assembled.SerializeToString(deterministic=True)
    return content


def check_pooling(pooling: str | None) -> None:
    """Raise an `InputError` if there is no such pooling."""
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling={pooling!r}; choose one of {', '.join(POOLINGS)}")


def check_stages(name: str, stages: Sequence[str], known: Collection[str]) -> None:
    """Raise an `InputError` unless `stages` are different names among those of network `name`."""
    if isinstance(stages, str) or not stages or len(set(stages)) < len(stages):
        raise InputError(f"stages={stages!r}; expected different names of stages, in a tuple")
    for stage in stages:
        if stage not in known:
            shown = [other for other in known if other and other.count(".") < 2]
            there = textwrap.shorten(", ".join(shown), 1000, placeholder=" ...")
            raise InputError(f"stages: {name} has no {stage!r}; there are: {there}")


def network_input(network: Any) -> Any:
    """The one input of a network that is not a weight.

    Raises:
        BackboneError: there are more, or none.
    """
    weights = {tensor.name for tensor in network.graph.initializer}
    inputs = [value for value in network.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise BackboneError(f"the network has {len(inputs)} inputs; expected one, the image")
    return inputs[0]


def _with_free_names(network: Any) -> Any:
    """A copy of the network that leaves the names `image`, `features` and `nnad/...` to us.

    A network without these names keeps its bytes, and so its fingerprint.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    _free_names(copy.graph)
    return copy


def _free_names(graph: Any) -> None:
    tensors = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    for named in (*graph.input, *graph.output, *graph.value_info, *tensors, *graph.node):
        if named.name:  # an empty one is not in the file
            named.name = _free(named.name)
    for node in graph.node:
        node.input[:] = map(_free, node.input)
        node.output[:] = map(_free, node.output)
        for inner in _inner_graphs(node):
            _free_names(inner)


def _free(name: str) -> str:
    clashes = name in ("image", "features") or name.startswith((_OURS, _THEIRS))
    return _THEIRS + name if clashes else name


def _inner_graphs(node: Any) -> list[Any]:
    """The graphs inside of an If, Loop or Scan."""
    return [inner for attribute in node.attribute for inner in (attribute.g, *attribute.graphs)]


def _normalise(graph: Graph, source: Any, preprocessing: Preprocessing, layout: str) -> None:
    """(B, h, w, 3) uint8 -> what the network takes, under the name of its input."""
    from onnx import TensorProto

    mean, std = (np.array(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    x = graph.add("Cast", ["image"], to=TensorProto.FLOAT)
    x = graph.add("Sub", [x, graph.constant("mean", mean.astype(np.float32))])
    x = graph.add("Mul", [x, graph.constant("inverse_std", (1 / std).astype(np.float32))])
    if preprocessing.colours == "bgr":
        x = graph.add("Gather", [x, graph.constant("bgr", np.array([2, 1, 0], np.int64))], axis=3)
    if layout == "nchw":
        x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    graph.add("Cast", [x], output=source.name, to=source.type.tensor_type.elem_type)


def _pool(
    graph: Graph, stage: str, shape: Shape, pooling: str | None, layout: str, prefix_tokens: int
) -> str:
    """A stage -> (B, C)."""
    from onnx import TensorProto

    x = graph.add("Cast", [_free(stage)], to=TensorProto.FLOAT)
    if len(shape) == 2:
        if pooling is not None:
            raise InputError(
                f"pooling={pooling!r}: stage {stage!r} is one vector an image, already pooled; "
                f"name a stage that is a map"
            )
        return x
    tokens = len(shape) == 3
    pooling = pooling or ("cls" if tokens and prefix_tokens else "mean")
    if pooling == "cls":
        if not tokens or not prefix_tokens:
            raise InputError(f"pooling='cls': stage {stage!r} has no class token")
        return graph.add("Gather", [x, graph.constant(f"{stage}/cls", np.int64(0))], axis=1)
    return pool_map(graph, as_map(graph, x, stage, shape, layout, prefix_tokens), pooling)


def _map(graph: Graph, stage: str, shape: Shape, layout: str, prefix_tokens: int) -> str:
    """A stage of maps or tokens -> (B, H, W, C)."""
    from onnx import TensorProto

    x = graph.add("Cast", [_free(stage)], to=TensorProto.FLOAT)
    if len(shape) == 4:
        return x if layout == "nhwc" else graph.add("Transpose", [x], perm=[0, 2, 3, 1])
    side = math.isqrt(shape[1] - prefix_tokens) if len(shape) == 3 else 0
    if not side or side**2 != shape[1] - prefix_tokens:
        raise InputError(f"pooling='map': stage {stage!r} of shape {shape} is no square of places")
    x = _without_prefix(graph, x, stage, shape, prefix_tokens)
    square = graph.constant(f"{stage}/square", np.array([0, side, side, -1], np.int64))
    return graph.add("Reshape", [x, square])


def as_map(graph: Graph, x: str, stage: str, shape: Shape, layout: str, prefix_tokens: int) -> str:
    """A stage of maps or tokens -> (B, C, H, W); tokens become (B, C, T - prefix_tokens, 1)."""
    if len(shape) == 4:
        return x if layout == "nchw" else graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    if len(shape) != 3:
        raise InputError(f"stage {stage!r} has shape {shape}; expected 2, 3 or 4 dimensions")
    x = _without_prefix(graph, x, stage, shape, prefix_tokens)
    x = graph.add("Transpose", [x], perm=[0, 2, 1])  # (B, C, T')
    return graph.add(
        "Reshape", [x, graph.constant(f"{stage}/map", np.array([0, 0, -1, 1], np.int64))]
    )


def _without_prefix(graph: Graph, x: str, stage: str, shape: Shape, prefix_tokens: int) -> str:
    """Tokens (B, T, C) -> (B, T - prefix_tokens, C)."""
    first, last, axis = (
        graph.constant(f"{stage}/{key}", np.array([value], np.int64))
        for key, value in (("first", prefix_tokens), ("last", shape[1]), ("axis", 1))
    )
    return graph.add("Slice", [x, first, last, axis])


def pool_map(graph: Graph, x: str, pooling: str) -> str:
    """(B, C, H, W) -> (B, C) by `mean`, `max` or `gem`.

    GeM is the power mean (mean of x^p)^(1/p) with p = 3, of x no smaller than 1e-6: what is
    negative, in stages that end without a ReLU, counts as nothing found.
    """
    at = f"gem_{len(graph.nodes)}"
    if pooling == "gem":
        x = graph.add("Max", [x, graph.constant(f"{at}/smallest", np.float32(GEM_SMALLEST))])
        x = graph.add("Pow", [x, graph.constant(f"{at}/power", np.float32(GEM_POWER))])
    x = graph.add("GlobalMaxPool" if pooling == "max" else "GlobalAveragePool", [x])
    if pooling == "gem":
        x = graph.add("Pow", [x, graph.constant(f"{at}/root", np.float32(1 / GEM_POWER))])
    return graph.add("Flatten", [x])


def _unit(graph: Graph, x: str, width: int) -> str:
    """(B, C) -> (B, C): x / |x|. In operators that are the same in every opset."""
    at = f"unit_{len(graph.nodes)}"
    ones = graph.constant(f"{at}/ones", np.ones((width, 1), np.float32))
    norm = graph.add("Sqrt", [graph.add("MatMul", [graph.add("Mul", [x, x]), ones])])  # (B, 1)
    norm = graph.add("Max", [norm, graph.constant(f"{at}/smallest", np.float32(1e-12))])
    return graph.add("Div", [x, norm])


def _channels(shape: Shape, layout: str) -> int:
    return shape[1] if len(shape) == 2 or (len(shape) == 4 and layout == "nchw") else shape[-1]


def _keep_what_is_needed(
    graph: Any, nodes: list[Any], constants: list[Any], outputs: set[str]
) -> None:
    """Put the nodes and constants that the outputs depend on into the graph, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            kept.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensor for tensor in constants if tensor.name in needed)
    for node in graph.node:  # notes of exporters, some with paths of the machine
        node.doc_string = ""
        del node.metadata_props[:]


def _reads(node: Any) -> set[str]:
    """What a node and its inner graphs read."""
    reads = set(node.input)
    for inner in _inner_graphs(node):
        for child in inner.node:
            reads |= _reads(child)
    return reads


def stage_widths(onnx_file: bytes) -> list[int]:
    """How many features each stage of an assembled backbone of several stages has, in order."""
    import onnx

    tensors = onnx.load_from_string(onnx_file).graph.initializer
    found = [(_UNIT.fullmatch(tensor.name), tensor.dims) for tensor in tensors]
    return [dims[0] for _, dims in sorted((int(name[1]), dims) for name, dims in found if name)]
