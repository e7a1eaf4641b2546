"""Laws of what convolutional networks run on a CPU in eager PyTorch: products, convolutions, and what stands between.

On an accelerator these are operators of the core: a product, or memory-bound work; see `vision_demand`.

A linear layer goes to a BLAS that packs its weights anew in every call; a single float32 row is multiplied where they
lie. A convolution goes to oneDNN, which brings weights into its own order in every call. Time is that of arithmetic
and that of moving, little of which goes on beside each other where rows are few: packing comes before multiplying.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, Resource
from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES, Roofline
from sandtable_kernels.pytorch.core_law import CACHE, SPEEDUP, Cores, joined

# elements that one thread gets at least (at::internal::GRAIN_SIZE): smaller tensors leave the others idle
GRAIN = 32768
# of the vectors in which channels lie
LANES = 16
CALL = Constant(name="launch_s", typical=3e-6, low=1e-7, high=1e-3)
# oneDNN looks for the primitive of a shape in every call
LAUNCH = Constant(name="launch_s", typical=3e-5, low=1e-7, high=1e-3)
RATE = Constant(name="rate_frac", typical=0.8, low=0.01, high=1.5)
BANDWIDTH = Constant(name="bandwidth_frac", typical=0.8, low=0.05, high=3.0)
EDGE = Constant(name="edge_rows", typical=8.0, low=0.1, high=500.0)
DEPTH = Constant(name="edge_depth", typical=16.0, low=0.1, high=500.0)
# for cores to begin and end a product together
JOIN = Constant(name="join_s", typical=3e-6, low=1e-8, high=1e-3)
PACK = Constant(name="pack_passes", typical=2.0, low=0.01, high=200.0)


def whole_vectors(channels: Number) -> Number:
    """Return the lanes of as many vectors as hold so many channels."""
    return np.ceil(np.asarray(channels) / LANES) * LANES


class ImageLinearShape(NamedTuple):
    """``y[rows, n_out] = x[rows, n_in] w[n_out, n_in]'``, ``batch`` of them in a row, by ``n_cores`` (0: all)."""

    rows: Number
    n_in: Number
    n_out: Number
    batch: Number = 1.0
    n_cores: Number = 0.0


class ConvolutionShape(NamedTuple):
    """A convolution of ``batch`` images to ``height x width`` positions, by ``n_cores`` (0: all).

    ``products`` is how many products of its size there are: 1 forward, 2 backward (of the input and of the weights).
    """

    batch: Number
    height: Number
    width: Number
    n_in: Number
    n_out: Number
    kernel: Number
    stride: Number = 1.0
    products: Number = 1.0
    n_cores: Number = 0.0


class StreamShape(NamedTuple):
    """Element-wise work on ``n_elements``: bytes moved, kernels launched, elements that take more than that."""

    n_elements: Number
    n_bytes: Number
    n_kernels: Number = 1.0
    n_special: Number = 0.0
    n_cores: Number = 0.0


class ImageLinear(Operator[Roofline]):
    """``t = launch + batch * (arithmetic^p + moving^p)^(1/p)``, by one core, or by all where that is less.

    All take ``join_s`` for each product besides, to begin and end together.
    ``edge_rows`` are rows that a product works on for nothing; ``pack_passes`` how often weights move beside being
    read once. A float32 product of one row has neither.
    """

    name: ClassVar[str] = "image_linear"
    called: ClassVar[str] = "linear layers"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[Any] = ImageLinearShape
    dense: ClassVar[bool] = True
    constants: ClassVar[tuple[Constant, ...]] = (CALL, RATE, BANDWIDTH, EDGE, PACK, JOIN, SPEEDUP, CACHE)

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        alone = self._products_s(device, constants, columns, columns.n_cores * 0 + 1, dtype)
        together = self._products_s(device, constants, columns, columns.n_cores, dtype)
        shared = together + columns.batch * constants["join_s"] * (columns.n_cores != 1)
        return np.asarray(constants["launch_s"] + np.minimum(alone, shared))

    def _products_s(
        self, device: Roofline, constants: Constants, c: Columns, n_cores: FloatArray, dtype: str
    ) -> FloatArray:
        item, cores = DTYPE_BYTES[dtype], Cores.of(device, constants, n_cores)
        many = (c.rows > 1) | (dtype != "float32")
        weights, others = item * c.n_in * c.n_out, item * c.rows * (c.n_in + c.n_out)
        rows = c.rows + many * constants["edge_rows"]
        computing = 2 * rows * c.n_in * c.n_out / (constants["rate_frac"] * device.peak(dtype) * cores.share)
        moved = weights * (1 + many * constants["pack_passes"]) + others
        return np.asarray(c.batch * joined(computing, cores.moving_s(moved, weights + others)))

    def flops(self, shape: ImageLinearShape) -> Number:
        """A multiply and an add for each of its products."""
        return 2 * shape.batch * shape.rows * shape.n_in * shape.n_out


class LinearAmong(ImageLinear):
    """A linear layer between the others of a network, which have driven its weights and code out of the caches."""

    name: ClassVar[str] = "image_linear among"
    fitted_as: ClassVar[str] = "image_linear among"


class NativeConvolution(ImageLinear):
    """A convolution that PyTorch multiplies itself, image by image, instead of handing it to oneDNN."""

    name: ClassVar[str] = "convolution native"
    fitted_as: ClassVar[str] = "convolution native"


class Convolution(Operator[Roofline]):
    """``t = launch + (arithmetic^p + moving^p)^(1/p)``; all channels of an output read all of the input.

    ``edge_rows`` positions, ``edge_depth`` products of each sum and the lanes of vectors beyond the last output are
    worked on for nothing; ``pack_passes`` is how
    often weights move beside being read once.
    """

    name: ClassVar[str] = "convolution"
    called: ClassVar[str] = "convolutions"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[Any] = ConvolutionShape
    constants: ClassVar[tuple[Constant, ...]] = (LAUNCH, RATE, BANDWIDTH, EDGE, DEPTH, PACK, SPEEDUP, CACHE)

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c, item = columns, DTYPE_BYTES[dtype]
        cores = Cores.of(device, constants, c.n_cores)
        positions, depth = c.batch * c.height * c.width, c.n_in * c.kernel**2
        rows, terms = positions + constants["edge_rows"], depth + constants["edge_depth"]
        rate = constants["rate_frac"] * device.peak(dtype) * cores.share
        computing = c.products * 2 * rows * terms * whole_vectors(c.n_out) / rate
        weights = item * depth * c.n_out
        images = item * positions * (c.stride**2 * c.n_in + c.n_out)
        moved = c.products * (weights * (1 + constants["pack_passes"]) + images)
        moving = cores.moving_s(moved, weights + images)
        return np.asarray(c.products * constants["launch_s"] + joined(computing, moving))

    def flops(self, shape: ConvolutionShape) -> Number:
        """A multiply and an add for each of its products."""
        sums = shape.batch * shape.height * shape.width * shape.n_out
        return 2 * shape.products * sums * shape.n_in * shape.kernel**2


class Pointwise(Convolution):
    """A convolution whose kernel is one position."""

    name: ClassVar[str] = "pointwise"
    fitted_as: ClassVar[str] = "pointwise"


class DepthwiseConvolution(Operator[Roofline]):
    """``t = launch + (arithmetic^p + moving^p)^(1/p)``; each channel reads its own alone."""

    name: ClassVar[str] = "depthwise"
    called: ClassVar[str] = "depthwise convolutions"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[Any] = ConvolutionShape
    constants: ClassVar[tuple[Constant, ...]] = (
        LAUNCH,
        # a vector unit loads more than it multiplies here
        Constant(name="rate_frac", typical=0.3, low=0.005, high=1.5),
        BANDWIDTH,
        SPEEDUP,
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c = columns
        cores = Cores.of(device, constants, c.n_cores)
        sums = c.batch * c.height * c.width * c.n_out
        rate = constants["rate_frac"] * device.peak(dtype) * cores.share
        computing = c.products * 2 * sums * c.kernel**2 / rate
        images = DTYPE_BYTES[dtype] * sums * (c.stride**2 + 1)
        moving = cores.moving_s(c.products * images, images)
        return np.asarray(c.products * constants["launch_s"] + joined(computing, moving))

    def flops(self, shape: ConvolutionShape) -> Number:
        """A multiply and an add for each of its products."""
        return 2 * shape.products * shape.batch * shape.height * shape.width * shape.n_out * shape.kernel**2


class ConvolutionBackward(Convolution):
    """Gradients of a convolution's input and weights, in the order of a forward pass that kept them."""

    name: ClassVar[str] = "convolution backward"
    fitted_as: ClassVar[str] = "convolution backward"


class PointwiseBackward(Convolution):
    """Gradients of a pointwise convolution's input and weights."""

    name: ClassVar[str] = "pointwise backward"
    fitted_as: ClassVar[str] = "pointwise backward"


class DepthwiseBackward(DepthwiseConvolution):
    """Gradients of a depthwise convolution's input and weights."""

    name: ClassVar[str] = "depthwise backward"
    fitted_as: ClassVar[str] = "depthwise backward"


class ImageStream(Operator[Roofline]):
    """``t = n_kernels * launch + (moving^p + special^p)^(1/p)``: activations, sums, copies, pools, an optimiser.

    ``special_s`` is what one core takes for one element that needs more than moving.
    """

    name: ClassVar[str] = "image_stream"
    called: ClassVar[str] = "element-wise layers"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[Any] = StreamShape
    constants: ClassVar[tuple[Constant, ...]] = (
        CALL,
        Constant(name="special_s", typical=2e-10, low=1e-12, high=1e-7),
        BANDWIDTH,
        SPEEDUP,
        CACHE,
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        """See `Operator.seconds`."""
        c = columns
        asked = np.where(c.n_cores > 0, c.n_cores, device.n_units)
        # what remains is one core's while it is less than a grain
        cores = Cores.of(device, constants, np.maximum(1.0, np.minimum(asked, c.n_elements / GRAIN)))
        moving = cores.moving_s(c.n_bytes, c.n_bytes)
        working = c.n_special * constants["special_s"] / cores.n_cores
        return np.asarray(c.n_kernels * constants["launch_s"] + joined(moving, working))


class ImagePool(ImageStream):
    """Factors, means and maxima of whole maps or windows: each number is met with one that lies elsewhere."""

    name: ClassVar[str] = "image_pool"
    fitted_as: ClassVar[str] = "image_pool"


class ImageConcat(ImageStream):
    """Channels put beside those of other maps: a few at a time are copied."""

    name: ClassVar[str] = "image_concat"
    fitted_as: ClassVar[str] = "image_concat"


class ImageShuffle(ImageStream):
    """Channels in another order: each number is copied by itself."""

    name: ClassVar[str] = "image_shuffle"
    fitted_as: ClassVar[str] = "image_shuffle"


class BatchNorm(ImageStream):
    """Normalisation by channel: factors of each channel first, then each element by its own."""

    name: ClassVar[str] = "batch_norm"
    called: ClassVar[str] = "batch norms"
    fitted_as: ClassVar[str] = "batch_norm"


class BatchNormBackward(ImageStream):
    """Normalisation by the statistics of a batch, and its gradient."""

    name: ClassVar[str] = "batch_norm training"
    fitted_as: ClassVar[str] = "batch_norm training"
