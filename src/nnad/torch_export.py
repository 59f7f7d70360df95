"""`torchvision:NAME` and `timm:NAME`: torch networks, exported to ONNX when they are loaded.

The exported network replaces the torch one from the first image on, so that fitting, scoring and
the saved model use the same numbers. It is compared with torch on three probe images, one by one
and all at once, and refused if a feature differs by more than 1e-4 of its length.
"""

import contextlib
import difflib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnad.backbones import Backbone, start_session
from nnad.checkpoints import check_names, read_checkpoint, without_prefixes
from nnad.errors import BackboneError, InputError, first_line
from nnad.onnx_graph import GEM_POWER, GEM_SMALLEST, assemble, check_stages
from nnad.preprocessing import Preprocessing
from nnad.probes import largest_difference, probe_images

TOLERANCE = 1e-4  # largest difference of a feature between torch and ONNX, by its length
_SEED = 0  # of random weights


def load_torch(
    kind: str,
    name: str,
    changes: Mapping[str, Any],
    stages: Sequence[str] | None,
    pooling: str | None,
    weights: Any,
    device: str,
) -> Backbone:
    """A torch network as a backbone; the arguments are those of `load_backbone`.

    Stages are the names of the network's modules, such as `layer2`, and `head`, the vector that
    goes into its classifier.

    Raises:
        BackboneError: the network or its weights cannot be had, or ONNX gives other features.
        InputError: it has no such stage, or takes no such size.
    """
    full_name = f"{kind}:{name}"
    make = {"torchvision": _from_torchvision, "timm": _from_timm}[kind]
    with _quiet(), _seeded():
        network, preprocessing, told = make(name, changes.get("size"), weights)
    preprocessing = preprocessing.changed(**changes)
    stages = ("head",) if stages is None else tuple(stages)
    known = ["head", *(module for module, _ in network.named_modules() if module)]
    check_stages(full_name, stages, known)
    details = {"stages": " ".join(stages), "pooling": pooling or "its own", "weights": told}
    return export(network, full_name, preprocessing, stages, pooling, details, device)


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
    staged = _Stages(network, stages).eval()
    prefix_tokens = int(getattr(network, "num_prefix_tokens", 1))
    stage_layout = str(getattr(network, "output_fmt", "nchw")).lower()
    probes = probe_images(preprocessing.size)
    inputs = _normalised(probes, preprocessing)
    try:
        with torch.no_grad():
            shapes = [tuple(found.shape) for found in staged(inputs)]
    except Exception as error:  # whatever a network makes of a size that it does not know
        raise BackboneError(
            f"backbone {name!r}: cannot run on a {preprocessing.size} x {preprocessing.size} "
            f"image: {first_line(error)}"
        ) from error
    proto = _export(staged, inputs, name, stages)
    if len({output.name for output in proto.graph.output}) != len(stages):
        raise BackboneError(f"backbone {name!r}: two of the stages {' '.join(stages)} are the same")
    onnx = assemble(
        proto,
        preprocessing,
        dict(zip(stages, shapes, strict=True)),
        pooling=pooling,
        stage_layout=stage_layout,
        prefix_tokens=prefix_tokens,
    )

    def reference(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB bytes (B, h, w, 3) -> features (B, D), by torch alone."""
        with torch.no_grad():
            found = staged(_normalised(batch, preprocessing))
            vectors = [_pool(x, pooling, stage_layout, prefix_tokens) for x in found]
            if len(vectors) > 1:
                vectors = [nn.functional.normalize(x) for x in vectors]
            return torch.cat(vectors, dim=1).numpy()

    _check(onnx, name, probes, reference(probes))
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


class _Stages(nn.Module):
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # (B, 3, H, W)
        self._found["head"] = self.network(x)
        found = tuple(self._found[stage] for stage in self._stages)
        self._found.clear()
        return found


def _normalised(batch: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
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


def _export(network: nn.Module, inputs: Tensor, name: str, stages: Sequence[str]) -> Any:
    """The network as an `onnx.ModelProto`, for any number of images at once."""
    try:
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                network,
                (inputs,),
                output_names=list(stages),
                dynamo=True,
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except ImportError as error:
        raise BackboneError(
            f"backbone {name!r}: the export needs {error.name}: pip install 'nnad[torch]'"
        ) from error
    except Exception as error:  # torch.onnx raises many types
        raise BackboneError(
            f"backbone {name!r}: torch cannot export it to ONNX ({first_line(error)}); use it as "
            f"a callable (docs/backbones.md)"
        ) from error
    assert program is not None  # noqa: S101 (None is returned by the old exporter only)
    return program.model_proto


def _from_torchvision(
    name: str, _size: int | None, weights: Any
) -> tuple[nn.Module, Preprocessing, str]:
    models = _import("torchvision.models", f"torchvision:{name}")
    known = models.list_models(module=models)
    if name not in known:
        raise BackboneError(f"torchvision has no {name!r}; there are: {', '.join(known)}")
    published = {w.name: w for w in models.get_model_weights(name)}
    chosen = published[weights or min(published)] if not weights or weights in published else None
    with _download(f"torchvision:{name}"):
        network = models.get_model(name, weights=chosen)
    _drop_classifier(network)
    own = chosen or published[min(published)]
    preset = own.transforms()
    size = preset.crop_size[0]
    mean, std = _of_255(preset.mean), _of_255(preset.std)
    preprocessing = Preprocessing(
        size,
        interpolation=preset.interpolation.value,
        crop_fraction=size / preset.resize_size[0],
        mean=mean,
        std=std,
    )
    if chosen is not None:
        return network, preprocessing, chosen.name
    return network, preprocessing, _load_weights(network, weights)


def _from_timm(name: str, size: int | None, weights: Any) -> tuple[nn.Module, Preprocessing, str]:
    timm = _import("timm", f"timm:{name}")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=10, cutoff=0.4)
        raise BackboneError(f"timm has no {name!r}; near it: {', '.join(near) or 'nothing'}")
    arguments: dict[str, Any] = {"num_classes": 0}
    cfg = timm.get_pretrained_cfg(name)
    if size is not None and cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = size
    with _download(f"timm:{name}"):
        network = timm.create_model(name, pretrained=weights is None, **arguments)
    data = timm.data.resolve_data_config({}, model=network)
    side = data["input_size"][1]
    preprocessing = Preprocessing(
        side,
        interpolation=data["interpolation"],
        crop_fraction=side / int(side / data["crop_pct"]),
        mean=_of_255(data["mean"]),
        std=_of_255(data["std"]),
    )
    if weights is None:
        return network, preprocessing, str(network.pretrained_cfg.get("tag") or "timm's own")
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return network, preprocessing, _load_weights(network, weights, rename)


def _load_weights(
    network: nn.Module, weights: Any, rename: Callable[..., Any] | None = None
) -> str:
    """Put the weights of a file into the network, or leave its random ones; tell which."""
    if weights == "random":
        return f"random (seed {_SEED})"
    path = Path(weights)
    state, sha256 = read_checkpoint(path)
    own = network.state_dict()
    state = without_prefixes(state, own)
    try:
        if rename is not None:
            state = rename(state, network)
        check_names(state, own, path)
        network.load_state_dict(
            {key: value for key, value in state.items() if key in own}, strict=False
        )
    except (RuntimeError, KeyError, ValueError) as error:  # shapes
        raise BackboneError(
            f"{path}: not the weights of this network: {' '.join(str(error).split())[:300]}"
        ) from error
    return f"{path.name}, SHA-256 {sha256[:16]}"


def _drop_classifier(network: nn.Module) -> None:
    """Put nothing in the place of the last linear layer: the output is then what goes into it."""
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BackboneError("the network has no linear layer at its end, so no feature before it")
    parent, _, key = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), key, nn.Identity())


def _of_255(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (round(255 * value, 6) for value in values)
    return red, green, blue


def _import(module: str, name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: not made for this torch
        raise BackboneError(
            f"backbone {name!r} needs {module.partition('.')[0]}: pip install 'nnad[torch]' "
            f"({first_line(error)})"
        ) from error


@contextlib.contextmanager
def _download(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library and its downloader have their own types
        raise BackboneError(
            f"backbone {name!r}: cannot be made with the library's weights "
            f"({first_line(error)[:300]}); give a checkpoint file: weights=FILE"
        ) from error


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random weights each time; the caller's random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries tell of their own future."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
