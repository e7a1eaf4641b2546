"""Queues as process workloads: the engine serves every customer when the recursion says, and that is the theory's."""

from __future__ import annotations

import numpy as np
import pytest
from queues import MEAN_S, Queue, Watched, process, waits

from sandtable.engine.clock import ticks
from sandtable.engine.simulation import Run, run
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel

QUEUES = {"M/M/1": Queue(1, 0.6), "M/D/1": Queue(1, 0.6, constant=True), "M/M/4": Queue(4, 0.6)}
every_queue = pytest.mark.parametrize("queue", QUEUES.values(), ids=QUEUES)
N = 10_000


def simulate(queue: Queue, machine: Machine, watched: Watched | None = None) -> Run:
    return run(process(queue, *queue.times(N), watched), CostModel(machine))


@every_queue
def test_every_customer_waits_as_long_as_the_recursion_says(queue: Queue, machine: Machine) -> None:
    found = simulate(queue, machine).recorder.units["customer"]
    between, service = queue.times(N)
    # customers are recorded as they leave
    order = np.argsort(np.array(found.starts_s))
    assert found.values["wait_s"][order] == pytest.approx(waits(between, service, queue.servers), abs=1e-9)
    assert found.values["latency_s"][order] == pytest.approx(
        service + waits(between, service, queue.servers), abs=1e-9
    )


@every_queue
def test_the_recursion_is_the_theory(queue: Queue) -> None:
    found = waits(*queue.times(1_000_000), queue.servers)
    assert np.quantile(found, 0.5) == pytest.approx(queue.quantile(0.5), rel=0.02)
    assert np.quantile(found, 0.99) == pytest.approx(queue.quantile(0.99), rel=0.02)


@every_queue
def test_littles_law_holds_exactly(queue: Queue, machine: Machine) -> None:
    watched = Watched()
    found = simulate(queue, machine, watched).recorder.units["customer"]
    assert watched.inside == 0
    assert watched.area == sum(ticks(stay) for stay in found.values["latency_s"])


def test_the_load_is_what_it_says(machine: Machine) -> None:
    queue = QUEUES["M/M/4"]
    result = simulate(queue, machine)
    assert N / result.total_s == pytest.approx(4 * queue.load / MEAN_S, rel=0.01)
    assert result.recorder.end_s() == result.total_s
