"""Operators of training as PyTorch runs them, timed in bulk: a case sets up copies and gives a call that times itself.

Every case works on many copies with tensors of their own, so that outputs land in memory that was last touched long
ago, as in a training step, and so that starting the clock or autograd's engine does not count. Imported only where
something is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as fn
from torch import Tensor

from sandtable_kernels.pytorch import layer_functions
from sandtable_kernels.pytorch.steps.step_points import HEAD_DIM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# copies of a case: as many as take so long together, and no more than fit
SAMPLE_S = 0.015
POOL_BYTES = 128 << 20
MOST_COPIES = 24
LEAST_COPIES = 2
# three times a large last-level cache
EVICT_BYTES = 96 << 20

Timed = Callable[[], float]
Dims = Mapping[str, Any]
R = TypeVar("R")


class Stopwatch:
    """How a process times work, and how many bytes the copies of a case may take together; this one is a CPU's."""

    pool_bytes: float = POOL_BYTES

    def span(self, work: Callable[[], R]) -> tuple[R, float]:
        """Do ``work``, and return what it gives and how long it took, in seconds."""
        start = time.perf_counter()
        found = work()
        return found, time.perf_counter() - start


_watches = [Stopwatch()]


def use(stopwatch: Stopwatch) -> None:
    """Time all cases of this process with a stopwatch of another device."""
    _watches[:] = [stopwatch]


def watch() -> Stopwatch:
    """Return the stopwatch of this process."""
    return _watches[0]


def copies(dims: Dims, bytes_each: float) -> int:
    """Return how many copies of a case to make: ``copies`` of the dims, less where they would not fit."""
    fitting = max(LEAST_COPIES, int(watch().pool_bytes // max(1, bytes_each)))
    return int(min(dims.get("copies", LEAST_COPIES), fitting))


def enough_copies(seconds_each: float) -> int:
    """Return how many copies make a sample long enough."""
    return int(min(MOST_COPIES, max(LEAST_COPIES, SAMPLE_S // seconds_each)))


def filled(*size: int, dtype: str, grad: bool = False) -> Tensor:
    """Return values around zero; drawing random ones would take longer than the measurement."""
    values = torch.linspace(-1.0, 1.0, math.prod(size)).reshape(size)
    return values.to(DTYPES[dtype]).requires_grad_(grad)


def timed(inputs: Sequence[Any], forward: Callable[[Any], Sequence[Tensor]], *, backward: bool) -> Timed:
    """Return a call that gives the mean seconds of one ``forward``, or of the backward of one."""
    first = forward(inputs[0])
    gradients = [torch.randn_like(output) for output in first]
    leaves = [
        leaf for item in inputs for leaf in (item if isinstance(item, tuple) else (item,)) if leaf.requires_grad
    ]
    del first

    def call() -> float:
        for leaf in leaves:
            leaf.grad = None
        outputs, seconds = watch().span(lambda: [forward(item) for item in inputs])
        if backward:
            flat = [output for parts in outputs for output in parts]
            _, seconds = watch().span(lambda: torch.autograd.backward(flat, gradients * len(inputs)))
        return seconds / len(inputs)

    return call


# --- products and attention --------------------------------------------------------------------------------


def gemm(dims: Dims) -> Timed:
    """A linear layer's product: ``pass`` forward, backward_data (by the input) or backward_weight."""
    m, n, k, dtype, which = (dims[name] for name in ("m", "n", "k", "dtype", "pass"))
    number = copies(dims, DTYPES[dtype].itemsize * 2 * (m * k + n * k + m * n))
    grads = (which != "backward_weight", which != "backward_data")
    inputs = [
        (filled(m, k, dtype=dtype, grad=grads[0]), filled(n, k, dtype=dtype, grad=grads[1])) for _ in range(number)
    ]
    return timed(inputs, lambda item: (fn.linear(*item),), backward=which != "forward")


def attention(dims: Dims) -> Timed:
    """Causal self-attention from heads that lie beside each other per token, to rows that do so again.

    One query, ``queries`` 1, looks back on a cache instead, whose keys and values lie head by head.
    """
    if dims.get("queries") == 1:
        return _looking_back(dims)
    b, t, h, e, dtype = (dims[name] for name in ("batch", "tokens", "n_heads", "head_dim", "dtype"))
    item = DTYPES[dtype].itemsize
    scores = b * h * t * t * 4 if not dims["flash"] else 0
    mask = torch.full((t, t), -torch.inf).triu(1).to(DTYPES[dtype])

    def forward(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor]:
        q, k, v = (part.transpose(1, 2) for part in parts)
        if dims["flash"]:
            mixed = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = layer_functions.written_attention(q, k, v, mask)
        return (mixed.transpose(1, 2).reshape(b, t, -1),)

    number = copies(dims, 8 * b * t * h * e * item + 4 * scores)
    inputs = [tuple(filled(b, t, h, e, dtype=dtype, grad=True) for _ in range(3)) for _ in range(number)]
    return timed(inputs, forward, backward=dims["pass"] == "backward")


def _looking_back(dims: Dims) -> Timed:
    b, t, h, e, dtype = (dims[name] for name in ("batch", "tokens", "n_heads", "head_dim", "dtype"))

    def forward(parts: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        query, cache = parts
        seen = fn.scaled_dot_product_attention(query.transpose(1, 2), cache[:, :h, :t], cache[:, h:, :t])
        return (seen.transpose(1, 2).reshape(b, 1, -1),)

    # a cache has room for what is still to come
    number = copies(dims, 4 * b * t * h * e * DTYPES[dtype].itemsize)
    inputs = [(filled(b, 1, h, e, dtype=dtype), filled(b, 2 * h, 2 * t, e, dtype=dtype)) for _ in range(number)]
    return timed(inputs, forward, backward=False)


# --- what streams ------------------------------------------------------------------------------------------


def norm(dims: Dims) -> Timed:
    """Norms of one tensor after another."""
    n, d, dtype = dims["n_tokens"], dims["width"], dims["dtype"]
    inputs = [
        (filled(n, d, dtype=dtype, grad=True), filled(d, dtype=dtype, grad=True))
        for _ in range(copies(dims, 8 * n * d * DTYPES[dtype].itemsize))
    ]
    return timed(
        inputs,
        lambda item: (layer_functions.rms_norm(*item),),
        backward=dims["pass"] == "backward",
    )


def add(dims: Dims) -> Timed:
    """Sums into a residual stream."""
    n, d, dtype = dims["n_tokens"], dims["width"], dims["dtype"]
    number = copies(dims, 3 * n * d * DTYPES[dtype].itemsize)
    inputs = [(filled(n, d, dtype=dtype, grad=True), filled(n, d, dtype=dtype)) for _ in range(number)]
    return timed(inputs, lambda item: (item[0] + item[1],), backward=False)


def gate(dims: Dims) -> Timed:
    """Gated activations of a joined projection."""
    n, i, dtype = dims["n_tokens"], dims["width"], dims["dtype"]
    number = copies(dims, 10 * n * i * DTYPES[dtype].itemsize)
    inputs = [filled(n, 2 * i, dtype=dtype, grad=True) for _ in range(number)]
    return timed(inputs, lambda item: (layer_functions.silu_gated(item),), backward=dims["pass"] == "backward")


def rope(dims: Dims) -> Timed:
    """Rotary positions of the first two thirds of the heads: queries and keys beside values."""
    n, width, dtype = dims["n_tokens"], dims["width"], dims["dtype"]
    e, h = HEAD_DIM, width // HEAD_DIM
    turn = torch.polar(torch.ones(n, 1, e // 2), filled(n, 1, e // 2, dtype="float32"))

    def forward(item: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.transpose(1, 2) for part in layer_functions.turned_heads(item, turn, h, h))

    number = copies(dims, 20 * n * width * DTYPES[dtype].itemsize)
    inputs = [filled(1, n, 3 * h, e, dtype=dtype, grad=True) for _ in range(number)]
    return timed(inputs, forward, backward=dims["pass"] == "backward")


def embedding(dims: Dims) -> Timed:
    """Rows of a table by token."""
    n, d, vocabulary, dtype = (dims[name] for name in ("n_tokens", "width", "vocabulary", "dtype"))
    tokens = torch.randint(0, vocabulary, (n,))
    number = copies(dims, (2 * n + 2 * vocabulary) * d * DTYPES[dtype].itemsize)
    inputs = [filled(vocabulary, d, dtype=dtype, grad=True) for _ in range(number)]
    return timed(inputs, lambda item: (fn.embedding(tokens, item),), backward=dims["pass"] == "backward")


def cross_entropy(dims: Dims) -> Timed:
    """Loss of the next token, in float32."""
    n, vocabulary, dtype = dims["n_tokens"], dims["width"], dims["dtype"]
    targets = torch.randint(0, vocabulary, (n,))
    number = copies(dims, 5 * n * vocabulary * 4)
    inputs = [filled(n, vocabulary, dtype=dtype, grad=True) for _ in range(number)]
    return timed(
        inputs, lambda item: (fn.cross_entropy(item.float(), targets),), backward=dims["pass"] == "backward"
    )


def adamw(dims: Dims) -> Timed:
    """One fused step over tensors of equal size."""
    n_params, n_tensors, dtype = dims["n_params"], dims["n_tensors"], dims["dtype"]
    weights = [filled(n_params // n_tensors, dtype=dtype, grad=True) for _ in range(n_tensors)]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    evicting = torch.ones(EVICT_BYTES // 4)

    def call() -> float:
        # there is one a step: its code and data are cold when its turn comes
        evicting.add_(1.0)
        return watch().span(optimizer.step)[1]

    return call


# --- collectives -------------------------------------------------------------------------------------------


def collective(dims: Dims) -> Timed:
    """An all-reduce by all workers of a float32 buffer of ``n_bytes``."""
    whole = torch.ones(max(1, int(dims["n_bytes"]) // 4))
    times = max(1, min(16, int((8 << 20) // dims["n_bytes"])))

    def call() -> float:
        start = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(whole)
        return (time.perf_counter() - start) / times

    return call


class UseAll(torch.autograd.Function):
    """Hands its first argument on; the others, a unit's weights, get gradients that are there already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        """Return ``x``."""
        ctx.gradients = gradients
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the prepared gradients."""
        return outer[0], None, *ctx.gradients


class Unit(torch.nn.Module):
    """Weights of one layer and no work: what a sharded layer costs beyond its arithmetic."""

    def __init__(self, n_items: int, n_tensors: int) -> None:
        super().__init__()
        each = max(2, n_items // n_tensors)
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(each)) for _ in range(n_tensors))
        self.prepared = [torch.ones(each) for _ in range(n_tensors)]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        result: Tensor = UseAll.apply(x, self.prepared, *self.weights)
        return result


def sharded_unit(dims: Dims) -> Timed:
    """What ``fully_shard`` does for one layer of ``n_bytes``: gather its weights, or scatter their gradients.

    Copies into and out of the collective's buffer and the hooks around it count, as they do in a step.
    """
    from torch.distributed.fsdp import fully_shard

    gathers = dims["op"] == "all_gather"
    n_items = int(dims["n_bytes"]) // 4
    units = [Unit(n_items, dims["n_tensors"]) for _ in range(copies(dims, 4 * dims["n_bytes"]))]
    for unit in units:
        fully_shard(unit, reshard_after_forward=gathers)
    model = torch.nn.Sequential(*units)
    fully_shard(model, reshard_after_forward=False)
    x = torch.ones(1, requires_grad=True)

    def call() -> float:
        start = time.perf_counter()
        loss = model(x)
        middle = time.perf_counter()
        loss.sum().backward()
        end = time.perf_counter()
        for weight in model.parameters():
            weight.grad = None
        return ((middle - start) if gathers else (end - middle)) / len(units)

    return call


CASES: dict[str, Callable[[Dims], Timed]] = {
    "gemm": gemm,
    "attention": attention,
    "norm": norm,
    "add": add,
    "gate": gate,
    "rope": rope,
    "embedding": embedding,
    "cross_entropy": cross_entropy,
    "adamw": adamw,
    "collective": collective,
    "sharded_unit": sharded_unit,
}
