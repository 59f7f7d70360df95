"""`torchvision:NAME` and `timm:NAME`: the networks, their weights and their preprocessing."""

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnad.backbones import Backbone
from nnad.checkpoints import check_names, read_checkpoint, without_prefixes
from nnad.errors import BackboneError, first_line
from nnad.onnx_graph import check_stages
from nnad.preprocessing import Preprocessing
from nnad.torch_export import export, quiet

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
    network, preprocessing, told = torch_network(kind, name, changes.get("size"), weights)
    preprocessing = preprocessing.changed(**changes)
    stages = ("head",) if stages is None else tuple(stages)
    known = ["head", *(module for module, _ in network.named_modules() if module)]
    check_stages(full_name, stages, known)
    details = {"stages": " ".join(stages), "pooling": pooling or "its own", "weights": told}
    return export(network, full_name, preprocessing, stages, pooling, details, device)


def torch_network(
    kind: str, name: str, size: int | None, weights: Any
) -> tuple[nn.Module, Preprocessing, str]:
    """The network without its classifier, its own preprocessing, and what its weights are."""
    make = {"torchvision": _from_torchvision, "timm": _from_timm}[kind]
    with quiet(), _seeded():
        return make(name, size, weights)


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
