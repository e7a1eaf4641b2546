"""Time this machine's kernels over their grids.

Points are visited in shuffled order in several passes, so that a slow minute of the machine spreads over all of them,
and how far the passes lie apart becomes part of every interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sandtable import units
from sandtable.calibration.calibrated import describe
from sandtable.calibration.gpu import recordings
from sandtable.calibration.point_log import PointLog
from sandtable.calibration.timing import Timing, unfit
from sandtable.demand.kernel import Dims, Kernel, KernelContext, kernels
from sandtable.errors import ConfigError, DoesNotFit, UnknownName
from sandtable.runs import measure
from sandtable.workload.progress import Step

PARTS = ("storage", "memory", "compute")
# points of operators repeat well, since each call is the mean over many
OPERATOR_PASSES, OPERATOR_REPEATS = 2, 12
# those that are timed call by call: no more than tell how they scatter
OPERATOR_CALLS = 40
# first touches: a file of its own for every point, and few enough calls that each still finds untouched regions
FRESH_FILE_BYTES = 512 << 20
FRESH_REPEATS = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, where, and for how long.

    ``budget_s`` is the time for all measurements together, those of operators aside, of which each part has
    ``operator_budget_s``; ``passes`` is how often each point is visited. What ``log`` knows is not timed again.
    """

    folder: Path
    quick: bool = False
    only: tuple[str, ...] = PARTS
    operator_budget_s: float = 120.0
    file_bytes: int = 4 << 30
    budget_s: float = 360.0
    passes: int = 4
    seed: int = 0
    progress: Callable[[str], None] = lambda _: None
    log: PointLog | None = None


def operator_parts() -> dict[str, set[str]]:
    """Return the parts beyond the machine's own and its GPUs, groups of operators that kernels declare, in order.

    With the packages that timing each of them needs.
    """
    found: dict[str, set[str]] = {}
    for kernel in kernels().values():
        if kernel.calibrates not in (None, *PARTS, recordings.PART):
            found.setdefault(str(kernel.calibrates), set()).update(kernel.needs)
    return dict(sorted(found.items()))


def check_parts(parts: Collection[str]) -> None:
    """Refuse names of parts that nothing measures, and kernels whose timings nothing would be fitted to.

    Raises:
        ConfigError: such a kernel.
        UnknownName: with the nearest names.
    """
    known = (*PARTS, *operator_parts(), recordings.PART)
    for part in parts:
        if part not in known:
            raise UnknownName("part to calibrate", part, known)
    for kernel in kernels().values():
        complaint = unfit(kernel, kernel.cost(kernel.example())) if kernel.calibrates in parts else ""
        if complaint:
            raise ConfigError(f"kernel {kernel.name!r} {complaint}")


def needs_base(parts: Iterable[str]) -> str:
    """Say that some parts alone make no machine."""
    return (
        f"calibrating only {', '.join(parts)} needs an earlier full calibration to put it into: run "
        "'sandtable calibrate' without --only first"
    )


def observe(settings: Settings) -> list[Timing]:
    """Measure every calibrating kernel over its grid, in shuffled passes, within the budget."""
    context = KernelContext(
        folder=settings.folder, seed=settings.seed, n_threads=measure.threads(), file_bytes=settings.file_bytes
    )
    settings.folder.mkdir(parents=True, exist_ok=True)
    check_space(settings.folder, settings.file_bytes, settings.only)
    work = [
        (kernel, dims)
        for kernel in kernels().values()
        if kernel.calibrates in settings.only
        # memory and compute points take milliseconds; only storage is worth a smaller grid
        for dims in kernel.grid(quick=settings.quick and kernel.calibrates not in ("memory", "compute"))
    ]
    if not work:
        return []
    passes: list[list[list[float]]] = [[] for _ in work]
    rng = np.random.default_rng(settings.seed)
    stream = measure.stream_through()
    log, round_ = settings.log, ",".join(settings.only)
    begin = time.perf_counter() - (0.0 if log is None else log.elapsed_s(round_))
    for index in range(settings.passes):
        order = [int(item) for item in rng.permutation(len(work)) if index == 0 or not work[int(item)][0].once]
        for position, item in enumerate(order):
            kernel, dims = work[item]
            known = None if log is None else log.known(index, kernel.name, dims)
            if known is not None:
                passes[item].append(known)
                continue
            done = index * len(work) + position
            left = settings.budget_s - (time.perf_counter() - begin)
            share = left / max(1, settings.passes * len(work) - done)
            settings.progress(Step(f"{kernel.name} {describe(dims)}", done, settings.passes * len(work)))
            passes[item].append(_samples(kernel, dims, context, share, stream))
            if log is not None:
                log.add(round_, time.perf_counter() - begin, index, kernel.name, dims, passes[item][-1])
        if time.perf_counter() - begin > settings.budget_s * (index + 1.3) / (index + 1) and index >= 1:
            break
    return [Timing.of_kernel(kernel, dims, calls) for (kernel, dims), calls in zip(work, passes, strict=True)]


def _samples(
    kernel: Kernel, dims: Dims, context: KernelContext, share_s: float, before: Callable[[], object]
) -> list[float]:
    """Time one point for about ``share_s``, or once where no time is left."""
    most = 1000 if kernel.calibrates in PARTS else OPERATOR_CALLS
    repeats = most if share_s > 0 else 1
    own = kernel.timings(dims, context, repeats=min(repeats, OPERATOR_REPEATS), budget_s=share_s)
    if own is not None:
        return own
    if kernel.once:
        repeats = min(repeats, FRESH_REPEATS)
        context = replace(context, file_bytes=min(context.file_bytes, FRESH_FILE_BYTES))
    # half of the time goes into what runs before each call
    return measure.time_kernel(kernel, dims, context, repeats=repeats, budget_s=0.5 * share_s, before=before)


def rounds(settings: Settings) -> list[Settings]:
    """Return the settings of each round: one for the machine's own parts, and one for each part of operators."""
    own = tuple(part for part in settings.only if part in PARTS)
    others = [part for part in settings.only if part not in PARTS]
    budget_s = settings.operator_budget_s
    return [
        *([replace(settings, only=own)] if own else []),
        *(replace(settings, only=(part,), budget_s=budget_s, passes=OPERATOR_PASSES) for part in others),
    ]


def check_space(folder: Path, file_bytes: int, parts: Iterable[str]) -> None:
    """Refuse to start when the folder's disk cannot hold the file that storage is measured on."""
    if "storage" not in parts:
        return
    import shutil

    free = shutil.disk_usage(folder).free
    present = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    if free + present < file_bytes * 1.05:
        raise DoesNotFit(
            f"{folder} has {units.format_bytes(free)} free and the test file needs {units.format_bytes(file_bytes)}: "
            "choose another --storage-path, or a smaller --file-size"
        )
