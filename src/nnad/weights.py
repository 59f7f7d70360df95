"""Read tensors from torch's legacy (non-zip) checkpoint format without torch, running nothing.

Such a file is five pickles (magic number, protocol, system info, state dict, storage keys) followed
by the raw storages. `nnad.opcodes` reads the pickles as plain data.
"""

import hashlib
import io
import math
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BackboneError
from nnad.opcodes import MalformedError, check_key, interpret

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_DIMENSIONS = 8
_DTYPES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
}


class _Tensor:
    """A view into a storage that is read later: shape and stride in elements."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride


def read_state_dict(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """Read a legacy torch state dict as numpy arrays.

    Args:
        path: the `.pth` file.
        sha256: the expected hash of the whole file, in hex; any other file is refused unparsed.

    Returns:
        Name -> array, in the file's own order.

    Raises:
        BackboneError: the file is missing, has another hash or is not a plain state dict.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{path}: cannot read the weights: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BackboneError(
            f"{path}: these are not the weights nnad knows (sha256 {found[:16]}…, expected "
            f"{sha256[:16]}…); reinstall the package that carries them"
        )
    return parse_state_dict(content, str(path))


def parse_state_dict(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Parse the bytes of a legacy torch checkpoint; `name` is used in errors."""
    try:
        return _parse(io.BytesIO(content))
    except Exception as error:  # whatever a mutilated file makes of the interpreter's stack
        reason = str(error)[:200] or type(error).__name__
        raise BackboneError(f"{name}: not a plain torch state dict: {reason}") from error


def _parse(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    magic, protocol, _system = (interpret(file, _reduce) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise MalformedError("wrong magic number or protocol")
    state, keys = interpret(file, _reduce), interpret(file, _reduce)
    if not isinstance(state, dict) or not isinstance(keys, list):
        raise MalformedError("no state dict, or no list of storages")

    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    # a storage is ("storage", type name, key, device, number of elements, view)
    described = [[check_key(part) for part in t.storage[1:3]] for t in tensors.values()]
    storages = {key: _DTYPES[kind] for kind, key in described}
    data: dict[Any, NDArray[Any]] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        dtype = storages[check_key(key)]
        raw = file.read(count * dtype.itemsize) if count >= 0 else b""
        data[key] = np.frombuffer(raw, dtype, count)
    arrays = {name: _view(tensor, data[tensor.storage[2]]) for name, tensor in tensors.items()}
    if sum(array.nbytes for array in arrays.values()) > sum(raw.nbytes for raw in data.values()):
        raise MalformedError("the tensors are larger than their storages")  # they share them
    return {name: array.copy() for name, array in arrays.items()}


def _view(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    shape, stride, offset = tuple(tensor.shape), tuple(tensor.stride), int(tensor.offset)
    if len(shape) > _MAX_DIMENSIONS:  # their product would grow without end
        raise MalformedError("a tensor has too many dimensions")
    if len(shape) != len(stride) or min((offset, *shape, *stride)) < 0:
        raise MalformedError("a tensor has an impossible shape")
    if math.prod(shape) > len(storage):
        raise MalformedError("a tensor is larger than its storage")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= len(storage):
        raise MalformedError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _reduce(function: Any, arguments: Any) -> Any:
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        return _Tensor(storage, offset, shape, stride)
    raise MalformedError(f"the file wants to call {str(function)[:60]!r}")
