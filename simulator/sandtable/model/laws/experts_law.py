"""Mixture of experts: products grouped by the experts that a batch of tokens is sent to.

Each of ``n_tokens`` tokens goes to ``top_k`` of ``n_experts`` experts, gated blocks of three matrices
``d_model x n_neurons``. The tokens are those of all ranks that share the experts (``expert_parallel`` of them hold
n_experts / expert_parallel each); the answer is the time of the busiest of these ranks, without moving tokens between
them. ``tensor_parallel`` ranks split the neurons of each expert.

Popularity follows a power law: the loads of experts are spread like x^-skew between 1 and 0.8 n_tokens, or between
0.01 and 2 where fewer tokens are routed than there are experts; that is how ai-dynamo/aiconfigurator draws them
(collector, power_law_logits_v3). Zero is an even load. An expert that fewer than one token is sent to on average is
touched that often.

What takes time: reading the weights of the experts touched; arithmetic, where each expert's rows fill up whole tiles,
or fetching their operands; moving the routed activations through memory between the kernels, for rows of other ranks'
experts too where the software keeps them; launching the kernels.

A tile of a x b fetches a + b elements for each step of its depth, from the last-level cache: so much per clock and
unit, whatever the element type. The faster units multiply, the more of their time is fetching (an A100 does 2048 FLOP
with 16 bits per clock and unit, an H100 4096, a B200 8192), and the more it matters how large tiles are; kernels that
fetch once for several units reach more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource, Scatter
from sandtable.demand.operator_shapes import ExpertsShape
from sandtable.hardware import Roofline
from sandtable.model.laws import chip
from sandtable.model.laws.gemm_law import DEPTH, WIDE_BYTES, Format, format_of, overlapped, scaling_s

# rows and columns of tiles that grouped kernels choose from, and the largest of those that they fall back to: 64 x 64
# with many tokens and 16 x 32 with few (sgl-project/sglang, fused_moe_triton_config.py, get_default_config)
_TILE_ROWS = (16.0, 32.0, 64.0, 128.0)
_TILE_COLUMNS = (128.0, 256.0)
_UNTUNED = 64.0
# ends of the power law of loads: of plenty of tokens, as a share of them, and of few
_PLENTY_SHARE, _FEW = 0.8, (0.01, 2.0)
# kernels for these types keep rows of other ranks' experts in their buffers; those for narrower ones leave them out
_KEEPS_IDLE_ROWS = frozenset({"float32", "tf32", "bfloat16", "float16", "fp8_block"})
# kernels for these types gate the neurons before they write them, narrow
_GATES_FIRST = frozenset({"fp8", "fp4", "mxfp4", "int4_weight_only"})
# experts of like load are counted together, in this many groups; what counts as an exponent of one
_N_GROUPS, _TINY = 32, 1e-6


class MixtureOfExperts(Operator[Roofline]):
    """``t = launch + (arithmetic^p + weights^p)^(1/p) + activations / bandwidth``.

    ``passes`` is how often routed activations pass through memory, as a multiple of what the kernels need, and
    ``idle_passes`` how often those of other ranks' experts do; ``fetched_per_clock`` the bytes of operands that reach a
    unit in one clock.
    """

    name: ClassVar[str] = "moe"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[ExpertsShape]] = ExpertsShape
    given: ClassVar[tuple[str, ...]] = (*chip.CLOCK, "clocks_per_depth", "overlap", "draw", "scaling_ops")
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.19, siblings=0.18, per_doubling=0.11, new_kind=0.23)
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.6, low=0.02, high=1.5),
        Constant(name="bandwidth_frac", typical=0.8, low=0.02, high=1.2),
        Constant(name="launch_s", typical=2.5e-5, low=1e-7, high=1e-3),
        Constant(name="passes", typical=1.0, low=0.05, high=10.0),
        Constant(name="idle_passes", typical=0.5, low=0.01, high=10.0),
        Constant(name="fetched_per_clock", typical=64.0, low=8.0, high=1000.0),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        batch = _Batch.of(columns)
        form, given = format_of(device, dtype), device.given(self.name)
        constants = chip.waits_in_clocks(device, constants, ("launch_s",), given)
        bandwidth = constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        rate = constants["rate_frac"] * device.peak(dtype)
        rate *= chip.powered_share(device, dtype, form.activation, given)
        fetching = constants["fetched_per_clock"] * (device.clock_hz or float("inf"))
        unit = _Unit(rate / device.n_units, fetching / form.activation)
        working = sum(_product_s(device, form, batch, n, k, unit, given) for n, k in batch.products())
        streaming = sum(
            form.weight * batch.touched * n * k / (bandwidth * _drawn(device, batch, n, given["draw"]))
            for n, k in batch.products()
        )
        idle_rows = batch.idle_rows if dtype in _KEEPS_IDLE_ROWS else 0.0
        rows = constants["passes"] * batch.rows + constants["idle_passes"] * idle_rows
        moving = rows * _activation_bytes(batch, form, gates_first=dtype in _GATES_FIRST) / bandwidth
        busy = overlapped(np.asarray(working), np.asarray(streaming), given["overlap"])
        return np.asarray(constants["launch_s"] + busy + moving, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the busiest rank has to do.

    ``loads`` are tokens per expert, one row for each demand; an entry stands for ``alike`` experts. ``tiles`` says for
    each height of tiles how many of them the rows of all experts are high. ``tuned`` as in `ExpertsShape`.
    """

    loads: FloatArray
    alike: FloatArray
    tiles: Mapping[float, FloatArray]
    touched: FloatArray
    rows: FloatArray
    idle_rows: FloatArray
    d_model: FloatArray
    neurons: FloatArray
    tuned: FloatArray

    @classmethod
    def of(cls, columns: Columns) -> _Batch:
        c = columns
        local = np.maximum(np.round(c.n_experts / c.expert_parallel), 1)
        loads = _loads(c, local)
        alike = local / np.minimum(local, _N_GROUPS)
        rows = alike * loads.sum(axis=1)
        return cls(
            loads=loads,
            alike=alike,
            tiles={tile_rows: _tiles(loads, alike, tile_rows) for tile_rows in _TILE_ROWS},
            # the busiest rank serves one expert at least
            touched=np.maximum(alike * np.minimum(loads, 1).sum(axis=1), 1),
            rows=rows,
            idle_rows=np.maximum(c.n_tokens * c.top_k - rows, 0),
            d_model=c.d_model,
            neurons=c.n_neurons / c.tensor_parallel,
            tuned=c.tuned,
        )

    def products(self) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
        """Return columns and depth of the two products: into the gated neurons, and back."""
        return (2 * self.neurons, self.d_model), (self.d_model, self.neurons)


def _tiles(loads: FloatArray, alike: FloatArray, tile_rows: float) -> FloatArray:
    """Return how many tiles high the experts' rows are together."""
    whole = np.minimum(loads, 1) * np.ceil(np.maximum(loads, 1) / tile_rows)
    return np.asarray(np.maximum(alike * whole.sum(axis=1), 1))


class _Unit(NamedTuple):
    """What one unit multiplies in a second, in FLOP, and what it fetches, in elements."""

    flops_per_s: float
    fetched_per_s: float


def _product_s(
    device: Roofline, form: Format, batch: _Batch, n: FloatArray, k: FloatArray, unit: _Unit, given: Constants
) -> FloatArray:
    """Return the arithmetic of one grouped product, with the tiles that suit it best of those that it has."""
    depth = np.ceil(k / DEPTH) * DEPTH
    slowest = given["clocks_per_depth"] * depth / device.clock_hz if device.clock_hz else 0.0
    best: FloatArray = np.full(len(n), np.inf)
    for rows, columns in product(_TILE_ROWS, (_UNTUNED, *_TILE_COLUMNS)):
        tiles = batch.tiles[rows] * np.ceil(n / columns)
        one = np.maximum(2 * rows * columns / unit.flops_per_s, (rows + columns) / unit.fetched_per_s)
        # grouped kernels scale between their products, and not beside them
        one = depth * one + scaling_s(device, form, depth * rows * columns, given)
        took = np.maximum(tiles / device.n_units, 1) * np.maximum(one, slowest)
        has = np.where(batch.tuned > 0, columns > _UNTUNED, max(rows, columns) <= _UNTUNED)
        best = np.where(has, np.minimum(best, took), best)
    return best


def _drawn(device: Roofline, batch: _Batch, n: FloatArray, draw: float) -> FloatArray:
    """Return the share of the bandwidth that the units can draw which have a tile to work on."""
    return np.minimum(1.0, draw * batch.touched * np.ceil(n / _TILE_COLUMNS[0]) / device.n_units)


def _activation_bytes(batch: _Batch, form: Format, *, gates_first: bool) -> FloatArray:
    """Return the bytes moved per routed row: in, gated neurons out and in, neurons out and in, out, and summed up."""
    ends = form.activation * batch.d_model + 2 * WIDE_BYTES * batch.d_model
    if gates_first:
        return ends + 2 * form.activation * batch.neurons
    return ends + (form.activation + 5 * WIDE_BYTES) * batch.neurons


def _loads(c: Columns, local: FloatArray) -> FloatArray:
    """Return tokens per expert of the busiest rank, at evenly spaced quantiles of their distribution."""
    n, routed, skew = c.n_tokens[:, None], c.n_tokens * c.top_k, c.skew[:, None]
    plenty = (routed > c.n_experts)[:, None]
    low, high = np.where(plenty, 1.0, _FEW[0]), np.where(plenty, np.maximum(_PLENTY_SHARE * n, 1.0), _FEW[1])
    groups = np.minimum(local, _N_GROUPS)[:, None]
    index = np.arange(int(groups.max()))
    spread = _quantile((index + 0.5) / groups, low, high, skew) * (index < groups)
    # the busiest of the ranks has more than its share, by how far sums of so many experts scatter
    sample = _quantile((np.arange(_N_GROUPS) + 0.5) / _N_GROUPS, low, high, skew)
    scatter = sample.std(axis=1) / sample.mean(axis=1) / np.sqrt(local)
    rows = routed / c.expert_parallel * (1 + _expected_most(c.expert_parallel) * scatter)
    mean = spread.sum(axis=1) / groups[:, 0]
    # a token goes to an expert once
    return np.asarray(np.minimum(spread * (rows / local / mean)[:, None], n))


def _quantile(share: FloatArray, low: FloatArray, high: FloatArray, skew: FloatArray) -> FloatArray:
    """Return what ``share`` of values lie below, if their density is as x^-skew between ``low`` and ``high``."""
    power = np.where(np.abs(1 - skew) < _TINY, _TINY, 1 - skew)
    drawn = (low**power + np.minimum(share, 1) * (high**power - low**power)) ** (1 / power)
    return np.asarray(np.where(skew > 0, drawn, 1.0))


def _expected_most(count: FloatArray) -> FloatArray:
    """Return the largest of ``count`` normal values, in standard deviations (Blom's approximation)."""
    counts, where = np.unique(count, return_inverse=True)
    most = [NormalDist().inv_cdf((c - 0.375) / (c + 0.25)) if c > 1 else 0.0 for c in counts]
    return np.array(most)[where.reshape(count.shape)]
