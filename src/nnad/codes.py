"""Bank rows rounded to 7-bit integers: their products with queries cost a quarter of float32's.

A value x becomes the integer c = round((x - low) / step), so x is near low + step c, and what a row
loses is known: e(x) = |x - (low + step c(x))|. With a query q rounded in the same way, the triangle
inequality bounds the true distance from below:

    |q - x| >= step |c(q) - c(x)| - e(q) - e(x)

The integer distance |c(q) - c(x)|^2 is computed without error, so it can propose neighbours and
prove that no other row is nearer (see neighbors.py). Rounding moves image features by about 1 % of
the distance to their neighbours, which leaves a handful of rows in doubt.

The bank takes 0..127 and queries -64..191: processors that lack instructions for such products add
two of them in 16 bits, where 2 * 255 * 64 still fits. ONNX Runtime multiplies, on all free cores.
"""

import os
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.cores import free_cores

LARGEST_DIM = 32_768  # sums of longer vectors could overflow 32 bits
_BANK_ROWS = 1024  # rows a product; more of them would take more memory in each thread
_ROUNDED_ROWS = 64  # rows rounded at a time
_MARGIN = 1e-6  # relative; far above what float64 loses while it measures


class CodedQueries(NamedTuple):
    """Queries (Q, D) in the codes of a bank."""

    codes: NDArray[np.uint8]  # (Q, D) c + 64
    sq_norms: NDArray[np.float64]  # (Q,) |c - 64|^2
    lost: NDArray[np.float64]  # (Q,) at least e(q)


class Codes:
    """A bank (N, D) in integers, a quarter of its size in float32."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._low = features.min()
        self._step = np.float32((features.max() - self._low) / 127) or np.float32(1)
        self._lost = 0.0  # the largest e(x)
        self._blocks: list[NDArray[np.int8]] = []  # each (D, n), c - 64
        self._sq_norms: list[NDArray[np.int32]] = []  # each (n,), |c - 64|^2
        for start in range(0, len(features), _BANK_ROWS):
            codes, sq_norms, lost = self._rounded(features[start : start + _BANK_ROWS], np.int8, 0)
            self._blocks.append(np.ascontiguousarray(codes.T))
            self._sq_norms.append(sq_norms.astype(np.int32))
            self._lost = max(self._lost, float(lost.max()))

    def encode(self, queries: NDArray[np.float32]) -> CodedQueries:
        """(Q, D) -> their codes; what lies far outside the bank's values loses much."""
        return CodedQueries(*self._rounded(queries, np.uint8, 128))

    def keys(self, coded: CodedQueries) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """|c(x)|^2 - 2 c(q).c(x) of all rows, some rows at a time: (first row, (Q, n)).

        A row's key ranks it; together with |c(q)|^2 it is the squared integer distance.
        """
        start = 0
        for block, sq_norms in zip(self._blocks, self._sq_norms, strict=True):
            session = _product(os.getpid(), free_cores())
            (keys,) = session.run(None, {"queries": coded.codes, "bank": block})
            keys *= -2
            keys += sq_norms
            yield start, keys
            start += len(sq_norms)

    def least_distances(self, coded: CodedQueries, keys: NDArray[np.int32]) -> NDArray[np.float64]:
        """What keys (Q, c) prove: distances (Q, c) that the true ones are not below."""
        sq_code_dists = np.maximum(keys + coded.sq_norms[:, None], 0)
        known = self._step * np.sqrt(sq_code_dists) * (1 - _MARGIN)
        return np.maximum(known - (coded.lost[:, None] + self._lost), 0)

    def _rounded(
        self, rows: NDArray[np.float32], dtype: Any, zero: int
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
        """c - 64 + zero (n, D), |c - 64|^2 (n,), and at least what each row loses (n,).

        float32 is exact to u = 2^-24: it moves the value x / step by 2 u |c| and the residual, and
        so the residual's length by no more than `slack`; a sum of D squares by (D + 2) u of it.
        """
        dim, unit = rows.shape[1], 2.0**-24
        slack = 4 * unit * 255 * np.sqrt(dim)
        codes = np.empty(rows.shape, dtype=dtype)
        sq_norms, lost = np.empty(len(rows)), np.empty(len(rows))

        for start in range(0, len(rows), _ROUNDED_ROWS):
            part = slice(start, start + _ROUNDED_ROWS)
            with np.errstate(over="ignore"):
                residual = (rows[part] - self._low) / self._step
                centred = np.clip(np.rint(residual), -64, 191)
                residual -= centred
                length = np.sqrt(np.square(residual).sum(axis=1))
            lost[part] = float(self._step) * (length * (1 + (dim + 8) * unit) + slack)
            centred -= 64
            sq_norms[part] = np.square(centred).sum(axis=1, dtype=np.float64)
            centred += zero
            codes[part] = centred
        return codes, sq_norms, lost


@cache
def _product(process: int, threads: int) -> Any:  # noqa: ARG001 (threads do not outlive a fork)
    """A session of one matrix product: (Q, D) uint8 with zero at 128, (D, n) int8 -> (Q, n)."""
    import onnxruntime
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["queries", "bank", "zero"], ["products"])],
        "product",
        [
            helper.make_tensor_value_info("queries", TensorProto.UINT8, ["Q", "D"]),
            helper.make_tensor_value_info("bank", TensorProto.INT8, ["D", "n"]),
        ],
        [helper.make_tensor_value_info("products", TensorProto.INT32, ["Q", "n"])],
        [helper.make_tensor("zero", TensorProto.UINT8, [], [128])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="nnad"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # nothing is kept between products
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are needed
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
