"""An operator is a class in any installed package: nothing in the core lists it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sandtable import plugins
from sandtable.calibration import machine_fit
from sandtable.calibration.fit.least_squares import fit_op
from sandtable.calibration.fit.operator_fit import fit_operator
from sandtable.calibration.timing import Timing
from sandtable.demand import operator as operator_module
from sandtable.demand.op import Op
from sandtable.demand.operator import PlainOperator, operator_named, operators
from sandtable.demand.operator_shapes import GemmShape
from sandtable.errors import ConfigError, PlanError
from sandtable.hardware import Machine, OperatorFit, Roofline, Stack, StackDatasheet, library
from sandtable.model.cost_model import CostModel
from sandtable.model.fitted_constants import OWN, resolve

# what another package would hold: an operator with a law and columns of its own, and a plain one
PACKAGE = """
from typing import ClassVar, NamedTuple

import numpy as np

from sandtable.demand.operator import Columns, Constant, Constants, FloatArray, Operator, PlainOperator, Resource
from sandtable.hardware import Roofline


class WalshShape(NamedTuple):
    n: float
    rows: float = 1.0


class Walsh(Operator[Roofline]):
    "log2(n) passes over n numbers of each row."

    name: ClassVar[str] = "walsh"
    resource: ClassVar[Resource] = "compute"
    Shape: ClassVar[type[WalshShape]] = WalshShape
    constants: ClassVar[tuple[Constant, ...]] = (
        Constant(name="launch_s", typical=1e-6, low=1e-8, high=1e-3),
        Constant(name="bandwidth_frac", typical=0.5, low=0.01, high=1.0),
    )

    def seconds(self, device: Roofline, constants: Constants, columns: Columns, *, dtype: str) -> FloatArray:
        n_bytes = 8 * columns.n * columns.rows * np.log2(columns.n)
        rate = constants["bandwidth_frac"] * device.bandwidth_bytes_per_s
        return np.asarray(constants["launch_s"] + n_bytes / rate)

    def variant(self, shape: WalshShape) -> str:
        return "tall" if shape.rows > shape.n else ""

    def calls(self, stated, *, shape=None, n_items=1):
        return stated * 2


class Digamma(PlainOperator):
    name: ClassVar[str] = "digamma"
    resource: ClassVar[Resource] = "compute"


class Hashing(PlainOperator):
    name: ClassVar[str] = "hashing"
    resource: ClassVar[Resource] = "compute"
    bound_by: ClassVar[str] = "rate"
"""
TRUE = {"launch_s": 4e-6, "bandwidth_frac": 0.25}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package in a folder of its own, with the entry point that any package has."""
    package, info = tmp_path / "outside_operators", tmp_path / "outside_operators-1.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-operators\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sandtable.plugins]\noutside = outside_operators\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.modules.cache_clear()
    operators.cache_clear()
    yield
    sys.modules.pop("outside_operators", None)
    plugins.modules.cache_clear()
    operators.cache_clear()


def walsh(n: float, rows: float = 1.0) -> Op:
    shape = operator_named("walsh").Shape(n, rows)
    return Op(name="mix", operator="walsh", account="compute", shape=shape)


@pytest.mark.usefixtures("outside")
def test_an_operator_of_another_package_has_a_time(machine: Machine) -> None:
    found = CostModel(machine).time(walsh(1024, 64))
    bandwidth = machine.memory.datasheet.bandwidth_bytes_per_s
    assert found.seconds == pytest.approx(1e-6 + 8 * 1024 * 64 * 10 / (0.5 * bandwidth))
    assert found.low < found.seconds < found.high


@pytest.mark.usefixtures("outside")
def test_it_answers_for_many_demands_at_once(machine: Machine) -> None:
    costs, law = CostModel(machine), operator_named("walsh")
    sizes = np.array([2.0, 64.0, 4096.0])
    together = costs.seconds(walsh(2.0, 3.0), law.columns(law.Shape(sizes, 3.0)))
    assert together == pytest.approx([costs.time(walsh(n, 3.0)).seconds for n in sizes])


def timings(machine: Machine, software: str = "mine") -> list[Timing]:
    """Butterflies that take what the law says with `TRUE`."""
    law, roofline = operator_named("walsh"), Roofline.of(machine.processor, machine.memory)
    ops = [walsh(2.0**k, rows) for k in range(4, 14) for rows in (1.0, 16.0)]
    seconds = [law.seconds(roofline, TRUE, law.columns(op.shape), dtype=op.dtype)[0] for op in ops]
    return [Timing.once(op, float(time), software=software) for op, time in zip(ops, seconds, strict=True)]


def framework(software: dict[str, str], **datasheet: object) -> Stack:
    sheet = StackDatasheet(version="1", efficiency={}, residual_low_frac=0.5, residual_high_frac=2.0, **datasheet)
    return Stack(
        kind="stack", name="s", title="S", datasheet=sheet, software=software, sources={"datasheet": "made up"}
    )


@pytest.mark.usefixtures("outside")
def test_its_constants_are_fitted_kept_in_a_file_and_used(machine: Machine, tmp_path: Path) -> None:
    roofline, points = Roofline.of(machine.processor, machine.memory), timings(machine)
    fit = fit_operator(points, lambda _: roofline, method="made up")
    assert fit.values() == pytest.approx(TRUE, rel=0.02)
    fitted = machine.processor.fitted
    assert fitted is not None
    processor = machine.processor.model_copy(
        update={"fitted": fitted.model_copy(update={"operators": {"walsh": {"mine": fit}}})}
    )
    path = tmp_path / f"{processor.name}.yaml"
    library.save_component(processor, path)
    assert re.search(r"launch:\n +value: [34]\.\d+ us", path.read_text())
    again = library.load_file(path, "processor")
    assert again.fitted.operators["walsh"]["mine"].values() == pytest.approx(fit.values(), rel=1e-4)  # type: ignore[attr-defined]
    mine = {"walsh": "mine", "walsh.tall": "another"}
    stack = framework(mine, host_call_s=1e-5, overlaps_host=True)
    costs = CostModel(machine.model_copy(update={"processor": again, "stack": stack}))
    assert costs.time(walsh(1024.0, 16.0)).seconds == pytest.approx(points[13].seconds, rel=0.02)
    assert costs.time(walsh(1024.0, 16.0)).host_s == pytest.approx(2e-5)
    # a variant without a fit of its own stands at typical constants
    assert costs.time(walsh(8.0, 16.0)).seconds < costs.time(walsh(16.0, 16.0)).seconds


@pytest.mark.usefixtures("outside")
def test_a_plain_operator_with_special_functions_is_fitted_and_costed(machine: Machine) -> None:
    def timed(n_bytes: float, n_special: float) -> Timing:
        op = Op(name="d", operator="digamma", account="", bytes_read=n_bytes, n_special=n_special)
        return Timing.once(op, 2e-6 + 5e-9 * n_special + n_bytes / 10e9)

    fit = fit_op([timed(8 * n, s) for n in (1e4, 1e5, 1e6) for s in (1e3, 1e5, 1e6)], method="made up")
    assert fit.per_special_s.value == pytest.approx(5e-9, rel=0.02)
    fitted = machine.processor.fitted
    assert fitted is not None
    processor = machine.processor.model_copy(
        update={"fitted": fitted.model_copy(update={"ops": {"digamma": {"float32": fit}}})}
    )
    op = Op(name="digamma", operator="digamma", account="compute", bytes_read=8e5, n_special=1e5)
    seconds = CostModel(machine.model_copy(update={"processor": processor})).time(op).seconds
    assert seconds == pytest.approx(2e-6 + 5e-4 + 8e-5, rel=0.03)


def test_an_operator_that_nobody_declares_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"no installed package declares an operator 'gemn'.*'gemm'"):
        operator_named("gemn")


def test_a_fit_without_a_constant_of_its_law_names_file_and_constant() -> None:
    h100 = library.load_accelerator("nvidia_h100_sxm")
    fits = h100.fitted.operators["gemm"]  # type: ignore[attr-defined]
    software, fit = next(iter(fits.items()))
    short = OperatorFit(evidence=fit.evidence, constants={k: v for k, v in fit.constants.items() if k != "tile_s"})
    fitted = h100.fitted.model_copy(update={"operators": {"gemm": {software: short}}})  # type: ignore[attr-defined]
    broken = h100.model_copy(update={"fitted": fitted})
    with pytest.raises(ConfigError, match=rf"nvidia_h100_sxm.yaml.*fitted.operators.gemm.{software}.*'tile'"):
        resolve(operator_named("gemm"), broken, software, None)  # type: ignore[arg-type]


def test_a_demand_without_the_shape_that_its_law_reads_is_refused(machine: Machine) -> None:
    with pytest.raises(PlanError, match="needs the shape"):
        CostModel(machine).time(Op(name="x", operator="attention", account="compute"))


def test_shapes_have_columns_by_name() -> None:
    shape = GemmShape(4.0, 5.0, 6.0)
    assert (shape.m, shape.n, shape.k, shape.batch, shape.narrowed) == (4.0, 5.0, 6.0, 1.0, 0.0)
    assert operator_named("gemm").flops(shape) == 240
    assert hash(Op(name="x", operator="gemm", account="compute", shape=shape))


@pytest.mark.parametrize("name", sorted(operators()))
def test_operators_of_installed_packages_are_complete(name: str) -> None:
    law = operators()[name]
    assert law.name == name
    assert law.resource in operator_module.Resource.__args__  # type: ignore[attr-defined]
    assert (type(law).__doc__ or "").strip()


@pytest.mark.usefixtures("outside")
def test_arithmetic_alone_has_a_rate_and_no_bandwidth() -> None:
    ops = [Op(name="h", operator="hashing", account="", flops=10.0**k) for k in range(4, 10)]
    fit = fit_op([Timing.once(op, 2e-6 + op.flops / 12e9) for op in ops], method="made up")
    assert fit.bandwidth_bytes_per_s is None
    assert fit.rate_flops_per_s is not None
    assert fit.rate_flops_per_s.value == pytest.approx(12e9, rel=0.02)


@pytest.mark.usefixtures("outside")
def test_constants_of_a_kernel_of_no_software_are_found_whatever_the_stack(machine: Machine) -> None:
    points = timings(machine, OWN)
    calibrated = machine_fit.fitted(machine, points, "made up")
    assert calibrated.stack == machine.stack
    op, seconds = points[13].op, points[13].seconds
    for stack in (None, framework({}), framework({"gemm": "cublas"})):
        time = CostModel(calibrated.model_copy(update={"stack": stack})).time(op)
        assert time.seconds == pytest.approx(seconds, rel=0.02)
        assert time.high < 1.1 * time.seconds
    # a stack that says whose butterflies it uses does not use ours
    named = CostModel(calibrated.model_copy(update={"stack": framework({"walsh": "mine"})})).time(op)
    assert named.high == pytest.approx(2 * named.seconds)
    # constants that go under the stack's own name come first
    twice = [Timing.once(timing.op, 2 * timing.seconds, software="s") for timing in points]
    both = machine_fit.fitted(calibrated, twice, "made up").model_copy(update={"stack": framework({})})
    assert CostModel(both).time(op).seconds == pytest.approx(2 * seconds, rel=0.05)


def test_who_serves_an_operator_is_one_of_the_core_s_resources() -> None:
    with pytest.raises(
        ConfigError, match="is served by 'acme': write one of storage, memory, compute, link, network"
    ):
        type("Odd", (PlainOperator,), {"name": "odd", "resource": "acme"})
