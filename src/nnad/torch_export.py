"""A torch network of normalised images, exported to ONNX and compared with torch.

The export replaces the torch network from the first image on, so that fitting, scoring and the
saved model use the same numbers. It is compared with torch on three probe images, one by one and
all at once, and refused if a feature differs by more than 1e-4 of its length.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import load_from_string
from torch import Tensor, nn

from nnad.backbones import Backbone, start_session
from nnad.errors import BackboneError, InputError, first_line
from nnad.onnx_graph import GEM_POWER, GEM_SMALLEST, assemble
from nnad.preprocessing import Preprocessing
from nnad.probes import largest_difference, probe_images

TOLERANCE = 1e-4  # largest difference of a feature between torch and ONNX, by its length


def export(
    network: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    stages: Sequence[str] = ("head",),
    pooling: str | None = None,
    details: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Backbone:
    """Export a torch network of normalised images (B, 3, H, W), and check the export.

    Args:
        network: its output is the stage `head`, its modules are the other stages.
        name, preprocessing, details, device: see `Backbone`.
        stages, pooling: see `load_backbone`.

    Raises:
        BackboneError: it cannot be exported, or ONNX gives other features.
    """
    staged = Stages(network, stages).eval()
    prefix_tokens = int(getattr(network, "num_prefix_tokens", 1))
    stage_layout = str(getattr(network, "output_fmt", "nchw")).lower()
    probes = probe_images(preprocessing.size)
    inputs = normalised(probes, preprocessing)
    try:
        with torch.no_grad():
            shapes = [tuple(found.shape) for found in staged(inputs)]
    except Exception as error:  # whatever a network makes of a size that it does not know
        raise BackboneError(
            f"backbone {name!r}: cannot run on a {preprocessing.size} x {preprocessing.size} "
            f"image: {first_line(error)}"
        ) from error
    proto = to_onnx(staged, inputs, name, stages)
    if len({output.name for output in proto.graph.output}) != len(stages):
        raise BackboneError(f"backbone {name!r}: two of the stages {' '.join(stages)} are the same")
    assembled = partial(
        assemble,
        proto,
        preprocessing,
        dict(zip(stages, shapes, strict=True)),
        stage_layout=stage_layout,
        prefix_tokens=prefix_tokens,
    )
    maps = assembled(pooling="map") if pooling == "map" else None
    pooling = None if pooling == "map" else pooling  # maps are compared with torch as vectors
    onnx = assembled(pooling=pooling)

    def reference(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB bytes (B, h, w, 3) -> features (B, D), by torch alone."""
        with torch.no_grad():
            found = staged(normalised(batch, preprocessing))
            vectors = [_pool(x, pooling, stage_layout, prefix_tokens) for x in found]
            if len(vectors) > 1:
                vectors = [nn.functional.normalize(x) for x in vectors]
            return torch.cat(vectors, dim=1).numpy()

    _check(onnx, name, probes, reference(probes))
    if maps is not None:
        return Backbone(name, preprocessing, maps, details=details, device=device)
    return Backbone(name, preprocessing, onnx, details=details, reference=reference, device=device)


def _check(
    onnx: bytes, name: str, probes: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    session = start_session(onnx, name)
    together = session.run(None, {"image": probes})[0]
    alone = np.concatenate([session.run(None, {"image": probe[None]})[0] for probe in probes])
    difference = max(largest_difference(found, expected) for found in (together, alone))
    if not difference <= TOLERANCE:
        raise BackboneError(
            f"backbone {name!r}: after export to ONNX its features differ by {difference:.2g} of "
            f"their length, more than {TOLERANCE:g}; use it as a callable (docs/backbones.md)"
        )


class Stages(nn.Module):
    """A network that returns the outputs of some of its modules."""

    def __init__(self, network: nn.Module, stages: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._stages = stages
        self._found: dict[str, Tensor] = {}
        for stage in stages:
            if stage != "head":
                network.get_submodule(stage).register_forward_hook(self._keeper(stage))

    def _keeper(self, stage: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"stage {stage!r}: gives no tensor; name another module")
            self._found[stage] = output

        return keep

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) -> one tensor a stage."""
        self._found["head"] = self.network(x)
        found = tuple(self._found[stage] for stage in self._stages)
        self._found.clear()
        return found


def normalised(batch: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w)."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((torch.tensor(batch).float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def _pool(x: Tensor, pooling: str | None, layout: str, prefix_tokens: int) -> Tensor:
    """A stage -> (B, C), as `onnx_graph.assemble` does it."""
    if x.dim() == 2:
        return x
    if x.dim() == 3:
        if pooling == "cls" or (pooling is None and prefix_tokens):
            return x[:, 0]
        places = x[:, prefix_tokens:]  # (B, T, C)
    else:
        places = x.flatten(2).transpose(1, 2) if layout == "nchw" else x.flatten(1, 2)
    if pooling == "max":
        return places.amax(dim=1)
    if pooling == "gem":
        return places.clamp(min=GEM_SMALLEST).pow(GEM_POWER).mean(dim=1).pow(1 / GEM_POWER)
    return places.mean(dim=1)


def to_onnx(network: nn.Module, inputs: Tensor, name: str, outputs: Sequence[str]) -> Any:
    """The network as an `onnx.ModelProto`, for any number of images at once.

    Without onnxscript torch's older exporter is used, which needs nothing.
    """
    arguments: dict[str, Any] = {"output_names": list(outputs), "verbose": False}
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            if find_spec("onnxscript") is not None:
                shapes = {"x": {0: torch.export.Dim("batch")}}
                program = torch.onnx.export(
                    network, (inputs,), dynamo=True, dynamic_shapes=shapes, **arguments
                )
                assert program is not None  # noqa: S101 (None is returned by the old exporter only)
                return program.model_proto
            axes = {key: {0: "batch"} for key in ("x", *outputs)}
            file: Any = io.BytesIO()
            torch.onnx.export(
                network,
                (inputs,),
                file,
                dynamo=False,
                input_names=["x"],
                dynamic_axes=axes,
                **arguments,
            )
            return load_from_string(file.getvalue())
    except Exception as error:  # torch.onnx raises many types
        raise BackboneError(
            f"backbone {name!r}: torch cannot export it to ONNX ({first_line(error)}); use it as "
            f"a callable (docs/backbones.md)"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries tell of their own future."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
