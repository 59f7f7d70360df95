"""`onnx:FILE`: any ONNX network whose input is one image, and a sidecar that says how to feed it.

The sidecar of `net.onnx` is `net.onnx.json`:

| key             | meaning                                                | default             |
|-----------------|--------------------------------------------------------|---------------------|
| `mean`, `std`   | three numbers each, in the order red, green, blue      | required            |
| `scale`         | 1 or 255: whether mean and std belong to pixels 0..1   | required            |
|                 | or 0..255                                              |                     |
| `size`          | side of the input in pixels                            | the file's own      |
| `layout`        | `nchw` or `nhwc`, of input and four-dimensional stages | the file's own      |
| `colours`       | `rgb` or `bgr`, as the network takes them              | `rgb`               |
| `interpolation` | `bilinear`, `bicubic` or `lanczos`                     | `bicubic`           |
| `geometry`      | `crop`, `whole` or `letterbox`                         | `crop`              |
| `crop_fraction` | the share of the side that `crop` keeps                | 0.875, 224 of 256   |
| `outputs`       | names of the tensors that make the feature             | the file's only one |
| `prefix_tokens` | tokens of a (B, T, C) tensor that stand for no place   | 1, the class token  |
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnad.backbones import Backbone, start_session
from nnad.errors import BackboneError, InputError, first_line
from nnad.images import warn
from nnad.onnx_graph import Shape, assemble, check_stages, network_input
from nnad.preprocessing import Preprocessing
from nnad.probes import probe_images

ADAPTED = "nnad/adapted"  # metadata of a file that `nnad adapt` wrote: how


def sidecar(path: Path) -> Path:
    """The sidecar's place."""
    return Path(f"{path}.json")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_colour(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(map(_is_text, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {  # whether a value will do, and what will
    "mean": (_is_colour, "three numbers"),
    "std": (_is_colour, "three numbers"),
    "scale": (lambda value: _is_number(value) and value in (1, 255), "1 or 255"),
    "size": (_is_count, "a number of pixels"),
    "layout": (_is_text, "nchw or nhwc"),
    "colours": (_is_text, "a name"),
    "interpolation": (_is_text, "a name"),
    "geometry": (_is_text, "a name"),
    "crop_fraction": (_is_number, "a number"),
    "outputs": (_are_names, "a list of names of tensors"),
    "prefix_tokens": (_is_count, "a whole number, 0 or more"),
}


def load_file(
    path: str,
    declared: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
    stages: Sequence[str] | None,
    pooling: str | None,
    device: str,
) -> Backbone:
    """A backbone from an ONNX file; the arguments are those of `load_backbone`.

    Raises:
        BackboneError: the file or its sidecar is missing, damaged, or does not say enough.
    """
    network = _read(path)
    source = network_input(network)
    names = [output.name for output in network.graph.output]
    dims = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
    told = _declaration(path, declared, names)
    layout = _layout(path, dims, told)
    if dims[0] > 1:
        raise BackboneError(f"{path}: takes {dims[0]} images at a time; export it for one, or any")
    side = dims[2 if layout == "nchw" else 1]
    preprocessing = _preprocessing(path, told, side).changed(**changes)
    if side and preprocessing.size != side:
        raise InputError(f"size={preprocessing.size}: {path} takes {side} pixels and nothing else")

    outputs = told.get("outputs", names)
    if stages is None and len(outputs) != 1 and "outputs" not in told:
        raise BackboneError(f"{path}: has outputs {', '.join(names)}: choose by stages or outputs")
    stages = tuple(outputs if stages is None else stages)
    known = [name for node in network.graph.node for name in node.output]
    check_stages(path, stages, known)
    shapes = _shapes(path, network, stages, layout, preprocessing.size)
    onnx = assemble(
        network,
        preprocessing,
        shapes,
        pooling=pooling,
        layout=layout,
        stage_layout=layout,
        prefix_tokens=told.get("prefix_tokens", 1),
    )
    details = {"stages": " ".join(stages), "pooling": pooling or "its own"}
    told_of = {prop.key: prop.value for prop in network.metadata_props}
    if ADAPTED in told_of:
        details["adapted"] = told_of[ADAPTED]
        warn(
            f"{path}: this network was adapted to good images; fit on others, or the false-alarm "
            f"budget does not hold (docs/adaptation.md)"
        )
    name = f"onnx:{Path(path).name}"
    backbone = Backbone(name, preprocessing, onnx, details=details, device=device)
    found = [x for probe in probe_images(preprocessing.size) for x in backbone.outputs(probe)]
    if not all(np.isfinite(x).all() for x in found):
        raise BackboneError(f"{path}: gives features that are not finite")
    return backbone


def _read(path: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        network = onnx.load(path)  # with its external data, from the same folder
        onnx.checker.check_model(network)
    except OSError as error:
        raise BackboneError(f"{path}: cannot read the network: {error.strerror}") from error
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise BackboneError(f"{path}: not an ONNX network: {first_line(error)}") from error
    types = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    tensor = network_input(network).type.tensor_type
    if tensor.elem_type not in types or len(tensor.shape.dim) != 4:
        raise BackboneError(f"{path}: its input is not a batch of images of floats (B, 3, H, W)")
    return network


def _declaration(
    path: str, declared: Mapping[str, Any] | None, outputs: list[str]
) -> Mapping[str, Any]:
    beside = sidecar(Path(path))
    where = "declared" if declared is not None else str(beside)
    if declared is None:
        if not beside.is_file():
            raise BackboneError(_missing(path, outputs))
        try:
            declared = json.loads(beside.read_bytes())
        except (OSError, ValueError) as error:
            raise BackboneError(f"{beside}: cannot be read as JSON: {error}") from error
    if not isinstance(declared, Mapping):
        raise BackboneError(f"{where}: expected an object with the keys {', '.join(sorted(_KEYS))}")
    if unknown := sorted(set(declared).difference(_KEYS)):
        there = ", ".join(sorted(_KEYS))
        raise BackboneError(f"{where}: {unknown[0]!r} has no meaning; there are: {there}")
    if missing := {"mean", "std", "scale"}.difference(declared):
        raise BackboneError(f"{where}: lacks {', '.join(sorted(missing))}")
    for key, value in declared.items():
        fits, expected = _KEYS[key]
        if not fits(value):
            raise BackboneError(f"{where}: {key}={value!r}; expected {expected}")
    return declared


def _missing(path: str, outputs: list[str]) -> str:
    example = {
        "size": 224,
        "geometry": "crop",
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": 1,
        "colours": "rgb",
        "layout": "nchw",
        "outputs": outputs[:1],
    }
    return (
        f"{path}: nobody has said how pictures are prepared for this network; write {path}.json, "
        f"for networks in the way of torchvision: {json.dumps(example)}"
    )


def _layout(path: str, dims: list[int], told: Mapping[str, Any]) -> str:
    found = {(True, False): "nchw", (False, True): "nhwc"}.get((dims[1] == 3, dims[3] == 3))
    layout = told.get("layout", found)
    if layout not in ("nchw", "nhwc"):
        raise BackboneError(f"{path}: layout={layout!r}; say nchw or nhwc in the sidecar")
    if found is not None and layout != found:
        raise BackboneError(f"{path}: its input is {found}, and the sidecar says {layout}")
    return str(layout)


def _preprocessing(path: str, told: Mapping[str, Any], side: int) -> Preprocessing:
    scale = 255 / told["scale"]
    if not (size := told.get("size", side)):
        raise BackboneError(f"{path}: takes images of any size; say in the sidecar which")
    plain = ("geometry", "interpolation", "crop_fraction", "colours")
    try:
        mean, std = (tuple(scale * v for v in told[key]) for key in ("mean", "std"))
        rest = {key: told[key] for key in plain if key in told}
        return Preprocessing(size, mean=mean, std=std, **rest)
    except (InputError, OverflowError) as error:
        raise BackboneError(f"{path}: its sidecar is wrong: {error}") from error


def _shapes(
    path: str, network: Any, stages: Sequence[str], layout: str, size: int
) -> dict[str, Shape]:
    """The shapes of the stages, found by running the network once."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(network)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in stages)
    source = network_input(network)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    shape = (1, 3, size, size) if layout == "nchw" else (1, size, size, 3)
    session = start_session(probe.SerializeToString(), path)
    try:
        found = session.run(list(stages), {source.name: np.zeros(shape, dtype)})
    except Exception as error:  # onnxruntime's own exception types are not public
        raise BackboneError(
            f"{path}: cannot run on a {size} x {size} image: {first_line(error)}"
        ) from error
    return {name: array.shape for name, array in zip(stages, found, strict=True)}
