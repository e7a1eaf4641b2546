"""Run a scenario for real and keep what it showed: samples, environment, spread of repeats, drift of the machine."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sandtable import units
from sandtable.demand.instruments import gpu_timer
from sandtable.demand.kernel import Kernel, KernelContext, kernels
from sandtable.engine.process import Process
from sandtable.engine.recorder import LATENCY, FloatArray
from sandtable.errors import InUse, NoDevice, install_extra
from sandtable.hardware import Frozen, Machine, library
from sandtable.model.drift import Drift
from sandtable.results import Measurement, Metric, distribution, measured_metric, point
from sandtable.runs import energy, predict, reduction
from sandtable.system import atomic_files, contention, limits, locks
from sandtable.workload.progress import Step
from sandtable.workload.seam import Execution, ExecutionContext, Scenario, Workload

LIBRARIES = ("numpy", "numba", "scipy", "torch", "sandtable-ml")
# repeats that lie further apart than this cannot support a comparison at the level of ten percent
UNSTABLE_SPREAD_FRAC = 0.25
# a machine whose speed has moved further since its calibration is another one
MOST_DRIFT_FRAC = 0.25
# memory that a process may take beyond what it holds on purpose: code compiled for it, results of single calls
UNCOUNTED_FRAC = 0.10
UNCOUNTED_BYTES = 128 << 20
PROBE_FOLDER = "probe"
# where a calibration keeps its test file, and what says that it stays for the next time
TEST_FOLDER = "calibration"
KEPT = "kept"
STREAM_BYTES = 96 << 20  # three times a large last-level cache
PROBE_FILE_BYTES = 256 << 20
PROBE_REPEATS, PROBE_S = 20, 0.2


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Executions of one scenario, and the seconds of the machine's probes before each."""

    executions: Sequence[Execution]
    probes: Sequence[Mapping[str, float]]

    def and_one(self, execution: Execution, probed: Mapping[str, float]) -> Repeats:
        """Return these and another one."""
        return Repeats(executions=(*self.executions, execution), probes=(*self.probes, probed))


NO_REPEATS = Repeats(executions=(), probes=())


def threads() -> int:
    """Return how many threads kernels may use: the CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(
    scenario: Scenario,
    workload: Workload[Any],
    parameters: Frozen,
    machine: Machine,
    context: ExecutionContext,
    done: Repeats = NO_REPEATS,
) -> Iterator[tuple[Measurement, Repeats]]:
    """Execute ``scenario`` ``repeats`` times, probing the machine before each.

    Yields what all executions so far show, and these, after each one, and at least once; ``done`` are those of an
    earlier run that was ended.
    """
    process = workload.process(parameters, machine, scenario.seed)
    if len(done.executions) < scenario.repeats:
        workload.prepare(parameters, machine, scenario.seed, context)
    else:
        yield measurement_of(scenario, parameters, machine, process, done, workload), done
    for index in range(len(done.executions), scenario.repeats):
        context.progress(Step(f"{scenario.name}: run", index, scenario.repeats))
        probed = probe(machine, context, workload.needs)
        done = done.and_one(execute(scenario, workload, parameters, machine, context), probed)
        yield measurement_of(scenario, parameters, machine, process, done, workload), done


def execute(
    scenario: Scenario, workload: Workload[Any], parameters: Frozen, machine: Machine, context: ExecutionContext
) -> Execution:
    """Execute ``scenario`` once, count its energy, and watch how far the process grows, unless it did so itself."""
    before = start_peak()
    with energy.metered(energy.meter_of(machine)) as meter, contention.Watch() as watch:
        execution = workload.execute(parameters, machine, scenario.seed, context)
    execution = replace(execution, lost_frac=watch.lost_frac)
    peak = limits.status_bytes("VmHWM")
    if execution.main_s is not None:
        execution = replace(execution, energy_j=meter.joules(*execution.main_s), energy_covers=meter.covers)
    if execution.process_bytes is not None or before is None or peak is None:
        return execution
    return replace(execution, process_bytes=max(0.0, peak - before))


def measurement_of(
    scenario: Scenario,
    parameters: Frozen,
    machine: Machine,
    process: Process,
    repeats: Repeats,
    workload: Workload[Any] | None = None,
) -> Measurement:
    """Reduce the executions of one scenario to a measurement."""
    metrics: dict[str, Metric] = {}
    for name, parts in _by_repeat(repeats.executions, process).items():
        # what one run shows once has one value however often it is repeated
        if all(len(part) == 1 for part in parts):
            metrics[name] = measured_metric(name, np.concatenate(parts))
        else:
            metrics |= distribution(name, np.concatenate(parts), reduction.STATISTICS)
    memory = dict(repeats.executions[-1].memory_bytes)
    metrics["peak_memory_bytes"] = point(sum(memory.values()), "bytes")
    grown = max((e.process_bytes for e in repeats.executions if e.process_bytes is not None), default=None)
    if grown is not None:
        metrics["process_memory_bytes"] = point(grown, "bytes")
    recorders = [execution.recorder for execution in repeats.executions]
    n_units = float(np.mean([len(found.units[process.main_unit]) for found in recorders]))
    metrics |= reduction.rates(reduction.unit_time(metrics, process, n_units), process.work_unit)
    if workload is not None:
        derived = predict.marked(workload.derived(parameters, machine, metrics))
        # what follows from a machine's stated power is no measurement of its energy
        metrics |= {name: metric for name, metric in derived.items() if metric.unit != units.unit_of("energy_j")}
    metrics |= _energy(repeats.executions, process)
    spread = _spread([float(np.mean(found.units[process.main_unit].values[LATENCY])) for found in recorders])
    drift = _drift(machine, repeats.probes)
    lost = [execution.lost_frac for execution in repeats.executions if execution.lost_frac is not None]
    lost_frac = float(np.mean(lost)) if lost else None
    accounts = [reduction.breakdown(found, process) for found in recorders]
    return Measurement(
        scenario=predict.scenario_record(scenario, parameters),
        machine=machine.name,
        machine_digest=library.digest(machine),
        metrics=metrics,
        breakdown={key: float(np.mean([a.get(key, 0.0) for a in accounts])) for key in sorted(accounts[0])},
        memory=memory,
        warnings=tuple(sorted({note for execution in repeats.executions for note in execution.validity})),
        environment=environment() | _energy_covers(repeats.executions),
        validity=(*_validity(spread, drift.typical, lost_frac), *_uncounted(sum(memory.values()), grown)),
        repeat_spread_frac=spread,
        lost_frac=lost_frac,
        drift=dict(drift.ratios),
    )


def _drift(machine: Machine, probes: Sequence[Mapping[str, float]]) -> Drift:
    """Return how fast the machine was before the executions in the middle, beside its calibration."""
    every = [Drift.between(machine.probe_s, probed).ratios for probed in probes]
    keys = dict.fromkeys(key for ratios in every for key in ratios)
    return Drift({key: float(np.median([ratios[key] for ratios in every if key in ratios])) for key in keys})


def _by_repeat(executions: Sequence[Execution], process: Process) -> dict[str, list[FloatArray]]:
    """Return the samples of each execution by metric name."""
    found: dict[str, list[FloatArray]] = {}
    for execution in executions:
        for name, samples in reduction.collect(execution.recorder, process).items():
            found.setdefault(name, []).append(samples.value)
    return found


def _energy(executions: Sequence[Execution], process: Process) -> dict[str, Metric]:
    """Return the energy of one unit of the main kind, a sample for each execution; nothing if one was not counted."""
    samples = []
    for execution in executions:
        if execution.energy_j is None:
            return {}
        samples.append(execution.energy_j / len(execution.recorder.units[process.main_unit]))
    return {"energy_j": measured_metric("energy_j", samples)}


def _energy_covers(executions: Sequence[Execution]) -> dict[str, str]:
    last = executions[-1]
    return {} if last.energy_j is None else {"energy_j": last.energy_covers}


def _spread(values: Sequence[float]) -> float | None:
    return max(values) / min(values) - 1 if len(values) > 1 and min(values) > 0 else None


def _validity(spread: float | None, drift: float, lost_frac: float | None) -> tuple[str, ...]:
    notes = []
    if lost_frac is not None and lost_frac > contention.DISTURBED_FRAC:
        notes.append(
            f"other programs took {100 * lost_frac:.0f} % of the time that this run asked the cores for: close them, "
            "and run again, before trusting this"
        )
    if spread is not None and spread > UNSTABLE_SPREAD_FRAC:
        notes.append(
            f"repeats lie {100 * spread:.0f} % apart: close other programs, or raise 'repeats', before trusting this"
        )
    if abs(np.log(drift)) > np.log1p(MOST_DRIFT_FRAC):
        notes.append(
            f"the machine's own probes took {drift:.2f} times what they took at calibration: calibrate again"
        )
    return tuple(notes)


def _uncounted(counted: float, grown: float | None) -> tuple[str, ...]:
    if grown is None or grown <= counted * (1 + UNCOUNTED_FRAC) + UNCOUNTED_BYTES:
        return ()
    sizes = (units.format_bytes(size) for size in (grown, counted))
    return (
        "the process grew by {} and the run counted {}: it holds memory that it does not report".format(*sizes),
    )


# --- memory of the process ---------------------------------------------------------------------------------


def start_peak() -> int | None:
    """Forget the highest resident set so far; return the present one in bytes, None where the system cannot tell.

    Linux only: writing 5 to clear_refs resets the peak that status shows as VmHWM (proc_pid_clear_refs(5)).
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return limits.status_bytes("VmHWM")


# --- probing and timing ------------------------------------------------------------------------------------


def probe(machine: Machine, context: ExecutionContext, needs: Collection[str]) -> dict[str, float]:
    """Return the seconds of probes that the machine's calibration took too, by part and kernel.

    Where kernels work with one of the packages ``needs``, which the execution imports, only these count: what slows a
    disk down, or threads that wake for every operator, says little of other work.
    """
    known = [kernel for kernel in kernels().values() if kernel.probes() and _probe_name(kernel) in machine.probe_s]
    of_packages = [kernel for kernel in known if any(name in needs for name in kernel.needs)]
    folder = context.folder / PROBE_FOLDER
    folder.mkdir(exist_ok=True)
    return probed(of_packages or [kernel for kernel in known if not kernel.needs], folder, context.n_threads)


def probed(chosen: Iterable[Kernel], folder: Path, n_threads: int) -> dict[str, float]:
    """Return the seconds of some kernels' probes, by part and kernel, on a file in ``folder`` where they read one."""
    context = KernelContext(folder=folder, n_threads=n_threads, file_bytes=PROBE_FILE_BYTES)
    return {
        _probe_name(kernel): sum(float(np.median(_timed(kernel, dims, context))) for dims in kernel.probes())
        for kernel in chosen
    }


def _probe_name(kernel: Kernel) -> str:
    return f"{kernel.calibrates}.{kernel.name}"


def _timed(kernel: Kernel, dims: Mapping[str, Any], context: KernelContext) -> Sequence[float]:
    own = kernel.timings(dims, context, repeats=PROBE_REPEATS, budget_s=PROBE_S)
    return time_kernel(kernel, dims, context, repeats=PROBE_REPEATS, budget_s=PROBE_S) if own is None else own


def time_kernel(
    kernel: Kernel,
    dims: Mapping[str, Any],
    context: KernelContext,
    *,
    repeats: int,
    budget_s: float = float("inf"),
    before: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time up to ``repeats`` calls, at least one, stopping when ``budget_s`` is spent. `prepare` warms up.

    ``before`` runs ahead of each call and is not timed; see `stream_through`.
    """
    samples: list[float] = []
    with kernel.prepare(dims, context) as call:
        begin = clock()
        while len(samples) < repeats and (not samples or clock() - begin < budget_s):
            if before is not None:
                before()
            start = clock()
            call()
            samples.append(clock() - start)
    return samples


def stream_through(n_bytes: int = STREAM_BYTES) -> Callable[[], object]:
    """Return a call that pulls ``n_bytes`` through the caches.

    In a real step every operation follows one that did: code, page tables and data are cold, and a small call takes
    several times what it takes back to back.
    """
    memory = np.ones(n_bytes // 8)
    return memory.sum


# --- environment -------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Describe what a measurement was taken on: CPU, cores, memory, kernel, libraries, load."""
    found = {
        "cpu": cpu_model(),
        "cpus": str(threads()),
        "memory": f"{limits.memory_bytes() / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "",
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the CPU's own name for itself."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware", "Processor"):
                return value.strip()
    return platform.processor() or platform.machine()


def check_needs(workloads: Iterable[Workload[Any]]) -> None:
    """Refuse, before anything is calibrated, planned or written, to execute workloads whose packages are missing.

    Raises:
        NoDevice: with the command that installs the first of them.
    """
    for workload in workloads:
        for package in workload.needs:
            if find_spec(package) is None:
                extra = install_extra("torch" if package == "torch" else "run")
                raise NoDevice(f"running for real needs the package {package!r}: {extra}")


def check_accelerator() -> None:
    """Refuse, before anything is calibrated, planned or written, to execute on an accelerator that is not there.

    Raises:
        NoDevice: what is missing: the framework, a driver, or the device.
    """
    with contextlib.closing(gpu_timer()) as timer:
        timer.describe()


def execution_context(folder: Path, progress: Callable[[str], None] | None = None) -> ExecutionContext:
    """Return a context that works in ``folder``.

    Raises:
        NoDevice: the packages that real runs need are not installed.
    """
    try:
        import numba  # noqa: F401
    except ImportError:
        raise NoDevice(f"running for real needs the package 'numba': {install_extra('run')}") from None
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    context = ExecutionContext(folder=folder, n_threads=threads())
    return context if progress is None else replace(context, progress=progress)


def _sweep(store: Path) -> None:
    """Remove what killed commands left in a store: files half written, temporary folders, a calibration's test file."""
    for folder in (store, *(path for path in store.iterdir() if path.is_dir())):
        atomic_files.sweep(folder)
    test = store / TEST_FOLDER
    if test.is_dir() and not (test / KEPT).exists():
        with contextlib.suppress(InUse), locks.claimed(test, "clears this folder"):
            clear_test_folder(test)


def clear_test_folder(folder: Path) -> None:
    """Remove a calibration's test file and what else lies beside it, and the folder, unless somebody put more there."""
    atomic_files.sweep(folder)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
