"""What layers of vision networks ask of a machine as eager PyTorch executes them: the ops of one layer, in order.

Counted as PyTorch dispatches them, nothing fused. On the host they are operators of `vision_law`; on an accelerator,
where a convolution is a product of unfolded images and everything else is bound by memory, operators of the core.

Images are channels-last: a map of ``positions`` is as many rows of channels. Most of what is asked for here is asked
for again in every step, so that weights that fit stay in cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sandtable.demand.op import Op, Where
from sandtable.demand.operator_shapes import GemmShape, MemoryBoundShape
from sandtable.hardware import DTYPE_BYTES
from sandtable_kernels.pytorch.vision_law import ConvolutionShape, ImageLinearShape, StreamShape, whole_vectors

# up to which size of an input a lone image goes to PyTorch's own convolution instead of oneDNN (aten Convolution.cpp,
# use_mkldnn), and up to which batch a pointwise one does on one thread
SMALL_INPUT: Final = 20480
SMALL_BATCH: Final = 16
# elements that take more than a comparison
_SPECIAL: Final[dict[str, float]] = {"relu": 0.0, "hard_swish": 1.0, "hard_sigmoid": 1.0}
# tensors read and written by a batch norm: forward, with the batch's own statistics, and backward; simple kernels
_NORM: Final = {"inference": (2, 3), "forward": (3, 6), "backward": (5, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a layer is executed: element type, cores (0: all), where, and which part of a step.

    ``training``: the forward pass keeps what a backward one needs; ``backward``: this is that one.
    """

    dtype: str = "float32"
    n_cores: int = 0
    on: Where = "host"
    training: bool = False
    backward: bool = False
    section: str = ""

    @property
    def item_bytes(self) -> float:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]


# in float32, by all cores of the host
DIRECT: Final = Setting()


class Maps(NamedTuple):
    """The output of a layer: ``batch`` maps of ``height x width`` positions."""

    batch: int
    height: int = 1
    width: int = 1

    @property
    def positions(self) -> int:
        """Rows of channels."""
        return self.batch * self.height * self.width


def linear(
    name: str,
    rows: int,
    n_in: int,
    n_out: int,
    setting: Setting,
    *,
    batch: int = 1,
    operator: str = "image_linear",
) -> list[Op]:
    """Products of ``rows`` with a dense matrix, ``batch`` of them; backward by the inputs and by the weights."""
    sides = [(rows, n_out, n_in), (n_out, rows, n_in)] if setting.backward else [(rows, n_in, n_out)]
    return [_product(name, operator, *side, batch, setting) for side in sides]


def convolution(
    name: str, maps: Maps, n_in: int, n_out: int, setting: Setting, *, kernel: int = 1, stride: int = 1
) -> list[Op]:
    """A dense convolution to ``maps``; one that PyTorch does not hand to oneDNN is a product for each image."""
    depth = n_in * kernel**2
    if setting.on == "accelerator":
        return linear(name, maps.positions, depth, n_out, setting)
    if is_native(maps, n_in, setting, kernel=kernel, stride=stride):
        unfolded = maps.positions * depth
        unfold = [] if kernel == 1 else [stream(name, unfolded, 2.0 * unfolded * setting.item_bytes, setting)]
        rows, own = maps.height * maps.width, "convolution native"
        return [*unfold, *linear(name, rows, depth, n_out, setting, batch=maps.batch, operator=own)]
    operator = "pointwise" if kernel == 1 else "convolution"
    return [_convolution(name, operator, maps, n_in, n_out, setting, kernel=kernel, stride=stride)]


def depthwise(
    name: str, maps: Maps, channels: int, setting: Setting, *, kernel: int = 3, stride: int = 1
) -> list[Op]:
    """A convolution of each channel by itself."""
    if setting.on == "accelerator":
        moved = maps.positions * channels * (stride**2 + 1) * setting.item_bytes
        return [stream(name, maps.positions * channels, moved * (2 if setting.backward else 1), setting)]
    return [_convolution(name, "depthwise", maps, channels, channels, setting, kernel=kernel, stride=stride)]


def batch_norm(name: str, maps: Maps, channels: int, setting: Setting) -> list[Op]:
    """Normalisation by channel, with running statistics, or with the batch's own in training."""
    which = "backward" if setting.backward else "forward" if setting.training else "inference"
    passes, kernels = _NORM[which]
    elements = maps.positions * channels
    moved = passes * elements * setting.item_bytes
    operator = "batch_norm" if which == "inference" else "batch_norm training"
    # channels lie in the lanes of vectors, some of them empty
    worked = float(maps.positions * whole_vectors(channels))
    return [stream(name, elements, moved, setting, operator=operator, n_kernels=kernels, n_special=worked)]


def activation(name: str, kind: str, n_elements: int, setting: Setting) -> list[Op]:
    """Relu, hard_swish or hard_sigmoid; backward reads the gradient and what was kept, and writes another gradient."""
    moved = (3 if setting.backward else 2) * n_elements * setting.item_bytes
    return [stream(name, n_elements, moved, setting, n_special=_SPECIAL[kind] * n_elements)]


def add(name: str, n_elements: int, setting: Setting) -> list[Op]:
    """A sum of two tensors; backward hands the gradient on."""
    return [] if setting.backward else [stream(name, n_elements, 3.0 * n_elements * setting.item_bytes, setting)]


def copied(name: str, n_elements: int, setting: Setting) -> list[Op]:
    """Elements put beside each other; backward hands parts of the gradient on, and copies them."""
    moved, own = 2.0 * n_elements * setting.item_bytes, "image_concat"
    return [stream(name, n_elements, moved, setting, operator=own, n_special=n_elements)]


def shuffled(name: str, n_elements: int, setting: Setting) -> list[Op]:
    """Channels put in another order, and back again."""
    moved, own = 2.0 * n_elements * setting.item_bytes, "image_shuffle"
    return [stream(name, n_elements, moved, setting, operator=own, n_special=n_elements)]


def view(name: str, n_elements: int, setting: Setting) -> list[Op]:
    """Part of a tensor: a call, for which nothing moves; backward puts its gradient into zeros as large as all."""
    if setting.backward:
        return [stream(name, n_elements, 3.0 * n_elements * setting.item_bytes, setting, n_kernels=2)]
    return [] if setting.on == "accelerator" else [stream(name, 1.0, setting.item_bytes, setting)]


def scaled(name: str, maps: Maps, channels: int, setting: Setting) -> list[Op]:
    """Maps times a factor for each channel; backward the gradients of both, and a sum over each map."""
    n, item = maps.positions * channels, setting.item_bytes
    if setting.backward:
        return [stream(name, n, 7.0 * n * item, setting, n_kernels=3)]
    return [stream(name, n, 2.0 * n * item, setting, operator="image_pool", n_special=n)]


def mean_pool(name: str, maps: Maps, channels: int, setting: Setting) -> list[Op]:
    """The mean of whole input ``maps``: read once; backward writes each element's share."""
    n = maps.positions * channels
    return [stream(name, n, 1.0 * n * setting.item_bytes, setting, operator="image_pool", n_kernels=3)]


def max_pool(
    name: str, maps: Maps, channels: int, setting: Setting, *, kernel: int = 3, stride: int = 2
) -> list[Op]:
    """The largest of each window: indices of 8 bytes are written too, and every element of a window compared."""
    n = maps.positions * channels
    moved = n * ((stride**2 + 1) * setting.item_bytes + 8)
    return [stream(name, n, moved, setting, operator="image_pool", n_special=float(n * kernel**2))]


def loss(name: str, batch: int, classes: int, setting: Setting) -> list[Op]:
    """Softmax and its logarithm's loss."""
    n = batch * classes
    n_kernels = 3 if setting.backward else 4
    return [stream(name, n, 4.0 * n * setting.item_bytes, setting, n_kernels=n_kernels, n_special=4.0 * n)]


def sgd(name: str, n_parameters: int, n_tensors: int, setting: Setting) -> list[Op]:
    """A step with momentum and weight decay, a few kernels for each tensor: three tensors read, two written, twice."""
    return [stream(name, n_parameters, 10.0 * n_parameters * setting.item_bytes, setting, n_kernels=3 * n_tensors)]


def stream(
    name: str,
    n_elements: float,
    n_bytes: float,
    setting: Setting,
    *,
    operator: str = "image_stream",
    n_kernels: float = 1.0,
    n_special: float = 0.0,
) -> Op:
    """Element-wise work that moves ``n_bytes``."""
    there = setting.on == "accelerator"
    shape: Any = StreamShape(n_elements, n_bytes, n_kernels, n_special, setting.n_cores)
    return Op(
        name=name,
        operator="memory_bound" if there else operator,
        account="compute",
        dtype=setting.dtype,
        flops=n_elements,
        bytes_read=n_bytes,
        n_special=n_special,
        shape=MemoryBoundShape(n_bytes, n_kernels) if there else shape,
        on=setting.on,
        section=setting.section,
    )


def _product(name: str, operator: str, rows: int, n_in: int, n_out: int, batch: int, setting: Setting) -> Op:
    item, there = setting.item_bytes, setting.on == "accelerator"
    cpu = ImageLinearShape(rows, n_in, n_out, batch, setting.n_cores)
    return Op(
        name=name,
        operator="gemm" if there else operator,
        account="compute",
        dtype=setting.dtype,
        flops=2.0 * batch * rows * n_in * n_out,
        bytes_read=item * (batch * rows * n_in + n_in * n_out),
        bytes_written=item * batch * rows * n_out,
        shape=GemmShape(batch * rows, n_out, n_in) if there else cpu,
        on=setting.on,
        section=setting.section,
    )


def _convolution(
    name: str,
    operator: str,
    maps: Maps,
    n_in: int,
    n_out: int,
    setting: Setting,
    *,
    kernel: int,
    stride: int,
) -> Op:
    products = 2 if setting.backward else 1
    item, depth = setting.item_bytes, (1 if operator == "depthwise" else n_in) * kernel**2
    shape = ConvolutionShape(
        maps.batch, maps.height, maps.width, n_in, n_out, kernel, stride, products, setting.n_cores
    )
    return Op(
        name=name,
        operator=f"{operator} backward" if setting.backward else operator,
        account="compute",
        dtype=setting.dtype,
        flops=2.0 * products * maps.positions * depth * n_out,
        bytes_read=products * item * (stride**2 * maps.positions * n_in + depth * n_out),
        bytes_written=products * item * maps.positions * n_out,
        shape=shape,
        section=setting.section,
    )


def is_native(maps: Maps, n_in: int, setting: Setting, *, kernel: int, stride: int) -> bool:
    """Whether PyTorch multiplies itself: one thread and few pointwise images, or a lone small one."""
    one_thread = setting.n_cores == 1 and kernel == 1 and stride == 1 and maps.batch < SMALL_BATCH
    small = maps.batch == 1 and maps.positions * stride**2 * n_in <= SMALL_INPUT
    return one_thread or small
