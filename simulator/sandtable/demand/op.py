"""One operation's demand, with no time in it: kind, counts, what it waits for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sandtable.errors import PlanError, did_you_mean

# kind of op -> the resource that serves it. `io` waits on storage, `link` on an interconnect.
RESOURCE_OF_KIND: dict[str, str] = {
    "random_read": "storage",
    "sequential_read": "storage",
    "memory_read": "memory",
    "copy": "memory",
    "gather": "memory",
    "insert": "memory",
    "cache_update": "memory",
    "transfer": "link",
    "gemv": "compute",
    "gemm": "compute",
    "ffn_batch": "compute",
    "sparse_ffn": "compute",
    "attend": "compute",
    "elementwise": "compute",
    "host": "compute",
    # what takes a known time, whatever the machine: `Op.seconds`
    "startup": "compute",
    # ops that follow each other on one device, taken as one; see `Op.parts`
    "sequence": "compute",
    # operators with a law of their own, which reads `Op.shape`; see OPERATOR_COLUMNS
    "attention": "compute",
    "moe": "compute",
    "stream": "compute",
    # collectives over a group of devices
    "all_reduce": "network",
    "reduce_scatter": "network",
    "all_gather": "network",
    "all_to_all": "network",
    "send_recv": "network",
}
# `passes` of an attention's backward: five products against the forward's two, scores made again (Dao, arXiv
# 2307.08691, section 3.1). Laws read this column, and whoever states a backward pass writes it.
BACKWARD_PASSES = 2.5
COLLECTIVES = frozenset(kind for kind, resource in RESOURCE_OF_KIND.items() if resource == "network")
# what the numbers of `Op.shape` are, by kind of op. Counts, except where a suffix says otherwise.
OPERATOR_COLUMNS: dict[str, tuple[str, ...]] = {
    # y[m, n] = x[m, k] w[k, n], `batch` of them at once; narrowed 1: inputs of a narrow type are not quantised first
    "gemm": ("m", "n", "k", "batch", "narrowed"),
    # `passes` counts forward 1, backward 2.5 (five products instead of two); flash 1 keeps scores on chip; causal 1:
    # the queries are the last tokens, and see no later ones; cached 1: new keys are turned and put into a cache first.
    # Of scores that are written out: fused_softmax 1, scale, mask and softmax are one kernel; dropout 1, some are lost
    "attention": (
        "batch",
        "query_tokens",
        "kv_tokens",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "value_dim",
        "causal",
        "kv_item_bytes",
        "flash",
        "passes",
        "cached",
        "fused_softmax",
        "dropout",
    ),
    # `n_tokens` of all ranks that share the experts, three matrices an expert; `skew` is the exponent of the power law
    # of the experts' loads, 0 for even ones; the time is that of the busiest rank, forward
    "moe": ("n_tokens", "d_model", "n_neurons", "top_k", "n_experts", "tensor_parallel", "expert_parallel", "skew"),
    # traffic of element-wise work: bytes read and written together, how many kernels are launched for it, and how many
    # exponentials, logarithms and the like it evaluates; for kernels that give each row to one block of threads, also
    # the rows, and how often each of them waits for memory in turn
    "stream": ("n_bytes", "n_kernels", "n_special", "n_rows", "row_waits"),
    # the whole buffer: what each rank holds before an all-reduce or reduce-scatter, after an all-gather, sends to all
    # ranks together in an all-to-all, sends to its peer; ranks in the group; ranks of this group in one machine
    "collective": ("n_bytes", "n_ranks", "ranks_per_machine"),
}

# columns at the end of a shape that may be left out, and what they are then
COLUMN_DEFAULTS: dict[str, float] = dict.fromkeys(
    ("n_special", "n_rows", "row_waits", "cached", "fused_softmax", "dropout", "narrowed"), 0.0
)

Where = Literal["host", "accelerator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation's demand.

    Attributes:
        name: What it is for, such as "attention" or "neurons"; equal names are added up in reports.
        kind: A key of `RESOURCE_OF_KIND`.
        account: The metric that its time is booked to: io, memory, compute or communication.
        dtype: Element type of the weights or data moved.
        flops: Floating-point operations; a multiply and an add count as two.
        bytes_read, bytes_written: Traffic to the memory (or storage) that serves the op.
        seconds: Of a ``startup``: how long it takes.
        n_items: Rows, neurons or calls, for kinds with a cost per item.
        n_chunks, chunk_bytes, concurrency: For storage: how many requests, their size, how many in flight.
        shape: For operators with a law of their own: the numbers that `OPERATOR_COLUMNS` names for this kind.
        sustained: Part of work that goes on for minutes, in which a device's power limit holds its clock down.
        sharing: How many equal processes have the device at the same time, each doing this: each has that part of its
            cores, rate and bandwidth. For operators with a law of their own.
        place: Which of several equal devices it runs on, such as a pipeline stage; ops of one place queue together.
        lane: Queue within its resource; ops of different lanes pass each other, as those of two communicators do.
        section: Part of the step that it belongs to, such as forward; a step reports ``<section>_s``.
        parts: Of a ``sequence``: the ops that it consists of, one after another; nothing else comes between them.
        behind: An op of another resource that goes on at the same time and is part of the plan anyway: only what this
            one takes longer is left of it.
        on: Which processor of the machine executes it.
        dynamic: Its shape differs from step to step, which some software pays for.
        repeat: How many times in a row, each waiting for the one before.
        after: Indices, within the step, of the ops it waits for; None means the op just before it.
    """

    name: str
    kind: str
    account: str
    dtype: str = "float32"
    flops: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    seconds: float = 0.0
    n_items: int = 0
    n_chunks: int = 0
    chunk_bytes: float = 0.0
    concurrency: int = 1
    shape: tuple[float, ...] = ()
    sharing: int = 1
    sustained: bool = False
    place: int = 0
    lane: str = ""
    section: str = ""
    parts: tuple[Op, ...] = ()
    behind: Op | None = None
    on: Where = "host"
    dynamic: bool = False
    repeat: int = 1
    after: tuple[int, ...] | None = None

    @property
    def resource(self) -> str:
        """Name of the resource that serves this kind of op.

        Raises:
            PlanError: no resource serves this kind.
        """
        try:
            return RESOURCE_OF_KIND[self.kind]
        except KeyError:
            hint = did_you_mean(self.kind, RESOURCE_OF_KIND)
            raise PlanError(f"op {self.name!r} is of unknown kind {self.kind!r}{hint}") from None

    @property
    def bytes_moved(self) -> float:
        """Traffic of one execution, both ways, in bytes."""
        return self.bytes_read + self.bytes_written

    @property
    def crosses(self) -> bool:
        """Whether it is a collective over more ranks than one machine has."""
        return self.kind in COLLECTIVES and self.shape[1] > self.shape[2]

    def leaves(self) -> Iterator[tuple[Op, int]]:
        """Yield the ops that this one consists of, itself if it is no sequence, with how often each is executed."""
        if not self.parts:
            yield self, self.repeat
        for part in self.parts:
            for op, times in part.leaves():
                yield op, times * self.repeat


def random_read(name: str, *, n_chunks: int, chunk_bytes: float, concurrency: int, account: str = "io") -> Op:
    """Demand of ``n_chunks`` scattered reads of ``chunk_bytes`` with ``concurrency`` in flight."""
    return Op(
        name=name,
        kind="random_read",
        account=account,
        bytes_read=n_chunks * chunk_bytes,
        n_chunks=n_chunks,
        chunk_bytes=chunk_bytes,
        concurrency=concurrency,
    )


def sequential_read(name: str, *, n_bytes: float, chunk_bytes: float, concurrency: int, account: str = "io") -> Op:
    """Demand of reading ``n_bytes`` in order, in pieces of ``chunk_bytes``; the last one may be shorter."""
    return Op(
        name=name,
        kind="sequential_read",
        account=account,
        bytes_read=n_bytes,
        n_chunks=math.ceil(n_bytes / chunk_bytes),
        chunk_bytes=chunk_bytes,
        concurrency=concurrency,
    )
