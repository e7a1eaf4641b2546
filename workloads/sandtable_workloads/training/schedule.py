"""In which order a pipeline stage works through micro-batches: 1F1B, and interleaved 1F1B.

Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters" (arXiv 2104.04473), section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Task(NamedTuple):
    """One micro-batch through one chunk of layers of one stage, forward or backward."""

    stage: int
    chunk: int
    micro: int
    forward: bool


def tasks_of(stage: int, n_stages: int, n_micro: int, n_chunks: int) -> list[Task]:
    """Return the tasks of one stage in the order in which it does them.

    Warm-up forwards, then one forward and one backward in turn, then the backwards that are left. With several
    chunks, micro-batches go through a chunk in groups of ``n_stages``, so that ``n_micro`` is a multiple of it.
    """
    n_tasks = n_micro * n_chunks
    warm = (n_stages - 1 - stage) if n_chunks == 1 else 2 * (n_stages - 1 - stage) + (n_chunks - 1) * n_stages
    warm = min(warm, n_tasks)
    order = [_task(stage, k, n_stages, n_chunks, forward=True) for k in range(warm)]
    for k in range(n_tasks - warm):
        order.append(_task(stage, k + warm, n_stages, n_chunks, forward=True))
        order.append(_task(stage, k, n_stages, n_chunks, forward=False))
    order += [_task(stage, k, n_stages, n_chunks, forward=False) for k in range(n_tasks - warm, n_tasks)]
    return order


def _task(stage: int, index: int, n_stages: int, n_chunks: int, *, forward: bool) -> Task:
    if n_chunks == 1:
        return Task(stage, 0, index, forward)
    round_, within = divmod(index, n_stages * n_chunks)
    chunk, micro = divmod(within, n_stages)
    return Task(stage, chunk if forward else n_chunks - 1 - chunk, round_ * n_stages + micro, forward)


def needed(task: Task, n_stages: int, n_chunks: int) -> Task | None:
    """Return the task of another stage whose result ``task`` waits for; None for the first of a micro-batch."""
    last = n_stages * n_chunks - 1
    position = task.chunk * n_stages + task.stage
    if task.forward:
        return None if position == 0 else _at(position - 1, task, n_stages)
    if position == last:
        return task._replace(forward=True)
    return _at(position + 1, task, n_stages)


def _at(position: int, task: Task, n_stages: int) -> Task:
    chunk, stage = divmod(position, n_stages)
    return Task(stage, chunk, task.micro, task.forward)


def ordered(n_stages: int, n_micro: int, n_chunks: int) -> Iterator[Task]:
    """Yield the tasks of all stages so that each comes after those that it waits for."""
    queues = [tasks_of(stage, n_stages, n_micro, n_chunks) for stage in range(n_stages)]
    heads, done = [0] * n_stages, set[Task]()
    while any(head < len(queue) for head, queue in zip(heads, queues, strict=True)):
        moved = False
        for stage, queue in enumerate(queues):
            while heads[stage] < len(queue):
                task = queue[heads[stage]]
                wait = needed(task, n_stages, n_chunks)
                if wait is not None and wait not in done:
                    break
                done.add(task)
                heads[stage] += 1
                moved = True
                yield task
        assert moved, "a schedule that waits for itself"
