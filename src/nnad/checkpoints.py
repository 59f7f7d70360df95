"""Read a checkpoint file as plain tensors, running nothing that it holds."""

import hashlib
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from nnad.errors import BackboneError, first_line

_WRAPPERS = ("state_dict", "model", "teacher")  # keys under which training programs put the weights
_PREFIXES = ("module.", "backbone.")
_HEADS = ("head.", "heads.", "fc.", "classifier.")  # what sits on top while training


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors by name, and the file's SHA-256 in hex.

    Args:
        path: a safetensors file, or one of `torch.save` that holds nothing but tensors and plain
            containers, perhaps under `state_dict`, `model` or `teacher`.

    Raises:
        BackboneError: it cannot be read, or holds something else. Nothing in it is run.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load(content)
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except OSError as error:
        raise BackboneError(f"{path}: cannot read the weights: {error.strerror}") from error
    except SafetensorError as error:
        raise BackboneError(f"{path}: not a safetensors file: {error}") from error
    except Exception as error:  # torch raises many types on damaged and on hostile files
        raise BackboneError(
            f"{path}: not a file of tensors and nothing else; save the network's state_dict() as "
            f"safetensors ({first_line(error)[:200]})"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(map(torch.is_tensor, found.values())):
        raise BackboneError(f"{path}: holds no state dict, a mapping of names to tensors")
    return dict(found), hashlib.sha256(content).hexdigest()


def without_prefixes(state: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The state dict with `module.` and `backbone.` taken from names that are not in `own`."""
    named = {}
    for name, tensor in state.items():
        while name not in own and name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        named[name] = tensor
    return named


def check_names(named: Collection[str], own: Collection[str], path: Path) -> None:
    """Raise a `BackboneError` unless `named` are a network's `own` names, or a classifier's."""
    missing = sorted(n for n in set(own) - set(named) if not n.endswith("num_batches_tracked"))
    strange = sorted(n for n in set(named) - set(own) if not n.startswith(_HEADS))
    if missing or strange:
        told = [
            f"{what} {len(names)} ({', '.join(names[:5])})"
            for what, names in (("lacks", missing), ("has unknown", strange))
            if names
        ]
        raise BackboneError(f"{path}: not the weights of this network: {'; '.join(told)}")
