"""Layers of vision networks as kernels: what ``sandtable calibrate --only vision`` measures of PyTorch on a CPU.

Each point is timed by a process of its own with ``n_cores`` threads; 0 is as many as there are. Sizes lie between those
of common networks, so that predictions of these are no answers looked up.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable_kernels.pytorch import vision_demand as demand
from sandtable_kernels.pytorch.torch_operators import LinearLayer, TorchKernel, torch
from sandtable_kernels.pytorch.torch_pool import pool
from sandtable_kernels.pytorch.vision_demand import Maps, Setting
from sandtable_kernels.support import Array, seeded

PASSES = ("inference", "forward", "backward")
CORES = (1, 0)


class VisionKernel(TorchKernel):
    """A layer of a vision network, timed by one process that has ``n_cores`` threads."""

    calibrates: ClassVar[str | None] = "vision"

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call, each the mean over the copies of a case."""
        torch()
        workers = pool(1, min(dims["n_cores"], context.n_threads) or context.n_threads)
        return workers.time(self.case, dims, repeats=repeats, budget_s=budget_s)

    def cost(self, dims: Dims) -> Op:
        """What the layer asks for: every point of the grid is a layer of one op."""
        return self.demand(dims, setting(dims))[-1]

    @abstractmethod
    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """Return the ops of the layer."""


def setting(dims: Dims) -> Setting:
    """Return how a point is executed."""
    which = dims.get("pass", "inference")
    return Setting(
        dtype=dims["dtype"],
        n_cores=dims["n_cores"],
        training=which != "inference",
        backward=which == "backward",
    )


def maps(dims: Dims) -> Maps:
    """Return the output of a layer at a point."""
    return Maps(dims["batch"], dims["side"], dims["side"])


def points(
    names: str, rows: Sequence[tuple[Any, ...]], passes: Sequence[str], cores: Sequence[int] = CORES
) -> list[Dims]:
    """Return the points of rows of named dims, for each pass and number of cores."""
    keys = names.split()
    return [
        {**dict(zip(keys, row, strict=True)), "dtype": "float32", "pass": which, "n_cores": n}
        for row, which, n in itertools.product(rows, passes, cores)
    ]


class TorchConvolution(VisionKernel):
    """Dense convolutions; pointwise ones have a kernel of one."""

    name: ClassVar[str] = "torch_convolution"
    case: ClassVar[str] = "convolution"
    names: ClassVar[str] = "batch side n_in n_out kernel stride"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From many positions of few channels to few of many."""
        sizes = [(40, 24, 48), (20, 104, 104), (10, 232, 232), (5, 464, 464), (5, 464, 928), (3, 928, 928)]
        wide = [(40, 16, 72), (20, 72, 24), (10, 40, 232), (80, 12, 24), (10, 464, 464)]
        pointwise = [(b, *size, 1, 1) for size in sizes + ([] if quick else wide) for b in (1, 6)]
        pointwise += [(20, *size, 1, 1) for size in sizes[:: 3 if quick else 1]]
        stem = [(b, side, 3, n, 3, 2) for side, n in ((48, 40), (80, 20), (36, 12)) for b in (1, 6)]
        kept = [size for size in stem if size[0] > 1 or size[1] > 36]
        trained = [
            (16, 24, 24, 48, 1, 1),
            (16, 12, 104, 104, 1, 1),
            (16, 5, 232, 464, 1, 1),
            (16, 5, 464, 464, 1, 1),
        ]
        trained += [(32, 12, 48, 24, 1, 1), (32, 3, 464, 928, 1, 1), (8, 24, 3, 20, 3, 2), (16, 32, 3, 12, 3, 1)]
        trained += [(16, 12, 3, 40, 3, 1), (32, 16, 3, 24, 3, 2), (8, 48, 3, 12, 3, 2)]
        found = points(self.names, [*pointwise, *kept], PASSES[:1])
        return found + points(self.names, trained, PASSES[1:])

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `vision_demand.convolution`."""
        n_in, n_out, kernel, stride = (dims[name] for name in ("n_in", "n_out", "kernel", "stride"))
        return demand.convolution("convolution", maps(dims), n_in, n_out, how, kernel=kernel, stride=stride)

    def example(self) -> Dims:
        """Two small images."""
        row = dict(zip(self.names.split(), (2, 3, 4, 5, 3, 2), strict=True))
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return images [batch, n_in, side, side] and weights [n_out, n_in, kernel, kernel]."""
        side, kernel = dims["side"] * dims["stride"], dims["kernel"]
        images = seeded((dims["batch"], dims["n_in"], side, side), seed)
        return [images, seeded((dims["n_out"], dims["n_in"], kernel, kernel), seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the convolution."""
        return module.nn.functional.conv2d(*tensors, stride=dims["stride"], padding=dims["kernel"] // 2)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64, one window after the other."""
        x, w = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return np.asarray(np.einsum("bchwij,ocij->bohw", windows(x, dims), w))


def windows(x: Array, dims: Dims) -> Array:
    """Return the windows [batch, channels, side, side, kernel, kernel] of images padded with zeros."""
    edge, kernel, stride = dims["kernel"] // 2, dims["kernel"], dims["stride"]
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    every = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    result: Array = every[:, :, ::stride, ::stride][:, :, : dims["side"], : dims["side"]]
    return result


class TorchDepthwise(VisionKernel):
    """Convolutions of each channel by itself."""

    name: ClassVar[str] = "torch_depthwise"
    case: ClassVar[str] = "depthwise"
    names: ClassVar[str] = "batch side n_in kernel stride"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Windows of three and five, from many positions to few."""
        sizes = [(40, 24, 3, 1), (20, 104, 3, 1), (10, 232, 3, 1), (5, 464, 3, 1), (20, 48, 3, 2), (5, 464, 3, 2)]
        more = [(80, 24, 3, 1), (10, 104, 5, 1), (5, 232, 5, 1), (10, 72, 5, 2), (3, 928, 3, 1)]
        chosen = [(b, *size) for size in sizes + ([] if quick else more) for b in (1, 6)]
        trained = [
            (8, 24, 24, 3, 1),
            (16, 12, 104, 3, 1),
            (16, 5, 232, 3, 2),
            (16, 5, 464, 3, 1),
            (8, 10, 72, 5, 1),
        ]
        return points(self.names, chosen, PASSES[:1]) + points(self.names, trained, PASSES[1:])

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `vision_demand.depthwise`."""
        kernel, stride = dims["kernel"], dims["stride"]
        return demand.depthwise("depthwise", maps(dims), dims["n_in"], how, kernel=kernel, stride=stride)

    def example(self) -> Dims:
        """Two small images."""
        row = dict(zip(self.names.split(), (2, 3, 4, 3, 2), strict=True))
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return images [batch, n_in, side, side] and weights [n_in, 1, kernel, kernel]."""
        side, kernel = dims["side"] * dims["stride"], dims["kernel"]
        images = seeded((dims["batch"], dims["n_in"], side, side), seed)
        return [images, seeded((dims["n_in"], 1, kernel, kernel), seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the convolution."""
        kernel, stride = dims["kernel"], dims["stride"]
        return module.nn.functional.conv2d(*tensors, stride=stride, padding=kernel // 2, groups=dims["n_in"])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64, one window after the other."""
        x, w = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return np.asarray(np.einsum("bchwij,cij->bchw", windows(x, dims), w[:, 0]))


class TorchBatchNorm(VisionKernel):
    """Batch norms."""

    name: ClassVar[str] = "torch_batch_norm"
    case: ClassVar[str] = "batch_norm"
    names: ClassVar[str] = "batch side n_in"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From what stays in cache to what does not."""
        sizes = [(1, 40, 24), (1, 10, 232), (1, 5, 464), (6, 40, 24), (6, 20, 104), (6, 5, 464)]
        sizes += [] if quick else [(1, 80, 24), (1, 3, 928), (6, 80, 24), (6, 10, 232), (20, 20, 104), (1, 20, 104)]
        trained = [(8, 24, 48), (16, 12, 104), (16, 5, 464), (16, 24, 24)]
        return points(self.names, sizes, PASSES[:1]) + points(self.names, trained, PASSES[1:])

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `vision_demand.batch_norm`."""
        return demand.batch_norm("norm", maps(dims), dims["n_in"], how)

    def example(self) -> Dims:
        """Two small images."""
        return {"batch": 2, "side": 3, "n_in": 4, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return images [batch, n_in, side, side], means and variances [n_in]."""
        n, side = dims["n_in"], dims["side"]
        return [seeded((dims["batch"], n, side, side), seed), seeded((n,), seed + 1), seeded((n,), seed + 2) ** 2]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the images, normalised."""
        return module.nn.functional.batch_norm(*tensors)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x, mean, variance = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        scale = np.sqrt(variance + 1e-5)
        return np.asarray((x - mean[:, None, None]) / scale[:, None, None])


class TorchImageStream(VisionKernel):
    """Activations, sums, factors by channel, concatenations and pools."""

    name: ClassVar[str] = "torch_image_stream"
    case: ClassVar[str] = "stream"
    kinds: ClassVar[tuple[str, ...]] = ("relu", "hard_swish", "add", "scale", "concat", "shuffle", "mean", "max")
    names: ClassVar[str] = "batch side n_in kind"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Every kind, from what one thread does to what does not stay in cache."""
        sizes = [(1, 40, 24), (1, 10, 104), (6, 20, 104)] + ([] if quick else [(6, 40, 48), (6, 80, 24)])
        rows = [(*size, kind) for size in sizes for kind in self.kinds]
        return points(self.names, rows, PASSES[:1])

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """The kind's own demand."""
        kind, where, n_in = dims["kind"], maps(dims), dims["n_in"]
        n = where.positions * n_in
        match kind:
            case "add":
                return demand.add(kind, n, how)
            case "scale":
                return demand.scaled(kind, where, n_in, how)
            case "concat":
                return demand.copied(kind, n, how)
            case "shuffle":
                return demand.shuffled(kind, n, how)
            case "mean":
                return demand.mean_pool(kind, where, n_in, how)
            case "max":
                halved = Maps(where.batch, where.height // 2, where.width // 2)
                return demand.max_pool(kind, halved, n_in, how)
            case _:
                return demand.activation(kind, kind, n, how)

    def example(self) -> Dims:
        """Two small images."""
        row = dict(zip(self.names.split(), (2, 4, 6, "hard_swish"), strict=True))
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return images."""
        return [seeded((dims["batch"], dims["n_in"], dims["side"], dims["side"]), seed)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return their hard swish."""
        return module.nn.functional.hardswish(*tensors)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x = self.inputs(dims, context.seed)[0].astype(np.float64)
        return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


class TorchImageLinear(LinearLayer, VisionKernel):
    """Linear layers, the same one again and again, and between others."""

    name: ClassVar[str] = "torch_image_linear"
    case: ClassVar[str] = "linear"
    names: ClassVar[str] = "rows n_in n_out among"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From one row to many, square and not."""
        sides = (96, 384, 1536) if quick else (48, 96, 192, 384, 768, 1536, 3072)
        sizes = [(rows, n, n) for n in sides for rows in ((1, 64) if quick else (1, 8, 32, 160, 640))]
        sizes += [] if quick else [(1, 960, 320), (8, 320, 960), (160, 96, 384), (160, 384, 96)]
        kept = [(rows, n, m, False) for rows, n, m in sizes if rows * n * m < 2e9]
        sizes = [(1, 40, 12), (1, 72, 288), (1, 928, 928), (6, 160, 40), (6, 288, 960), (20, 928, 928)]
        among = [(*size, True) for size in sizes]
        trained = points(self.names, [(16, 928, 928, True), (16, 96, 24, True)], PASSES[1:2])
        return points(self.names, [*kept, *among], PASSES[:1]) + trained

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `vision_demand.linear`."""
        operator = "image_linear among" if dims["among"] else "image_linear"
        return demand.linear("linear", dims["rows"], dims["n_in"], dims["n_out"], how, operator=operator)

    def example(self) -> Dims:
        """A few rows."""
        row = {"rows": 3, "n_in": 5, "n_out": 7, "among": False}
        return {**row, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def sides(self, dims: Dims) -> tuple[int, int, int]:
        """See `LinearLayer.sides`."""
        return dims["rows"], dims["n_out"], dims["n_in"]


class TorchNarrowLinear(TorchImageLinear):
    """Linear layers in bfloat16, which go to oneDNN and to units of their own where there are any."""

    name: ClassVar[str] = "torch_narrow_linear"
    software: ClassVar[str | None] = "pytorch_cpu_bfloat16"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From one row to many."""
        sides = (96, 768) if quick else (96, 384, 768, 1536)
        sizes = [(rows, n, n, False) for n in sides for rows in (1, 8, 32, 160)]
        return [{**dims, "dtype": "bfloat16"} for dims in points(self.names, sizes, PASSES[:1])]

    def example(self) -> Dims:
        """A few rows, whose products are exact in eight bits."""
        return {**super().example(), "dtype": "bfloat16"}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return small whole numbers."""
        return [np.rint(part * 4) for part in super().inputs(dims, seed)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the product of narrow numbers, widened again."""
        return module.nn.functional.linear(*(part.bfloat16() for part in tensors)).float()


class TorchSgd(VisionKernel):
    """One step of SGD with momentum over tensors of equal size."""

    name: ClassVar[str] = "torch_sgd"
    case: ClassVar[str] = "sgd"
    names: ClassVar[str] = "n_parameters n_tensors"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From what stays in cache to what does not."""
        return points(self.names, [(200_000, 60), (1_500_000, 90), (6_000_000, 90)], PASSES[:1])

    def demand(self, dims: Dims, how: Setting) -> list[Op]:
        """See `vision_demand.sgd`."""
        return demand.sgd("optimizer", dims["n_parameters"], dims["n_tensors"], how)

    def example(self) -> Dims:
        """Two small tensors."""
        return {"n_parameters": 12, "n_tensors": 2, "dtype": "float32", "pass": "inference", "n_cores": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return weights and gradients [tensors, items]."""
        size = (dims["n_tensors"], dims["n_parameters"] // dims["n_tensors"])
        return [seeded(size, seed), seeded(size, seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the weights after one step."""
        values, gradients = tensors
        weights = [value.clone().requires_grad_() for value in values]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        module.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.5).step()
        return module.stack([weight.detach() for weight in weights])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """A first step has no momentum yet."""
        weights, gradients = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return np.asarray(weights - 0.1 * (gradients + 0.5 * weights))
