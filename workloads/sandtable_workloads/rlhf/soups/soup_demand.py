"""What averaging checkpoints asks of a machine: reading all of them, adding them up, writing one."""

from __future__ import annotations

from dataclasses import replace

from sandtable.demand.op import Op, sequential_read, sequential_write

# as a soup is made: pieces of this size, and as many of them in flight
PIECE_BYTES = 4 << 20
IN_FLIGHT = 8


def soup_ops(n_params: float, n_models: int, *, in_bytes: float = 2, out_bytes: float = 2) -> tuple[Op, Op, Op]:
    """Return the ops of one averaging pass: read, add up and write, all three at the same time.

    Of two models in 16 bits these are 3 x 2N bytes of storage traffic and 3N operations. None waits for another, so
    that a step that consists of them takes as long as storage, which reading and writing share, or memory, whichever
    is longer. A drive that reads and writes at once, without the one hindering the other, is up to a third faster.

    Args:
        n_params: Parameters of one model.
        n_models: Models that are averaged.
        in_bytes: Bytes of a stored parameter of theirs.
        out_bytes: Bytes of one of the result.
    """
    read, written = n_models * n_params * in_bytes, n_params * out_bytes
    adding = Op(
        name="add up checkpoints",
        operator="copy",
        account="memory",
        flops=(2 * n_models - 1) * n_params,
        bytes_read=read,
        bytes_written=written,
        n_items=1,
        after=(),
    )
    reading = sequential_read("read checkpoints", n_bytes=read, chunk_bytes=PIECE_BYTES, concurrency=IN_FLIGHT)
    writing = sequential_write("write soup", n_bytes=written, chunk_bytes=PIECE_BYTES, concurrency=IN_FLIGHT)
    return replace(reading, after=()), adding, replace(writing, after=())
