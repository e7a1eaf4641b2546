"""PyTorch's operators on NVIDIA GPUs as kernels: what ``sandtable calibrate --only gpu`` measures.

Here are the points and what each demands; `sandtable_kernels.cuda.cuda_cases` is what runs. Demands are those of
`sandtable_kernels.pytorch.torch_operators` placed on the accelerator, and `sandtable_kernels.pytorch.eager` counted
for CUDA where its kernels differ from a CPU's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator_shapes import BACKWARD_PASSES, AttentionShape, GemmShape, MemoryBoundShape, aligned
from sandtable_kernels.cuda import cuda_counts
from sandtable_kernels.cuda.cuda_pool import CudaTimer
from sandtable_kernels.pytorch import eager
from sandtable_kernels.pytorch.torch_operators import (
    ITEM_BYTES,
    PASSES,
    TorchAdamW,
    TorchAttention,
    TorchCollective,
    TorchEmbedding,
    TorchGemm,
    TorchKernel,
    TorchStream,
)
from sandtable_kernels.support import Array, seeded

SOFTWARE = "pytorch_cuda"
PRODUCTS = ("forward", "backward_data", "backward_weight")
# tensors and elements that one launch of a fused optimiser takes: four lists a tensor, 320 blocks of 65536 elements
# (PyTorch, aten/src/ATen/native/cuda/MultiTensorApply.cuh)
TENSORS_PER_LAUNCH, ITEMS_PER_LAUNCH = 36, 320 * 65536
LARGEST = (8192, 8192, 8192)
# tokens, outputs and inputs of layers of which one side is not a multiple of 16 bytes, in 16-bit elements
UNALIGNED = ((4096, 4147, 1536), (4096, 8294, 1536), (16384, 2332, 832), (4096, 2048, 5461))
# groups of GPUs whose collectives are timed: those that a machine has
MOST_GPUS = 16


class CudaKernel(TorchKernel):
    """A kernel that is timed on a GPU; `run` does the same on the host, to be compared with the reference."""

    calibrates: ClassVar[str | None] = "gpu"
    software: ClassVar[str | None] = SOFTWARE

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        """Return seconds per call on this machine's GPUs."""
        timer = CudaTimer()
        try:
            return timer.time(self, dims, repeats=repeats, budget_s=budget_s)
        finally:
            timer.close()


def there(op: Op) -> Op:
    """Return the demand on the accelerator instead of the host."""
    return replace(op, on="accelerator")


class CudaGemm(CudaKernel, TorchGemm):
    """Products of a linear layer on a GPU, of training and of decoding, in five element types."""

    name: ClassVar[str] = "torch_cuda_gemm"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Layers 768 to 8192 wide; thousands of tokens, or as many as sequences are decoded together.

        Some have rows that do not start at whole 16 bytes, as FFNs of int(2.7 D) have.
        """
        training = [(4096, 4096, 4096), LARGEST, (2048, 1024, 1024), (4096, 11008, 4096)]
        decoding = [(1, 4096, 4096), (16, 11008, 4096), (128, 4096, 4096)]
        if not quick:
            training += [(8192, 3072, 1024), (16384, 1024, 4096), (2048, 32000, 2048), (1920, 2304, 768)]
            training += [(512, 512, 512), (1024, 6144, 2048), (8192, 8192, 1024), (3000, 5120, 5120)]
            decoding += [(1, 11008, 4096), (4, 6144, 4096), (32, 4096, 11008), (64, 28672, 8192), (256, 8192, 8192)]
        points = [_product(shape, "bfloat16", "forward") for shape in training + decoding]
        points += [_product(shape, "bfloat16", which) for shape in training[:4] for which in PRODUCTS[1:]]
        points += [
            _product(shape, "bfloat16", which) for shape in UNALIGNED[: 1 if quick else 4] for which in PRODUCTS
        ]
        narrow = training[:2] + decoding[1:] if quick else training[:8] + decoding[1:]
        points += [_product(shape, dtype, "forward") for dtype in ("float16", "fp8") for shape in narrow]
        # too slow for the largest
        wide = [shape for shape in training if math.prod(shape) <= 2e11]
        return points + [_product(shape, dtype, "forward") for dtype in ("tf32", "float32") for shape in wide]

    def cost(self, dims: Dims) -> Op:
        """See `TorchGemm`; whatever is multiplied narrower than 16 bits gives 16.

        The gradient of the weights lies either way, and laws look at rows of its columns: the side that is not aligned.
        """
        op = there(super().cost(dims))
        if dims["pass"] == "backward_weight" and not aligned(dims["n"], ITEM_BYTES[dims["dtype"]]):
            op = replace(op, shape=GemmShape(dims["k"], dims["n"], dims["m"]))
        return op


def _product(shape: tuple[int, ...], dtype: str, which: str) -> dict[str, Any]:
    m, n, k = shape
    return {"m": m, "n": n, "k": k, "dtype": dtype, "pass": which, "processes": 1}


class CudaAttention(CudaKernel, TorchAttention):
    """Attention on a GPU: prefill, decode and backward, fused or with its scores written out."""

    name: ClassVar[str] = "torch_cuda_attention"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Sequences of 512 to 16384 tokens, heads of 64 and 128, own keys or shared ones."""
        prefill = [(8, 1024, 16, 16, 64), (4, 2048, 32, 32, 128), (2, 4096, 32, 8, 128), (1, 512, 12, 12, 64)]
        decode = [(1, 2048, 32, 32, 128), (16, 2048, 32, 8, 128), (32, 4096, 32, 8, 128)]
        if not quick:
            prefill += [(32, 512, 16, 16, 64), (1, 8192, 32, 8, 128), (1, 16384, 16, 16, 128), (16, 1024, 8, 8, 64)]
            decode += [(64, 1024, 32, 32, 128), (8, 16384, 32, 8, 128), (128, 1024, 16, 16, 64)]
        scored = [prefill[0], prefill[3], (2, 2048, 16, 16, 64)] + ([] if quick else [(16, 512, 12, 12, 64)])
        points = [_attention(b, t, t, h, g, e, True, w) for b, t, h, g, e in prefill for w in PASSES]
        points += [_attention(b, 1, s, h, g, e, True, "forward") for b, s, h, g, e in decode]
        return points + [_attention(b, t, t, h, g, e, False, w) for b, t, h, g, e in scored for w in PASSES]

    def cost(self, dims: Dims) -> Op:
        """Half of all scores are seen where every token has a query; keys and values pass once."""
        names = ("batch", "query_tokens", "kv_tokens", "n_heads", "n_kv_heads", "head_dim")
        b, t, s, h, g, e = (dims[name] for name in names)
        item, passes = ITEM_BYTES[dims["dtype"]], BACKWARD_PASSES if dims["pass"] == "backward" else 1.0
        return Op(
            name="attention",
            operator="attention",
            account="compute",
            dtype=dims["dtype"],
            flops=passes * (4 if t == 1 else 2) * b * h * t * s * e,
            bytes_read=passes * b * (t * h + 2 * s * g) * e * item,
            bytes_written=passes * b * t * h * e * item,
            shape=AttentionShape(b, t, s, h, g, e, e, 1.0, item, float(dims["flash"]), passes),
            on="accelerator",
        )

    def example(self) -> Dims:
        """Two sequences of five tokens."""
        return _attention(2, 5, 5, 3, 3, 8, True, "forward") | {"dtype": "float32"}

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return q, k, v [batch, heads, tokens, head]."""
        b, t, h, e = (dims[name] for name in ("batch", "query_tokens", "n_heads", "head_dim"))
        return [seeded((b, h, t, e), seed + index) for index in range(3)]


def _attention(b: int, t: int, s: int, h: int, g: int, e: int, flash: bool, which: str) -> dict[str, Any]:
    sizes = {"batch": b, "query_tokens": t, "kv_tokens": s, "n_heads": h, "n_kv_heads": g, "head_dim": e}
    return {**sizes, "dtype": "bfloat16", "flash": flash, "pass": which, "processes": 1}


class CudaSdpa(CudaAttention):
    """Fused attention by the kernel that PyTorch chooses by itself, as models call it: cuDNN's on some GPUs."""

    name: ClassVar[str] = "torch_cuda_sdpa"
    case: ClassVar[str] = "sdpa"
    software: ClassVar[str | None] = "pytorch_cuda_sdpa"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Fewer points than `CudaAttention`: prompts, their backward passes, and single tokens."""
        chosen = super().grid(quick=quick)
        fused = [dims for dims in chosen if dims["flash"]]
        more = [] if quick else [_attention(16, 1024, 1024, 13, 13, 64, True, which) for which in PASSES]
        return [*fused[:: 1 if quick else 2], *more]


class CudaStream(CudaKernel, TorchStream):
    """What stands between the products of a layer, on a GPU: norms, sums, gates, changes of type, and the loss."""

    name: ClassVar[str] = "torch_cuda_stream"
    cases: ClassVar[tuple[str, ...]] = ("norm", "add", "silu_gated", "cross_entropy")
    # what autocast and rotary positions add: types that change, tensors that are joined
    moves: ClassVar[tuple[str, ...]] = ("widen", "narrow", "add_narrow", "cat")

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Every composite on tensors of one to a few hundred million bytes; the loss over a vocabulary."""
        sizes = [(1024, 1024), (4096, 4096), (16384, 4096)] + ([] if quick else [(2048, 768), (8192, 8192)])
        losses = [(2048, 32000)] + ([] if quick else [(8192, 32000), (4096, 128256)])
        points = [
            _stream(case, n, width, which)
            for case in self.cases
            for n, width in (losses if case == "cross_entropy" else sizes)
            for which in (("forward",) if case == "add" else PASSES)
        ]
        points += [_stream(case, n, width, "forward") for case in self.moves for n, width in sizes[1:3]]
        points += [_stream("turned_heads", n, width, which) for n, width in sizes[1:3] for which in PASSES]
        wide = [(16384, 832), *sizes[1:2]]
        return points + [
            _stream("norm", n, width, which) | {"dtype": "float32"} for n, width in wide for which in PASSES
        ]

    def cost(self, dims: Dims) -> Op:
        """Bytes and kernels as eager PyTorch launches them on CUDA."""
        return there(super().cost(dims))

    def traffic(self, dims: Dims) -> eager.Traffic:
        """Counted for CUDA; see `cuda_counts`.

        Rotary positions turn two thirds of the tensor; backward the rest is copied beside them. Recordings of layers
        whose backward passes were left to autograd have "gate" instead.
        """
        n_elements, item = dims["n_tokens"] * dims["width"], ITEM_BYTES[dims["dtype"]]
        back = dims["pass"] == "backward"
        if dims["case"] != "turned_heads":
            return cuda_counts.traffic(dims["case"], n_elements, item, backward=back)
        turned = cuda_counts.traffic("turned_heads", 2 * n_elements, item, backward=back)
        return turned + cuda_counts.traffic("copy_strided", n_elements, item) if back else turned


def _stream(case: str, n_tokens: int, width: int, which: str) -> dict[str, Any]:
    sizes = {"n_tokens": n_tokens, "width": width}
    return {"case": case, **sizes, "dtype": "bfloat16", "pass": which, "processes": 1}


class CudaEmbedding(CudaKernel, TorchEmbedding):
    """Rows of a table by token, on a GPU; backward sorts the tokens first, which is left out."""

    name: ClassVar[str] = "torch_cuda_embedding"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """A small model's table, and a large one's."""
        sizes = [(8192, 1024, 32000)] + ([] if quick else [(16384, 4096, 32000)])
        fixed = {"dtype": "bfloat16", "pass": "forward", "processes": 1}
        return [{"n_tokens": n, "width": width, "vocabulary": v, **fixed} for n, width, v in sizes]

    def cost(self, dims: Dims) -> Op:
        """Each token's row."""
        return there(super().cost(dims))


class CudaAdamW(CudaKernel, TorchAdamW):
    """One fused step of AdamW on a GPU: many tensors in one launch."""

    name: ClassVar[str] = "torch_cuda_adamw"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """A few million weights to a few hundred, in tensors of a layer's size or in many small ones."""
        sizes = [(4_000_000, 40), (100_000_000, 100)]
        sizes += [] if quick else [(20_000_000, 40), (400_000_000, 200), (20_000_000, 1000)]
        return [{"n_params": n, "n_tensors": tensors, "dtype": "float32", "processes": 1} for n, tensors in sizes]

    def cost(self, dims: Dims) -> Op:
        """Weights and two states read and written, gradients read; the counters of steps are a launch of their own."""
        n, tensors = dims["n_params"], dims["n_tensors"]
        launches = 1 + math.ceil(tensors / TENSORS_PER_LAUNCH) + math.ceil(n / ITEMS_PER_LAUNCH)
        moved = eager.adamw(n, tensors, ITEM_BYTES[dims["dtype"]]).n_bytes
        roots = cuda_counts.traffic("adamw", n, ITEM_BYTES[dims["dtype"]]).n_special
        return Op(
            name="optimizer",
            operator="memory_bound",
            account="compute",
            dtype=dims["dtype"],
            bytes_read=moved,
            shape=MemoryBoundShape(moved, launches, roots),
            on="accelerator",
        )


class CudaCollective(CudaKernel, TorchCollective):
    """Collectives of a machine's GPUs over NCCL."""

    name: ClassVar[str] = "torch_cuda_collective"
    software: ClassVar[str | None] = "nccl"
    ops: ClassVar[tuple[str, ...]] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """4 KiB to 1 GiB, for every number of GPUs that a machine may have; calibration takes those it has."""
        sizes = [4096 * 8**i for i in range(7)] if quick else [4096 * 4**i for i in range(10)]
        return [
            {"op": op, "n_bytes": size, "processes": n}
            for n in range(2, MOST_GPUS + 1)
            for op in self.ops
            for size in sizes
        ]

    def cost(self, dims: Dims) -> Op:
        """The whole buffer, all ranks in one machine."""
        return there(super().cost(dims))


class CudaPlain(CudaKernel):
    """Base of kernels that move bytes and compute nothing."""

    def inputs(self, dims: Dims, seed: int) -> list[Array]:
        """Return the bytes."""
        return [seeded((max(1, dims.get("n_bytes", 4) // 4),), seed)]

    def compute(self, module: Any, dims: Dims, *tensors: Any) -> Any:
        """Return a copy."""
        return tensors[0].clone()

    def reference(self, dims: Dims, context: KernelContext) -> Array:
        """The bytes themselves."""
        return self.inputs(dims, context.seed)[0]


class CudaCopy(CudaPlain):
    """Copies within a GPU's memory."""

    name: ClassVar[str] = "torch_cuda_copy"
    case: ClassVar[str] = "copy"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """64 KiB to 512 MiB."""
        return [{"n_bytes": 2 ** (16 + step)} for step in range(0, 14, 3 if quick else 1)]

    def cost(self, dims: Dims) -> Op:
        """Read once, written once."""
        n = dims["n_bytes"]
        return Op(name="copy", operator="copy", account="memory", bytes_read=n, bytes_written=n, on="accelerator")

    def example(self) -> Dims:
        """A few bytes."""
        return {"n_bytes": 64}


class CudaTransfer(CudaPlain):
    """Copies between host and GPU, both ways, from memory that the driver has pinned or that it has to stage."""

    name: ClassVar[str] = "torch_cuda_transfer"
    case: ClassVar[str] = "transfer"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """4 KiB to 256 MiB."""
        return [
            {"n_bytes": 2 ** (12 + step), "direction": direction, "pinned": pinned}
            for direction in ("to_device", "to_host")
            for pinned in (True, False)
            for step in range(0, 17, 4 if quick else 2)
        ]

    def cost(self, dims: Dims) -> Op:
        """Every byte crosses the link once."""
        return Op(
            name="transfer", operator="transfer", account="memory", bytes_read=dims["n_bytes"], on="accelerator"
        )

    def example(self) -> Dims:
        """A few pinned bytes."""
        return {"n_bytes": 64, "direction": "to_device", "pinned": True}


class CudaLaunch(CudaPlain):
    """What it takes to start a kernel: on the host, per call of the framework; on the device, between empty kernels."""

    name: ClassVar[str] = "torch_cuda_launch"
    case: ClassVar[str] = "launch"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Both sides."""
        return [{"what": what} for what in ("host", "device")]

    def cost(self, dims: Dims) -> Op:
        """One call; it moves one number."""
        return Op(name="launch", operator="host", account="compute", bytes_read=4, n_items=1)

    def example(self) -> Dims:
        """The host's side."""
        return {"what": "host"}


class CudaSustained(CudaGemm):
    """One large product without a pause, for the clock and the power that are left of it."""

    name: ClassVar[str] = "torch_cuda_sustained"
    case: ClassVar[str] = "sustained"

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """The largest product."""
        return [_product(LARGEST, "bfloat16", "forward")]

    def cost(self, dims: Dims) -> Op:
        """A product of work that goes on."""
        return replace(super().cost(dims), sustained=True)

    def example(self) -> Dims:
        """A small product."""
        return _product((5, 7, 11), "float32", "forward")
