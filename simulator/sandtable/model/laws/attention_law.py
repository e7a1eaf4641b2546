"""Attention over a cache or over itself: scores on chip (flash) or through memory (vanilla).

A fused kernel gives each unit (streaming multiprocessor, core) tiles of 128 queries of one head, or what
``query_tile`` says, and each tile walks over the keys it may see, 128 at a time. A step over one such pair of tiles
multiplies twice and takes one exponential per score; the two overlap in part. A few queries, as in decoding, make
smaller tiles: the query heads of one key head share a tile, and the keys are split over the units that would idle
(Dao et al., "Flash-Decoding for long-context inference", 2023). Cores of a CPU take blocks of queries, and multiply
as many rows and keys as there are; they have no units of their own for products, so that what else a score needs
(scale, mask, maximum, exponential, sum) comes after them, forward and backward alike.

    seconds = launch + tiles begun + |steps of a unit, steps of the longest tile, keys and values read|
              + queries, outputs and cache appended

where |a, b| is the root of the sum of squares: the larger one where they differ, and a little more where they are
alike. Keys and values that fit in the last-level cache are read from there, since timed kernels run again and again on
the same tensors, and a model's next kernel finds what the last one left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource, Scatter
from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape, Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable.model.laws import chip

# queries of a tile, and keys of a step (FlashAttention-2, section 3.3: 64 or 128 by 64 or 128)
TILE = 128
# rows of a tile when there are at most `TILE` queries
SMALL_TILE = 32
# kept activations never get narrower than this, whatever type a kernel multiplies in
ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class ScoreTraffic:
    """Bytes moved per element of the score matrix [batch, heads, queries, keys] by attention that writes it out.

    ``saved`` is what the forward pass keeps of it for the backward pass.
    """

    forward: float
    backward: float
    saved: float


def vanilla_traffic(
    item_bytes: float, *, fused: bool = False, dropout: bool = False, widens: bool = False
) -> ScoreTraffic:
    """Count the passes over the scores of attention that writes them out, operation by operation.

    Eager attention of Hugging Face Transformers, with ``w`` bytes per element (2 for bfloat16, float16) and a softmax
    in float32, 4 bytes. PyTorch's softmax ``widens`` float16 by itself on GPUs; other narrow types are converted before
    it, and back after its gradient (aten/src/ATen/native/SoftMax.cpp):

    ====================================  ============================================  ========  ========  ===========
    forward                               bytes                                         bfloat16  float16   float32
    ====================================  ============================================  ========  ========  ===========
    scores = q k'                         write w                                       2         2         4
    scores / sqrt(E)                      read w, write w                               4         4         8
    scores + mask                         read w, write w (the mask is shared)          4         4         8
    to float32                            read w, write 4; nothing if w = 4             6         0         0
    softmax                               read 4 (or w), write 4                        8         6         8
    to the element type                   read 4, write w; nothing if w = 4             6         6         0
    output = p v                          read w                                        2         2         4
    together                                                                            32        24        32
    ------------------------------------  --------------------------------------------  --------  --------  -----------
    backward
    dv = p' dout                          read w                                        2         2         4
    dp = dout v'                          write w                                       2         2         4
    to float32                            read w, write 4; nothing if w = 4             6         6         0
    softmax                               read p and dp in float32, write 4 (or w)      12        10        12
    to the element type                   read 4, write w; nothing if w = 4             6         0         0
    mask                                  nothing                                       0         0         0
    / sqrt(E)                             read w, write w                               4         4         8
    dq = ds k and dk = ds' q              read w each                                   4         4         8
    together                                                                            36        28        36
    ====================================  ============================================  ========  ========  ===========

    ``fused``: scale, mask and softmax are one kernel that keeps the element type (Megatron-LM; arXiv 2205.05198,
    section 4.1), 2 w forward and 3 w backward. ``dropout`` reads and writes the scores once more each way, with a byte
    of mask. Kept for the backward pass: the softmax, its copy in the element type, the mask and what it leaves.
    """
    w, wide = item_bytes, 4.0
    narrow = not fused and w < wide
    cast = w + wide if narrow else 0.0
    apart = 2 * wide if narrow and not widens else 0.0
    softmax, softmax_backward = (2 * w, 3 * w) if fused else (5 * w + wide + cast, 2 * wide + 3 * w + cast)
    dropped = 2 * w + 1 if dropout else 0.0
    return ScoreTraffic(
        forward=2 * w + softmax + apart + dropped,
        backward=4 * w + softmax_backward + apart + dropped,
        saved=(w if fused else max(w, wide) + (w if cast else 0.0)) + (w + 1 if dropout else 0.0),
    )


class Attention(Operator[Roofline]):
    """Steps of tiles over the units, reads of keys and values, and what is done once per query.

    ``rate_frac`` is the share of the peak rate that products reach between exponentials; ``item_s`` the time to begin
    and to end a tile of 128 queries, or a core's block of them. ``narrow_gain`` is how much faster products with keys
    and values narrower than the queries are (fp8 cache, bfloat16 queries): 2 where the kernel narrows the queries,
    below 1 where it widens keys.
    """

    name: ClassVar[str] = "attention"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[AttentionShape]] = AttentionShape
    given: ClassVar[tuple[str, ...]] = (
        "most_splits",
        "query_tile",
        "exponentials_per_clock",
        *chip.CACHE,
        "forward_percent",
        "backward_percent",
        "clocks_per_score",
        "block_queries",
        "flops_per_score",
    )
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.11, siblings=0.14, per_doubling=0.046, new_kind=0.1)
    # times of one token alone say little of prompts, and the other way round: what they leave open stays with siblings
    prior: ClassVar[float] = 1.0
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.67, low=0.02, high=1.0),
        Constant(name="bandwidth_frac", typical=0.93, low=0.02, high=1.0),
        Constant(name="launch_s", typical=11e-6, low=1e-7, high=1e-3),
        Constant(name="item_s", typical=2e-6, low=1e-8, high=1e-4),
        Constant(name="narrow_gain", typical=1.2, low=0.1, high=2.5),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        given, c = device.given(self.name), columns
        bandwidth = constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        width = max(ACTIVATION_BYTES, DTYPE_BYTES[dtype])
        # half of the way to 2: keys, values and their gradients; queries, outputs and theirs
        sweeps = 1 + (c.passes - 1) / (BACKWARD_PASSES - 1)
        stepping = _steps_s(device, constants, c, dtype, given)
        reading = sweeps * chip.cached(_kv_bytes(c), device, given) / bandwidth
        per_query = (
            chip.cached(sweeps * _query_bytes(c, width) + _append_bytes(c, width), device, given) / bandwidth
        )
        spilled = (1 - c.flash) * (
            chip.cached(_score_bytes(c, device, dtype), device, given) / bandwidth + _scores_s(c, device, given)
        )
        begun = sweeps * constants["item_s"] * _tiles_of_a_unit(c, device.n_units, given)
        launches = sweeps * constants["launch_s"]
        return np.asarray(launches + begun + np.hypot(stepping, reading) + per_query + spilled)

    def flops(self, shape: AttentionShape) -> Number:
        """Both products; half of them where queries see only what is before them."""
        c = shape
        pairs = 2 * c.batch * c.n_heads * c.query_tokens * c.kv_tokens
        return pairs * (c.head_dim + c.value_dim) * (1 - c.causal / 2) * c.passes

    def variant(self, shape: AttentionShape) -> str:
        """Attention that writes its scores to memory is "vanilla"."""
        return "" if shape.flash else "vanilla"


def _steps_s(device: Roofline, constants: Constants, c: Columns, dtype: str, given: Constants) -> FloatArray:
    """Return the time of the steps over pairs of tiles: those of a unit, joined with those of the longest tile."""
    if given["block_queries"]:
        each = _step_s(device, constants, c, dtype, given) / TILE**2
        return np.asarray(each * _scores_of_blocks(c, given) / np.minimum(device.n_units, _blocks(c, given)))
    few = c.query_tokens <= TILE
    tiles_high = given["query_tile"] / TILE
    tiles_of_head = np.ceil(c.query_tokens / given["query_tile"])
    shared_rows = c.query_tokens * c.n_heads / c.n_kv_heads
    tiles = c.batch * np.where(few, c.n_kv_heads * np.ceil(shared_rows / SMALL_TILE), c.n_heads * tiles_of_head)
    longest = np.maximum(1.0, c.kv_tokens / TILE)
    # the queries are the last tokens: those of the first tile see all keys but those of the tiles after it. Attention
    # that writes its scores out computes what the mask hides, too
    hidden = c.causal * c.flash * np.minimum((tiles_of_head - 1) * tiles_high, longest) / 2
    mean = np.maximum(1.0, longest - hidden)
    splits = np.where(few, np.clip(device.n_units / tiles, 1.0, np.minimum(given["most_splits"], longest)), 1.0)
    step = np.where(few, SMALL_TILE / TILE, tiles_high) * _step_s(device, constants, c, dtype, given)
    even, alone = tiles * mean / device.n_units, longest / splits
    # split evenly over the units, the longest walk is no longer than the others
    return np.asarray(step * np.where(few, np.maximum(even, alone), np.hypot(even, alone)))


def _step_s(device: Roofline, constants: Constants, c: Columns, dtype: str, given: Constants) -> FloatArray:
    """Return the time of one unit for one pair of whole tiles: its products, joined with its exponentials."""
    flops = 2 * TILE**2 * (c.head_dim + c.value_dim)
    gain = np.where(c.kv_item_bytes < DTYPE_BYTES[dtype], constants["narrow_gain"], 1.0)
    rate = constants["rate_frac"] * device.peak(dtype) / device.n_units * gain
    backward = np.clip((c.passes - 1) / (BACKWARD_PASSES - 1), 0.0, 1.0)
    slower = np.where(
        c.flash > 0, 1 + (1 / (given["backward_percent"] / given["forward_percent"]) - 1) * backward, 1.0
    )
    # scores that were written out are not made again: four products instead of two
    products = np.where(c.flash > 0, c.passes * slower, 1 + (c.passes - 1) / (BACKWARD_PASSES - 1))
    if given["block_queries"]:
        # a core has no unit of its own for products: it multiplies a block, and then looks at each of its scores
        return np.asarray((products * flops + given["flops_per_score"] * TILE**2 * constants["rate_frac"]) / rate)
    return np.asarray(np.hypot(products * flops / rate, TILE**2 / _exponentials_per_s(device, given)))


def _exponentials_per_s(device: Roofline, given: Constants) -> float:
    """Return the exponentials that one unit finishes in a second; infinite where its clock is unknown."""
    per_clock = device.exponentials_per_clock or given["exponentials_per_clock"]
    return float("inf") if device.clock_hz is None else per_clock * device.clock_hz


def _blocks(c: Columns, given: Constants) -> FloatArray:
    """Return the blocks of queries that cores share among them; query heads of one key head do not share a block."""
    return np.asarray(c.batch * c.n_heads * np.ceil(c.query_tokens / given["block_queries"]))


def _scores_of_blocks(c: Columns, given: Constants) -> FloatArray:
    """Return the scores that are computed: all keys up to the last one that a block of queries may see."""
    block, q = given["block_queries"], c.query_tokens
    whole = np.floor(q / block)
    hidden = c.causal * c.flash * block * (whole * q - block * whole * (whole + 1) / 2)
    return np.asarray(c.batch * c.n_heads * (q * c.kv_tokens - hidden))


def _tiles_of_a_unit(c: Columns, n_units: int, given: Constants) -> FloatArray:
    """Return how many tiles' worth of queries a unit begins; a lone tile with few queries counts in part.

    Of a CPU's blocks each counts, whatever it holds.
    """
    if given["block_queries"]:
        return np.asarray(np.maximum(1.0, _blocks(c, given) / n_units))
    of_head = c.query_tokens / TILE
    return np.asarray(np.maximum(np.minimum(1.0, of_head), c.batch * c.n_heads * of_head / n_units))


def _kv_bytes(c: Columns) -> FloatArray:
    """Return the bytes of all keys and values, each read once.

    One shared head whose values are narrower than its keys is a latent: its values are the first part of its keys
    (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """
    latent = (c.n_kv_heads == 1) & (c.value_dim < c.head_dim)
    row = c.head_dim + np.where(latent, 0.0, c.value_dim)
    return np.asarray(c.batch * c.n_kv_heads * c.kv_tokens * row * c.kv_item_bytes)


def _query_bytes(c: Columns, width: float) -> FloatArray:
    """Return the bytes of queries read and outputs written."""
    return np.asarray(c.batch * c.n_heads * c.query_tokens * (c.head_dim + c.value_dim) * width)


def _append_bytes(c: Columns, width: float) -> FloatArray:
    """Return the traffic of turning new queries and keys by their position, and of copying keys and values to a cache.

    Each is read and written once; nothing where ``cached`` is 0.
    """
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + c.n_kv_heads * c.value_dim
    return np.asarray(c.cached * 2 * c.batch * c.query_tokens * heads * width)


def _scores(c: Columns) -> FloatArray:
    return np.asarray(c.batch * c.n_heads * c.query_tokens * c.kv_tokens)


def _score_bytes(c: Columns, device: Roofline, dtype: str) -> FloatArray:
    """Return the traffic of scores through memory; see `vanilla_traffic`."""
    width, widens = max(ACTIVATION_BYTES, DTYPE_BYTES[dtype]), dtype == "float16" and device.family != "cpu"
    backward = (c.passes - 1) / (BACKWARD_PASSES - 1)
    each: FloatArray = np.zeros(c.passes.shape)
    for fused, dropout in ((False, False), (False, True), (True, False), (True, True)):
        count = vanilla_traffic(width, fused=fused, dropout=dropout, widens=widens)
        chosen = ((c.fused_softmax > 0) == fused) & ((c.dropout > 0) == dropout)
        each = np.where(chosen, count.forward + backward * (count.backward - count.forward), each)
    return _scores(c) * each


def _scores_s(c: Columns, device: Roofline, given: Constants) -> FloatArray:
    """Return what products spend on scores beside arithmetic and traffic: two products forward, four backward."""
    products = 2 + 2 * (c.passes - 1) / (BACKWARD_PASSES - 1)
    clocks = given["clocks_per_score"] * products * _scores(c)
    return np.asarray(clocks / (device.n_units * device.clock_hz) if device.clock_hz else np.zeros_like(products))
