"""A backbone: a network, the preprocessing that belongs to it, and a hash of both.

    image -> preprocessing -> (V, h, w, 3) uint8 -> network -> mean over V views -> (D,) float32

Two features may be compared only when they come from backbones with equal fingerprints.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad import efficientnet
from nnad.cores import int8_overflows
from nnad.errors import BackboneError, InputError
from nnad.onnx_graph import check_pooling
from nnad.preprocessing import RESIZER, Preprocessing, read_mask

Features = NDArray[np.float32]
Run = Callable[[NDArray[np.uint8]], Any]  # RGB bytes (B, h, w, 3) -> features (B, D)
KINDS = "onnx:FILE, torchvision:NAME, timm:NAME"
_PLUS = re.compile(r"\+(?=efficientnet-lite|onnx:|torchvision:|timm:)")
_CUDA = re.compile(r"cuda(:\d+)?")


class Backbone:
    """An ONNX network that takes RGB bytes (B, h, w, 3) and returns features (B, D) float32.

    Calls may come from many threads at once: each runs on the calling thread alone, one image at a
    time, so a feature never depends on which images shared its batch.

    Args:
        name: what it is called in a model and in errors.
        preprocessing: what makes its input.
        onnx: the network, an ONNX file's bytes.
        details: what `nnad info` tells of it beside: stages, pooling, weights.
        reference: the same function in torch, if the network was exported from there.
        device: `cpu`, or `cuda` or `cuda:1` with onnxruntime-gpu; not part of the fingerprint.
    """

    def __init__(
        self,
        name: str,
        preprocessing: Preprocessing,
        onnx: bytes,
        *,
        details: Mapping[str, str] | None = None,
        reference: Run | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.onnx = onnx
        self.details = dict(details or {})
        self.reference = reference
        self.device = check_device(device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.preprocessing})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the network's bytes and the preprocessing, in hex."""
        preprocessing = json.dumps([self.preprocessing.settings(), RESIZER], sort_keys=True)
        return hashlib.sha256(preprocessing.encode() + b"\0" + self.onnx).hexdigest()

    def settings(self) -> dict[str, Any]:
        """All but the network itself, as JSON, for a saved model."""
        return {
            "kind": "onnx",
            "name": self.name,
            "preprocessing": self.preprocessing.settings(),
            "details": self.details,
            "fingerprint": self.fingerprint,
        }

    @property
    def networks(self) -> list[bytes]:
        """The ONNX files that a saved model needs."""
        return [self.onnx]

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise a `BackboneError` unless this is the backbone of a saved model."""
        if self.fingerprint != settings["fingerprint"]:
            raise BackboneError(f"backbone {self.name!r} is not the one the model was made with")

    def describe(self) -> list[tuple[str, str]]:
        """What it is made of, as lines for `nnad info`: (what, text)."""
        details = "".join(f", {key} {value}" for key, value in self.details.items())
        return [
            ("network", f"{self.name}{details}"),
            ("preprocessing", str(self.preprocessing)),
        ]

    @cached_property
    def _session(self) -> Any:
        return start_session(self.onnx, self.name, self.device)

    @cached_property
    def gives_maps(self) -> bool:
        """Whether it was loaded with the pooling `map`: it has `maps`, and no features."""
        return bool(self._session.get_outputs()[0].name != "features")

    @cached_property
    def dim(self) -> int:
        """D, the length of a feature."""
        if self.gives_maps:
            raise BackboneError(f"backbone {self.name!r}: gives maps; a feature needs a pooling")
        return int(self._session.get_outputs()[0].shape[1])

    def maps(
        self, image: Image.Image, preprocessing: Preprocessing | None = None
    ) -> list[Features]:
        """The maps (H, W, C) of an RGB image, one a stage; only with the pooling `map`.

        Args:
            image: of any size.
            preprocessing: another than the backbone's own, such as for a part of an image.
        """
        views = (preprocessing or self.preprocessing)(image)  # (V, h, w, 3)
        if not self.gives_maps:
            raise BackboneError(f"backbone {self.name!r}: load it with pooling='map'")
        if len(views) > 1:
            raise InputError("flips: maps are of one view; leave flips at none")
        return [stage[0] for stage in self.outputs(views[0])]

    def features(self, batch: NDArray[np.uint8]) -> Features:
        """Preprocessed images (B, h, w, 3) -> (B, D)."""
        self.dim  # noqa: B018 (says so if there are none)
        return np.concatenate([self.outputs(image)[0] for image in batch])

    def outputs(self, pixels: NDArray[np.uint8]) -> list[Features]:
        """One preprocessed image (h, w, 3) -> features (1, D), or maps (1, H, W, C)."""
        found: list[Features] = self._session.run(None, {"image": pixels[None]})
        return found

    def embed(self, image: Image.Image) -> Features:
        """Feature (D,) of an RGB image."""
        views = self.preprocessing(image)  # (V, h, w, 3)
        return np.asarray(self.features(views).mean(axis=0))

    @property
    def exported(self) -> bool:
        """Whether the network was exported from torch in this process."""
        return self.reference is not None

    def embed_reference(self, image: Image.Image) -> Features:
        """Feature (D,) of an RGB image by the torch network; only if `exported`."""
        assert self.reference is not None  # noqa: S101 (the caller's part)
        return np.asarray(self.reference(self.preprocessing(image)).mean(axis=0))


def check_device(device: str) -> str:
    """Raise an `InputError` unless `device` is `cpu`, `cuda` or `cuda:N`."""
    if not isinstance(device, str) or not (device == "cpu" or _CUDA.fullmatch(device)):
        raise InputError(f"device={device!r}; choose cpu, cuda or, for the second GPU, cuda:1")
    return device


def provider_of(device: str) -> str:
    """What ONNX Runtime calls a device; a `BackboneError` if it is not built for it."""
    import onnxruntime

    if device == "cpu":
        return "CPUExecutionProvider"
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise BackboneError(
            f"device={device!r}: this onnxruntime is built for the CPU; for an NVIDIA GPU: "
            f"pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return provider


def start_session(onnx: bytes, name: str, device: str = "cpu") -> Any:
    """An ONNX Runtime session of one thread on that device, or a `BackboneError`."""
    import onnxruntime

    provider = provider_of(device)
    if device != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA from pip packages, such as torch's
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if int8_overflows():  # then multiply in a slower way
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        if device == "cpu":
            return onnxruntime.InferenceSession(onnx, options, providers=[provider])
        told = {"device_id": device.partition(":")[2] or "0", "use_tf32": "0"}
        session = onnxruntime.InferenceSession(onnx, options, providers=[(provider, told)])
    except Exception as error:  # onnxruntime's own exception types are not public
        raise BackboneError(f"backbone {name!r}: cannot run the network: {error}") from error
    if session.get_providers()[0] != provider:  # onnxruntime would go on, silently, on the CPU
        raise BackboneError(
            f"device={device!r}: onnxruntime cannot use the GPU; it needs an NVIDIA driver and the "
            f"CUDA and cuDNN of its version: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def load_backbone(
    name: str | os.PathLike[str] | Run = "efficientnet-lite0",
    *,
    size: int | None = None,
    geometry: str | None = None,
    flips: str | None = None,
    interpolation: str | None = None,
    region: Sequence[float] | None = None,
    mask: str | os.PathLike[str] | NDArray[Any] | None = None,
    stages: Sequence[str] | None = None,
    pooling: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    declared: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Backbone:
    """A backbone by name, from a file, or from a function. See docs/backbones.md.

    Args:
        name: `efficientnet-lite0` (the default, 224 px), `efficientnet-lite1` (240 px) or
            `efficientnet-lite2` (260 px), the last two from pip packages of their own;
            `onnx:FILE`, also a path that ends in `.onnx`; `torchvision:NAME` or `timm:NAME`, which
            need the extra `torch`; several joined by `+`, an ensemble; or a function, see
            `CallableBackbone`.
        size, geometry, flips, interpolation, region: see `Preprocessing`; by default what the
            network was trained with, the geometry `crop`, no flips.
        mask: a picture or an array (H, W) that is white where the image counts.
        stages: which maps or vectors of the network make the feature, in this order, by default
            its last, `head`. Several are each scaled to length 1.
        pooling: how a map becomes a vector: `mean`, `max`, `gem`, or `cls` for a ViT's class token;
            with `map` it stays one, see `Backbone.maps`.
        weights: for torchvision and timm: a checkpoint file, `random` (seeded, for tests), or a
            name of torchvision's such as `IMAGENET1K_V2`; by default the library's own, downloaded.
        declared: for `onnx:FILE`: what its sidecar would say, see `nnad.onnx_file`.
        device: `cpu`, or `cuda` or `cuda:1`.

    Raises:
        BackboneError: unknown, not installed, unreadable, or not the same after export.
        InputError: another argument is wrong.
    """
    check_device(device)
    check_pooling(pooling)
    changes: dict[str, Any] = {
        "size": size,
        "geometry": geometry,
        "flips": flips,
        "interpolation": interpolation,
        "region": None if region is None else tuple(region),
        "mask": None if mask is None else read_mask(mask),
    }
    if callable(name):
        from nnad.callable_backbone import CallableBackbone

        given = stages, pooling, weights, declared
        if device != "cpu" or any(value is not None for value in given):
            raise InputError("a callable chooses its stages, pooling, weights and device itself")
        return CallableBackbone(name, **{k: v for k, v in changes.items() if v is not None})
    name = os.fspath(name)
    parts = _PLUS.split(name)
    if len(parts) > 1:
        from nnad.ensemble import Ensemble

        chosen = {"stages": stages, "pooling": pooling, "weights": weights, "declared": declared}
        rest: dict[str, Any] = {**changes, **chosen, "mask": mask, "device": device}
        return Ensemble([load_backbone(part, **rest) for part in parts])
    kind, _, place = name.partition(":")
    if declared is not None and kind != "onnx" and not name.endswith(".onnx"):
        raise InputError(f"declared: goes with onnx:FILE; {name} knows its own preprocessing")
    if weights is not None and kind not in ("torchvision", "timm"):
        raise InputError(f"weights: goes with torchvision:NAME and timm:NAME; {name} has its own")
    if name in efficientnet.VARIANTS:
        preprocessing = Preprocessing(efficientnet.VARIANTS[name].image_size).changed(**changes)
        chosen_stages = ("head",) if stages is None else stages
        onnx = efficientnet.load_onnx(name, chosen_stages, pooling)
        details = {"stages": " ".join(chosen_stages), "pooling": pooling or "mean"}
        return Backbone(name, preprocessing, onnx, details=details, device=device)
    if kind == "onnx" or name.endswith(".onnx"):
        from nnad.onnx_file import load_file

        path = place if kind == "onnx" else name
        return load_file(path, declared, changes, stages, pooling, device)
    if kind in ("torchvision", "timm"):
        try:
            from nnad.torch_networks import load_torch
        except ImportError as error:
            raise BackboneError(
                f"backbone {name!r} needs {error.name}: pip install 'nnad[torch]'"
            ) from error
        return load_torch(kind, place, changes, stages, pooling, weights, device)
    known = ", ".join(efficientnet.VARIANTS)
    raise BackboneError(f"backbone {name!r} is unknown; there are: {known}, {KINDS}")


def from_settings(
    settings: dict[str, Any], networks: Sequence[bytes], device: str = "cpu"
) -> Backbone:
    """The backbone of a saved model; one whose fingerprint differs is refused."""
    networks = list(networks)
    match settings["kind"]:
        case "onnx":
            (onnx,) = networks
            backbone = Backbone(
                settings["name"],
                Preprocessing.from_settings(settings["preprocessing"]),
                onnx,
                details=settings["details"],
                device=device,
            )
        case "ensemble":
            from nnad.ensemble import Ensemble

            members = settings["members"]
            for member in members:
                if member["kind"] == "callable":
                    raise _needed_again(member["name"], "Ensemble([...])")
            backbone = Ensemble(
                [
                    from_settings(member, [network], device)
                    for member, network in zip(members, networks, strict=True)
                ]
            )
        case "callable":
            raise _needed_again(settings["name"], "CallableBackbone(...)")
        case kind:
            raise InputError(f"a backbone of kind {kind!r} is unknown")
    backbone.check_same(settings)
    return backbone


def _needed_again(name: str, what: str) -> BackboneError:
    return BackboneError(
        f"the model was made with the callable {name!r}, which no file can hold: pass it again, "
        f"Detector.load(path, backbone={what})"
    )
