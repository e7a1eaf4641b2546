"""``calibrate --from-data``: fit the constants of operator laws to published rows, and write them into device files.

Constants are fitted per device, software and operator. Those of one software pooled over its devices go into
``devices/stacks/<software>.yaml`` for a device that was never measured; the interval stated there follows from what
leaving one device out at a time misses, see `sandtable.calibration.fit.left_out`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.calibration.fit import operator_fit
from sandtable.calibration.timing import Group, Timing
from sandtable.calibration.write import put_fit
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import OperatorFit, library
from sandtable.published import nested, scoring, systems
from sandtable.published.operator_rows import OperatorAdapter
from sandtable.published.rows import file_of
from sandtable.table import Table

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RowsFit:
    """Constants of one operator under one software, of one device or pooled over several, and what they were fitted to.

    The device of a pooled ``group`` is empty. ``left_out`` is log(predicted / measured) on a device with the constants
    of its siblings, where it has any, and ``siblings_left_out`` the same of each sibling when this device was left out
    as well.
    """

    group: Group
    fit: OperatorFit
    source: str
    devices: tuple[str, ...]
    left_out: FloatArray | None = None
    siblings_left_out: tuple[FloatArray, ...] = ()

    @property
    def missed(self) -> nested.Missed | None:
        """What `sandtable.published.nested` asks of a device, None for one without siblings."""
        if self.left_out is None:
            return None
        return nested.Missed(self.group.operator, self.group.device, self.left_out, self.siblings_left_out)


@dataclass(kw_only=True)
class FromData:
    """What was fitted, and what could not be."""

    devices: list[RowsFit] = field(default_factory=list)
    pooled: list[RowsFit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """Return what a person should see of it."""
        missed = [item.missed for item in self.devices if item.missed is not None]
        tables = [device_table(self.devices), pooled_table(self.pooled), left_out_table(self.devices)]
        return [*tables, nested.table(missed)] if missed else tables


# --- collecting --------------------------------------------------------------------------------------------


def collect(folder: Path, only: Sequence[str] | None = None) -> list[Timing]:
    """Return the timed operators of all adapters that share constants with others of the folder.

    Rows that the package ships join those of the folder, which come first where both have a file. With ``only``, the
    groups that these adapters have timings of; those of other adapters in such a group stay, so that constants never
    depend on which file was named.

    Raises:
        ConfigError: no such folder, or no file in it times operators.
        UnknownName: ``only`` names no adapter of operators.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", file=str(folder))
    known = {name: a for name, a in scoring.adapters().items() if isinstance(a, OperatorAdapter) and a.fits}
    for name in only or ():
        if name not in known:
            raise UnknownName("published data set of operators", name, known)
    timings: list[Timing] = []
    touched: set[tuple[str, str]] = set()
    for name, adapter in known.items():
        found = file_of(folder, name) is not None
        source = folder if found else adapter.shipped()
        if source is None:
            continue
        own = list(adapter.timings(adapter.read(source)))
        timings += own
        if found if only is None else name in only:
            touched |= {timing.group[1:] for timing in own}
    if not touched:
        expected = ", ".join(f"{name}.csv" for name in only or known)
        raise ConfigError(
            f"no timed operator of a known device here; expected any of: {expected}", file=str(folder)
        )
    # the softwares and operators touched, with all their devices: siblings are needed whole
    return [timing for timing in timings if timing.group[1:] in touched]


# --- fitting -----------------------------------------------------------------------------------------------


def fit_all(folder: Path, only: Sequence[str] | None = None, *, date: dt.date | None = None) -> FromData:
    """Fit every device, software and operator, and pool the devices of each software."""
    found = FromData()
    # one to spare, so that there is a point to leave out
    enough, few = operator_fit.separate(collect(folder, only), spare=1)
    groups = sorted((*enough, *few))
    for software, operator in dict.fromkeys(group[1:] for group in groups):
        members = [group for group in groups if group[1:] == (software, operator)]
        for group in (group for group in members if group in few):
            found.notes.append(f"{group.device}, {software}, {operator}: only {len(few[group])} points, not fitted")
        devices = {group: enough[group] for group in members if group in enough}
        if devices:
            _fit_software(found, devices, date)
    return found


def _fit_software(found: FromData, devices: Mapping[Group, list[Timing]], date: dt.date | None) -> None:
    left_out = {group: _left_out(devices, group) for group in devices} if len(devices) > 1 else {}
    pooled = _pool(devices, left_out, date)
    found.pooled.append(pooled)
    pairs = _pairs_left_out(devices, pooled.fit.values())
    for group, timings in devices.items():
        method = f"{len(timings)} published timings of {group.software}"
        towards = pooled.fit.values()
        fits = operator_fit.fit_groups(timings, systems.sheet_of, method=method, date=date, towards=towards)
        source, left = _source(timings), left_out.get(group)
        found.devices.append(
            RowsFit(
                group=group,
                fit=fits[group],
                source=source,
                devices=(group.device,),
                left_out=left,
                siblings_left_out=tuple(pairs[group]),
            )
        )


def _left_out(devices: Mapping[Group, list[Timing]], group: Group) -> FloatArray:
    """Return log(predicted / measured) on a device under constants fitted to its siblings."""
    constants = operator_fit.fit_constants(_without(devices, {group}), systems.sheet_of)
    return operator_fit.Predictor(devices[group], systems.sheet_of).residuals(constants)


def _pairs_left_out(
    devices: Mapping[Group, list[Timing]], start: Mapping[str, float]
) -> dict[Group, list[FloatArray]]:
    """Return, for each device, what each sibling is missed by under constants fitted without the two of them."""
    found: dict[Group, list[FloatArray]] = {group: [] for group in devices}
    for one, other in combinations(devices, 2) if len(devices) > 2 else ():
        constants = operator_fit.fit_near(_without(devices, {one, other}), systems.sheet_of, start)
        for group, sibling in ((one, other), (other, one)):
            predictor = operator_fit.Predictor(devices[sibling], systems.sheet_of)
            found[group].append(predictor.residuals(constants))
    return found


def _without(devices: Mapping[Group, list[Timing]], groups: set[Group]) -> list[Timing]:
    return [timing for group, timings in devices.items() if group not in groups for timing in timings]


def _pool(
    devices: Mapping[Group, list[Timing]], left_out: Mapping[Group, FloatArray], date: dt.date | None
) -> RowsFit:
    everything = [timing for timings in devices.values() for timing in timings]
    names = tuple(sorted(group.device for group in devices))
    method = f"pooled over {', '.join(names)}; held out: one device at a time"
    fit = operator_fit.fit_operator(everything, systems.sheet_of, method=method, date=date)
    half = nested.half_width(list(left_out.values()), everything[0].law.scatter.siblings)
    update: dict[str, Any] = {"residual_low_frac": float(np.exp(-half)), "residual_high_frac": float(np.exp(half))}
    missed = np.concatenate(list(left_out.values())) if left_out else None
    update["held_out_median_abs_error_frac"] = (
        None if missed is None else float(np.median(np.abs(np.expm1(missed))))
    )
    fit = fit.model_copy(update={"evidence": fit.evidence.model_copy(update=update)})
    pooled = everything[0].group._replace(device="")
    return RowsFit(group=pooled, fit=fit, source=_source(everything), devices=names)


def _source(timings: Sequence[Timing]) -> str:
    sources = dict.fromkeys(timing.source for timing in timings)
    return f"fitted to published timings with 'sandtable calibrate --from-data' ({'; '.join(sources)})"


# --- writing -----------------------------------------------------------------------------------------------


def write(found: FromData) -> list[Path]:
    """Write the fits into the device files and the stack files of their softwares; return the files written."""
    paths: dict[Path, None] = {}
    stacks = library.device_files("stack")
    for item in (*found.devices, *found.pooled):
        group = item.group
        path = library.device_files()[group.device] if group.device else stacks.get(group.software)
        if path is None:
            found.notes.append(
                f"no stack file {group.software}.yaml: its pooled {group.operator} constants are not kept"
            )
            continue
        put_fit(path, group.path, item.fit, item.source)
        paths[path] = None
    systems.forget()
    return list(paths)


# --- tables ------------------------------------------------------------------------------------------------


def device_table(fits: Sequence[RowsFit]) -> Table:
    """Return the constants by device, software and operator, with errors in sample and held out."""
    rows = [[i.group.device, i.group.software, i.group.operator, *_summary(i.fit)] for i in fits]
    columns = ("device", "software", "operator", *_SUMMARY)
    return Table(columns=columns, rows=rows, title="Constants by device", units=("", "", "", *_SUMMARY_UNITS))


def pooled_table(fits: Sequence[RowsFit]) -> Table:
    """Return the constants that devices share; held out is one device at a time."""
    rows = [[i.group.software, i.group.operator, len(i.devices), *_summary(i.fit)] for i in fits]
    columns = ("software", "operator", "devices", *_SUMMARY)
    return Table(columns=columns, rows=rows, title="Constants pooled", units=("", "", "", *_SUMMARY_UNITS))


def left_out_table(fits: Sequence[RowsFit]) -> Table:
    """Return how well a device left out is predicted from its data sheet and its siblings' constants."""
    rows: list[list[object]] = []
    for item in fits:
        if item.left_out is not None:
            errors = np.abs(np.expm1(item.left_out))
            bias = float(np.expm1(np.median(item.left_out)))
            names = (item.group.device, item.group.software, item.group.operator)
            rows.append([*names, len(errors), *_errors(errors), f"{100 * bias:+.1f}"])
    return Table(
        columns=("device left out", "software", "operator", "points", "median error", "p90 error", "bias"),
        units=("", "", "", "", "%", "%", "%"),
        rows=rows,
        title="Devices left out",
        notes=_left_out_notes(fits),
    )


def _left_out_notes(fits: Sequence[RowsFit]) -> list[str]:
    notes = []
    for operator in dict.fromkeys(item.group.operator for item in fits):
        known = [i.left_out for i in fits if i.group.operator == operator and i.left_out is not None]
        errors = [np.abs(np.expm1(left_out)) for left_out in known]
        if errors:
            median = 100 * float(np.median(np.concatenate(errors)))
            notes.append(f"{operator}: median error of all points of devices left out {median:.1f} %")
    return notes


_SUMMARY = ("constants", "points", "median error", "p90 error", "held out")
_SUMMARY_UNITS = ("", "", "%", "%", "%")


def _summary(fit: OperatorFit) -> list[object]:
    evidence = fit.evidence
    held_out = evidence.held_out_median_abs_error_frac
    return [
        ", ".join(f"{name} {_number(value)}" for name, value in fit.values().items()),
        evidence.n_points,
        f"{100 * evidence.median_abs_error_frac:.1f}",
        f"{100 * evidence.p90_abs_error_frac:.1f}",
        "" if held_out is None else f"{100 * held_out:.1f}",
    ]


def _number(value: float) -> str:
    return f"{value:.3g}"


def _errors(errors: FloatArray) -> tuple[str, str]:
    return f"{100 * np.median(errors):.1f}", f"{100 * np.percentile(errors, 90):.1f}"
