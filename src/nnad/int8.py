"""An int8 copy of a backbone: smaller, faster on processors with VNNI or similar, not quite equal.

Static post-training quantisation (Jacob et al., CVPR 2018, section 3): unsigned 8-bit activations
with one scale a tensor, signed 8-bit weights with one scale an output channel. The scales of the
activations come from the smallest and largest values on good images, as a moving average over the
images; so the copy belongs to them. The first six convolutions stay float, as they lose most, and
so do the normalisation of the bytes and the pooling at the end.

Its features are others than those of the float network, and its fingerprint says so: banks of the
two never mix.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone
from nnad.ensemble import Ensemble
from nnad.errors import BackboneError, InputError

PRECISIONS = ("float32", "int8")
CALIBRATION_IMAGES = 100
_FLOAT_CONVOLUTIONS = 6  # why: docs/decisions.md
_QUANTIZED = ["Conv", "Clip", "Relu", "Add", "MaxPool"]
_AGREEMENT = 0.97  # median cosine with the float features below which the copy is refused


def quantized(backbone: Backbone, images: Iterable[Image.Image]) -> Backbone:
    """An int8 copy of a convolutional backbone, or of each member of an ensemble.

    The same images give the same copy.

    Args:
        backbone: one with an ONNX network.
        images: RGB, the good images to calibrate on; 20 to 100 are enough.

    Raises:
        InputError: there is no image.
        BackboneError: it is no ONNX network, has fewer than seven convolutions, or its int8
            features are too far from the float ones.
    """
    members = backbone.members if isinstance(backbone, Ensemble) else (backbone,)
    for member in members:
        if not member.onnx:
            raise BackboneError(f"backbone {member.name!r} is no ONNX network; use float32")
    seen = [[member.preprocessing(image) for member in members] for image in images]
    inputs = zip(*seen, strict=True)  # of each member: (V, h, w, 3) of each image
    copies = [_quantized(member, list(each)) for member, each in zip(members, inputs, strict=False)]
    if not copies:
        raise InputError("int8: there is no readable good image to calibrate on")
    return Ensemble(copies) if len(members) > 1 else copies[0]


def is_int8(backbone: Backbone) -> bool:
    """Whether a backbone, or a member of an ensemble, is such a copy."""
    members = backbone.members if isinstance(backbone, Ensemble) else (backbone,)
    return any(member.details.get("precision") == "int8" for member in members)


def _quantized(backbone: Backbone, inputs: list[NDArray[np.uint8]]) -> Backbone:
    try:
        network = _quantize(backbone.onnx, inputs)
        copy = Backbone(
            f"{backbone.name}-int8",
            backbone.preprocessing,
            network,
            details={**backbone.details, "precision": "int8"},
            device=backbone.device,
        )
        agreement = _agreement(backbone, copy, inputs)
    except Exception as error:  # onnx and onnxruntime raise many types on what they do not know
        raise BackboneError(
            f"backbone {backbone.name!r} cannot be made int8, use float32: {error}"
        ) from error
    if agreement < _AGREEMENT:
        raise BackboneError(
            f"backbone {backbone.name!r}: its int8 features are too far from the float ones "
            f"(median cosine {agreement:.3f}); use float32"
        )
    return copy


def _quantize(network: bytes, inputs: list[NDArray[np.uint8]]) -> bytes:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self._views = iter([{name: view[None]} for views in inputs for view in views])

        def get_next(self) -> Any:
            return next(self._views, None)

    with tempfile.TemporaryDirectory(prefix="nnad-") as folder:
        prepared, done = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(onnx.load_from_string(network), prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        for i, node in enumerate(model.graph.node):
            node.name = node.name or f"node_{i}"
        quantize_static(
            model,
            done,
            Reader(model.graph.input[0].name),
            op_types_to_quantize=_QUANTIZED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
            nodes_to_exclude=_float_nodes(model.graph.node),
        )
        return done.read_bytes()


def _float_nodes(nodes: Any) -> list[str]:
    """Names of the nodes before the first convolution that is quantised."""
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    if len(convolutions) <= _FLOAT_CONVOLUTIONS:
        raise BackboneError(f"it has {len(convolutions)} convolutions, too few")
    return [node.name for node in nodes[: convolutions[_FLOAT_CONVOLUTIONS]]]


def _agreement(backbone: Backbone, copy: Backbone, inputs: list[NDArray[np.uint8]]) -> float:
    """Median cosine of float and int8 features of some of the images."""
    cosines = []
    for views in inputs[:10]:
        a, b = (network.features(views).mean(axis=0) for network in (backbone, copy))
        cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return float(np.median(cosines))
