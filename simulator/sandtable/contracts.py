"""Contracts of devices, kernels and workloads, to be called from the tests of whoever writes one.

Each check raises an `AssertionError` with one sentence about the first promise that is not kept. `KERNEL_CHECKS` are
the parts of `check_kernel`, for a test of each::

    from sandtable.contracts import check_device, check_kernel, check_workload

    def test_my_drive() -> None:
        check_device(Path("devices/my_drive.yaml"))

    def test_my_workload(tmp_path: Path) -> None:
        context = ExecutionContext(folder=tmp_path, n_threads=2)
        check_workload(MyWorkload(), library.load_machine("laptop_pcie4"), context)

`run_command` calls the command line inside the process, and catches what it prints and leaves with.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from sandtable import hardware, units
from sandtable.calibration.timing import unfit
from sandtable.demand.kernel import Kernel, KernelContext
from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named, operators
from sandtable.demand.operator_shapes import RandomReadShape
from sandtable.demand.plan import Plan
from sandtable.engine.process import Process
from sandtable.engine.recorder import ACCOUNT_OF_COLUMN, ACCOUNTS, LATENCY, Recorder, Units
from sandtable.engine.simulation import Run
from sandtable.errors import ConfigError, NoDevice
from sandtable.hardware import Component, Frozen, Machine, library
from sandtable.runs import predict, reduction
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload

# counters that a plan and an execution must agree on, step by step
EXACT_COUNTERS = ("bytes_read", "n_requests")
# float32 sums in another order, relative to the largest element
KERNEL_TOLERANCE_FRAC = 1e-5


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


# --- devices -----------------------------------------------------------------------------------------------


def check_device(path: Path, *, allow_guesses: bool = True) -> Component:
    """Check a device file: it loads, is named as its file, sources every number, and survives being written.

    Returns the device, for further checks.
    """
    component = library.load_file(path)
    _require(component.name == path.stem, f"{path}: its name is {component.name!r}, its file {path.stem!r}")
    _require(component.title.strip(), f"{path}: the title is empty")
    numbers = list(hardware.number_paths(component))
    _require(numbers or isinstance(component, hardware.Machine), f"{path}: it states no number")
    for number in numbers:
        _require(str(hardware.source_of(component, number)).strip(), f"{path}: the source of {number} is empty")
    for source in component.sources:
        used = any(number == source or number.startswith(f"{source}.") for number in numbers)
        used = used or _holds_text(component, source)
        _require(used, f"{path}: {source} has a source but no value")
    _require(allow_guesses or not component.guesses(), f"{path}: guessed: {', '.join(component.guesses())}")
    _check_fits(component, path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        library.save_component(component, copy)
        _require(library.load_file(copy) == component, f"{path}: writing and reading it back changes it")
    return component


def _check_fits(component: Component, path: Path) -> None:
    """Check that every fit of an operator has the constants of its law, and that laws are given what they know."""
    fits: hardware.OperatorFits = getattr(getattr(component, "fitted", None), "operators", {})
    known = {operator.fitted_as: operator for operator in operators().values()}
    given: hardware.Laws = getattr(component, "laws", {})
    for name, own in given.items():
        _require(name in known, f"{path}: laws.{name}: no installed package declares this operator")
        stray = sorted(own.settings.keys() - set(known[name].given))
        _require(not stray, f"{path}: laws.{name} states {stray}, which the law does not take as given")
    for name, by_software in fits.items():
        _require(name in known, f"{path}: fitted.operators.{name}: no installed package declares this operator")
        wanted = {constant.name for constant in known[name].constants}
        for software, fit in by_software.items():
            _require(
                set(fit.constants) == wanted,
                f"{path}: fitted.operators.{name}.{software} has {sorted(fit.constants)}, not {sorted(wanted)}",
            )


def _holds_text(component: Component, dotted: str) -> bool:
    node: Any = component
    for part in dotted.split("."):
        fields = getattr(type(node), "model_fields", {})
        name = next((name for name, field in fields.items() if part in (name, field.alias)), None)
        if name is None:
            return False
        node = getattr(node, name)
    return bool(node)


# --- kernels -----------------------------------------------------------------------------------------------


def check_kernel(kernel: Kernel, context: KernelContext) -> list[str]:
    """Check a kernel by every one of `KERNEL_CHECKS`.

    Returns:
        One sentence for each part that this machine cannot do, such as timing on a GPU that is not there.
    """
    left_out = []
    for check in KERNEL_CHECKS:
        try:
            check(kernel, context)
        except NoDevice as error:
            left_out.append(str(error))
    return left_out


def check_kernel_grid(kernel: Kernel, context: KernelContext) -> None:
    """Check that a kernel has points to calibrate on, each once, with the dims of its example at least."""
    name = kernel.name
    part = kernel.calibrates
    _require(part is None or part.isidentifier(), f"{name} calibrates {part!r}: write one word")
    for quick in (True, False):
        grid = kernel.grid(quick=quick)
        points = {tuple(sorted(dims.items())) for dims in grid}
        _require(points, f"{name} has no grid with quick={quick}")
        _require(len(points) == len(grid), f"{name} has a point twice in its grid with quick={quick}")
        for dims in grid:
            _require(set(dims) >= set(kernel.example()), f"{name} has other dims at {dict(dims)} than its example")


def check_kernel_cost(kernel: Kernel, context: KernelContext) -> None:
    """Check that a kernel's demand is possible at every point, falls on the resource it calibrates, and grows."""
    for dims in (kernel.example(), *kernel.grid(quick=True), *kernel.grid(quick=False)):
        op, where = kernel.cost(dims), f"{kernel.name} at {dict(dims)}"
        check_op(op)
        _require(op.bytes_moved > 0, f"{where} moves no bytes")
        if op.resource == "storage":
            # the last chunk may be shorter; files that are made have none
            least = (op.n_requests - 1) * getattr(op.shape, "chunk_bytes", 0.0)
            _require(op.bytes_moved > least, f"{where} has more chunks than bytes")
        complaint = unfit(kernel, op)
        _require(not complaint, f"{where} {complaint}")
        there = op.on == "accelerator" or op.operator == "host"
        _require(kernel.calibrates != "gpu" or there, f"{where} calibrates a GPU, but runs on the {op.on}")
        _require(dims.get("dtype", op.dtype) == op.dtype, f"{where} costs {op.dtype}")
        for key, value in dims.items():
            if isinstance(value, int) and not isinstance(value, bool):
                larger = kernel.cost({**dims, key: 2 * value})
                grows = larger.bytes_moved >= op.bytes_moved and larger.flops >= op.flops
                _require(grows, f"{where} costs less with twice the {key}")


def check_kernel_result(kernel: Kernel, context: KernelContext) -> None:
    """Check that a kernel's fast path equals its reference, and itself when it is called again.

    Raises:
        NoDevice: the fast path needs a package that is not installed.
    """
    name, example = kernel.name, kernel.example()
    result, wanted = kernel.run(example, context), kernel.reference(example, context)
    _require(result.size > 0, f"{name} returns nothing")
    _require(result.shape == wanted.shape, f"{name} returns shape {result.shape}, its reference {wanted.shape}")
    _require(np.isfinite(result).all(), f"{name} returns what is no number")
    _require(_close(result, wanted), f"{name} differs from its reference")
    _require(np.array_equal(result, kernel.run(example, context)), f"{name} gives another result the second time")


def check_kernel_call(kernel: Kernel, context: KernelContext) -> None:
    """Check that the call which is timed can be repeated.

    Raises:
        NoDevice: it needs a package that is not installed.
    """
    with kernel.prepare(kernel.example(), context) as call:
        for _ in range(3):
            _require(call() is None, f"{kernel.name} returns something from the call that is timed")


def check_kernel_timings(kernel: Kernel, context: KernelContext) -> None:
    """Check the seconds of a kernel that times itself.

    Raises:
        NoDevice: it times something that this machine has not.
    """
    found = kernel.timings(kernel.example(), context, repeats=3, budget_s=0.1)
    if found is not None:
        _require(found, f"{kernel.name} times itself and gives no seconds")
        _require(all(np.isfinite(found)) and min(found) > 0, f"{kernel.name} gives {found} as seconds")


KERNEL_CHECKS: tuple[Callable[[Kernel, KernelContext], None], ...] = (
    check_kernel_grid,
    check_kernel_cost,
    check_kernel_result,
    check_kernel_call,
    check_kernel_timings,
)


def _close(result: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    if result.dtype.kind in "iub":
        return bool(np.array_equal(result, wanted))
    error = np.abs(result.astype(np.float64) - wanted.astype(np.float64)).max()
    return bool(error <= KERNEL_TOLERANCE_FRAC * np.abs(wanted).max())


# --- plans and workloads -----------------------------------------------------------------------------------


def check_op(op: Op) -> None:
    """Check that an op names a known operator and account, and that its counts are possible."""
    _require(op.operator in operators(), f"op {op.name!r} is of unknown operator {op.operator!r}")
    shape_type = operator_named(op.operator).Shape
    _require(op.shape is None or isinstance(op.shape, shape_type or ()), f"op {op.name!r} has another's shape")
    _require(op.account in ACCOUNTS, f"op {op.name!r} is booked to {op.account!r}, which is none of {ACCOUNTS}")
    counts = {name: getattr(op, name) for name in ("flops", "bytes_read", "bytes_written", "n_special", "n_items")}
    columns = {} if op.shape is None else op.shape._asdict()
    for count, value in (counts | columns).items():
        _require(np.isfinite(value) and value >= 0, f"op {op.name!r} has {count} {value}")
    _require(op.repeat >= 1, f"op {op.name!r} needs a repeat of at least 1")
    if isinstance(op.shape, RandomReadShape):
        n, size, lanes = op.shape
        _require(op.bytes_read == n * size, f"op {op.name!r} reads {op.bytes_read} bytes in {n} chunks of {size}")
        _require(lanes >= 1, f"op {op.name!r} needs a concurrency of at least 1")


def check_plan(plan: Plan) -> None:
    """Check a plan: known ops, no op that waits for a later one, steps to report, resident bytes that can be.

    Raises:
        PlanError: an op that waits for one that does not come before it.
    """
    names = [phase.name for phase in plan.phases]
    _require(len(names) == len(set(names)), f"{plan.workload}: two phases of one name in {names}")
    _require(plan.phase(plan.main_phase).n_steps >= 1, f"{plan.workload}: phase {plan.main_phase!r} has no steps")
    for phase in plan.phases:
        for step in phase.steps:
            _require(step.repeat >= 1, f"{plan.workload}: step {step.name!r} repeats {step.repeat} times")
            list(step.dependencies())
            for op in step.ops:
                check_op(op)
    for kind, size in plan.memory_bytes.items():
        _require(np.isfinite(size) and size >= 0, f"{plan.workload}: {kind} takes {size} bytes of memory")


@dataclass(frozen=True, kw_only=True)
class CheckedWorkload:
    """What `check_workload` did, for further checks; ``execution`` is None when it was only predicted."""

    parameters: Frozen
    process: Process
    predicted: Run
    execution: Execution | None


def check_workload(
    workload: Workload[Any],
    machine: Machine,
    context: ExecutionContext | None = None,
    *,
    example: Mapping[str, Any] | None = None,
    seed: int = 1,
) -> CheckedWorkload:
    """Check a workload at an example: predicted and, with a ``context``, executed for real.

    Prediction and execution must report the same units of work, the same metrics, exactly the same bytes and
    requests, and the same kinds of memory; where there is a plan, step by step. A workload that is planned only must
    refuse to be executed.

    Args:
        workload: The workload.
        machine: Any machine that its example fits on; `Workload.example_stack` takes the place of its software.
        context: Where to execute; None checks the prediction only.
        example: Parameters, such as one of `Workload.examples`; the first of them if not given.
        seed: Given to both.
    """
    values = dict(workload.examples()[0] if example is None else example)
    if workload.example_stack is not None:
        stack = library.load_component("stack", workload.example_stack)
        machine = machine.model_copy(update={"stack": stack})
    parameters = workload.parameters.model_validate(values, context=units.AT_EDGE)
    process = workload.process(parameters, machine, seed)
    _require(process.workload == workload.name, f"{workload.name} plans for {process.workload!r}")
    if process.phases:
        plan = workload.plan(parameters, machine, seed)
        check_plan(plan)
        _require(plan == workload.plan(parameters, machine, seed), f"{workload.name} plans anew with the same seed")
    scenario = Scenario(name="contract", title="Contract", workload=workload.name, parameters=values, seed=seed)
    prediction, _, predicted = predict.predict(scenario, workload, parameters, machine)
    again, _, _ = predict.predict(scenario, workload, parameters, machine)
    _require(again.metrics == prediction.metrics, f"{workload.name} predicts anew with the same seed")
    for name, metric in prediction.metrics.items():
        ordered = metric.low <= metric.value <= metric.high
        _require(ordered, f"{workload.name}: {name} lies outside its interval: {metric}")
        _require(metric.unit == units.unit_of(name), f"{workload.name}: {name} is in {metric.unit}")
    execution = None
    if context is not None and workload.planned_only is not None:
        _check_refusal(workload, parameters, machine, seed, context)
    elif context is not None:
        workload.prepare(parameters, machine, seed, context)
        execution = workload.execute(parameters, machine, seed, context)
        check_execution(process, predicted, execution, memory_tolerance_frac=workload.memory_tolerance_frac)
    return CheckedWorkload(parameters=parameters, process=process, predicted=predicted, execution=execution)


def _check_refusal(
    workload: Workload[Any], parameters: Frozen, machine: Machine, seed: int, context: ExecutionContext
) -> None:
    """Check that a workload which is planned only says so, in one sentence, before it starts."""
    try:
        workload.prepare(parameters, machine, seed, context)
    except (ConfigError, NoDevice) as error:
        _require(
            str(workload.planned_only) in str(error), f"{workload.name} refuses to run for another reason: {error}"
        )
        _require("\n" not in str(error), f"{workload.name} refuses to run in more than one line")
    else:
        _require(False, f"{workload.name} is planned only, and prepares to run")


def check_execution(
    process: Process,
    predicted: Run,
    execution: Execution,
    *,
    memory_tolerance_frac: float = Workload.memory_tolerance_frac,
) -> None:
    """Check that an execution reports what its prediction announced."""
    name, expected, found = process.workload, predicted.recorder, execution.recorder
    kinds = {*expected.units, *found.units}
    for kind in sorted(kinds):
        _require(kind in found.units, f"{name}: no units {kind!r} were executed")
        _require(kind in expected.units, f"{name}: executed units {kind!r} that were not predicted")
        _check_units(f"{name}: {kind}", expected.units[kind], found.units[kind], in_order=kind in process.phases)
    _check_names(name, expected, found, process)
    planned, held = set(predicted.memory_bytes), set(execution.memory_bytes)
    _require(planned == held, f"{name}: kinds of memory differ: {', '.join(sorted(planned ^ held))}")
    for kind, size in predicted.memory_bytes.items():
        near = abs(execution.memory_bytes[kind] - size) <= memory_tolerance_frac * size
        _require(
            near, f"{name}: {kind} is planned at {size:.0f} bytes and takes {execution.memory_bytes[kind]:.0f}"
        )


def _check_units(where: str, expected: Units, found: Units, *, in_order: bool) -> None:
    """Check units of one kind: one by one where they have an order, else all of them together."""
    announced, reported = expected.names(), found.names()
    if not in_order:
        announced, reported = sorted(announced), sorted(reported)
    _require(announced == reported, f"{where} steps {_first_difference(announced, reported)} differ")
    for counter in EXACT_COUNTERS:
        planned, counted = (units.values[counter] for units in (expected, found))
        if not in_order:
            planned, counted = planned.sum(keepdims=True), counted.sum(keepdims=True)
        for a, b in zip(planned, counted, strict=True):
            _require(a == b, f"{where} plans {counter} {a:.0f} and counts {b:.0f}")
    _require(in_order or not np.isnan(found.starts_s).any(), f"{where}: a unit does not say when it began")
    total = found.values[LATENCY]
    _require((total > 0).all(), f"{where}: a unit took no time")
    booked = sum((found.values[column] for column in ACCOUNT_OF_COLUMN), start=np.zeros(len(found)))
    _require((booked <= total * 1.001).all(), f"{where}: a unit books more time than it took")


def _check_names(name: str, expected: Recorder, executed: Recorder, process: Process) -> None:
    names, found = set(reduction.collect(expected, process)), set(reduction.collect(executed, process))
    _require(names <= found, f"{name}: predicted but not measured: {', '.join(sorted(names - found))}")
    # a run may count more than a plan can know, such as its own overhead; it may not time more
    extra = {metric for metric in found - names if metric in ACCOUNT_OF_COLUMN}
    _require(not extra, f"{name}: measured but not predicted: {', '.join(sorted(extra))}")


def _first_difference(a: Sequence[object], b: Sequence[object]) -> str:
    index = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return (
        f"{a[index : index + 1]} (planned, {len(a)} in all) and {b[index : index + 1]} (executed, {len(b)} in all)"
    )


# --- the command line --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on stderr: the sentence of an error."""
        return self.err.rstrip().rpartition("\n")[2]


def run_command(*arguments: str) -> Ran:
    """Run ``sandtable`` with these arguments inside this process."""
    from sandtable.cli import app

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["sandtable", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            app.main()
        except SystemExit as left:
            code = left.code
    return Ran(0 if code is None else int(code), out.getvalue(), err.getvalue())
