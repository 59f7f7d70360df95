"""An adapted network as an ONNX file with its sidecar, a backbone like any other (`onnx:FILE`)."""

import json
from pathlib import Path
from typing import Any

import torch

from nnad import efficientnet
from nnad.adaptation.efficientnet_torch import EfficientNetLite
from nnad.adaptation.networks import Network
from nnad.backbones import Backbone
from nnad.errors import BackboneError, InputError
from nnad.files import replacing
from nnad.onnx_file import ADAPTED, sidecar
from nnad.onnx_graph import assemble
from nnad.probes import largest_difference, probe_images
from nnad.torch_export import TOLERANCE, Stages, to_onnx


def checkpoint_of(out: Path) -> Path:
    """Where an adaptation to be saved as `out` keeps what it has, while it runs."""
    return Path(f"{out}.checkpoint")


def check_output(out: Path, *, overwrite: bool = False, checkpoint: Path | None = None) -> None:
    """Raise an `InputError` unless an adapted network can be written there.

    A file may be there without `overwrite` if the checkpoint is, too: then a run was killed while
    it saved its network, and is to end.
    """
    if out.suffix != ".onnx":
        raise InputError(f"{out}: an adapted network is an ONNX file; end its name in .onnx")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file")
    if overwrite or (checkpoint or checkpoint_of(out)).exists():
        return
    for path in (out, sidecar(out)):
        if path.exists():
            raise InputError(f"{path}: there is a file already; choose another name or --overwrite")


def save_network(network: Network, out: Path, told: str) -> None:
    """Write the network and its sidecar; the embedded ones with the stages they always had.

    Args:
        network: as it is now.
        out: `FILE.onnx`; the sidecar is `FILE.onnx.json`.
        told: how it was adapted, kept in the file and shown by `nnad info`.

    Raises:
        BackboneError: ONNX gives features that differ from torch's by more than 1e-4 of their
            length; nothing is written.
        InputError: it cannot be written there.
    """
    proto = as_onnx(network)
    proto.metadata_props.add(key=ADAPTED, value=told)
    inside = network.preprocessing
    declared = {
        "size": inside.size,
        "geometry": inside.geometry,
        "crop_fraction": inside.crop_fraction,
        "interpolation": inside.interpolation,
        "mean": inside.mean,
        "std": inside.std,
        "scale": 255,
        "colours": inside.colours,
        "layout": "nchw",
        "outputs": ["head"],
    }
    try:
        out.unlink(missing_ok=True)  # an old network must not stand beside the new sidecar
        with replacing(sidecar(out)) as file:
            file.write(json.dumps(declared, indent=1).encode() + b"\n")
        with replacing(out) as file:
            file.write(proto.SerializeToString(deterministic=True))
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error


def as_onnx(network: Network) -> Any:
    """The network as an `onnx.ModelProto`: normalised images (B, 3, H, W) -> `head`."""
    probes = probe_images(network.preprocessing.size)
    inputs = network.normalised(probes)
    if isinstance(network.module, EfficientNetLite):
        arrays = {name: t.numpy() for name, t in network.module.state_dict().items()}
        proto = efficientnet.build_network(network.name, arrays)
        shape: tuple[int, ...] = (1, len(arrays["_bn1.weight"]), 1, 1)
    else:
        staged = Stages(network.module, ["head"]).eval()
        proto = to_onnx(staged, inputs, network.name, ["head"])
    with torch.no_grad():
        expected = network.module(inputs).flatten(1).numpy()
    if not isinstance(network.module, EfficientNetLite):
        shape = expected.shape
    onnx = assemble(proto, network.preprocessing, {"head": shape})
    found = Backbone(network.name, network.preprocessing, onnx).features(probes)
    difference = largest_difference(found, expected)
    if not difference <= TOLERANCE:
        raise BackboneError(
            f"backbone {network.name!r}: after export to ONNX its features differ by "
            f"{difference:.2g} of their length, more than {TOLERANCE:g}"
        )
    return proto
