"""PyTorch's operators of training as kernels: what calibration measures on a machine that has PyTorch.

Each point is timed by processes of its own (`sandtable_kernels.pytorch.torch_pool`): one with all threads, or
several that share the machine, as the ranks of a training run do. ``processes`` in the dims says how many.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named
from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape, CollectiveShape, GemmShape
from sandtable.errors import missing_extra
from sandtable_kernels.pytorch import eager
from sandtable_kernels.pytorch.steps import step_points
from sandtable_kernels.pytorch.steps.step_points import HEAD_DIM, STEP, StepTimings
from sandtable_kernels.pytorch.torch_pool import pool
from sandtable_kernels.support import Array, seeded

ITEM_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
# one process with all cores, and one per core
SHARES = (1, 2)
PASSES = ("forward", "backward")
MEMORY_BOUND = "memory_bound"


def torch() -> Any:
    """Import PyTorch.

    Raises:
        NoDevice: it is not installed.
    """
    try:
        import torch as module
    except ImportError:
        raise missing_extra("torch", "torch") from None
    return module


class TorchKernel(Kernel):
    """A kernel that processes running PyTorch time by themselves."""

    calibrates: ClassVar[str | None] = "training"
    software: ClassVar[str | None] = "pytorch_cpu"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    case: ClassVar[str]

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call, of the slowest process: within a training step, or in a loop over copies.

        In a loop each is the mean over the copies of a case. The part `STEP` is all of a step.
        """
        torch()
        n = dims["processes"]
        workers = pool(n, max(1, context.n_threads // n))
        if dims.get("part") == STEP:
            return _steps.whole(dims, workers, budget_s)
        if "within" in dims:
            return _steps.take(dims, workers, budget_s)
        return workers.time(dims.get("case", self.case), dims, repeats=repeats, budget_s=budget_s)

    def software_of(self, dims: Dims) -> str | None:
        """Return the software; what is counted as traffic alone has constants for every part of a step."""
        if "within" not in dims or operator_named(self.cost(dims).operator).name != MEMORY_BOUND:
            return self.software
        return f"{self.software}_{step_points.part_of(dims)}".replace(" ", "_")

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Give one call inside this process; `timings` is what calibration uses."""

        def call() -> None:
            self.run(dims, context)

        call()
        yield call

    def run(self, dims: Dims, context: KernelContext) -> Array:
        """Execute once inside this process."""
        module = torch()
        with module.no_grad():
            tensors = [module.from_numpy(part) for part in self.inputs(dims, context.seed)]
            result: Array = self.compute(module, dims, *tensors).numpy()
        return result

    @abstractmethod
    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return seeded inputs of the forward pass."""

    @abstractmethod
    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the forward pass of PyTorch's operator on these inputs."""


# parts of the steps that this process timed
_steps = StepTimings()


def points(*grids: dict[str, Any], shares: Sequence[int] = SHARES) -> list[Dims]:
    """Return every grid's point for every share of the machine."""
    return [{**grid, "processes": n} for grid, n in itertools.product(grids, shares)]


def memory_bound_op(name: str, traffic: eager.Traffic, dims: Dims) -> Op:
    """Return the demand of a composite that moves and launches so much; within a step it has a role."""
    return Op(
        name=name,
        role=step_points.role_of(dims) if "within" in dims else "",
        operator=MEMORY_BOUND,
        account="compute",
        dtype=dims["dtype"],
        bytes_read=traffic.n_bytes,
        shape=traffic.shape,
        sharing=dims["processes"],
    )


class LinearLayer(TorchKernel):
    """What all products of a linear layer share: y[m, n] = x[m, k] w[n, k]'."""

    case: ClassVar[str] = "gemm"

    @abstractmethod
    def sides(self, dims: Dims) -> tuple[int, int, int]:
        """Return m, n and k."""

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return x [m, k] and w [n, k]."""
        m, n, k = self.sides(dims)
        return [seeded((m, k), seed), seeded((n, k), seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the linear layer's output."""
        return module.nn.functional.linear(*tensors)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x, w = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return x @ w.T


class TorchGemm(LinearLayer):
    """Products of a linear layer: y[m, n] = x[m, k] w[n, k]', and both of its backward pass."""

    name: ClassVar[str] = "torch_gemm"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Layers within training steps, and narrower ones alone."""
        grids = [
            step_points.within(size, part, m=size.n_tokens, n=n, k=k, **{"pass": which})
            for size in step_points.sizes(quick=quick)
            for part, (n, k) in size.products.items()
            for which in ("forward", "backward_data", "backward_weight")
        ]
        # a step that decodes: one token of each sequence
        grids.append({"m": 16, "n": 192, "k": 64, "dtype": "float32", "pass": "forward"})
        half = [] if quick else [(512, 192, 64), (1024, 768, 256), (2048, 384, 1024)]
        grids += [{"m": m, "n": n, "k": k, "dtype": "bfloat16", "pass": "forward"} for m, n, k in half]
        return points(*grids)

    def probes(self) -> Sequence[Dims]:
        """A whole step, products and all else."""
        return [step_points.PROBE]

    def cost(self, dims: Dims) -> Op:
        """Two operations per multiplication; each operand once."""
        m, n, k, item = dims["m"], dims["n"], dims["k"], ITEM_BYTES[dims["dtype"]]
        rows, columns, inner = {
            "forward": (m, n, k),
            "backward_data": (m, k, n),
            "backward_weight": (n, k, m),
        }[dims["pass"]]
        return Op(
            name="linear",
            operator="gemm",
            account="compute",
            dtype=dims["dtype"],
            flops=2 * m * n * k,
            bytes_read=item * inner * (rows + columns),
            bytes_written=item * rows * columns,
            shape=GemmShape(rows, columns, inner),
            sharing=dims["processes"],
        )

    def example(self) -> Dims:
        """A small product."""
        return {"m": 5, "n": 7, "k": 11, "dtype": "float32", "pass": "forward", "processes": 1}

    def sides(self, dims: Dims) -> tuple[int, int, int]:
        """See `LinearLayer.sides`."""
        return dims["m"], dims["n"], dims["k"]


class TorchAttention(TorchKernel):
    """Causal self-attention: scores written out, or PyTorch's fused one."""

    name: ClassVar[str] = "torch_attention"
    case: ClassVar[str] = "attention"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Within training steps."""
        grids = []
        for size in step_points.sizes(quick=quick):
            shape = {"batch": size.batch, "tokens": size.tokens, "n_heads": size.n_heads, "head_dim": HEAD_DIM}
            own = step_points.within(size, "attention", **shape, flash=size.flash)
            grids += [{**own, "pass": which} for which in PASSES]
        # few of these steps write their scores
        for b, t, h in [(4, 128, 2), (2, 512, 4), (8, 128, 8), (4, 256, 4)]:
            alone = {
                "batch": b,
                "tokens": t,
                "n_heads": h,
                "head_dim": HEAD_DIM,
                "dtype": "float32",
                "flash": False,
            }
            grids += [{**alone, "pass": which} for which in PASSES]
        short = {"tokens": 32, "n_heads": 2, "head_dim": HEAD_DIM, "dtype": "float32", "flash": True}
        grids += [{**short, "batch": 64, "pass": which} for which in PASSES]
        return points(*grids)

    def cost(self, dims: Dims) -> Op:
        """Half of all scores are seen; queries, keys, values and outputs pass through memory once."""
        b, t, h, e = (dims[name] for name in ("batch", "tokens", "n_heads", "head_dim"))
        item = ITEM_BYTES[dims["dtype"]]
        passes, q = BACKWARD_PASSES if dims["pass"] == "backward" else 1.0, dims.get("queries", t)
        causal = float(q > 1)
        return Op(
            name="attention",
            operator="attention",
            account="compute",
            dtype=dims["dtype"],
            flops=passes * (4 - 2 * causal) * b * h * q * t * e,
            bytes_read=passes * b * (q + 2 * t) * h * e * item,
            bytes_written=passes * b * q * h * e * item,
            shape=AttentionShape(b, q, t, h, h, e, e, causal, item, float(dims["flash"]), passes),
            sharing=dims["processes"],
        )

    def example(self) -> Dims:
        """Two sequences of five tokens."""
        return {
            "batch": 2,
            "tokens": 5,
            "n_heads": 3,
            "head_dim": 8,
            "dtype": "float32",
            "flash": True,
            "pass": "forward",
            "processes": 1,
        }

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return q, k, v [batch, heads, tokens, head]; of the queries, the last ones."""
        size = tuple(dims[name] for name in ("batch", "n_heads", "tokens", "head_dim"))
        q, k, v = (seeded(size, seed + index) for index in range(3))
        return [q[:, :, -dims.get("queries", dims["tokens"]) :], k, v]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return each token's mixture of values."""
        # PyTorch counts queries from the first token on: a lone one would see that token alone
        causal = dims.get("queries") != 1
        return module.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64, scores written out."""
        q, k, v = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        scores = q @ k.swapaxes(-2, -1) / np.sqrt(q.shape[-1])
        n, t = scores.shape[-2:]
        scores = np.where(np.tri(n, t, t - n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v)


class TorchDecodeAttention(TorchAttention):
    """One query of each sequence, which looks back on a cache of keys and values."""

    name: ClassVar[str] = "torch_decode_attention"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Few sequences and many."""
        shape = {"tokens": 32, "n_heads": 2, "head_dim": HEAD_DIM, "queries": 1}
        same = {"dtype": "float32", "flash": True, "pass": "forward"}
        return points(*({**shape, **same, "batch": b} for b in (8, 64)))

    def example(self) -> Dims:
        """Two sequences of five tokens."""
        return {**super().example(), "queries": 1}


def _passes(case: str) -> Sequence[str]:
    # the backward pass of a sum does nothing
    return PASSES[:1] if case == "add" else PASSES


class TorchStream(TorchKernel):
    """What stands between the products of a layer: norms, sums, gates, rotary positions, and the loss."""

    name: ClassVar[str] = "torch_stream"
    case: ClassVar[str] = "norm"
    cases: ClassVar[tuple[str, ...]] = ("norm", "add", "gate", "rope", "cross_entropy")
    # what they are called in a step
    parts: ClassVar[dict[str, str]] = {
        "norm": "norm",
        "add": "residual",
        "gate": "activation",
        "rope": "rope",
        "cross_entropy": "loss",
    }

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Every composite alone on a small and a large tensor, and within training steps."""
        grids = [
            {"case": case, "n_tokens": n, "width": width, "dtype": "float32", "pass": which}
            for case in self.cases
            for n, width in [(512, 64), (1024, 256)]
            for which in _passes(case)
        ]
        for size in step_points.sizes(quick=quick):
            widths = {"gate": size.neurons, "cross_entropy": size.vocabulary}
            for case in self.cases:
                dims = {"case": case, "n_tokens": size.n_tokens, "width": widths.get(case, size.width)}
                own = step_points.within(size, self.parts[case], **dims)
                grids += [{**own, "pass": which} for which in _passes(case)]
        # so few tokens that launches are all there is
        grids.append({"case": "norm", "n_tokens": 16, "width": 64, "dtype": "float32", "pass": "forward"})
        return points(*grids)

    def cost(self, dims: Dims) -> Op:
        """Bytes and kernels as eager PyTorch launches them."""
        return memory_bound_op(dims["case"], self.traffic(dims), dims)

    def traffic(self, dims: Dims) -> eager.Traffic:
        """Return what the composite moves and launches."""
        item, back = ITEM_BYTES[dims["dtype"]], dims["pass"] == "backward"
        n, width = dims["n_tokens"], dims["width"]
        if dims["case"] == "add":
            return eager.add(n, width, item)
        if dims["case"] == "rope":
            return eager.rope(n, 2 * width, width, item, backward=back)
        composite = {"norm": eager.norm, "gate": eager.gate, "cross_entropy": eager.cross_entropy}[dims["case"]]
        return composite(n, width, item, backward=back)

    def example(self) -> Dims:
        """A norm of a few tokens."""
        return {"case": "norm", "n_tokens": 6, "width": 32, "dtype": "float32", "pass": "forward", "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return one tensor [tokens, width] and a gain."""
        return [seeded((dims["n_tokens"], dims["width"]), seed), seeded((dims["width"],), seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the norm of the tensor."""
        x, gain = tensors
        return module.nn.functional.rms_norm(x, (x.shape[-1],), gain, 1e-5)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The same in float64."""
        x, gain = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * gain)


class TorchEmbedding(TorchKernel):
    """Rows of a table by token; backward clears a gradient as large as the table."""

    name: ClassVar[str] = "torch_embedding"
    case: ClassVar[str] = "embedding"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """A table for words alone, and tables within training steps."""
        grids = [
            {"n_tokens": 1024, "width": 256, "vocabulary": 2048, "dtype": "float32", "pass": w} for w in PASSES
        ]
        for size in step_points.sizes(quick=quick):
            shape = {"n_tokens": size.n_tokens, "width": size.width, "vocabulary": size.vocabulary}
            grids += [{**step_points.within(size, "embedding", **shape), "pass": which} for which in PASSES]
        return points(*grids)

    def cost(self, dims: Dims) -> Op:
        """Each token's row, and backward the table."""
        back = dims["pass"] == "backward"
        n, width, vocabulary = dims["n_tokens"], dims["width"], dims["vocabulary"]
        traffic = eager.embedding(n, width, vocabulary, ITEM_BYTES[dims["dtype"]], backward=back)
        return memory_bound_op("embedding", traffic, dims)

    def example(self) -> Dims:
        """A few tokens of a small table."""
        fields = {"n_tokens": 5, "width": 8, "vocabulary": 16, "dtype": "float32"}
        return {**fields, "pass": "forward", "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return the table and the tokens."""
        tokens = np.random.default_rng(seed).integers(0, dims["vocabulary"], (dims["n_tokens"],))
        return [seeded((dims["vocabulary"], dims["width"]), seed), tokens]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return each token's row."""
        table, tokens = tensors
        return module.nn.functional.embedding(tokens, table)

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The rows."""
        table, tokens = self.inputs(dims, context.seed)
        return np.asarray(table[tokens])


class TorchAdamW(TorchKernel):
    """One fused step of AdamW over tensors of equal size."""

    name: ClassVar[str] = "torch_adamw"
    case: ClassVar[str] = "adamw"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Alone, behind what empties the caches, and within training steps."""
        grids = [{"n_params": n, "n_tensors": k, "dtype": "float32"} for n, k in [(180_000, 30), (10_800_000, 58)]]
        for size in step_points.sizes(quick=quick):
            grids.append(
                step_points.within(size, step_points.OPTIMIZER, n_params=size.n_params, n_tensors=size.n_tensors)
            )
        return points(*grids)

    def cost(self, dims: Dims) -> Op:
        """Weights and two states read and written, gradients read."""
        traffic = eager.adamw(dims["n_params"], dims["n_tensors"], ITEM_BYTES[dims["dtype"]])
        return memory_bound_op("optimizer", traffic, dims)

    def example(self) -> Dims:
        """Two small tensors."""
        return {"n_params": 12, "n_tensors": 2, "dtype": "float32", "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return weights and gradients [tensors, items]."""
        size = (dims["n_tensors"], dims["n_params"] // dims["n_tensors"])
        return [seeded(size, seed), seeded(size, seed + 1)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return the weights after one step."""
        values, gradients = tensors
        weights = [value.clone().requires_grad_() for value in values]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        module.optim.AdamW(weights, lr=0.1, weight_decay=0.5, fused=True).step()
        return module.stack([weight.detach() for weight in weights])

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """A first step moves every weight by the learning rate against its gradient's sign, after decay."""
        weights, gradients = (part.astype(np.float64) for part in self.inputs(dims, context.seed))
        return np.asarray(weights * (1 - 0.1 * 0.5) - 0.1 * gradients / (np.abs(gradients) + 1e-8))


class TorchCollective(TorchKernel):
    """All-reduces of two processes over gloo, as the ranks of a training run on this machine do them."""

    name: ClassVar[str] = "torch_all_reduce"
    calibrates: ClassVar[str | None] = "link"
    software: ClassVar[str | None] = "gloo"
    case: ClassVar[str] = "collective"
    ops: ClassVar[tuple[str, ...]] = ("all_reduce",)

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """From the size at which only latency counts to that at which only bandwidth does."""
        sizes = [2**10 * 4**i for i in range(1, 8 if quick else 9)]
        return [{**self.example(), "op": op, "n_bytes": size, "processes": 2} for op in self.ops for size in sizes]

    def cost(self, dims: Dims) -> Op:
        """The whole buffer, two ranks, one machine."""
        return Op(
            name=dims["op"],
            operator=dims["op"],
            account="communication",
            bytes_read=dims["n_bytes"],
            shape=CollectiveShape(dims["n_bytes"], dims["processes"], dims["processes"]),
        )

    def example(self) -> Dims:
        """A small buffer of one process, where nothing is to be done."""
        return {"op": self.ops[0], "n_bytes": 64, "processes": 1}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return the buffer."""
        return [seeded((dims["n_bytes"] // 4,), seed)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """One process alone reduces to what it has; two are compared where a training run's ranks are."""
        return tensors[0]

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The buffer itself."""
        return self.inputs(dims, context.seed)[0]


class TorchShardedUnit(TorchCollective):
    """A sharded layer's gather of weights and scatter of gradients, with all that ``fully_shard`` does around them."""

    name: ClassVar[str] = "torch_sharded_unit"
    software: ClassVar[str | None] = "fully_shard"
    case: ClassVar[str] = "sharded_unit"
    ops: ClassVar[tuple[str, ...]] = ("all_gather", "reduce_scatter")

    def example(self) -> Dims:
        """A small layer of six weights."""
        return {"op": self.ops[0], "n_bytes": 96, "n_tensors": 6, "processes": 1}
