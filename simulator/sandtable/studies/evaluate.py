"""Evaluate the points of a study: through the engine, or by a workload's closed form for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from sandtable import units, yaml_files
from sandtable.demand.operator import FloatArray
from sandtable.errors import ConfigError, DoesNotFit, NoDevice, PlanError
from sandtable.hardware import Frozen, Machine
from sandtable.runs import predict
from sandtable.runs.answers.answer_card import answered, answering
from sandtable.runs.answers.caveats import main_seconds
from sandtable.studies.outcome import Outcome
from sandtable.studies.study import Machines, Part, Point, Study
from sandtable.workload.seam import Verdict, Workload, workload_named


def predictions(study: Study) -> Iterator[predict.Foreseen]:
    """Yield the prediction of each point, through the engine, with what it was reduced from.

    Raises:
        DoesNotFit: a point needs more memory than there is.
    """
    for case in study.resolved():
        with answering(case):
            found = predict.foresee(case.scenario, case.workload, case.parameters, case.machine)
        yield replace(found, prediction=answered(found.prediction, case, main_seconds(found)))


@dataclass(slots=True)
class Columns:
    """Columns that grow: values of some points at a time, NaN for all others."""

    n: int
    by_name: dict[str, FloatArray] = field(default_factory=dict)

    def put(self, places: Sequence[int], values: Mapping[str, Any]) -> None:
        """Write an entry, or one for all, at each of the places."""
        for name, value in values.items():
            self.by_name.setdefault(name, np.full(self.n, math.nan))[places] = value


def predicted(study: Study) -> Outcome:
    """Evaluate every point through the engine: each metric, and its interval as ``METRIC.low`` and ``METRIC.high``.

    Points that do not fit or cannot be laid out are dropped, unless the study says otherwise.

    Raises:
        ConfigError: a point that is none.
        DoesNotFit, PlanError: a point that cannot run, in a study with ``fits: false``.
    """
    cases = list(study.resolved())
    columns, reasons = Columns(len(cases)), []
    for place, case in enumerate(cases):
        reason = ""
        try:
            found, _, _ = predict.predict(case.scenario, case.workload, case.parameters, case.machine)
        except (DoesNotFit, PlanError) as error:
            if not study.fits:
                raise
            reason = "does not fit" if isinstance(error, DoesNotFit) else "cannot be laid out"
        else:
            for name, metric in found.metrics.items():
                ends = {f"{name}.low": metric.low, f"{name}.high": metric.high}
                columns.put([place], {name: metric.value} | ends)
        reasons.append(reason)
    return Outcome(
        study=study,
        points=list(study.points()),
        columns=columns.by_name,
        reasons=reasons,
        parameters=[case.parameters for case in cases],
        machines=[case.machine for case in cases],
    )


# --- by the closed form ------------------------------------------------------------------------------------------


def estimated(study: Study, refused: Callable[[Machine], str] = lambda _: "") -> Outcome:
    """Evaluate every point by the workload's closed form, those of one machine together.

    Points that are not valid or cannot be laid out are dropped, those that need more memory than there is unless the
    study says otherwise, and those on a machine that ``refused`` names a reason against, or, of several machines, on
    one that cannot do the work at all. Where the workload counts memory, ``memory_frac`` is what a point needs of it
    over what there is.

    Raises:
        PlanError: the workload has no closed form, or the only machine cannot do it.
        ConfigError: a point with a parameter or a machine that there is not.
    """
    base, points, machines = study.scenario(), list(study.points()), Machines()
    workload = workload_named(base.workload)
    on = [machines.of(base, point.of(Part.machine)) for point in points]
    read = [_parameters(workload, base.parameters, point, study) for point in points]
    reasons = [refused(machine) or fault for machine, (_, fault) in zip(on, read, strict=True)]
    groups: dict[int, dict[int, Frozen]] = {}
    for place, (parameters, _) in enumerate(read):
        if parameters is not None and not reasons[place]:
            groups.setdefault(id(on[place]), {})[place] = parameters
    columns = Columns(len(points))
    large: dict[int, Verdict] = {}
    for runs in groups.values():
        machine = on[next(iter(runs))]
        try:
            dropped, too_large = _estimate(workload, machine, runs, columns, fits=study.fits)
        except (ConfigError, NoDevice, PlanError) as error:
            if len(groups) == 1:
                raise
            dropped, too_large = dict.fromkeys(runs, f"not on {machine.name}: {error}"), {}
        for place, reason in dropped.items():
            reasons[place] = reason
        large |= too_large
    return Outcome(
        study=study,
        points=points,
        columns=columns.by_name,
        reasons=reasons,
        parameters=[parameters for parameters, _ in read],
        machines=on,
        nearest=_nearest(large, points, on),
    )


def _parameters(
    workload: Workload[Any], base: Mapping[str, Any], point: Point, study: Study
) -> tuple[Frozen | None, str]:
    """Return the parameters of a point, or why this combination is not valid.

    Raises:
        ConfigError: a parameter that there is not, or a value that is none of its own.
    """
    changes = point.of(Part.parameters)
    data = {**base, **changes}
    for path in [path for path in changes if "." in path]:
        data = yaml_files.plain(data)
        yaml_files.set_path(data, path, data.pop(path))
    try:
        return workload.parameters.model_validate(data, context=units.AT_EDGE), ""
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"]:
            raise yaml_files.config_error(error, {}, f"{study.name}: {point.name}", workload.parameters) from None
        return None, f"not valid: {fault['msg'].removeprefix('Value error, ').partition(' ')[0]}"


def _estimate(
    workload: Workload[Any], machine: Machine, runs: dict[int, Frozen], columns: Columns, *, fits: bool
) -> tuple[dict[int, str], dict[int, Verdict]]:
    """Fill in the columns of points on one machine; return why others are dropped, and those that are too large."""
    faults = zip(runs, workload.faults(list(runs.values()), machine), strict=True)
    dropped = {place: f"cannot be laid out: {fault.partition(' ')[0]}" for place, fault in faults if fault}
    runs = {place: parameters for place, parameters in runs.items() if place not in dropped}
    verdicts = dict(zip(runs, workload.verdicts(list(runs.values()), machine), strict=False))
    columns.put(list(verdicts), {"memory_frac": [v.needed_bytes / v.has_bytes for v in verdicts.values()]})
    large = {place: verdict for place, verdict in verdicts.items() if fits and not verdict.fits}
    dropped |= {place: f"does not fit: {verdict.breaks}" for place, verdict in large.items()}
    runs = {place: parameters for place, parameters in runs.items() if place not in large}
    if runs:
        columns.put(list(runs), workload.estimate(list(runs.values()), machine))
    return dropped, large


def _nearest(large: Mapping[int, Verdict], points: Sequence[Point], on: Sequence[Machine]) -> str:
    """Say which of the points that are too large misses the memory by the least; empty if none is."""
    if not large:
        return ""
    place, verdict = min(large.items(), key=lambda item: item[1].needed_bytes / item[1].has_bytes)
    settings = ", ".join(f"{path} {value}" for path, value in points[place].of(Part.parameters).items())
    needed, there = units.format_bytes(verdict.needed_bytes), units.format_bytes(verdict.has_bytes)
    return f"{settings} needs {needed} of the {there} of a device of {on[place].name}"
