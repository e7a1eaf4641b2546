"""Which kernels a check times beforehand, and against what."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from sandtable.demand.kernel import Dims, KernelContext
from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.runs import measure
from sandtable.workload.seam import ExecutionContext
from sandtable_kernels.operations.gemv import Gemv


class Slowed(Gemv):
    """Takes so many times what the machine's constants say."""

    times: ClassVar[float] = 2.0

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def timings(self, dims: Dims, context: KernelContext, *, repeats: int, budget_s: float) -> list[float]:
        return [self.times * CostModel(self.machine).time(self.cost(dims)).seconds]


class OfPackage(Slowed):
    """Works with a package, where the machine is slower still."""

    needs: ClassVar[tuple[str, ...]] = ("package",)
    times: ClassVar[float] = 3.0


@pytest.mark.parametrize(("needs", "expected"), [((), 2.0), (("other",), 2.0), (("other", "package"), 3.0)])
def test_work_is_probed_by_kernels_of_its_packages(
    needs: tuple[str, ...], expected: float, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = {"plain": Slowed(machine), "package": OfPackage(machine)}
    monkeypatch.setattr(measure, "kernels", lambda: offered)
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    assert measure.probe(machine, context, needs) == pytest.approx(expected)


def test_what_nothing_was_fitted_to_tells_nothing_of_drift(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = machine.processor.model_copy(update={"fitted": None})
    stack = library.load_component("stack", "pytorch_cpu")
    unfitted = machine.model_copy(update={"processor": processor, "stack": stack})
    monkeypatch.setattr(measure, "kernels", lambda: {"plain": Slowed(unfitted)})
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    assert measure.probe(unfitted, context, ()) == 1.0
