"""What the engine adds to SimPy, per event and per unit of work; times of one run are compared with each other."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import numpy as np
import pytest
import simpy
from queues import Queue, bare, process

from sandtable.demand.op import Op
from sandtable.engine.process import Body, Process
from sandtable.engine.simulation import run
from sandtable.engine.world import World
from sandtable.hardware import library
from sandtable.model.cost_model import CostModel
from sandtable.results import distribution
from sandtable.runs.reduction import STATISTICS, collect, metrics_of

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)
OP = Op(name="work", operator="gemv", account="compute", bytes_read=1e6)


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of several runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_an_event_costs_at_most_twice_that_of_simpy(benchmark) -> None:  # type: ignore[no-untyped-def]
    """One process that has an op done over and over: one event each, as one timeout of SimPy's is."""
    n, costs = 100_000, CostModel(library.load_machine("laptop_pcie4"))

    def alone() -> None:
        env = simpy.Environment()

        def body():  # type: ignore[no-untyped-def]
            for _ in range(n):
                yield env.timeout(100)

        env.process(body())
        env.run()

    def body(world: World) -> Body:
        for _ in range(n):
            yield world.serve(OP)

    served = Process(workload="served", body=body, main_unit="none")
    ours, theirs = seconds(lambda: run(served, costs)), seconds(alone)
    benchmark.pedantic(lambda: run(served, costs), rounds=1)
    print(f"\n{1e6 * ours / n:.2f} us an event, SimPy {1e6 * theirs / n:.2f} us: {ours / theirs:.2f} times")
    assert ours <= 2 * theirs


@pytest.mark.parametrize(
    "queue", [Queue(1, 0.6), Queue(1, 0.6, constant=True), Queue(4, 0.6)], ids=["M/M/1", "M/D/1", "M/M/4"]
)
def test_a_million_customers(benchmark, queue: Queue) -> None:  # type: ignore[no-untyped-def]
    """A million units through a process and the recorder: theory within 2 %, a minute beyond SimPy, 1 GiB."""
    n = 1_000_000
    between, service = queue.times(n)
    costs, work = CostModel(library.load_machine("laptop_pcie4")), process(queue, between, service)
    start = time.perf_counter()
    bare(queue, between, service)
    alone = time.perf_counter() - start
    result = benchmark.pedantic(lambda: run(work, costs), rounds=1)
    metrics = metrics_of(collect(result.recorder, work))
    for part in (0.5, 0.99):
        found = metrics[f"wait_s.p{100 * part:.0f}"].value
        print(f"\np{100 * part:.0f} {found:.4f} s, theory {queue.quantile(part):.4f} s")
        assert found == pytest.approx(queue.quantile(part), rel=0.02, abs=1e-9)
    beyond = benchmark.stats["mean"] - alone
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"SimPy alone {alone:.1f} s, beyond it {beyond:.1f} s; peak of this process {peak / 2**20:.0f} MiB")
    assert beyond <= 60
    assert peak <= 1 << 30


def test_a_million_samples_are_reduced_in_seconds(benchmark) -> None:  # type: ignore[no-untyped-def]
    samples = np.random.default_rng(0).lognormal(size=1_000_000)
    metrics = benchmark.pedantic(lambda: distribution("latency_s", samples, STATISTICS), rounds=1)
    assert sum(len(metric.samples) for metric in metrics.values()) <= 10_000
    assert benchmark.stats["mean"] < 5
