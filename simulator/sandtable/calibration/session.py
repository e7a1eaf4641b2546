"""Calibrating from beginning to end: what can be measured here, in which order, and the file that is written."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandtable import units
from sandtable.calibration import host_timing, point_log, this_host
from sandtable.calibration.calibrated import Calibrated
from sandtable.calibration.gpu import gpu_fit, recordings
from sandtable.calibration.gpu.recordings import Gpus, LiveGpus, RecordedGpus
from sandtable.calibration.host_timing import Settings
from sandtable.calibration.point_log import PointLog
from sandtable.demand.instruments import storage_cross_check
from sandtable.errors import CalibrationError, ConfigError, NoDevice
from sandtable.hardware import Machine, library
from sandtable.runs import measure
from sandtable.system import atomic_files, locks

QUICK_FILE_BYTES = 1 << 30
FULL_FILE_BYTES = 4 << 30
QUICK_BUDGET_S = 32.0
FULL_BUDGET_S = 290.0
QUICK_OPERATOR_BUDGET_S = 45.0
FULL_OPERATOR_BUDGET_S = 130.0
# requests at which another program's storage curve is taken
CROSS_CHECKED_BYTES = (4096, 16384, 65536, 262144)
DEFAULT_OUTPUT = Path("this_machine.yaml")


def run(
    *,
    quick: bool = False,
    only: str | None = None,
    folder: Path = Path("stores"),
    file_size: str | None = None,
    output: Path = DEFAULT_OUTPUT,
    cross_check: str | None = None,
    keep_file: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    record: Path | None = None,
    replay: Path | None = None,
    resume: bool = False,
) -> Calibrated:
    """Calibrate this machine, and write its machine file. What was timed is on disk at every moment.

    Args:
        quick: About a minute and a half, with wider intervals.
        only: Parts to measure, with commas between; a new calibration needs storage, memory and compute.
        folder: A folder on the disk to measure.
        file_size: Size of the file that storage is measured on, such as "4 GiB".
        output: The machine file, read as the base where only some parts are measured.
        cross_check: A program that measures the storage curve too; "fio".
        keep_file: Leave the test file for the next time.
        progress: Told what is measured.
        record: Keeps what was timed on GPUs in this file.
        replay: Fits to such a file instead of timing GPUs.
        resume: Goes on with a calibration into this output that was ended, with the settings that it had.

    Raises:
        ConfigError: settings that cannot be used, or nothing to resume.
        InUse: another process calibrates into the same file or in the same folder.
        KeyboardInterrupt: passed on, with a note that says how to go on.
        NoDevice: a package or program that is missing, or a GPU.
    """
    asked = {
        "quick": quick,
        "only": only,
        "folder": str(folder),
        "file_size": file_size,
        "cross_check": cross_check,
        "keep_file": keep_file,
        "record": None if record is None else str(record),
    }
    with _claimed(output):
        log = _log(output, asked, resume=resume)
        try:
            found = _run(Asked(**log.settings), output, replay, progress, log)
        except KeyboardInterrupt as ended:
            if log.n_points:
                where = "" if output == DEFAULT_OUTPUT else f" -o {output}"
                ended.add_note(
                    f"{log.n_points} timed points are saved: go on with 'sandtable calibrate --resume{where}'"
                )
            raise
        finally:
            if not log.n_points:
                log.remove()
        log.remove()
    return found


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a calibration was asked for, as `run` takes it and its log keeps it."""

    quick: bool
    only: str | None
    folder: str
    file_size: str | None
    cross_check: str | None
    keep_file: bool
    record: str | None


def _claimed(output: Path) -> contextlib.AbstractContextManager[object]:
    """Keep other calibrations from the same machine file; what is no file, such as /dev/null, is nobody's."""
    return locks.claimed(output, "calibrates into this file") if _is_ordinary(output) else contextlib.nullcontext()


def _is_ordinary(output: Path) -> bool:
    return output.is_file() or not output.exists()


def _log(output: Path, asked: Mapping[str, Any], *, resume: bool) -> PointLog:
    # a name that is swept up later: nobody resumes what went into a device
    folder = output.parent if _is_ordinary(output) else Path(tempfile.mkdtemp(prefix="sandtable-workers-"))
    path = folder / f"{output.name}{point_log.SUFFIX}"
    return PointLog.resume(path) if resume else PointLog.begin(path, asked)


def _run(
    asked: Asked, output: Path, replay: Path | None, progress: Callable[[str], None], log: PointLog
) -> Calibrated:
    quick, only = asked.quick, asked.only
    record = None if asked.record is None else Path(asked.record)
    if asked.cross_check not in (None, "fio"):
        raise ConfigError(f"--cross-check knows 'fio', not {asked.cross_check!r}")
    parts = parts_of(recordings.PART if replay is not None and only is None else only, quick, progress)
    host_timing.check_parts(parts)
    host_parts = tuple(part for part in parts if part != recordings.PART)
    if recordings.PART not in parts and (record or replay):
        raise ConfigError(f"--record and --replay are about GPUs: write --only {recordings.PART}")
    base = library.load_machine(str(output)) if (only or replay) is not None and output.is_file() else None
    # before minutes of other work, and before any talk of files: there may be no GPU
    gpus, without = _gpus(replay, asked=only is not None) if recordings.PART in parts else (None, [])
    begin = time.perf_counter()
    try:
        if base is None and not set(parts) >= set(host_timing.PARTS):
            raise ConfigError(host_timing.needs_base(parts))
        settings = Settings(
            folder=Path(asked.folder) / measure.TEST_FOLDER,
            quick=quick,
            only=host_parts,
            file_bytes=_file_bytes(asked.file_size, quick),
            budget_s=QUICK_BUDGET_S if quick else FULL_BUDGET_S,
            operator_budget_s=QUICK_OPERATOR_BUDGET_S if quick else FULL_OPERATOR_BUDGET_S,
            passes=2 if quick else 4,
            progress=progress,
            log=log,
        )
        found = _host(settings, base, output, asked) if host_parts else Calibrated(machine=_kept(base))
        if gpus is not None:
            found = _with_gpus(found, gpus, quick=quick, record=record, output=output, progress=progress)
    finally:
        if gpus is not None:
            gpus.close()
    warnings = [*found.warnings, *without]
    return replace(found, warnings=warnings, host=bool(host_parts), seconds=time.perf_counter() - begin)


def _host(settings: Settings, base: Machine | None, output: Path, asked: Asked) -> Calibrated:
    """Measure the host's parts, and write the machine file."""
    with _test_folder(settings.folder, asked.keep_file):
        found = this_host.calibrate(settings, base)
        library.save_measured(found.machine, output)  # before anything else can go wrong
        curve = [] if asked.cross_check is None else cross_checked(found.machine, settings)
    return replace(found, cross_check=curve)


def cross_checked(machine: Machine, settings: Settings) -> list[tuple[float, int, float, float]]:
    """Return this calibration's storage curve beside another program's, on the same file; see `Calibrated`."""
    path = next(path for path in settings.folder.iterdir() if path.stat().st_size >= settings.file_bytes)
    points = [p for p in machine.storage.measurements if p.access == "random"]
    chosen = [p for p in points if p.concurrency in (1, 8, 16, 32) and p.chunk_bytes in CROSS_CHECKED_BYTES]
    asked = [(int(p.chunk_bytes), p.concurrency) for p in chosen]
    rates = storage_cross_check().bytes_per_s(path, asked, 1.0)
    return [(p.chunk_bytes, p.concurrency, p.read_bytes_per_s, r) for p, r in zip(chosen, rates, strict=True)]


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
    found: Calibrated,
    gpus: Gpus,
    *,
    quick: bool,
    record: Path | None,
    output: Path,
    progress: Callable[[str], None],
) -> Calibrated:
    """Time GPUs, keep the recording, fit, and write the machine file; what was finished is kept if it breaks off."""
    observed = recordings.observe(gpus, quick=quick, progress=progress)
    recording = observed.recording()
    if record is not None:
        atomic_files.write_atomically(record, recording.to_json())
    try:
        method = f"sandtable calibrate{' --quick' if quick else ''}"
        fitted = gpu_fit.fitted(found.machine, recording, method)
    except (CalibrationError, ConfigError) as error:
        # too few points to fit, which is no surprise where it broke off
        raise observed.broken_by or error from None
    library.save_measured(fitted.machine, output)
    if observed.broken_by is not None:
        raise observed.broken_by
    # a launch is a constant, and the machine's law of transfers is the one of pinned memory
    shown = [t for t in fitted.timings if t.op.operator != "host" and t.dims.get("pinned", True)]
    return found.fitted_to(fitted.machine, shown, fitted.notes)


# --- settings ----------------------------------------------------------------------------------------------


def parts_of(only: str | None, quick: bool, progress: Callable[[str], None]) -> tuple[str, ...]:
    """Return the parts to measure: those named, or all that can be; a quick one leaves operators and GPUs out."""
    if only is not None:
        return tuple(part.strip() for part in only.split(",") if part.strip())
    if quick:
        return host_timing.PARTS
    there = (recordings.PART,) if recordings.may_have_gpu() else ()
    return (*host_timing.PARTS, *_operator_parts(progress), *there)


def _operator_parts(progress: Callable[[str], None]) -> list[str]:
    """Return the groups of operators that can be timed with what is installed, and say of the others why not."""
    found, without = [], dict[str, list[str]]()
    for part, needs in host_timing.operator_parts().items():
        missing = [package for package in sorted(needs) if importlib.util.find_spec(package) is None]
        if missing:
            without.setdefault(" and ".join(missing), []).append(part)
        else:
            found.append(part)
    for packages, parts in without.items():
        progress(f"without {packages}, {', '.join(parts)} cannot be timed: left out")
    return found


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
    """Make a folder of our own for the test file, one calibration at a time, and remove what is in it afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be used: {error.strerror}", file=str(folder)) from None
    with locks.claimed(folder, "calibrates in this folder"):
        try:
            yield
        finally:
            if keep:
                (folder / measure.KEPT).touch()
            else:
                measure.clear_test_folder(folder)
