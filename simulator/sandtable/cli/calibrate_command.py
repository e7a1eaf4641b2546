"""The `calibrate` command: settings from the user's words, tables of what was fitted, files written."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sandtable import hardware, units, yaml_files
from sandtable.calibration import this_host
from sandtable.calibration.gpu import gpu_fit, recordings
from sandtable.calibration.gpu.recordings import Gpus, LiveGpus, RecordedGpus
from sandtable.calibration.this_host import Calibration, FittedPoint, Settings
from sandtable.demand.instruments import storage_cross_check
from sandtable.errors import CalibrationError, ConfigError, NoDevice
from sandtable.hardware import Component, Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.report.listing import device_table
from sandtable.table import Table

QUICK_FILE_BYTES = 1 << 30
FULL_FILE_BYTES = 4 << 30
QUICK_BUDGET_S = 32.0
FULL_BUDGET_S = 290.0
QUICK_OPERATOR_BUDGET_S = 45.0
FULL_OPERATOR_BUDGET_S = 130.0
# what training and its collectives are timed with
FRAMEWORK = "torch"
N_WORST = 8
# in the source of constants that came with a device file of the library, and that no calibration here touched
PUBLISHED = "published"
TEST_FILE = "calibration"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the command prints."""

    tables: Sequence[Table]
    warnings: Sequence[str]
    seconds: float


def run(
    *,
    quick: bool,
    only: str | None,
    folder: Path,
    file_size: str | None,
    output: Path,
    cross_check: str | None,
    keep_file: bool,
    progress: Callable[[str], None],
    record: Path | None = None,
    replay: Path | None = None,
) -> Outcome:
    """Calibrate, write the machine file, and describe the fit.

    ``record`` keeps what was timed on GPUs in a file, ``replay`` fits to such a file instead of timing any.

    Raises:
        ConfigError: settings that cannot be used.
        NoDevice: a package or program that is missing, or a GPU.
    """
    if cross_check not in (None, "fio"):
        raise ConfigError(f"--cross-check knows 'fio', not {cross_check!r}")
    parts = _parts(recordings.PART if replay is not None and only is None else only, quick, progress)
    this_host.check_parts(parts)
    host_parts = tuple(part for part in parts if part != recordings.PART)
    if recordings.PART not in parts and (record or replay):
        raise ConfigError(f"--record and --replay are about GPUs: write --only {recordings.PART}")
    base = library.load_machine(str(output)) if (only or replay) is not None and output.is_file() else None
    # before minutes of other work, and before any talk of files: there may be no GPU
    gpus, without = _gpus(replay, asked=only is not None) if recordings.PART in parts else (None, [])
    begin = time.perf_counter()
    try:
        if base is None and not set(parts) >= set(this_host.PARTS):
            raise ConfigError(this_host.needs_base(parts))
        settings = Settings(
            folder=folder / TEST_FILE,
            quick=quick,
            only=host_parts,
            file_bytes=_file_bytes(file_size, quick),
            budget_s=QUICK_BUDGET_S if quick else FULL_BUDGET_S,
            operator_budget_s=QUICK_OPERATOR_BUDGET_S if quick else FULL_OPERATOR_BUDGET_S,
            passes=2 if quick else 4,
            progress=progress,
        )
        found = _host(settings, base, output, cross_check, keep_file) if host_parts else Found(machine=_kept(base))
        if gpus is not None:
            found = _with_gpus(found, gpus, quick=quick, record=record, output=output, progress=progress)
    finally:
        if gpus is not None:
            gpus.close()
    tables = [fit_table(found.machine, host=bool(host_parts)), worst_table(found.points), *found.tables]
    return Outcome(tables=tables, warnings=[*found.warnings, *without], seconds=time.perf_counter() - begin)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A calibrated machine so far, the points behind it, and further tables and warnings to print."""

    machine: Machine
    points: Sequence[FittedPoint] = ()
    tables: Sequence[Table] = ()
    warnings: Sequence[str] = field(default=())


def _host(
    settings: Settings, base: Machine | None, output: Path, cross_check: str | None, keep_file: bool
) -> Found:
    """Measure the host's parts, and write the machine file."""
    with _test_folder(settings.folder, keep_file):
        result = this_host.calibrate(settings, base)
        tables = [] if cross_check is None else [cross_check_table(result, settings)]
    library.save_component(result.machine, output)
    return Found(machine=result.machine, points=result.points, tables=tables, warnings=result.warnings)


def _kept(base: Machine | None) -> Machine:
    """Return an earlier calibration, whose host's parts stay as they are."""
    assert base is not None
    return base


# --- GPUs --------------------------------------------------------------------------------------------------


def _gpus(replay: Path | None, *, asked: bool) -> tuple[Gpus | None, list[str]]:
    """Return the GPUs to calibrate; none and the reason, where nobody asked for them by name and there are none."""
    if replay is not None:
        return RecordedGpus(recordings.read_recording(replay)), []
    try:
        return LiveGpus(), []
    except NoDevice as missing:
        if asked:
            raise
        return None, [f"{recordings.PART} is left out: {missing}"]


def _with_gpus(
    found: Found, gpus: Gpus, *, quick: bool, record: Path | None, output: Path, progress: Callable[[str], None]
) -> Found:
    """Time GPUs, keep the recording, fit, and write the machine file; what was finished is kept if it breaks off."""
    observed = recordings.observe(gpus, quick=quick, progress=progress)
    recording = observed.recording()
    if record is not None:
        yaml_files.write_atomically(record, recording.to_json())
    try:
        method = f"sandtable calibrate{' --quick' if quick else ''}"
        fitted = gpu_fit.fitted(found.machine, recording, method)
    except (CalibrationError, ConfigError) as error:
        # too few points to fit, which is no surprise where it broke off
        raise observed.broken_by or error from None
    library.save_component(fitted.machine, output)
    if observed.broken_by is not None:
        raise observed.broken_by
    return Found(
        machine=fitted.machine,
        points=[*found.points, *_gpu_points(fitted)],
        tables=[*found.tables, gpu_table(fitted.machine)],
        warnings=[*found.warnings, *fitted.notes],
    )


def _gpu_points(fitted: gpu_fit.Fitted) -> list[FittedPoint]:
    """Return the points that a law of the machine predicts, beside what it predicts."""
    costs = CostModel(fitted.machine)
    return [
        FittedPoint(
            kernel=point.kernel, dims=point.dims, measured_s=point.seconds, fitted_s=costs.time(point.op).seconds
        )
        for point in fitted.points
        # a launch is a constant, and the machine's law of transfers is the one of pinned memory
        if point.op.kind != "host" and point.dims.get("pinned", True)
    ]


def gpu_table(machine: Machine) -> Table:
    """Return what the GPUs said of themselves: name, clocks, power, software."""
    said = {name: text for name, text in machine.environment.items() if name.startswith(recordings.PART)}
    return Table(columns=("GPU", "found"), rows=[[name, text] for name, text in said.items()])


# --- settings ----------------------------------------------------------------------------------------------


def _parts(only: str | None, quick: bool, progress: Callable[[str], None]) -> tuple[str, ...]:
    """Return the parts to measure: those named, or all that can be; a quick one leaves training and GPUs out."""
    if only is not None:
        return tuple(part.strip() for part in only.split(",") if part.strip())
    if quick:
        return this_host.PARTS
    if importlib.util.find_spec(FRAMEWORK) is None:
        progress(f"{FRAMEWORK} is not installed: {', '.join(this_host.OPERATOR_PARTS)} are left out")
        return this_host.PARTS
    there = (recordings.PART,) if recordings.may_have_gpu() else ()
    return (*this_host.PARTS, *this_host.OPERATOR_PARTS, *there)


def _file_bytes(text: str | None, quick: bool) -> int:
    if text is None:
        return QUICK_FILE_BYTES if quick else FULL_FILE_BYTES
    try:
        size = int(units.parse(text, "bytes"))
    except ValueError as error:
        raise ConfigError(f"--file-size: {error}") from None
    if size < 256 << 20:
        raise ConfigError("--file-size: at least 256 MiB, or the device's own cache is measured")
    return size // 4096 * 4096


@contextlib.contextmanager
def _test_folder(folder: Path, keep: bool) -> Iterator[None]:
    """Make a folder of our own for the test file, and remove what is in it afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be used: {error.strerror}", file=str(folder)) from None
    try:
        yield
    finally:
        if not keep:
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
            folder.rmdir()


# --- tables ------------------------------------------------------------------------------------------------


def fit_table(machine: Machine, *, host: bool = True) -> Table:
    """Return the fitted parameters with intervals, and the errors of each fit; those of the host, or of GPUs alone."""
    rows: list[list[object]] = []
    accelerator = machine.accelerator
    own: list[Component | None] = [machine.storage, machine.memory, machine.processor] if host else []
    others: list[Component | None] = []
    if accelerator is not None:
        others = [accelerator.processor, accelerator.memory, accelerator.link, accelerator.peer_link]
    for part in [*own, *others]:
        if part is None:
            continue
        # the host's own parts go without a name, as long as there is no other of their kind
        prefix = "" if part in own else f"{part.name} "
        rows.extend(
            [prefix + row[1].removeprefix("fitted."), row[2], row[3]]
            for row in device_table(part).rows
            if row[1].startswith("fitted.") and PUBLISHED not in str(hardware.source_of(part, row[1]))
        )
    return Table(columns=("fitted parameter", "value", "90 % interval"), rows=rows, title=machine.title)


def worst_table(points: Sequence[FittedPoint]) -> Table:
    """Return fitted against measured: a summary by kernel, then the worst points."""
    rows: list[list[str]] = []
    for kernel in sorted({point.kernel for point in points}):
        errors = np.abs([point.error_frac for point in points if point.kernel == kernel])
        rows.append(
            [
                kernel,
                f"{len(errors)} points",
                "",
                "",
                f"median {100 * np.median(errors):.1f} %, p90 {100 * np.percentile(errors, 90):.1f} %",
            ]
        )
    worst = sorted(points, key=lambda point: -abs(np.log1p(point.error_frac)))[:N_WORST]
    for point in worst:
        rows.append(
            [
                point.kernel,
                this_host.describe(point.dims),
                units.format_seconds(point.measured_s),
                units.format_seconds(point.fitted_s),
                f"{100 * point.error_frac:+.0f} %",
            ]
        )
    return Table(columns=("kernel", "point (worst last)", "measured", "fitted", "error"), rows=rows)


def cross_check_table(result: Calibration, settings: Settings) -> Table:
    """Return this calibration's storage curve beside another program's at the same points, on the same file."""
    other = storage_cross_check()
    path = next(path for path in settings.folder.iterdir() if path.stat().st_size >= settings.file_bytes)
    points = [p for p in result.machine.storage.measurements if p.access == "random"]
    chosen = [
        p for p in points if p.concurrency in (1, 8, 16, 32) and p.chunk_bytes in (4096, 16384, 65536, 262144)
    ]
    rates = other.bytes_per_s(path, [(int(p.chunk_bytes), p.concurrency) for p in chosen], 1.0)
    rows: list[list[object]] = []
    ratios: list[float] = []
    for point, rate in zip(chosen, rates, strict=True):
        ratios.append(point.read_bytes_per_s / rate)
        rows.append(
            [
                units.format_bytes(point.chunk_bytes),
                point.concurrency,
                f"{point.read_bytes_per_s / 1e6:.0f}",
                f"{rate / 1e6:.0f}",
                f"{ratios[-1]:.2f}",
            ]
        )
    rows.append(["median", "", "", "", f"{np.median(ratios):.2f}"])
    return Table(
        columns=("chunk", "in flight", "sandtable", other.name, "ratio"),
        units=("", "", "MB/s", "MB/s", ""),
        rows=rows,
    )


def refit(name: str) -> Table:
    """Fit a storage device file to the measurements that stand in it, and write the file back."""
    from sandtable.calibration.fit.storage_fit import refit_file

    path = library.find_file("storage", name, library.device_files("storage"))
    refit_file(path)
    component = library.load_file(path, "storage")
    assert isinstance(component, hardware.Storage)
    return device_table(component)
