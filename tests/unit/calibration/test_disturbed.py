"""Points that other programs disturb while they are timed: found, timed again, named."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="fitting needs the `run` extra")

from sandtable.calibration import host_timing, this_host
from sandtable.calibration.host_timing import Settings
from sandtable.calibration.timing import Timing
from sandtable.calibration.visits import Point, Visit
from sandtable.demand.kernel import Dims, KernelContext, kernels
from sandtable.runs import measure
from sandtable.system import contention
from sandtable.system.contention import CoreTime, core_time, lost_frac

needs_schedstat = pytest.mark.skipif(core_time() is None, reason="the system does not tell who waited for a core")


def counted(ran_s: float, waited_s: float, busy_s: float, stolen_s: float = 0.0) -> CoreTime:
    return CoreTime(ran_s=ran_s, waited_s=waited_s, busy_s=busy_s, stolen_s=stolen_s)


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        (counted(2.0, 0.0, 2.0), 0.0),  # alone
        (counted(1.0, 1.0, 2.0), 0.5),  # another one on our core
        (counted(2.0, 1.0, 2.0), 0.0),  # our own threads waited for each other
        (counted(2.0, 0.0, 4.0), 0.0),  # others on cores that we do not need
        (counted(3.0, 0.0, 3.0, stolen_s=1.0), 0.25),  # the host
        (counted(0.0, 0.0, 5.0), 0.0),
    ],
)
def test_what_is_lost_is_what_others_took(after: CoreTime, lost: float) -> None:
    assert lost_frac(counted(0.0, 0.0, 0.0), after) == pytest.approx(lost)
    assert lost_frac(None, after) == 0.0


@needs_schedstat
def test_a_thread_that_shares_its_core_knows_so() -> None:
    """Two processes on one core take half of it from each other."""
    before_all = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before_all)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        # a child of ours, whose time would count as our own
        before, end = _own_alone(), time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        after = _own_alone()
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, before_all)
    assert lost_frac(before, after) > 0.2


def _own_alone() -> CoreTime:
    """Return the core time of this process without its children."""
    found, own = core_time(), Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()
    assert found is not None
    return counted(int(own[0]) * 1e-9, int(own[1]) * 1e-9, found.busy_s)


@needs_schedstat
def test_a_watch_counts_children_that_came_and_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what was asked for is lost while a child runs, whose counts are gone when it is."""
    looks = iter([counted(0.0, 0.0, 0.0), counted(1.0, 1.0, 2.0), counted(0.5, 0.5, 2.0), counted(0.5, 0.5, 3.0)])
    monkeypatch.setattr(contention, "core_time", lambda: next(looks))
    watch = contention.Watch()
    for _ in range(3):
        watch._look()
    assert watch.lost_frac == pytest.approx(0.5)


@needs_schedstat
def test_a_watch_of_nothing_has_nothing_lost() -> None:
    with contention.Watch(every_s=0.01) as watch:
        time.sleep(0.05)
    assert watch.lost_frac is not None
    assert 0 <= watch.lost_frac < 1
    assert "contention" not in {thread.name for thread in threading.enumerate()}


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contention, "PROC", tmp_path)
    assert core_time() is None
    assert contention.wait_for_calm(60.0) < 1.0
    with contention.Watch() as watch:
        pass
    assert watch.lost_frac is None


def point(*visits: tuple[float, float]) -> Point:
    kernel = kernels()["gemv"]
    return Point(kernel, kernel.example(), [Visit([seconds], lost) for seconds, lost in visits])


@pytest.mark.parametrize(
    ("visits", "settled", "seconds", "left_out"),
    [
        ([(1.0, 0.0), (1.1, 0.0)], True, 1.05, 0),
        ([(5.0, 0.4), (1.0, 0.0)], True, 1.0, 1),  # the calm one counts alone
        ([(1.0, 0.0), (5.0, 0.0)], False, 3.0, 0),  # nobody saw why
        ([(1.0, 0.0), (5.0, 0.0), (1.1, 0.0)], True, 1.05, 1),  # two agree, and work of others never makes faster
        ([(5.0, 0.4), (4.0, 0.3)], False, 4.0, 1),
        ([(1.0, 0.0), (1.2, 0.0), (1.5, 0.0)], True, 1.2, 0),  # a quiet machine's own scatter stays
    ],
)
def test_what_counts_of_the_visits(
    visits: list[tuple[float, float]], settled: bool, seconds: float, left_out: int
) -> None:
    found = point(*visits)
    timing = found.timing
    assert (found.is_settled(), timing.settled, timing.n_left_out) == (settled, settled, left_out)
    assert timing.seconds == pytest.approx(seconds)
    assert not found.is_settled(len(visits) + 1)


def observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Any, lost: Any, **settings: Any
) -> tuple[list[Timing], list[Dims]]:
    """Time the points of copies, which take ``slow(n)`` times a millisecond and lose ``lost(n)`` at the n-th visit."""
    order: list[Dims] = []
    count = itertools.count()

    def time_kernel(kernel: Any, dims: Dims, context: KernelContext, **_: Any) -> list[float]:
        order.append(dims)
        return [1e-3 * slow(next(count))]

    monkeypatch.setattr(host_timing, "kernels", lambda: {"copy": kernels()["copy"]})
    monkeypatch.setattr(measure, "time_kernel", time_kernel)
    monkeypatch.setattr(measure, "probed", lambda *_: {})
    monkeypatch.setattr(contention, "core_time", lambda: None)
    monkeypatch.setattr(contention, "lost_frac", lambda *_: lost(len(order) - 1))
    todo = {"folder": tmp_path, "only": ("memory",), "passes": 2, "budget_s": 60.0, **settings}
    return host_timing.observe(Settings(**todo)).timings, order


def test_a_burst_is_timed_again_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(n: int) -> bool:
        return n < 5

    timings, order = observed(
        tmp_path, monkeypatch, lambda n: 5.0 if burst(n) else 1.0, lambda n: 0.5 if burst(n) else 0.0
    )
    assert {timing.seconds for timing in timings} == {1e-3}
    assert all(timing.settled for timing in timings)
    assert len(order) == 2 * len(timings) + 5
    assert this_host.disturbed(timings) == (
        f"this calibration was disturbed: 5 of {len(timings)} points timed again until calm"
    )


def test_a_quiet_machine_is_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    timings, order = observed(tmp_path, monkeypatch, lambda _: float(np.exp(rng.normal(0, 0.05))), lambda _: 0.0)
    assert len(order) == 2 * len(timings)
    assert this_host.disturbed(timings) == ""


def test_what_never_becomes_calm_ends_with_the_budget_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings, order = observed(tmp_path, monkeypatch, lambda _: 2.0, lambda n: 0.3 + 1e-3 * n)
    assert len(order) == len(timings) * (2 + host_timing.MOST_MORE)
    assert not any(timing.settled for timing in timings)
    # the calmest visit of all
    assert all(len(timing.passes) == 1 for timing in timings)
    said = this_host.disturbed(timings)
    assert f"{len(timings)} of {len(timings)} never settled (copy " in said
    assert said.endswith("close other programs, calibrate again")
    _, none = observed(tmp_path, monkeypatch, lambda _: 2.0, lambda _: 0.3, budget_s=0.0)
    assert len(none) == 2 * len(timings)


def test_a_point_far_from_its_neighbours_is_timed_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times too slow in both passes, and nobody saw why."""
    n_visits: dict[str, int] = {}

    def time_kernel(kernel: Any, dims: Dims, context: KernelContext, **_: Any) -> list[float]:
        seen = n_visits[str(dims)] = n_visits.get(str(dims), 0) + 1
        op = kernel.cost(dims)
        slow = 5.0 if str(dims) == far and seen <= 2 else 1.0
        return [slow * (2e-6 + op.bytes_moved / 1e10 + op.flops / 1e11)] * 3

    compute = {name: k for name, k in kernels().items() if k.calibrates == "compute"}
    far = str(compute["gemv"].grid(quick=True)[3])
    monkeypatch.setattr(host_timing, "kernels", lambda: compute)
    monkeypatch.setattr(measure, "time_kernel", time_kernel)
    monkeypatch.setattr(measure, "probed", lambda *_: {})
    monkeypatch.setattr(contention, "core_time", lambda: None)
    settings = Settings(folder=tmp_path, only=("compute",), passes=2, budget_s=60.0, quick=True)
    found = this_host.calibrate(settings, base=_base())
    assert n_visits[far] > 2
    timing = next(t for t in found.timings if t.kernel == "gemv" and str(t.dims) == far)
    assert timing.seconds == pytest.approx(2e-6 + timing.op.bytes_moved / 1e10 + timing.op.flops / 1e11)
    assert timing.n_left_out == 2
    assert "1 of" in found.machine.environment["disturbed"]
    assert found.warnings[0] == found.machine.environment["disturbed"] == found.answer.caveat


def _base() -> Any:
    from sandtable.hardware import library

    return library.load_machine("laptop_pcie4")
