"""Which kernels a check times beforehand, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from sandtable.calibration import host_timing
from sandtable.calibration.host_timing import Observation, Settings
from sandtable.calibration.point_log import PointLog
from sandtable.demand.kernel import Dims, KernelContext, kernels
from sandtable.hardware import Machine
from sandtable.runs import measure
from sandtable.workload.seam import ExecutionContext
from sandtable_kernels.operations.gemv import Gemv


class Timed(Gemv):
    """Its probes take as many milliseconds as they are called."""

    name: ClassVar[str] = "timed"

    def probes(self) -> Sequence[Dims]:
        return [{"milliseconds": 1.0}, {"milliseconds": 2.0}]

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        return [0.0, 1e-3 * dims["milliseconds"], 1.0]


class OfPackage(Timed):
    """Works with a package."""

    name: ClassVar[str] = "of_package"
    calibrates: ClassVar[str | None] = "training"
    needs: ClassVar[tuple[str, ...]] = ("package",)


class Silent(Timed):
    """Offers nothing."""

    name: ClassVar[str] = "silent"

    def probes(self) -> Sequence[Dims]:
        return ()


@pytest.fixture(autouse=True)
def _offered(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {kernel.name: kernel for kernel in (Timed(), OfPackage(), Silent())}
    monkeypatch.setattr(measure, "kernels", lambda: offered)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [((), "compute.timed"), (("other",), "compute.timed"), (("other", "package"), "training.of_package")],
)
def test_work_is_probed_by_kernels_of_its_packages(
    needs: tuple[str, ...], expected: str, machine: Machine, tmp_path: Path
) -> None:
    probed = machine.model_copy(update={"probe_s": dict.fromkeys(("compute.timed", "training.of_package"), 1e-3)})
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    # the middle of each point's times, and all points of a kernel
    assert measure.probe(probed, context, needs) == {expected: pytest.approx(3e-3)}


def test_what_calibration_did_not_probe_tells_nothing(machine: Machine, tmp_path: Path) -> None:
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    assert measure.probe(machine, context, ()) == {}
    without = machine.model_copy(update={"probe_s": {"compute.timed": 1e-3}})
    assert measure.probe(without, context, ("package",)) == {"compute.timed": pytest.approx(3e-3)}


def test_operators_are_fitted_as_if_the_machine_had_one_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as slow for a while: operators and the probe alike."""
    clock, kernel = [0.0], kernels()["torch_gemm"]

    def slow() -> float:
        return 2.0 if 40.0 < clock[0] < 90.0 else 1.0

    def timings(*_: object, **__: object) -> list[float]:
        clock[0] += 0.25
        return [1e-3 * slow()]

    monkeypatch.setattr(type(kernel), "timings", timings)
    monkeypatch.setattr(host_timing, "kernels", lambda: {"torch_gemm": kernel})
    monkeypatch.setattr(host_timing.contention, "core_time", lambda: None)
    monkeypatch.setattr(measure, "probed", lambda *_: {"training.torch_gemm": 0.1 * slow()})
    monkeypatch.setattr(host_timing.time, "perf_counter", lambda: clock[0])
    observation = Observation(Settings(folder=tmp_path, only=("training",), passes=2, budget_s=1e6, quick=True))
    observation.visit_all()
    assert clock[0] > 60.0
    raw = [visit.median_s for point in observation.points for visit in point.visits]
    assert np.ptp(raw) == pytest.approx(1e-3)
    found = np.array([timing.passes for timing in observation.timings])
    # what was timed before a probe of the new speed, or after one alone, is in between
    assert np.mean(np.abs(found / np.median(found) - 1) < 1e-6) > 0.7
    assert observation.probes == {"training.torch_gemm": pytest.approx(np.median(found) * 100)}


def test_a_calibration_takes_probes_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, clock = iter([0.1, 0.3, 0.2, 9.0]), [0.0]

    def time_kernel(*_: object, **__: object) -> list[float]:
        clock[0] += host_timing.PROBE_EVERY_S * 2.5 / n_visits
        return [1.0]

    monkeypatch.setattr(host_timing, "kernels", lambda: {"gemv": kernels()["gemv"]})
    monkeypatch.setattr(measure, "time_kernel", time_kernel)
    monkeypatch.setattr(measure, "probed", lambda *_: {"compute.gemv": next(taken)})
    monkeypatch.setattr(host_timing.time, "perf_counter", lambda: clock[0])
    observation = Observation(Settings(folder=tmp_path, only=("compute",), passes=1, budget_s=1e6, quick=True))
    n_visits = len(observation.points)
    observation.visit_all()
    assert observation.probes == {"compute.gemv": pytest.approx(0.2)}


def test_points_that_an_earlier_run_timed_are_fitted_for_the_speed_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, probe_s = kernels()["torch_gemm"], 0.1
    monkeypatch.setattr(type(kernel), "timings", lambda *_, **__: [1e-3])
    monkeypatch.setattr(host_timing, "kernels", lambda: {"torch_gemm": kernel})
    monkeypatch.setattr(measure, "probed", lambda *_: {"training.torch_gemm": probe_s})
    log = PointLog.begin(tmp_path / "m.yaml.partial", {})
    for seconds in (1e-3, 2e-3):
        todo = Settings(folder=tmp_path, only=("training",), passes=1, budget_s=1e6, quick=True, log=log)
        observation = Observation(todo)
        observation.visit_all()
        found = [timing.seconds for timing in observation.timings]
        assert found == pytest.approx([seconds] * len(found))
        assert observation.probes == {"training.torch_gemm": probe_s}
        log, probe_s = PointLog.resume(log.path), 0.2
