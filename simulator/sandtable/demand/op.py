"""One operation's demand, with no time in it: which operator, counts, what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sandtable.demand.operator import Resource, operator_named
from sandtable.demand.operator_shapes import (
    NewFileShape,
    RandomReadShape,
    SequentialReadShape,
    SequentialWriteShape,
)

Where = Literal["host", "accelerator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation's demand.

    Attributes:
        name: What it is for, such as "attention" or "neurons"; equal names are added up in reports.
        operator: Name of the `Operator` that says who serves it and how long it takes.
        account: The metric that its time is booked to: io, memory, compute or communication.
        dtype: Element type of the weights or data moved.
        flops: Floating-point operations; a multiply and an add count as two.
        bytes_read, bytes_written: Traffic to the memory (or storage) that serves the op.
        n_special: Exponentials, logarithms and the like, which take a core longer than moving their element.
        n_items: Rows, neurons or calls, for operators with a cost per item.
        seconds: Of a ``startup``: how long it takes.
        shape: For operators whose law reads columns: an instance of the operator's ``Shape``.
        role: What of a software's work it is, where the software may have constants of its own for that:
            "forward.norm".
        sustained: Part of work that goes on for minutes, in which a device's power limit holds its clock down.
        sharing: How many equal processes have the device at the same time, each doing this: each has that part of its
            cores, rate and bandwidth. For operators whose law reads columns.
        device: Which of several equal devices it runs on, such as that of a pipeline stage; ops of one queue together.
        stream: Queue within its resource; ops of different streams pass each other, as those of two communicators do.
        section: Part of the step that it belongs to, such as forward; a step reports ``<section>_s``.
        background: It goes on beside the step's own work, for a later one, and counts only while that waits.
        parts: Of a ``sequence``: the ops that it consists of, one after another; nothing else comes between them.
        hidden_by: An op of another resource that goes on at the same time and is part of the plan anyway: only what
            this one takes longer is left of it.
        on: Which processor of the machine executes it.
        dynamic: Its shape differs from step to step, which some software pays for.
        repeat: How many times in a row, each waiting for the one before.
        after: Indices, within the step, of the ops it waits for; None means the op just before it.
    """

    name: str
    operator: str
    account: str
    dtype: str = "float32"
    flops: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    n_special: float = 0.0
    n_items: int = 0
    seconds: float = 0.0
    shape: Any = None
    role: str = ""
    sharing: int = 1
    sustained: bool = False
    device: int = 0
    stream: str = ""
    section: str = ""
    background: bool = False
    parts: tuple[Op, ...] = ()
    hidden_by: Op | None = None
    on: Where = "host"
    dynamic: bool = False
    repeat: int = 1
    after: tuple[int, ...] | None = None

    @property
    def resource(self) -> Resource:
        """Name of the resource that serves its operator.

        Raises:
            PlanError: no installed package declares the operator.
        """
        return operator_named(self.operator).resource

    @property
    def bytes_moved(self) -> float:
        """Traffic of one execution, both ways, in bytes."""
        return self.bytes_read + self.bytes_written

    @property
    def n_requests(self) -> int:
        """Requests that storage serves for one execution."""
        return operator_named(self.operator).requests(self.shape)

    @property
    def crosses(self) -> bool:
        """Whether it goes over more ranks than one machine has."""
        return bool(operator_named(self.operator).crosses(self.shape))

    def leaves(self) -> Iterator[tuple[Op, int]]:
        """Yield the ops that this one consists of, itself if it is no sequence, with how often each is executed."""
        if not self.parts:
            yield self, self.repeat
        for part in self.parts:
            for op, times in part.leaves():
                yield op, times * self.repeat


def random_read(name: str, *, n_chunks: int, chunk_bytes: float, concurrency: int, account: str = "io") -> Op:
    """Demand of ``n_chunks`` scattered reads of ``chunk_bytes`` with ``concurrency`` in flight."""
    shape = RandomReadShape(n_chunks, chunk_bytes, concurrency)
    return Op(name=name, operator="random_read", account=account, bytes_read=n_chunks * chunk_bytes, shape=shape)


def sequential_read(name: str, *, n_bytes: float, chunk_bytes: float, concurrency: int, account: str = "io") -> Op:
    """Demand of reading ``n_bytes`` in order, in pieces of ``chunk_bytes``; the last one may be shorter."""
    shape = SequentialReadShape(n_bytes, chunk_bytes, concurrency)
    return Op(name=name, operator="sequential_read", account=account, bytes_read=n_bytes, shape=shape)


def new_files(name: str, *, n_files: int, account: str = "io") -> Op:
    """Demand of making ``n_files``, beside writing their bytes: each is synced, named, and its folder synced."""
    return Op(name=name, operator="new_file", account=account, shape=NewFileShape(n_files))


def sequential_write(name: str, *, n_bytes: float, chunk_bytes: float, concurrency: int, account: str = "io") -> Op:
    """Demand of writing ``n_bytes`` in order, in pieces of ``chunk_bytes``; the last one may be shorter."""
    shape = SequentialWriteShape(n_bytes, chunk_bytes, concurrency)
    return Op(name=name, operator="sequential_write", account=account, bytes_written=n_bytes, shape=shape)
