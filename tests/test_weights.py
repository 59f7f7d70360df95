import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnad.efficientnet import VARIANTS, _weights_path
from nnad.errors import BackboneError
from nnad.weights import parse_state_dict, read_state_dict

LITE0 = _weights_path("efficientnet-lite0")


@pytest.fixture(scope="module")
def content() -> bytes:
    return LITE0.read_bytes()


def test_reads_the_real_weights(content):
    state = read_state_dict(LITE0, VARIANTS["efficientnet-lite0"].sha256)
    assert len(state) == 296
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert state["_bn1.num_batches_tracked"].dtype == np.int64
    assert sum(a.size for a in state.values() if a.dtype == np.float32) == 4_694_024


def test_other_weights_are_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content[:-1] + b"x")
    with pytest.raises(BackboneError, match=r"w\.pth: these are not the weights nnad knows"):
        read_state_dict(tmp_path / "w.pth", VARIANTS["efficientnet-lite0"].sha256)
    with pytest.raises(BackboneError, match="cannot read the weights"):
        read_state_dict(tmp_path / "none.pth", "0")


def legacy_file(state: object, storages: bytes = b"", keys: tuple[str, ...] = ()) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {}, state, list(keys)]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + storages


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_file_that_wants_to_run_something_runs_nothing(tmp_path):
    import os

    victim = tmp_path / "victim"
    for call in (Call(os.system, f"touch {victim}"), Call(eval, "1"), Call(print, "hello")):
        with pytest.raises(BackboneError, match="wants to call"):
            parse_state_dict(legacy_file({"a": call}), "evil.pth")
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file",
        legacy_file(["no dict"]),
        b"\x80\x02K\x01K\x02a.",  # append to a number
        b"\x80\x02K\x01(K\x02K\x03u.",  # set items of a number
        legacy_file({}, keys=("unknown",)),
        legacy_file({})[:-3],
        b"".join(pickle.dumps(p, protocol=2) for p in (7, 1001, {}, {}, [])),
    ],
)
def test_malformed_files_are_refused(content):
    with pytest.raises(BackboneError, match=r"^w\.pth: not a plain torch state dict"):
        parse_state_dict(content, "w.pth")


def tensor_file(shape, stride, offset, count) -> bytes:
    """A legacy file with one float tensor `a`, opcode by opcode."""
    out = io.BytesIO()
    out.write(b"\x80\x02}U\x01a".replace(b"U\x01", b"X\x01\0\0\0"))
    out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n")
    out.write(b"X\x01\0\0\0kX\x03\0\0\0cpuK\x04NtQ" + pickle.dumps(offset, 2)[2:-1])
    for numbers in (shape, stride):
        out.write(b"(" + b"".join(pickle.dumps(n, 2)[2:-1] for n in numbers) + b"t")
    out.write(b"\x89}tRs.")
    head = b"".join(pickle.dumps(p, 2) for p in (0x1950A86A20F9469CFC6C, 1001, {}))
    data = struct.pack("<q", count) + np.arange(4, dtype="<f4").tobytes()
    return head + out.getvalue() + pickle.dumps(["k"], 2) + data


def test_strides_and_offsets():
    state = parse_state_dict(tensor_file((2, 1), (1, 2), 2, 4), "w.pth")
    assert state["a"].tolist() == [[2], [3]]


@pytest.mark.parametrize(
    "wrong",
    [
        ((2, 2), (2, 1), 1, 4),
        ((2, 2), (-2, 1), 3, 4),
        ((10**9,), (0,), 0, 4),
        ((4,), (1,), 0, 2**62),
        ((4,), (1,), 0, 5),
        ((4,), (1,), 0, -1),
        ((4, 1), (1,), 0, 4),
    ],
)
def test_tensors_beyond_their_storage_are_refused(wrong):
    with pytest.raises(BackboneError):
        parse_state_dict(tensor_file(*wrong), "w.pth")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 255)), max_size=8))
def test_mutated_files_give_tensors_or_a_clear_error(content, changes):
    mutated = bytearray(content[:60_000])
    for place, value in changes:
        mutated[place] = value
    with pytest.raises(BackboneError, match=r"^w\.pth: "):  # at least its storages are cut off
        parse_state_dict(bytes(mutated), "w.pth")
