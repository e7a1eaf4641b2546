"""Time this machine's kernels over their grids.

Points are visited in shuffled order in several passes, so that a slow minute of the machine spreads over all of them,
and how far the passes lie apart becomes part of every interval. What other programs disturbed is timed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sandtable import units
from sandtable.calibration.calibrated import describe
from sandtable.calibration.gpu import recordings
from sandtable.calibration.point_log import PointLog
from sandtable.calibration.timing import Timing, unfit
from sandtable.calibration.visits import LEAST_CALM, MOST_MORE, Point, Visit
from sandtable.demand.kernel import Calls, Dims, Kernel, KernelContext, kernels
from sandtable.errors import ConfigError, DoesNotFit, UnknownName
from sandtable.runs import measure
from sandtable.system import contention
from sandtable.workload.progress import Step

PARTS = ("storage", "memory", "compute")
# points of operators repeat well, since each call is the mean over many
OPERATOR_PASSES, OPERATOR_REPEATS = 2, 12
# those that are timed call by call: no more than tell how they scatter
OPERATOR_CALLS = 40
# first touches: a file of its own for every point, and few enough calls that each still finds untouched regions
FRESH_FILE_BYTES = 512 << 20
FRESH_REPEATS = 8
# time beyond the budget for points that are not settled, and which part of it may pass in waiting for a calm moment
MORE_FRAC = 0.5
PATIENT_FRAC = 0.5
PATIENT_S = 60.0
# a change of a point's time that is worth another fit
CHANGED_FRAC = 0.1
# how often probes are taken beside the points, each of which lasts about half a second
PROBE_EVERY_S = 8.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, where, and for how long.

    ``budget_s`` is the time for all measurements together, those of operators aside, of which each part has
    ``operator_budget_s``, and `MORE_FRAC` of it more on a machine that others disturb; ``passes`` is how often each
    point is visited if nobody does. What ``log`` knows is not timed again.
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


class Observation:
    """The calibrating kernels of some parts, timed over their grids: first in passes, then again where it is needed.

    A point is visited again while other programs disturbed it or its visits disagree, in up to `MORE_FRAC` of the
    budget more; before it is, the machine gets some time to become calm.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.points = [
            Point(kernel, dims)
            for kernel in kernels().values()
            if kernel.calibrates in settings.only
            # memory and compute points take milliseconds; only storage is worth a smaller grid
            for dims in kernel.grid(quick=settings.quick and kernel.calibrates not in ("memory", "compute"))
        ]
        self.context = KernelContext(
            folder=settings.folder, seed=settings.seed, n_threads=measure.threads(), file_bytes=settings.file_bytes
        )
        self.round = ",".join(settings.only)
        self.begin = time.perf_counter() - (0.0 if settings.log is None else settings.log.elapsed_s(self.round))
        self.rng = np.random.default_rng(settings.seed)
        self.patience_s = min(PATIENT_S, PATIENT_FRAC * MORE_FRAC * settings.budget_s)
        # of each probe, when it was taken and the seconds that it took
        self._probed: dict[str, list[tuple[float, float]]] = {}
        self._next_probe_s = 0.0

    @property
    def probes(self) -> dict[str, float]:
        """Seconds of the probes of these parts in the middle, taken now and then between points."""
        return {name: float(np.median([s for _, s in taken])) for name, taken in self._probed.items()}

    @property
    def timings(self) -> list[Timing]:
        """What was timed, by point: of operators, as if the machine had had one speed all along."""
        near = [visit.probe_s for point in self.points for visit in point.visits if visit.probe_s is not None]
        level_s = next(iter(self.probes.values()), float(np.median(near)) if near else 1.0)
        return [point.as_fast_as(level_s).timing for point in self.points]

    @cached_property
    def _stream(self) -> Callable[[], object]:
        return measure.stream_through()

    def visit_all(self) -> None:
        """Visit every point in several shuffled passes, within the budget."""
        settings, n_points = self.settings, len(self.points)
        # also where an earlier run timed all points: they are fitted for a speed that is kept
        self._probe()
        for index in range(settings.passes):
            order = [
                int(i) for i in self.rng.permutation(n_points) if index == 0 or not self.points[int(i)].kernel.once
            ]
            for position, item in enumerate(order):
                done = index * n_points + position
                left = settings.budget_s - self._elapsed_s()
                share_s = left / max(1, settings.passes * n_points - done)
                self._visit(self.points[item], share_s, Step("", done, settings.passes * n_points))
            if self._elapsed_s() > settings.budget_s * (index + 1.3) / (index + 1) and index >= 1:
                break

    def settle(self) -> None:
        """Visit again what is not settled, those first that were never calm, until all is or the time is over."""
        most = max((len(point.visits) for point in self.points), default=0) + MOST_MORE
        while unsettled := [p for p in self.points if not self._is_settled(p) and len(p.visits) < most]:
            order = [unsettled[int(i)] for i in self.rng.permutation(len(unsettled))]
            order.sort(key=lambda point: any(visit.is_calm for visit in point.visits))
            if not self.again(order):
                break

    def again(self, points: Sequence[Point]) -> bool:
        """Visit points once more, calm moments first waited for; returns whether there was time for all of them."""
        settings = self.settings
        share_s = settings.budget_s / max(1, settings.passes * len(self.points))
        for position, point in enumerate(points):
            if self._elapsed_s() > settings.budget_s * (1 + MORE_FRAC):
                return False
            self.patience_s -= contention.wait_for_calm(self.patience_s)
            self._visit(point, share_s, Step("again: ", position, len(points)))
        return True

    def doubt(self, points: Sequence[Point]) -> bool:
        """Visit once more what lies far from its neighbours, and until it settles; returns whether any time changed."""
        before = [point.timing.seconds for point in points]
        self.again(points)
        self.settle()
        changes = [point.timing.seconds / seconds for point, seconds in zip(points, before, strict=True)]
        return any(abs(np.log(change)) > CHANGED_FRAC for change in changes)

    def _is_settled(self, point: Point) -> bool:
        least = 1 if point.kernel.once else min(LEAST_CALM, self.settings.passes)
        return point.is_settled(least)

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self.begin

    def _visit(self, point: Point, share_s: float, step: Step) -> None:
        log, index = self.settings.log, len(point.visits)
        known = None if log is None else log.known(index, point.kernel.name, point.dims)
        if known is None:
            text = f"{step}{point.kernel.name} {describe(point.dims)}"
            self.settings.progress(Step(text, step.done, step.total))
            self._probe()
            known = self._timed(point, share_s)
            if log is not None:
                log.add(self.round, self._elapsed_s(), index, point.kernel.name, point.dims, known)
        point.visits.append(known)

    def _probe(self) -> None:
        if time.perf_counter() < self._next_probe_s:
            return
        probing = {point.kernel.name: point.kernel for point in self.points if point.kernel.probes()}
        probed = measure.probed(probing.values(), self.context.folder, self.context.n_threads)
        now_s = time.perf_counter()
        for name, seconds in probed.items():
            self._probed.setdefault(name, []).append((now_s, seconds))
        self._next_probe_s = now_s + PROBE_EVERY_S

    def _probe_near(self, at_s: float) -> float | None:
        """Return what the probe of a group of operators took before a time: the mean of the last two.

        The machine's own parts have several probes, and each tells little of the others.
        """
        if len(self._probed) != 1 or not set(PARTS).isdisjoint(self.settings.only):
            return None
        (taken,) = self._probed.values()
        before = [seconds for when_s, seconds in taken if when_s <= at_s] or [taken[0][1]]
        return float(np.mean(before[-2:]))

    def _timed(self, point: Point, share_s: float) -> Visit:
        before, begin_s = contention.core_time(), time.perf_counter()
        seconds = _samples(point.kernel, point.dims, self.context, share_s, self._stream)
        lost_frac = contention.lost_frac(before, contention.core_time())
        if isinstance(seconds, Calls):
            lost_frac, begin_s = seconds.lost_frac, seconds.begin_s
        return Visit(list(seconds), lost_frac, self._probe_near(begin_s))


def observe(settings: Settings) -> Observation:
    """Measure every calibrating kernel over its grid, until all points are settled or the budget ends."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    check_space(settings.folder, settings.file_bytes, settings.only)
    observation = Observation(settings)
    observation.visit_all()
    observation.settle()
    return observation


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
    needed = file_bytes + measure.PROBE_FILE_BYTES
    if free + present < needed * 1.05:
        raise DoesNotFit(
            f"{folder} has {units.format_bytes(free)} free and test files need {units.format_bytes(needed)}: "
            "choose another --storage-path, or a smaller --file-size"
        )
