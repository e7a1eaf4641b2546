"""Tables of the command `calibrate`: what was fitted, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sandtable import hardware, units
from sandtable.calibration.calibrated import Calibrated
from sandtable.calibration.gpu import recordings
from sandtable.demand.instruments import storage_cross_check
from sandtable.hardware import Component, Machine, library
from sandtable.report.listing import device_table
from sandtable.table import Table

N_WORST = 8
# in the source of constants that came with a device file of the library, and that no calibration here touched
PUBLISHED = "published"


def tables(found: Calibrated) -> list[Table]:
    """Return what a person should see of a calibration."""
    shown = [fit_table(found.machine, host=found.host), worst_table(found)]
    shown += [cross_check_table(found.cross_check)] if found.cross_check else []
    gpus = gpu_table(found.machine)
    return [*shown, gpus] if gpus.rows else shown


def gpu_table(machine: Machine) -> Table:
    """Return what the GPUs said of themselves: name, clocks, power, software."""
    said = {name: text for name, text in machine.environment.items() if name.startswith(recordings.PART)}
    return Table(columns=("GPU", "found"), rows=[[name, text] for name, text in said.items()])


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


def worst_table(found: Calibrated) -> Table:
    """Return fitted against measured: a summary by kernel, then the worst points."""
    points = found.to_frame()
    rows = []
    for kernel, group in points.groupby("kernel"):
        median, p90 = (100 * group["error_frac"].abs().quantile(share) for share in (0.5, 0.9))
        rows.append([str(kernel), f"{len(group)} points", "", "", f"median {median:.1f} %, p90 {p90:.1f} %"])
    worst = np.argsort(-np.abs(np.log1p(points["error_frac"].to_numpy(dtype=float))), kind="stable")[:N_WORST]
    for kernel, point, measured_s, fitted_s, error_frac in points.iloc[worst].itertuples(index=False):
        times = (units.format_seconds(measured_s), units.format_seconds(fitted_s))
        rows.append([kernel, point, *times, f"{100 * error_frac:+.0f} %"])
    return Table(columns=("kernel", "point (worst last)", "measured", "fitted", "error"), rows=rows)


def cross_check_table(curve: Sequence[tuple[float, int, float, float]]) -> Table:
    """Return a calibration's storage curve beside another program's at the same points."""
    rows: list[list[object]] = []
    for chunk, lanes, own, other in curve:
        ratio = f"{own / other:.2f}"
        rows.append([units.format_bytes(chunk), lanes, f"{own / 1e6:.0f}", f"{other / 1e6:.0f}", ratio])
    median = float(np.median([own / other for _, _, own, other in curve]))
    rows.append(["median", "", "", "", f"{median:.2f}"])
    return Table(
        columns=("chunk", "in flight", "sandtable", storage_cross_check().name, "ratio"),
        units=("", "", "MB/s", "MB/s", ""),
        rows=rows,
    )


def refit_device(name: str) -> Table:
    """Fit a storage device file to the measurements that stand in it, and write the file back."""
    from sandtable.calibration.fit.storage_fit import refit_file

    path = library.find_file("storage", name, library.device_files("storage"))
    refit_file(path)
    component = library.load_file(path, "storage")
    assert isinstance(component, hardware.Storage)
    return device_table(component)
