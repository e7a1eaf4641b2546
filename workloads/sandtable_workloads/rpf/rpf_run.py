"""A fit run for real: generated events of exactly the counts planned, timed by iteration, memory counted by kind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sandtable.engine.recorder import Recorder
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.system import atomic_files, limits
from sandtable.workload.seam import Execution, ExecutionContext
from sandtable_workloads.rpf.estimators.fit_loop import Iteration
from sandtable_workloads.rpf.estimators.observed_events import IdIndex
from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.events.generated_events import GeneratedEvents
from sandtable_workloads.rpf.rpf_parameters import Rpf
from sandtable_workloads.rpf.rpf_plan import ITERATION, MAIN
from sandtable_workloads.rpf.rpf_variants import estimator_of

# fits that are timed do not stop before
LEAST_TOL = 1e-300


def prepare(p: Rpf, context: ExecutionContext) -> None:
    """Check that this machine can do it, and fit a few events, which compiles kernels.

    Raises:
        ConfigError: more threads than this process may use.
    """
    if p.threads is not None and p.threads > context.n_threads:
        raise ConfigError(
            f"parameters.threads: {p.threads} and this process may use {context.n_threads}: write that or less"
        )
    few = {
        "users": 8,
        "items": 6,
        "events": max(60, p.components),
        "pairs": None,
        "followees": min(p.followees, 2.0),
        "ranks": 1,
    }
    iterate = observing(Rpf.model_validate(p.model_dump() | few), 0, context.n_threads)[1]
    iterate()


def run_fit(p: Rpf, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
    """Warm up, and time every iteration."""
    before = limits.status_bytes("VmRSS")
    model, iterate = observing(p, seed, context.n_threads)
    if p.ranks > 1:
        return _by_ranks(p, model, context)
    recorder = Recorder()
    for _ in range(p.warmup_steps):
        iterate()
    begin = time.perf_counter()
    for _ in range(p.steps):
        start = time.perf_counter()
        elbo = iterate()
        _record(recorder, time.perf_counter() - start, elbo)
    main_s = begin, time.perf_counter()
    after = limits.status_bytes("VmRSS")
    return Execution(
        recorder=recorder,
        memory_bytes=held_by(model),
        main_s=main_s,
        process_bytes=None if before is None or after is None else float(max(0, after - before)),
    )


def _by_ranks(p: Rpf, model: PoissonEstimator, context: ExecutionContext) -> Execution:
    """Let processes fit, and take the times of the first of them, which waits for the others in each iteration."""
    from sandtable_workloads.rpf.scaled import rank_fit
    from sandtable_workloads.rpf.scaled.rank_job import HELD

    model.n_ranks, model.tol = p.ranks, LEAST_TOL
    model.n_threads = max(1, (p.threads or context.n_threads) // p.ranks)
    done: list[Iteration] = []
    with atomic_files.temporary_folder(context.folder, "ranks") as folder:
        job = rank_fit.write_ranks(model, folder, most=p.warmup_steps + p.steps)
        rank_fit.run_ranks(job, folder, done.append)
        ranks = [json.loads((folder / HELD.format(rank=rank)).read_bytes()) for rank in range(p.ranks)]
    ends = [0.0, *(each.seconds for each in done)]
    recorder = Recorder()
    for before_s, each in list(zip(ends, done, strict=False))[p.warmup_steps :]:
        _record(recorder, each.seconds - before_s, each.elbo, each.waited_s)
    return Execution(
        recorder=recorder, memory_bytes={kind: sum(held.get(kind, 0.0) for held in ranks) for kind in ranks[0]}
    )


def _record(recorder: Recorder, seconds: float, elbo: float, waited_s: float = 0.0) -> None:
    parts = {"compute_s": seconds - min(waited_s, seconds)} | ({"communication_s": waited_s} if waited_s else {})
    recorder.record(MAIN, {"latency_s": seconds, "elbo": elbo} | parts, name=ITERATION)


def observing(p: Rpf, seed: int, n_threads: int) -> tuple[PoissonEstimator, Callable[[], float]]:
    """Return a model that has seen the events, at the beginning of its fit, and what does one iteration of it.

    Users and items without an event are there as well, so that rows are as many as planned.
    """
    made = generated(p, seed)
    table = made.table()
    model = estimator_of(p, n_threads=p.threads or n_threads, seed=seed)
    model.origin_ = None
    model.user_index_, model.item_index_ = IdIndex(np.arange(p.users)), IdIndex(np.arange(p.items))
    model.origin_ = table.origin
    edges = made.edges() if p.social else None
    model._observe(table.user_code, table.item_code, table.time, edges, (table.start, table.end))
    state = model.state_ = model._begin(model.observed_, np.random.default_rng(seed))
    return model, lambda: model._iterate(model.observed_, state)


def generated(p: Rpf, seed: int) -> GeneratedEvents:
    """Return the events that stand for a user's own."""
    return GeneratedEvents(
        n_users=p.users,
        n_items=p.items,
        n_events=p.events,
        n_pairs=p.n_pairs,
        zipf=p.item_exponent,
        mean_degree=p.followees if p.social else 0.0,
        seed=seed,
    )


# --- memory --------------------------------------------------------------------------------------------------------


def held_by(model: PoissonEstimator) -> dict[str, float]:
    """Return the bytes of a model's arrays by the kinds of the plan, each array once."""
    seen: set[int] = set()
    observed, state = model.observed_, model.state_
    found = {
        "events": _bytes_of((observed.pairs, observed.start, observed.exposure), seen),
        "factors": _bytes_of((state["theta"], state["beta"]), seen),
        "edges": _bytes_of(observed.edges, seen),
        "excitation": _bytes_of(state, seen),
    }
    found["passes"] = _bytes_of([each for name, each in vars(model).items() if not name.endswith("index_")], seen)
    return {kind: size for kind, size in found.items() if size}


def _bytes_of(holder: Any, seen: set[int]) -> float:
    """Return the bytes of arrays below an object that were not counted before."""
    total = 0.0
    for array in _arrays(holder, seen):
        total += array.nbytes
    return total


def _arrays(holder: Any, seen: set[int]) -> Iterator[np.ndarray[Any, Any]]:
    if holder is None or id(holder) in seen:
        return
    if isinstance(holder, np.ndarray):
        # memory of Numba's is no array
        base = holder.base if isinstance(holder.base, np.ndarray) else holder
        if id(base) not in seen:
            seen.add(id(base))
            yield base
        return
    inner: Any = ()
    if isinstance(holder, Mapping):
        inner = holder.values()
    elif isinstance(holder, tuple | list):
        inner = holder
    elif hasattr(holder, "__dict__"):
        seen.add(id(holder))
        inner = vars(holder).values()
    for each in inner:
        yield from _arrays(each, seen)
