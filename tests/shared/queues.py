"""Queues as processes, by hand as a recursion, and in theory: shared by tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from heapq import heapreplace
from math import exp, factorial, log
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from sandtable.engine.process import Body, Process
from sandtable.engine.world import World

MEAN_S = 1e-3
Floats = npt.NDArray[np.float64]


def exponential(rng: np.random.Generator, n: int) -> Floats:
    """Return ``n`` exponential times of mean 1, one of each n-th of the distribution, so that the load is exact."""
    return -np.log1p(-(rng.permutation(n) + rng.random(n)) / n)


@dataclass(frozen=True)
class Queue:
    """A queue by Kendall's notation, with a mean service time of 1 ms at each of its servers."""

    servers: int
    load: float
    constant: bool = False

    def times(self, n: int, seed: int = 0) -> tuple[Floats, Floats]:
        """Return times between arrivals, and service times, in seconds."""
        rng = np.random.default_rng(seed)
        between = exponential(rng, n) / (self.load * self.servers)
        service = np.ones(n) if self.constant else exponential(rng, n)
        return MEAN_S * between, MEAN_S * service

    def quantile(self, part: float) -> float:
        """Return the waiting time that ``part`` of all customers do not exceed, in seconds."""
        if self.constant:
            return MEAN_S * inverse(lambda t: crommelin(self.load, t), part)
        return MEAN_S * max(
            0.0, log(erlang_c(self.servers, self.load) / (1 - part)) / (self.servers * (1 - self.load))
        )


def erlang_c(servers: int, load: float) -> float:
    """Return the part of customers that wait in M/M/k (Kleinrock, "Queueing Systems" I, 3.40)."""
    offered = servers * load
    busy = offered**servers / factorial(servers) / (1 - load)
    return busy / (sum(offered**k / factorial(k) for k in range(servers)) + busy)


def crommelin(load: float, t: float) -> float:
    """Return the part of customers of M/D/1 that wait at most ``t`` (Gross et al., "Queueing Theory", 6.1)."""
    terms = ((load * (k - t)) ** k / factorial(k) * exp(-load * (k - t)) for k in range(int(t) + 1))
    return (1 - load) * sum(terms)


def inverse(function: Callable[[float], float], value: float, high: float = 15.0) -> float:
    """Return where a growing function reaches a value."""
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high


def waits(between: Floats, service: Floats, servers: int) -> Floats:
    """Return the waiting times, customer by customer (Lindley, and Kiefer and Wolfowitz)."""
    if servers == 1:
        steps = np.cumsum(np.concatenate([[0.0], service[:-1] - between[1:]]))
        return steps - np.minimum.accumulate(steps)
    free, now, found = [0.0] * servers, 0.0, np.empty(len(between))
    for index, (gap, time) in enumerate(zip(between.tolist(), service.tolist(), strict=True)):
        now += gap
        start = max(now, free[0])
        heapreplace(free, start + time)
        found[index] = start - now
    return found


@dataclass
class Watched:
    """How many customers were in the system, summed over time, in picoseconds."""

    area: int = 0
    inside: int = 0
    since: int = 0

    def change(self, now: float, by: int) -> None:
        self.area += self.inside * (int(now) - self.since)
        self.inside, self.since = self.inside + by, int(now)


def process(queue: Queue, between: Floats, service: Floats, watched: Watched | None = None) -> Process:
    """Return the queue as a process that records every customer."""

    def body(world: World) -> Body:
        server = world.server(queue.servers)

        def customer(service_s: float) -> Body:
            arrived_s = world.now
            if watched:
                watched.change(world.env.now, 1)
            start_s = yield server.serve(service_s)
            world.record("customer", arrived_s, counters={"wait_s": start_s - arrived_s})
            if watched:
                watched.change(world.env.now, -1)

        for gap_s, service_s in zip(between.tolist(), service.tolist(), strict=True):
            yield world.sleep(gap_s)
            world.spawn(customer(service_s))

    return Process(workload="queue", body=body, main_unit="customer", work_unit="customer")


def bare(queue: Queue, between: Floats, service: Floats) -> None:
    """Run the same queue on SimPy alone, and record nothing."""
    env = simpy.Environment()
    server = simpy.Resource(env, queue.servers)

    def customer(service_s: float) -> Generator[simpy.Event, Any, None]:
        with server.request() as turn:
            yield turn
            yield env.timeout(service_s)

    def source() -> Generator[simpy.Event, Any, None]:
        for gap_s, service_s in zip(between.tolist(), service.tolist(), strict=True):
            yield env.timeout(gap_s)
            env.process(customer(service_s))

    env.process(source())
    env.run()
