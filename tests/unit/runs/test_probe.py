"""Which kernels a check times beforehand, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sandtable.calibration import host_timing
from sandtable.calibration.host_timing import Observation, Settings
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
