"""Read tensors from torch's legacy (non-zip) checkpoint format without torch, running nothing.

Such a file is five pickles (magic number, protocol, system info, state dict, storage keys) followed
by the raw storages. `pickletools` decodes the pickles into opcodes, and the small interpreter below
gives meaning only to those that build plain containers and tensors. It never imports a name and
never calls anything that the file names, so a hostile file can do no more than be refused.
"""

import hashlib
import io
import math
import pickletools
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import BackboneError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
}
_MARK = object()


class _MalformedError(Exception):
    """The file is not a plain legacy state dict; the message says where it departs."""


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
        raise BackboneError(f"{name}: not a plain torch state dict: {error}") from error


def _parse(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    magic, protocol, _system = (_interpret(file) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise _MalformedError("wrong magic number or protocol")
    state, keys = _interpret(file), _interpret(file)
    if not isinstance(state, dict) or not isinstance(keys, list):
        raise _MalformedError("no state dict, or no list of storages")

    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    # a storage is ("storage", type name, key, device, number of elements, view)
    storages = {t.storage[2]: _DTYPES[t.storage[1]] for t in tensors.values()}
    data: dict[Any, NDArray[Any]] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        dtype = storages[key]
        raw = file.read(count * dtype.itemsize) if count >= 0 else b""
        data[key] = np.frombuffer(raw, dtype, count)
    return {name: _view(tensor, data[tensor.storage[2]]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    shape, stride, offset = tuple(tensor.shape), tuple(tensor.stride), int(tensor.offset)
    if len(shape) != len(stride) or min((offset, *shape, *stride)) < 0:
        raise _MalformedError("a tensor has an impossible shape")
    if math.prod(shape) > len(storage):
        raise _MalformedError("a tensor is larger than its storage")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= len(storage):
        raise _MalformedError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides).copy()


def _interpret(file: IO[bytes]) -> Any:
    """Evaluate one pickle as plain data: numbers, strings, containers and `_Tensor`s."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":  # a name stays a string: nothing is imported
                stack.append(argument)
            case "BINPERSID":  # a storage stays the tuple that describes it
                pass
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            case "BUILD":  # attributes of the state dict (its version numbers): not needed
                stack.pop()
            case name:
                raise _MalformedError(f"opcode {name} has no place in a state dict")
    raise _MalformedError("the pickle ends early")


def _reduce(function: Any, arguments: Any) -> Any:
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        return _Tensor(storage, offset, shape, stride)
    raise _MalformedError(f"the file wants to call {str(function)[:60]!r}")
