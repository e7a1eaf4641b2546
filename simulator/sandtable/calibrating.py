"""The `calibrate` command: settings from the user's words, tables of what was fitted, files written."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sandtable import calibrate, discover, library, spec, units
from sandtable.calibrate import Calibration, FittedPoint, Settings
from sandtable.errors import ConfigError
from sandtable.listing import device_table
from sandtable.spec import Machine
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
) -> Outcome:
    """Calibrate, write the machine file, and describe the fit.

    Raises:
        ConfigError: settings that cannot be used.
        NoDevice: a package or program that is missing.
    """
    if cross_check not in (None, "fio"):
        raise ConfigError(f"--cross-check knows 'fio', not {cross_check!r}")
    settings = Settings(
        folder=folder / TEST_FILE,
        quick=quick,
        only=_parts(only, quick, progress),
        file_bytes=_file_bytes(file_size, quick),
        budget_s=QUICK_BUDGET_S if quick else FULL_BUDGET_S,
        operator_budget_s=QUICK_OPERATOR_BUDGET_S if quick else FULL_OPERATOR_BUDGET_S,
        passes=2 if quick else 4,
        progress=progress,
    )
    base = library.load_machine(str(output)) if only is not None and output.is_file() else None
    with _test_folder(settings.folder, keep_file):
        result = calibrate.calibrate(settings, base)
        tables = [fit_table(result.machine), worst_table(result.points)]
        if cross_check is not None:
            tables.append(cross_check_table(result, settings))
    library.save_component(result.machine, output)
    return Outcome(tables=tables, warnings=result.warnings, seconds=result.seconds)


def _parts(only: str | None, quick: bool, progress: Callable[[str], None]) -> tuple[str, ...]:
    """Return the parts to measure: those named, or all that can be; a quick calibration leaves training out."""
    if only is not None:
        return tuple(part.strip() for part in only.split(",") if part.strip())
    if quick:
        return calibrate.PARTS
    if importlib.util.find_spec(FRAMEWORK) is None:
        progress(f"{FRAMEWORK} is not installed: {', '.join(calibrate.OPERATOR_PARTS)} are left out")
        return calibrate.PARTS
    return (*calibrate.PARTS, *calibrate.OPERATOR_PARTS)


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


def fit_table(machine: Machine) -> Table:
    """Return the fitted parameters with intervals, and the errors of each fit."""
    rows: list[list[object]] = []
    for part in (machine.storage, machine.memory, machine.processor):
        full = device_table(part)
        rows.extend(
            [row[1].removeprefix("fitted."), row[2], row[3]] for row in full.rows if row[1].startswith("fitted.")
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
                calibrate.describe(point.dims),
                units.format_seconds(point.measured_s),
                units.format_seconds(point.fitted_s),
                f"{100 * point.error_frac:+.0f} %",
            ]
        )
    return Table(columns=("kernel", "point (worst last)", "measured", "fitted", "error"), rows=rows)


def cross_check_table(result: Calibration, settings: Settings) -> Table:
    """Return this calibration's storage curve beside fio's at the same points, on the same file."""
    fio_curve = _fio()
    path = next(path for path in settings.folder.iterdir() if path.stat().st_size >= settings.file_bytes)
    points = [p for p in result.machine.storage.measurements if p.access == "random"]
    chosen = [
        p for p in points if p.concurrency in (1, 8, 16, 32) and p.chunk_bytes in (4096, 16384, 65536, 262144)
    ]
    curve = fio_curve(path, [(int(p.chunk_bytes), p.concurrency) for p in chosen], 1.0)
    rows: list[list[object]] = []
    ratios: list[float] = []
    for point, (chunk, lanes, rate) in zip(chosen, curve, strict=True):
        ratios.append(point.read_bytes_per_s / rate)
        rows.append(
            [
                units.format_bytes(chunk),
                lanes,
                f"{point.read_bytes_per_s / 1e6:.0f}",
                f"{rate / 1e6:.0f}",
                f"{ratios[-1]:.2f}",
            ]
        )
    rows.append(["median", "", "", "", f"{np.median(ratios):.2f}"])
    return Table(
        columns=("chunk", "in flight", "sandtable", "fio", "ratio"), units=("", "", "MB/s", "MB/s", ""), rows=rows
    )


def _fio() -> Callable[..., list[tuple[int, int, float]]]:
    """Find the kernel module that offers a curve measured by fio, without naming it."""
    for kernel in discover.kernels().values():
        curve = getattr(sys.modules[type(kernel).__module__], "fio_curve", None)
        if curve is not None:
            return curve  # type: ignore[no-any-return]
    raise ConfigError("no installed kernel can run fio")


def refit(name: str) -> Table:
    """Fit a storage device file to the measurements that stand in it, and write the file back."""
    from sandtable.model.refit import refit_file

    path = library.find_file("storage", name, library.device_files("storage"))
    refit_file(path)
    component = library.load_file(path, "storage")
    assert isinstance(component, spec.Storage)
    return device_table(component)
