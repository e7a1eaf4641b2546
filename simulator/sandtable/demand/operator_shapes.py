"""What the core's operators ask for: their columns by name. Counts, except where a suffix says otherwise.

The laws that read them are in `sandtable.model.laws`; kernels and workloads state demands without them. Every column
may be an array with one entry per demand, where many are asked for at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Number = float | npt.NDArray[np.float64]
# `passes` of an attention's backward: five products against the forward's two, scores made again (Dao, arXiv
# 2307.08691, section 3.1). Laws read this column, and whoever states a backward pass writes it.
BACKWARD_PASSES = 2.5
# bytes at which rows of operands must start for tables of copies and kernels of tensor units (CUDA C++ Programming
# Guide, "Tensor Memory Access": strides are multiples of 16 bytes; NVIDIA, "Matrix Multiplication Background User's
# Guide", "Tensor Core Requirements")
ALIGNED_BYTES = 16.0


def aligned(row: Number, item_bytes: float) -> npt.NDArray[np.bool_]:
    """Return whether rows of so many elements, of ``item_bytes`` each, all start where quick kernels take them."""
    return np.asarray(np.asarray(row) * item_bytes % ALIGNED_BYTES == 0)


class GemmShape(NamedTuple):
    """``y[m, n] = x[m, k] w[k, n]``, ``batch`` of them at once.

    ``narrowed`` 1: inputs of a narrow type come narrow, and are not quantised first. ``in_turn``: timed with so many
    like it, each with weights of its own, in turn and again, so that a cache that holds them all keeps them; 0: weights
    come from memory, as those of a model do.
    """

    m: Number
    n: Number
    k: Number
    batch: Number = 1.0
    narrowed: Number = 0.0
    in_turn: Number = 0.0


class AttentionShape(NamedTuple):
    """Attention of ``query_tokens``, the last ones, to ``kv_tokens``, in ``batch`` sequences.

    ``causal`` 1: queries see no later tokens. ``flash`` 1 keeps scores on chip. ``passes`` counts forward 1, backward
    `BACKWARD_PASSES`. ``cached`` 1: new keys are turned and put into a cache first. Of scores that are written out:
    ``fused_softmax`` 1, scale, mask and softmax are one kernel; ``dropout`` 1, some are lost.
    """

    batch: Number
    query_tokens: Number
    kv_tokens: Number
    n_heads: Number
    n_kv_heads: Number
    head_dim: Number
    value_dim: Number
    causal: Number
    kv_item_bytes: Number
    flash: Number = 1.0
    passes: Number = 1.0
    cached: Number = 0.0
    fused_softmax: Number = 0.0
    dropout: Number = 0.0


class ExpertsShape(NamedTuple):
    """``n_tokens`` of all ranks that share the experts, three matrices an expert; the busiest rank, forward.

    ``skew`` is the exponent of the power law of the experts' loads, 0 for even ones. ``tuned`` 0: the kernels fall back
    to small tiles, since nobody tuned them for such experts on this device.
    """

    n_tokens: Number
    d_model: Number
    n_neurons: Number
    top_k: Number
    n_experts: Number
    tensor_parallel: Number
    expert_parallel: Number
    skew: Number
    tuned: Number = 1.0


class MemoryBoundShape(NamedTuple):
    """Traffic of element-wise work: bytes read and written together, in ``n_kernels`` launches.

    ``n_special`` counts exponentials, logarithms and the like. For kernels that give each row to one block of threads,
    ``n_rows`` are the rows, and ``row_waits`` is how often each of them waits for memory in turn.
    """

    n_bytes: Number
    n_kernels: Number = 1.0
    n_special: Number = 0.0
    n_rows: Number = 0.0
    row_waits: Number = 0.0


class CollectiveShape(NamedTuple):
    """A collective over ``n_ranks``, of which ``ranks_per_machine`` sit in one machine.

    ``n_bytes`` is the whole buffer: what each rank holds before an all-reduce or reduce-scatter, after an all-gather,
    sends to all ranks together in an all-to-all, sends to its peer. ``beside`` groups, this one included, interleave
    in a machine and do the same at the same time: that of ranks 0, 2, 4, 6 and that of 1, 3, 5, 7 are two.
    """

    n_bytes: Number
    n_ranks: Number
    ranks_per_machine: Number
    beside: Number = 1.0


class RandomReadShape(NamedTuple):
    """``n_chunks`` scattered reads of ``chunk_bytes`` each, ``concurrency`` in flight."""

    n_chunks: int
    chunk_bytes: float
    concurrency: int


class SequentialReadShape(NamedTuple):
    """``n_bytes`` read in order, in pieces of ``chunk_bytes``, the last of which may be shorter."""

    n_bytes: float
    chunk_bytes: float
    concurrency: int


class NewFileShape(NamedTuple):
    """``n_files`` small files, one after the other, each on the disk before it takes its name, and its name too."""

    n_files: int


class SequentialWriteShape(NamedTuple):
    """``n_bytes`` written in order, in pieces of ``chunk_bytes``, the last of which may be shorter."""

    n_bytes: float
    chunk_bytes: float
    concurrency: int
