"""Matrix products on a device that spreads tiles over many units.

A product is cut into tiles; units work on whole tiles, so the last wave of tiles may leave units idle (tile and wave
quantisation). Software picks among tile sizes, and may split the depth of a product with few tiles among several
units. Beside the arithmetic, the operands stream through memory. See NVIDIA, "Matrix Multiplication Background User's
Guide", for tiles, waves and their quantisation. The rate is that at which the device stays within its power limit, and
what passes before and after the arithmetic are clocks: see `sandtable.model.laws.chip`.

Cores of a CPU work on blocks of any size, cut into panels of a vector's width (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008): a part of a tile takes a part of its time, any depth is whole, and
threads share the blocks evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sandtable.demand.operator import (
    Bound,
    Columns,
    Constant,
    Constants,
    FloatArray,
    PlainOperator,
    Resource,
    Scatter,
)
from sandtable.demand.operator_shapes import GemmShape, Number, aligned
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable.model.laws import chip

# tiles of the output that libraries ship kernels for: rows, columns
TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (256, 64), (128, 64), (64, 128), (64, 64))
# those for a handful of rows, as in decoding
THIN_TILES = ((16, 64), (16, 128), (32, 64), (32, 128))
SPLITS = (1, 2, 3, 4)
# depth that one step of a kernel's main loop takes
DEPTH = 64
# elements of the smallest tile of a product whose rows start elsewhere (CUTLASS's kernels for older devices)
LEAST_UNALIGNED = 256 * 128
# partial sums are kept in float32, written once and read once
PARTIAL_BYTES = 8.0


@dataclass(frozen=True, slots=True)
class Format:
    """How a product with quantised weights runs where the device multiplies in that type.

    ``weight`` and ``activation`` are bytes per element as multiplied. Activations arrive in 16 bits; making them
    narrow takes ``passes`` over them, in each of which ``pass_bytes`` per element move. Where scales hold for
    ``scaled_depth`` elements of depth, partial sums are scaled and added in float32, beside the units for products.
    """

    weight: float
    activation: float
    passes: float
    pass_bytes: float = 0.0
    least_tile: int = 1
    scaled_depth: float = float("inf")


FORMATS: dict[str, Format] = {
    # one scale for a whole tensor: it is found in one pass over the activations and applied in another
    "fp8": Format(weight=1, activation=1, passes=2, pass_bytes=3),
    "fp8_block": Format(weight=1, activation=1, passes=1, pass_bytes=3, scaled_depth=128),
    # block-scaled products work on 128 x 128 and larger; a scale of one byte for every 16 (fp4) or 32 (mxfp4)
    "fp4": Format(weight=0.5625, activation=0.5625, passes=1, pass_bytes=2.5625, least_tile=128),
    "mxfp4": Format(weight=0.53125, activation=0.53125, passes=1, pass_bytes=2.53125, least_tile=128),
    # activations were quantised by the operator before; a second kernel applies the scales
    "int8": Format(weight=1, activation=1, passes=1),
    # weights are widened on their way into the units
    "int8_weight_only": Format(weight=1, activation=2, passes=1),
    "int4_weight_only": Format(weight=0.5, activation=2, passes=1),
}
WIDE_BYTES = 2.0


class Gemm(PlainOperator):
    """``t = launch + min over tiles of (arithmetic^p + streaming^p)^(1/p)``, and passes that quantise before it.

    ``rate_frac`` and ``bandwidth_frac`` are the shares reached of the rate that power allows and of the bandwidth;
    ``tile_s`` the time before and after the main loop of a tile, this and ``launch_s`` at the reference clock;
    ``quantise_passes`` how many times the activations are swept to quantise them, as a multiple of what their format
    needs. A product without a shape follows the plain law.
    """

    name: ClassVar[str] = "gemm"
    called: ClassVar[str] = "matrix products"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[GemmShape]] = GemmShape
    dense: ClassVar[bool] = True
    bound_by: ClassVar[Bound] = "both"
    given: ClassVar[tuple[str, ...]] = (
        *chip.CLOCK,
        *chip.CACHE,
        "edge",
        "scaling_ops",
        "clocks_per_depth",
        "overlap",
        "join_launches",
        "odd_flops_per_clock",
        "plain_flops_per_clock",
    )
    # of published timings left out, see `Scatter`
    scatter: ClassVar[Scatter] = Scatter(own=0.09, siblings=0.13, per_doubling=0.042, new_kind=0.1)
    loss: ClassVar[str] = "cauchy"
    # weighed on element types left out of the fit of a device, which siblings help to predict
    prior: ClassVar[float] = 0.1
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="rate_frac", typical=0.85, low=0.05, high=1.2),
        Constant(name="bandwidth_frac", typical=0.8, low=0.05, high=1.2),
        Constant(name="launch_s", typical=3e-6, low=1e-7, high=1e-3),
        Constant(name="tile_s", typical=1e-6, low=1e-8, high=1e-4),
        Constant(name="quantise_passes", typical=1.2, low=0.01, high=20.0),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        m, n, k, batch, narrowed, in_turn = columns
        form, given = format_of(device, dtype), device.given(self.name)
        constants = chip.waits_in_clocks(device, constants, ("launch_s", "tile_s"), given)
        bandwidth = constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        weights = form.weight * n * k * batch
        weights = np.where(in_turn > 0, chip.cached(weights, device, given, in_turn * weights), weights)
        moved = weights + batch * (form.activation * m * k + output_bytes(dtype) * m * n)
        choices = _choices(form, split=dtype not in FORMATS)
        rows, cols, parts = (axis[:, None] for axis in choices.T)
        share = _alignment(device, dtype, n, k, given)
        tiles = np.ceil(m / rows) * np.ceil(n / cols) * batch * parts
        area, depth, waves = rows * cols, np.ceil(k / parts / DEPTH) * DEPTH, np.ceil(tiles / device.n_units)
        if device.family == "cpu":
            area, depth, waves = m * n * batch * parts / tiles, k / parts, np.maximum(1.0, tiles / device.n_units)
        unit_flops_per_s = _rate(device, constants, dtype, form, given) / device.n_units
        reached = unit_flops_per_s * share
        working = 2 * depth * (area + given["edge"] * (rows + cols)) / reached
        working = overlapped(working, scaling_s(device, form, depth * area, given), given["overlap"])
        slowest = given["clocks_per_depth"] * depth / device.clock_hz if device.clock_hz else 0.0
        computing = waves * (np.maximum(working, slowest) + constants["tile_s"])
        # kernels for rows that are not aligned have large tiles only
        computing = np.where((share < 1) & (rows * cols < LEAST_UNALIGNED), np.inf, computing)
        split = parts > 1
        streaming = (moved + split * PARTIAL_BYTES * m * n * batch) / bandwidth
        times = overlapped(computing, streaming, given["overlap"])
        times = times + split * given["join_launches"] * constants["launch_s"]
        passes = constants["quantise_passes"] * form.passes * (1 - narrowed)
        quantising = passes * (constants["launch_s"] + form.pass_bytes * m * k * batch / bandwidth)
        return np.asarray(constants["launch_s"] + times.min(axis=0) + quantising, dtype=np.float64)

    def flops(self, shape: GemmShape) -> Number:
        """A multiply and an add for each of its products."""
        return 2 * shape.m * shape.n * shape.k * shape.batch

    def calls(self, stated: float, *, shape: GemmShape | None = None, n_items: float = 1) -> Number:
        """Products of a batch, as those of experts are, are calls of their own."""
        return stated * (1 if shape is None else shape.batch)


def format_of(device: Roofline, dtype: str) -> Format:
    """Return how a type's product runs on this device: narrow weights are widened where it lacks their arithmetic."""
    form = FORMATS.get(dtype)
    if form is None:
        return Format(weight=DTYPE_BYTES[dtype], activation=DTYPE_BYTES[dtype], passes=0)
    if form.activation < DTYPE_BYTES[device.arithmetic(dtype)]:
        return Format(weight=form.weight, activation=WIDE_BYTES, passes=0)
    return form


def output_bytes(dtype: str) -> float:
    """Return the bytes of one element of the result: as wide as the inputs, 16 bits for quantised products."""
    return WIDE_BYTES if dtype in FORMATS else DTYPE_BYTES[dtype]


def _alignment(device: Roofline, dtype: str, n: FloatArray, k: FloatArray, given: Constants) -> FloatArray:
    """Return the share of the rate that is left where rows of operands do not start at whole 16 bytes.

    Tables and kernels for tensor units take aligned rows. Others run on the instructions of older devices, beside which
    their elements are loaded two by two, or one by one where rows start at odd elements (CUTLASS's kernels ``align2``
    and ``align1``). The same loads take a larger share of a unit's time the faster it multiplies.
    """
    item = DTYPE_BYTES[dtype]
    if device.family != "gpu" or dtype in FORMATS or item != WIDE_BYTES or not device.clock_hz:
        return np.ones_like(n)
    # a vector has no rows
    whole = aligned(n, item) & aligned(k, item) | (n <= 1) | (k <= 1)
    elements = np.where((n % 2 == 1) | (k % 2 == 1), 1.0, 2.0)
    full = device.peak(dtype) / (device.n_units * device.clock_hz)
    multiplying = np.full_like(elements, max(1.0, full / given["plain_flops_per_clock"]))
    loading = full / (given["odd_flops_per_clock"] * elements)
    return np.where(whole, 1.0, 1 / overlapped(multiplying, loading, given["overlap"]))


def _rate(device: Roofline, constants: Constants, dtype: str, form: Format, given: Constants) -> float:
    """Return the arithmetic rate of the whole device in FLOP/s."""
    return constants["rate_frac"] * device.peak(dtype) * chip.powered_share(device, dtype, form.activation, given)


def scaling_s(device: Roofline, form: Format, products: FloatArray, given: Constants) -> FloatArray:
    """Return the time of a unit to scale and add up the partial sums of so many ``products`` by hand."""
    rate = device.peak_flops_per_s.get("float32", float("inf")) / device.n_units
    return np.asarray(given["scaling_ops"] / form.scaled_depth * products / rate)


def _choices(form: Format, *, split: bool) -> FloatArray:
    """Return what software chooses from: rows and columns of a tile, and parts that the depth is split into.

    Only vendors' libraries, which serve the plain types, split the depth.
    """
    tiles = [tile for tile in TILES + THIN_TILES if min(tile) >= form.least_tile]
    return np.array([(*tile, parts) for tile in tiles for parts in (SPLITS if split else SPLITS[:1])], dtype=float)


def overlapped(one: FloatArray, other: FloatArray, power: float) -> FloatArray:
    """Return the p-norm of two times, without overflow."""
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    return np.asarray(longer * (1 + (shorter / longer) ** power) ** (1 / power))
