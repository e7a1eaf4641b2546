"""``calibrate --from-data``: fit the constants of operator laws to published rows, and write them into device files.

Constants are fitted per device, software and operator. Those of one software pooled over its devices go into
``devices/stacks/<software>.yaml`` for a device that was never measured; the interval stated there is what leaving one
device out at a time misses.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from sandtable import yaml_files
from sandtable.calibration.fit import operator_fit
from sandtable.calibration.fit.least_squares import FLOOR
from sandtable.calibration.fit.operator_fit import OperatorPoint
from sandtable.errors import ConfigError, UnknownName
from sandtable.hardware import OperatorFit, library
from sandtable.model.fitted_constants import UNFITTED_HIGH_FRAC, UNFITTED_LOW_FRAC
from sandtable.published import scoring, systems
from sandtable.published.operator_rows import OperatorAdapter, group_of, operator_of, sheets_of
from sandtable.published.rows import file_of
from sandtable.table import Table

FloatArray = npt.NDArray[np.float64]
Group = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class DeviceFit:
    """Constants of one device under one software for one operator, and what they were fitted to."""

    device: str
    software: str
    operator: str
    fit: OperatorFit
    source: str
    # log(predicted / measured) with the constants of its siblings, where it has any
    left_out: FloatArray | None = None


@dataclass(frozen=True, kw_only=True)
class PooledFit:
    """Constants of one software that several devices share, for one operator."""

    software: str
    operator: str
    fit: OperatorFit
    source: str
    devices: tuple[str, ...]


@dataclass(kw_only=True)
class FromData:
    """What was fitted, and what could not be."""

    devices: list[DeviceFit] = field(default_factory=list)
    pooled: list[PooledFit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """Return what a person should see of it."""
        return [device_table(self.devices), pooled_table(self.pooled), left_out_table(self.devices)]


# --- collecting --------------------------------------------------------------------------------------------


def collect(folder: Path, only: Sequence[str] | None = None) -> dict[Group, list[tuple[OperatorPoint, str]]]:
    """Return the timed operators of all adapters with their public sources, by device, software and operator.

    Rows that the package ships join those of the folder, which come first where both have a file. With ``only``, the
    groups that these adapters have points of; points of other adapters in such a group stay, so that constants never
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
    groups: dict[Group, list[tuple[OperatorPoint, str]]] = {}
    touched: set[Group] = set()
    for name, adapter in known.items():
        found = file_of(folder, name) is not None
        source = folder if found else adapter.shipped()
        if source is None:
            continue
        for point in adapter.operator_points(adapter.read(source)):
            group = group_of(point)
            groups.setdefault(group, []).append((point, f"{name}: {adapter.source}"))
            if found if only is None else name in only:
                touched.add(group)
    if not touched:
        expected = ", ".join(f"{name}.csv" for name in only or known)
        raise ConfigError(
            f"no timed operator of a known device here; expected any of: {expected}", file=str(folder)
        )
    # the softwares and operators touched, with all their devices: siblings are needed whole
    pairs = {group[1:] for group in touched}
    return {group: members for group, members in sorted(groups.items()) if group[1:] in pairs}


# --- fitting -----------------------------------------------------------------------------------------------


def fit_all(folder: Path, only: Sequence[str] | None = None, *, date: dt.date | None = None) -> FromData:
    """Fit every device, software and operator, and pool the devices of each software."""
    groups = collect(folder, only)
    found = FromData()
    pairs = dict.fromkeys(group[1:] for group in groups)
    for software, operator in pairs:
        members = {group[0]: points for group, points in groups.items() if group[1:] == (software, operator)}
        _fit_software(found, software, operator, members, date)
    return found


def _fit_software(
    found: FromData,
    software: str,
    operator: str,
    members: Mapping[str, list[tuple[OperatorPoint, str]]],
    date: dt.date | None,
) -> None:
    points = {device: [point for point, _ in rows] for device, rows in members.items()}
    law = operator_of(next(iter(points.values()))[0])
    for device in [name for name, rows in points.items() if len(rows) <= len(law.constants)]:
        found.notes.append(f"{device}, {software}, {operator}: only {len(points[device])} points, not fitted")
        del points[device]
    if not points:
        return
    left_out = {device: _left_out(device, points) for device in points} if len(points) > 1 else {}
    pooled = _pool(software, operator, points, left_out, members, date)
    found.pooled.append(pooled)
    for device, own in points.items():
        method = f"{len(own)} published timings of {software}"
        towards = pooled.fit.values()
        fit = operator_fit.fit_operator(law, own, sheets_of(own), method=method, date=date, towards=towards)
        source = _source(members[device])
        found.devices.append(
            DeviceFit(
                device=device,
                software=software,
                operator=operator,
                fit=fit,
                source=source,
                left_out=left_out.get(device),
            )
        )


def _left_out(device: str, points: Mapping[str, list[OperatorPoint]]) -> FloatArray:
    """Return log(predicted / measured) on a device under constants fitted to its siblings."""
    own, others = points[device], [p for name, rows in points.items() if name != device for p in rows]
    law = operator_of(own[0])
    constants = operator_fit.fit_constants(law, others, sheets_of(others))
    return operator_fit.Predictor(own, sheets_of(own)).residuals(constants)


def _pool(
    software: str,
    operator: str,
    points: Mapping[str, list[OperatorPoint]],
    left_out: Mapping[str, FloatArray],
    members: Mapping[str, list[tuple[OperatorPoint, str]]],
    date: dt.date | None,
) -> PooledFit:
    everything = [point for rows in points.values() for point in rows]
    law = operator_of(everything[0])
    names = tuple(sorted(points))
    method = f"pooled over {', '.join(names)}; held out: one device at a time"
    fit = operator_fit.fit_operator(law, everything, sheets_of(everything), method=method, date=date)
    update: dict[str, Any] = {"residual_low_frac": UNFITTED_LOW_FRAC, "residual_high_frac": UNFITTED_HIGH_FRAC}
    if left_out:
        missed = np.concatenate(list(left_out.values()))
        low, high = np.percentile(missed, [5, 95])
        update = {
            "residual_low_frac": float(np.exp(min(low, -FLOOR))),
            "residual_high_frac": float(np.exp(max(high, FLOOR))),
            "held_out_median_abs_error_frac": float(np.median(np.abs(np.expm1(missed)))),
        }
    evidence = fit.evidence.model_copy(update=update)
    source = _source([row for device in names for row in members[device]])
    return PooledFit(
        software=software,
        operator=operator,
        fit=fit.model_copy(update={"evidence": evidence}),
        source=source,
        devices=names,
    )


def _source(rows: Sequence[tuple[OperatorPoint, str]]) -> str:
    sources = dict.fromkeys(source for _, source in rows)
    return f"fitted to published timings with 'sandtable calibrate --from-data' ({'; '.join(sources)})"


# --- writing -----------------------------------------------------------------------------------------------


def write(found: FromData) -> list[Path]:
    """Write the fits into the device files and the stack files of their softwares; return the files written."""
    paths: dict[Path, None] = {}
    for item in found.devices:
        path = library.device_files()[item.device]
        put_fit(path, item.operator, item.software, item.fit, item.source)
        paths[path] = None
    for pool in found.pooled:
        stack = library.device_files("stack").get(pool.software)
        if stack is None:
            found.notes.append(
                f"no stack file {pool.software}.yaml: its pooled {pool.operator} constants are not kept"
            )
            continue
        put_fit(stack, pool.operator, pool.software, pool.fit, pool.source)
        paths[stack] = None
    systems.forget()
    return list(paths)


def put_fit(path: Path, operator: str, software: str, fit: OperatorFit, source: str) -> None:
    """Replace one fit and its source in a device file; all else in it stays, comments too.

    Raises:
        ConfigError: the file would not load any more; it is left as it was.
    """
    dotted = f"fitted.operators.{operator}.{software}"
    with _locked(path.parent):
        data = _yaml().load(path.read_text(encoding="utf-8"))
        if not isinstance(data.get("fitted"), CommentedMap):
            data.pop("fitted", None)
            data.insert(list(data).index("sources"), "fitted", CommentedMap())
        yaml_files.set_path(data, dotted, _block(library.to_yaml_data(fit)))
        data["sources"][dotted] = source
        text = _text(data)
        library.load_data(yaml_files.parse_yaml(text, str(path)), path)
        yaml_files.write_atomically(path, text)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing files of a folder meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _block(data: Mapping[str, Any]) -> CommentedMap:
    """Return a fit as YAML with each estimate on one line."""
    block = CommentedMap()
    for key, value in data.items():
        inner = CommentedMap(value) if isinstance(value, Mapping) else value
        if isinstance(inner, CommentedMap) and set(inner) <= {"value", "low", "high"}:
            inner.fa.set_flow_style()
        block[key] = inner
    return block


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 118
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    return yaml


def _text(data: CommentedMap) -> str:
    stream = io.StringIO()
    _yaml().dump(data, stream)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


# --- tables ------------------------------------------------------------------------------------------------


def device_table(fits: Sequence[DeviceFit]) -> Table:
    """Return the constants by device, software and operator, with errors in sample and held out."""
    rows = [[i.device, i.software, i.operator, *_summary(i.fit)] for i in fits]
    columns = ("device", "software", "operator", *_SUMMARY)
    return Table(columns=columns, rows=rows, title="Constants by device", units=("", "", "", *_SUMMARY_UNITS))


def pooled_table(fits: Sequence[PooledFit]) -> Table:
    """Return the constants that devices share; held out is one device at a time."""
    rows = [[i.software, i.operator, len(i.devices), *_summary(i.fit)] for i in fits]
    columns = ("software", "operator", "devices", *_SUMMARY)
    return Table(columns=columns, rows=rows, title="Constants pooled", units=("", "", "", *_SUMMARY_UNITS))


def left_out_table(fits: Sequence[DeviceFit]) -> Table:
    """Return how well a device left out is predicted from its data sheet and its siblings' constants."""
    rows: list[list[object]] = []
    for item in fits:
        if item.left_out is not None:
            errors = np.abs(np.expm1(item.left_out))
            bias = float(np.expm1(np.median(item.left_out)))
            rows.append(
                [item.device, item.software, item.operator, len(errors), *_errors(errors), f"{100 * bias:+.1f}"]
            )
    return Table(
        columns=("device left out", "software", "operator", "points", "median error", "p90 error", "bias"),
        units=("", "", "", "", "%", "%", "%"),
        rows=rows,
        title="Devices left out",
        notes=_left_out_notes(fits),
    )


def _left_out_notes(fits: Sequence[DeviceFit]) -> list[str]:
    notes = []
    for operator in dict.fromkeys(item.operator for item in fits):
        errors = [np.abs(np.expm1(i.left_out)) for i in fits if i.operator == operator and i.left_out is not None]
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
