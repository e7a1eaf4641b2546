"""What there is: devices, machines, scenarios, runs, and the state of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from sandtable import hardware, units, yaml_files
from sandtable.errors import ConfigError, UnknownName, install_extra
from sandtable.hardware import Component, Estimate, Evidence, library
from sandtable.hardware.lookup import offers
from sandtable.report import described
from sandtable.runs import nvml, run_folder
from sandtable.table import Table

NVIDIA_DRIVER = "/dev/nvidiactl"


def listing(what: str, told: Callable[[str], None] = lambda _: None) -> Table:
    """Return the table of one kind of thing; ``told`` hears of files that cannot be read, and are left out."""
    tables: dict[str, Callable[[], Table]] = {
        "devices": lambda: _devices(told),
        "machines": lambda: _machines(told),
        "workloads": _workloads,
        "models": described.models_table,
        "stacks": _stacks,
        "kernels": _kernels,
        "scenarios": _scenarios,
        "suites": _suites,
        "prices": _prices,
        "runs": _runs,
    }
    return tables[what]()


def _devices(told: Callable[[str], None]) -> Table:
    rows, unread = [], set()
    for kind in ("storage", "memory", "processor", "accelerator", "link", "stack"):
        for name, path in sorted(library.device_files(kind).items()):
            try:
                data = yaml_files.read_yaml(path)
            except ConfigError as error:
                unread.add(str(error))
                continue
            if data.get("kind") == kind:
                rows.append([name, kind, data.get("title", ""), "fitted" if "fitted" in data else "data sheet"])
    for sentence in sorted(unread):
        told(f"left out: {sentence}")
    return Table(columns=("name", "kind", "title", "numbers"), rows=rows)


def _stacks() -> Table:
    rows = []
    for name, path in sorted(library.device_files("stack").items()):
        data = yaml_files.read_yaml(path)
        rows.append([name, data.get("title", ""), ", ".join(sorted(set((data.get("software") or {}).values())))])
    return Table(columns=("name", "title", "constants of"), rows=rows)


def _machines(told: Callable[[str], None]) -> Table:
    rows = []
    for name in sorted(library.device_files("machine")):
        try:
            machine = library.load_machine(name)
        except ConfigError as error:
            told(f"left out: {error}")
            continue
        price = None if machine.price is None else machine.price.usd_per_h
        accelerator = machine.accelerator
        device = "" if accelerator is None else f"{accelerator.n} × {accelerator.processor.name}"
        rows.append([name, machine.title, device, machine.storage.name, "" if price is None else f"{price:.3g}"])
    return Table(
        columns=("name", "title", "accelerator", "storage", "price"), units=("", "", "", "", "USD/h"), rows=rows
    )


def _workloads() -> Table:
    from sandtable.workload.seam import workloads

    rows = [[name, (type(item).__doc__ or "").splitlines()[0]] for name, item in workloads().items()]
    return Table(columns=("name", "what it does"), rows=rows)


def _kernels() -> Table:
    from sandtable.demand.kernel import kernels

    rows = [
        [name, item.calibrates or "-", (type(item).__doc__ or "").splitlines()[0]]
        for name, item in kernels().items()
    ]
    return Table(columns=("name", "calibrates", "what it does"), rows=rows)


def _scenarios() -> Table:
    from sandtable.workload import scenarios

    rows = []
    for name, path in sorted(scenarios.files().items()):
        data = yaml_files.read_yaml(path)
        rows.append(
            [name, data.get("workload", ""), data.get("machine", library.THIS_MACHINE), data.get("title", "")]
        )
    return Table(columns=("name", "workload", "machine", "question"), rows=rows)


def _suites() -> Table:
    from sandtable.studies import study
    from sandtable.workload import scenarios

    suites = {name: study.load(name) for name in sorted(scenarios.suite_files())}
    rows = [[name, s.scenario().workload, sum(1 for _ in s.points()), s.title] for name, s in suites.items()]
    return Table(columns=("name", "workload", "scenarios", "title"), rows=rows)


def _prices() -> Table:
    rows = []
    for name in sorted(library.device_files("prices")):
        prices = library.load_component("prices", name)
        assert isinstance(prices, hardware.PriceList)
        for row in prices.price:
            rows.append(
                [
                    row.provider,
                    row.instance,
                    row.accelerator or "-",
                    row.n_accelerators or "",
                    _amount(row.on_demand_usd_per_h),
                    _amount(row.spot_usd_per_h),
                    row.as_of.isoformat(),
                    offers.name_of(row),
                ]
            )
    columns = ("provider", "instance", "accelerator", "number", "on demand", "spot", "as of", "machine")
    return Table(columns=columns, units=("", "", "", "", "USD/h", "USD/h", "", ""), rows=rows)


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _runs() -> Table:
    rows = []
    for run in run_folder.list_runs():
        try:
            prediction, measurement, comparison = run.prediction(), run.measurement(), run.comparison()
        except ConfigError:
            rows.append([run.path.name, "", "", "", "not readable"])
            continue
        result = prediction or measurement
        verdict = "" if comparison is None else comparison.verdict
        kinds = [
            kind for kind, there in (("predicted", prediction), ("measured", measurement)) if there is not None
        ]
        scenario = "" if result is None else str(result.scenario["name"])
        rows.append([run.path.name, scenario, "" if result is None else result.machine, " + ".join(kinds), verdict])
    return Table(columns=("run", "scenario", "machine", "holds", "verdict"), rows=rows)


# --- one device --------------------------------------------------------------------------------------------


def find_device(name: str) -> Component:
    """Load a device of any kind by name or path.

    Raises:
        UnknownName: with the nearest names.
    """
    base, _, variant = name.partition("@")
    files = library.device_files()
    if base not in files and not base.endswith((".yaml", ".yml")) and os.sep not in base:
        if library.is_offered(base):
            return library.load_machine(name)
        if not Path(f"{base}.yaml").is_file():
            raise UnknownName("device, scenario, workload, model or run", name, [*files, *described.named()])
    path = library.find_file("device", base, files)
    if variant:
        return library.load_component("storage", name)
    return library.load_file(path)


def device_table(component: Component) -> Table:
    """Return every number of a device and its parts with interval and source, one part after another."""
    rows = [row for part in (component, *component.components()) for row in _number_rows(part)]
    return Table(columns=("device", "number", "value", "90 % interval", "source"), rows=rows, title=component.title)


def _number_rows(component: Component) -> Iterator[list[str]]:
    for path, value, quantity in hardware.numbers(component):
        source = str(hardware.source_of(component, path))
        if isinstance(value, Evidence):
            text = (
                f"{value.n_points} points, median error {100 * value.median_abs_error_frac:.1f} %, "
                f"p90 {100 * value.p90_abs_error_frac:.1f} %"
            )
            if value.held_out_median_abs_error_frac is not None:
                text += f", held out {100 * value.held_out_median_abs_error_frac:.1f} %"
            interval = f"{value.residual_low_frac:.2f} to {value.residual_high_frac:.2f}"
            yield [component.name, path, text, interval, f"{source}, {value.date.isoformat()}"]
        elif isinstance(value, Estimate):
            low, high = (units.format_quantity(end, quantity) for end in (value.low, value.high))
            interval = "" if value.low == value.high else f"{low} to {high}"
            yield [component.name, path, units.format_quantity(value.value, quantity), interval, source]
        else:
            yield [component.name, path, units.format_quantity(float(value), quantity), "", source]


# --- this machine ------------------------------------------------------------------------------------------


def doctor_table() -> Table:
    """Return what this machine has and what would make a measurement less valid."""
    from sandtable.runs import measure

    environment = measure.environment()
    rows = [
        ["cpu", environment["cpu"], "ok"],
        ["cpus", environment["cpus"], "ok"],
        ["memory", environment["memory"], "ok"],
    ]
    load = float(environment["load_1min"] or 0)
    rows.append(
        ["load, 1 min", f"{load:.2f}", "ok" if load < 0.5 else "other programs run: measurements will be noisy"]
    )
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file():
        name = governor.read_text().strip()
        rows.append(
            ["clock governor", name, "ok" if name == "performance" else "set it to 'performance' to measure"]
        )
    free = shutil.disk_usage(".").free
    rows.append(
        ["disk free here", units.format_bytes(free), "ok" if free > 20e9 else "large models will be scaled down"]
    )
    for package, extra in (
        ("numba", "run"),
        ("scipy", "run"),
        ("matplotlib", "report"),
        ("perfetto", "report"),
        ("torch", "torch"),
    ):
        there = find_spec(package) is not None
        rows.append([package, "installed" if there else "missing", "ok" if there else install_extra(extra)])
    rows.append(
        [
            "fio",
            shutil.which("fio") or "missing",
            "ok" if shutil.which("fio") else "only for calibrate --cross-check fio",
        ]
    )
    rows.extend(_gpu_rows())
    calibrated = Path(f"{library.THIS_MACHINE}.yaml")
    state = "ok" if calibrated.is_file() else "run 'sandtable calibrate --quick'"
    rows.append(["calibration", str(calibrated) if calibrated.is_file() else "none here", state])
    return Table(columns=("what", "found", "verdict"), rows=rows)


def _gpu_rows() -> list[list[str]]:
    """Return one row per NVIDIA GPU that the driver knows, or one that says there is none."""
    found = nvml.open_nvml()
    rows = [] if found is None else [_gpu_row(found, index) for index in range(found.n)]
    if rows:
        return rows
    if Path(NVIDIA_DRIVER).exists():
        return [["gpu", "an NVIDIA driver", nvml.ADVICE if found is None else "it shows no GPU here"]]
    return [["gpu", "none", "ok"]]


def _gpu_row(found: nvml.Nvml, index: int) -> list[str]:
    """Return name, memory, driver, clock and power limit of a GPU, and what holds it back at this moment."""
    fact = found.facts(index)
    if fact is None:
        return [f"gpu {index}", "does not answer", "'nvidia-smi' may say why"]
    now = found.sample(found.handle(index))
    parts = [fact.name]
    if fact.memory_bytes is not None:
        parts.append(units.format_bytes(fact.memory_bytes))
    if fact.driver is not None:
        parts.append(f"driver {fact.driver}")
    if now.clock_hz is not None and fact.max_clock_hz is not None:
        parts.append(f"{now.clock_hz / 1e6:.0f} of {fact.max_clock_hz / 1e6:.0f} MHz")
    if fact.power_limit_w is not None:
        parts.append(f"limit {fact.power_limit_w:.0f} W")
    verdict = "MIG is on: a slice of the GPU is measured" if fact.mig == "on" else "ok"
    if now.throttle:
        verdict = f"held back ({', '.join(now.throttle)}): other work, or too warm"
    return [f"gpu {index}", ", ".join(parts), verdict]
