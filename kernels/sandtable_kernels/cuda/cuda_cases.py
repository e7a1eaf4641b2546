"""Operators as PyTorch runs them on an NVIDIA GPU: the cases of `torch_cases`, timed by the GPU's own clock, and more.

Work on a GPU is queued. A sample holds the queue with an empty wait until the host has issued everything, so that what
is timed between two events is the device's work alone, one kernel after another as in a training step; what the host
takes to issue is a case of its own (``launch``). Cases in `COLD` go through many copies of their tensors after a write
that replaces the last-level cache: weights and optimiser states come from memory in a step. All others find in that
cache what fits into it, as an operator finds what the one before it left. Imported only where a GPU is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as fn
from torch import Tensor

from sandtable_kernels.cuda import structured_cases
from sandtable_kernels.pytorch import layer_functions, torch_cases
from sandtable_kernels.pytorch.torch_cases import Dims, R, Stopwatch, Timed, copies, filled, timed

COLD = frozenset({"gemm", "adamw", "copy", *structured_cases.CASES})
# these repeat themselves on tensors that only differ in where they lie; the others make a sample of their own length
REPEATED = (
    frozenset({"gemm", "attention", "sdpa", "norm", "add", "cross_entropy", "embedding", "copy"})
    | {"silu_gated", "turned_heads", "widen", "narrow", "add_narrow", "cat"}
    | structured_cases.CASES.keys()
)
# copies of a case with cold tensors take no more than this, or than a quarter of the memory that is free
POOL_BYTES = 2 << 30
# a cache is replaced by a write of twice its size, and at least of this
LEAST_FLUSH_BYTES = 64 << 20
# longest that the queue is held, and how much longer than the host took last time
MOST_LEAD_S, LEAD_MARGIN = 0.2, 1.5
# clocks of the waiting kernel per second, at most: a slower clock only holds the queue for longer
WAIT_CLOCKS_PER_S = 2.5e9
# launches in one sample: the driver queues about a thousand before it makes the host wait
LAUNCHES = 500
# products in one sample of sustained work
SUSTAINED_CALLS = 16
FP8_CAPABILITY = (8, 9)
FP8_LARGEST = 448.0


class Unsupported(Exception):
    """This GPU, or this version of PyTorch, does not have the operator."""


class CudaStopwatch(Stopwatch):
    """Times work by events on the device; see the module for ``cold``."""

    def __init__(self, *, cold: bool) -> None:
        cache = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0)
        free, _ = torch.cuda.mem_get_info()
        self.pool_bytes = min(POOL_BYTES, free / 4) if cold else max(1, cache)
        size = min(max(LEAST_FLUSH_BYTES, 2 * cache), int(free / 8))
        self._flush = torch.empty(size, dtype=torch.uint8, device="cuda") if cold else None
        # host seconds of the last two spans: forward and backward take turns
        self._issued = [0.0, 0.0]

    def span(self, work: Callable[[], R]) -> tuple[R, float]:
        """Queue ``work`` behind a wait, and return what it gives and the device's seconds for it."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self._flush is not None:
            self._flush.fill_(1)
        lead_s = min(MOST_LEAD_S, LEAD_MARGIN * max(self._issued))
        if lead_s > 0:
            torch.cuda._sleep(int(lead_s * WAIT_CLOCKS_PER_S))
        start = time.perf_counter()
        begin.record()
        found = work()
        end.record()
        self._issued = [self._issued[1], time.perf_counter() - start]
        end.synchronize()
        return found, begin.elapsed_time(end) * 1e-3


def bus_of(index: int) -> str | None:
    """Return the address of a GPU on its bus, as NVML writes it; None where this PyTorch does not tell."""
    seen = torch.cuda.get_device_properties(index)
    try:
        return f"{seen.pci_domain_id:08x}:{seen.pci_bus_id:02x}:{seen.pci_device_id:02x}.0"
    except AttributeError:
        return None


def properties() -> list[dict[str, Any]]:
    """Return what PyTorch tells of every GPU that it sees."""
    found = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": seen.name,
                "units": seen.multi_processor_count,
                "memory_bytes": seen.total_memory,
                "cache_bytes": getattr(seen, "L2_cache_size", None),
                "capability": f"{seen.major}.{seen.minor}",
                "bus": bus_of(index),
            }
        )
    return found


def software() -> dict[str, str]:
    """Return the versions of what was timed."""
    from torch.cuda import nccl as library

    nccl = library.version() if dist.is_available() and dist.is_nccl_available() else ()
    found = {"torch": torch.__version__, "cuda": torch.version.cuda or "", "nccl": ".".join(map(str, nccl))}
    return {name: version for name, version in found.items() if version}


# --- products and attention --------------------------------------------------------------------------------


def gemm(dims: Dims) -> Timed:
    """A linear layer's product; tf32 is float32 with the units that round it, fp8 is narrowed on its way."""
    torch.set_float32_matmul_precision("high" if dims["dtype"] == "tf32" else "highest")
    if dims["dtype"] == "fp8":
        return narrow_gemm(dims)
    return torch_cases.gemm({**dims, "dtype": "float32"} if dims["dtype"] == "tf32" else dims)


def narrow_gemm(dims: Dims) -> Timed:
    """Activations in bfloat16 get one scale, become fp8, and meet weights that are fp8 already."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise Unsupported("fp8 products need compute capability 8.9")
    m, n, k = dims["m"], dims["n"], dims["k"]
    one = torch.ones(())
    inputs = [
        (filled(m, k, dtype="bfloat16"), filled(n, k, dtype="bfloat16").to(torch.float8_e4m3fn))
        for _ in range(copies(dims, 3 * (m * k + n * k + m * n)))
    ]

    def forward(item: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        x, w = item
        scale = x.abs().amax().float() / FP8_LARGEST
        narrow = (x / scale).to(torch.float8_e4m3fn)
        multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        return (multiply(narrow, w.t(), scale_a=scale, scale_b=one, out_dtype=torch.bfloat16),)

    return timed(inputs, forward, backward=False)


def attention(dims: Dims, *, chosen: bool = False) -> Timed:
    """Attention of the last tokens to all: fused, or with scores written out and a softmax in float32.

    Fused, it is FlashAttention-2 or what stands in for it; the kernel that PyTorch chooses by itself if ``chosen``.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = (
        nullcontext
        if chosen
        else partial(sdpa_kernel, [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
    )
    b, t, s, h, g, e = (
        dims[name] for name in ("batch", "query_tokens", "kv_tokens", "n_heads", "n_kv_heads", "head_dim")
    )
    dtype, backward = dims["dtype"], dims["pass"] == "backward"
    causal = t == s and t > 1
    mask = torch.full((t, s), -torch.inf if causal else 0.0).triu(1).to(torch_cases.DTYPES[dtype])

    def forward(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor]:
        q, k, v = (part.transpose(1, 2) for part in parts)
        if not dims["flash"]:
            return (layer_functions.written_attention(q, k, v, mask),)
        with kernels():
            return (fn.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=h != g),)

    item = torch_cases.DTYPES[dtype].itemsize
    written = 0 if dims["flash"] else 4 * b * h * t * s * 4
    number = copies(dims, 4 * b * (t * h + s * g) * e * item + written)
    inputs = [
        tuple(filled(b, rows, heads, e, dtype=dtype, grad=backward) for rows, heads in ((t, h), (s, g), (s, g)))
        for _ in range(number)
    ]
    return timed(inputs, forward, backward=backward)


# --- what streams, and copies ------------------------------------------------------------------------------


def norm(dims: Dims) -> Timed:
    """Root-mean-square norm as one kernel, which PyTorch has since 2.9."""
    if not hasattr(torch.ops.aten, "_fused_rms_norm"):
        raise Unsupported(f"PyTorch {torch.__version__} has no root-mean-square norm in one kernel")
    return torch_cases.norm(dims)


def _moved(move: Callable[[Tensor, Tensor], Tensor], *, wide: bool) -> Callable[[Dims], Timed]:
    """Return a case that moves a ``wide`` tensor, or one of the dims' type, with another of that type beside it."""

    def case(dims: Dims) -> Timed:
        size, narrow = (dims["n_tokens"], dims["width"]), dims["dtype"]
        number = copies(dims, 10 * math.prod(size))
        inputs = [
            (filled(*size, dtype="float32" if wide else narrow), filled(*size, dtype=narrow)) for _ in range(number)
        ]
        return timed_plainly(lambda: [move(*pair) for pair in inputs], number)

    return case


def cat(dims: Dims) -> Timed:
    """Two halves joined into one tensor."""
    half, number = dims["width"] // 2, copies(dims, 4 * dims["n_tokens"] * dims["width"])
    inputs = [[filled(dims["n_tokens"], half, dtype=dims["dtype"]) for _ in range(2)] for _ in range(number)]
    return timed_plainly(lambda: [torch.cat(pair, dim=-1) for pair in inputs], number)


def copy(dims: Dims) -> Timed:
    """Copies within the device's memory."""
    n = dims["n_bytes"]
    pairs = [
        (torch.ones(n, dtype=torch.uint8), torch.empty(n, dtype=torch.uint8)) for _ in range(copies(dims, 2 * n))
    ]
    return timed_plainly(lambda: [target.copy_(source) for source, target in pairs], len(pairs))


def transfer(dims: Dims) -> Timed:
    """One copy between the host and the device, from the call until it has arrived, by the host's clock."""
    host = torch.ones(dims["n_bytes"], dtype=torch.uint8, device="cpu", pin_memory=dims["pinned"])
    device = torch.empty(dims["n_bytes"], dtype=torch.uint8)
    source, target = (host, device) if dims["direction"] == "to_device" else (device, host)

    def call() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return call


def timed_plainly(work: Callable[[], object], number: int) -> Timed:
    """Return a call that times ``work``, which does the same thing ``number`` times."""
    return lambda: torch_cases.watch().span(work)[1] / number


def launch(dims: Dims) -> Timed:
    """Time of the host for one call of the framework, or of the device from one empty kernel to the next."""
    small = torch.zeros(1)
    if dims["what"] == "device":
        return timed_plainly(lambda: [torch.cuda._sleep(1) for _ in range(LAUNCHES)], LAUNCHES)

    def call() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            small.add_(1.0)
        return (time.perf_counter() - start) / LAUNCHES

    return call


def sustained(dims: Dims) -> Timed:
    """One large product again and again, without a pause: what the power limit leaves of the clock."""
    x, w = filled(dims["m"], dims["k"], dtype="bfloat16"), filled(dims["n"], dims["k"], dtype="bfloat16")
    return timed_plainly(lambda: [fn.linear(x, w) for _ in range(SUSTAINED_CALLS)], SUSTAINED_CALLS)


# --- collectives -------------------------------------------------------------------------------------------


def collective(dims: Dims) -> Timed:
    """A collective of all ranks; `CollectiveShape` says which buffer has ``n_bytes``."""
    n = dist.get_world_size()
    each = max(1, int(dims["n_bytes"]) // 4 // n)
    whole, part = torch.ones(each * n), torch.ones(each)
    rank = dist.get_rank()

    def shift() -> None:
        sent = dist.P2POp(dist.isend, whole, (rank + 1) % n)
        received = dist.P2POp(dist.irecv, landing, (rank - 1) % n)
        for request in dist.batch_isend_irecv([sent, received]):
            request.wait()

    landing = torch.empty_like(whole) if dims["op"] in ("send_recv", "all_to_all") else whole
    work: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "all_to_all": lambda: dist.all_to_all_single(landing, whole),
        "send_recv": shift,
    }
    chosen = work[dims["op"]]
    times = max(1, min(16, int((64 << 20) // dims["n_bytes"])))
    return timed_plainly(lambda: [chosen() for _ in range(times)], times)


CASES: dict[str, Callable[[Dims], Timed]] = {
    "gemm": gemm,
    "attention": attention,
    "sdpa": partial(attention, chosen=True),
    "norm": norm,
    "add": torch_cases.add,
    "add_narrow": _moved(torch.add, wide=True),
    "cat": cat,
    "narrow": _moved(lambda x, like: x.to(like.dtype), wide=True),
    "silu_gated": torch_cases.gate,
    "turned_heads": torch_cases.rope,
    "widen": _moved(lambda x, _: x.float(), wide=False),
    "cross_entropy": torch_cases.cross_entropy,
    "embedding": torch_cases.embedding,
    "adamw": torch_cases.adamw,
    "copy": copy,
    "transfer": transfer,
    "launch": launch,
    "sustained": sustained,
    "collective": collective,
    **structured_cases.CASES,
}
