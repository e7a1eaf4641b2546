"""One self-contained HTML report from run folders: works without network, everything from a run is escaped.

The sections follow a reader's questions: did it hold; predicted against measured; where time goes; what the machine
is taken to be; what to be careful about; and how to get the same again. A run with a prediction alone is a report too.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sandtable
from sandtable import yaml_files
from sandtable.errors import ConfigError, SandtableError, missing_extra
from sandtable.hardware import GUESS, Component, Machine, library
from sandtable.report import plots, rendering
from sandtable.results import ComparedMetric, Comparison, Measurement, Prediction, Result
from sandtable.runs import compare
from sandtable.runs.run_folder import RunFolder
from sandtable.table import Table

TEMPLATE = "report.html.j2"
N_SHOWN_PLOTS = 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was found in one run folder; anything may be missing."""

    name: str
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    comparison: Comparison | None = None
    machine: Machine | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> list[Result]:
        """Return the prediction and the measurement, those that exist."""
        return [result for result in (self.prediction, self.measurement) if result is not None]

    @property
    def scenario(self) -> str:
        """Return the scenario's name, or the folder's."""
        return str(self.results[0].scenario.get("name", self.name)) if self.results else self.name


@dataclass(frozen=True, kw_only=True)
class Block:
    """One piece of a section; ``kind`` decides how the template shows it."""

    kind: str
    text: str = ""
    css: str = ""
    html: str = ""
    rows: Sequence[str] = ()
    view: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report."""

    id: str
    title: str
    blocks: Sequence[Block]


def write_report(runs: Iterable[Path], output: Path) -> Path:
    """Write the report of run folders to ``output``.

    Raises:
        ConfigError: no folder, or none with a prediction, measurement or comparison; or a broken record.
        NoDevice: plotly or jinja2 is not installed.
    """
    yaml_files.write_atomically(output, render([read_run(path) for path in runs]))
    return output


def read_run(path: Path) -> Run:
    """Read a run folder. A machine file that no longer loads is kept as text."""
    if not path.is_dir():
        raise ConfigError("no such run folder", file=str(path))
    folder = RunFolder(path)
    machine = None
    texts = {}
    for name in ("scenario.yaml", "machine.yaml"):
        if (path / name).is_file():
            texts[name] = (path / name).read_text(encoding="utf-8", errors="replace")
    if "machine.yaml" in texts:
        try:
            loaded = library.load_file(path / "machine.yaml", "machine")
            machine = loaded if isinstance(loaded, Machine) else None
        except SandtableError:
            machine = None
    return Run(
        name=path.name,
        prediction=folder.prediction(),
        measurement=folder.measurement(),
        comparison=folder.comparison(),
        machine=machine,
        files=texts,
    )


def render(runs: Sequence[Run]) -> str:
    """Return the report as HTML."""
    try:
        import jinja2
        import plotly.offline
    except ImportError as error:
        raise missing_extra(str(error.name), "report") from None
    if not any(run.results or run.comparison for run in runs):
        raise ConfigError("these runs hold no prediction, measurement or comparison to report")
    # PackageLoader would import the package anew; the template lies beside this file
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sections = [section for section in _sections(runs) if section.blocks]
    has_plots = any(block.kind == "plot" for section in sections for block in section.blocks)
    names = list(dict.fromkeys(run.scenario for run in runs if run.results)) or [run.name for run in runs]
    machines = list(dict.fromkeys(result.machine for run in runs for result in run.results))
    return environment.get_template(TEMPLATE).render(
        title=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        subtitle=f"on {', '.join(machines)}" if machines else "",
        version=sandtable.__version__,
        plotly_js=plotly.offline.get_plotlyjs() if has_plots else "",
        sections=sections,
    )


def _sections(runs: Sequence[Run]) -> list[Section]:
    compared = _compared(runs)
    return [
        Section(id="verdict", title="Verdict and checks", blocks=_verdict(runs, compared)),
        Section(id="compared", title="Predicted against measured", blocks=_comparison(compared)),
        Section(id="results", title="Results", blocks=_results(runs)),
        Section(id="time", title="Where time goes", blocks=_time(runs)),
        Section(id="machine", title="The machine", blocks=_machine(runs)),
        Section(id="warnings", title="Warnings", blocks=_warnings(runs)),
        Section(id="provenance", title="Provenance", blocks=_provenance(runs)),
    ]


# --- sections ----------------------------------------------------------------------------------------------


def _compared(runs: Sequence[Run]) -> list[ComparedMetric]:
    """Return every compared metric once: from comparisons on disk, or joined here."""
    rows: dict[tuple[str, str], ComparedMetric] = {}
    for run in runs:
        own: Iterable[ComparedMetric] = () if run.comparison is None else run.comparison.comparisons
        if run.comparison is None and run.prediction is not None and run.measurement is not None:
            own = compare.compare(run.prediction, run.measurement)
        for row in own:
            rows.setdefault((row.scenario, row.metric), row)
    return list(rows.values())


def _verdict(runs: Sequence[Run], compared: Sequence[ComparedMetric]) -> list[Block]:
    # the first comparison is that of the whole suite, where there is one
    comparison = next((run.comparison for run in runs if run.comparison is not None), None)
    if comparison is None and compared:
        comparison = compare.judge(compared)
    blocks = []
    if comparison is not None:
        css = {"pass": "pass", "fail": "fail"}.get(comparison.verdict, "soft")
        blocks.append(Block(kind="verdict", css=css, text=rendering.verdict_sentence(comparison)))
        blocks.append(Block(kind="text", text=rendering.summary_sentence(comparison)))
    else:
        kinds = sorted({result.kind for run in runs for result in run.results})
        blocks.append(Block(kind="text", text=f"A {' and a '.join(kinds)}; nothing to compare it with."))
    for run in runs:
        for result in run.results:
            blocks += _thresholds(result)
    return blocks


def _thresholds(result: Result) -> list[Block]:
    limits = result.scenario.get("thresholds") or {}
    try:
        found = compare.check_thresholds({str(key): str(text) for key, text in limits.items()}, result)
    except ConfigError as error:
        return [Block(kind="text", text=str(error))]
    sentences = [f"{'✓' if held else '✗'} {result.kind}: {text} ({value:.4g})" for text, held, value in found]
    return [Block(kind="list", rows=sentences)] if sentences else []


def _comparison(compared: Sequence[ComparedMetric]) -> list[Block]:
    if not compared:
        return []
    judged = compare.judge(compared)
    blocks = [Block(kind="table", view=view_of(rendering.comparison_table(judged, worst_first=True)))]
    scatter = plots.scatter_data(compared)
    if scatter.rows:
        blocks.append(_plot(plots.scatter_figure(scatter)))
    blocks.append(_plot(plots.error_figure(plots.error_data(compared))))
    blocks.append(_plot(plots.interval_figure(plots.interval_data(compared))))
    return blocks


def _results(runs: Sequence[Run]) -> list[Block]:
    blocks = []
    for run in runs:
        for result in run.results:
            title = f"{run.scenario}: {result.kind} on {result.machine}"
            blocks.append(Block(kind="fold", text=title, view=view_of(rendering.metrics_table(result))))
            blocks += [Block(kind="text", text=line.strip()) for line in rendering.result_notes(result)]
    return blocks


def _time(runs: Sequence[Run]) -> list[Block]:
    data = plots.time_data([result for run in runs for result in run.results])
    blocks = [_plot(plots.time_figure(data))] if data.rows else []
    for run in runs[:N_SHOWN_PLOTS]:
        if run.measurement is None:
            continue
        latency = plots.latency_data(run.prediction, run.measurement)
        if any(row[0] == "measurement" for row in latency.rows):
            blocks.append(Block(kind="heading", text=run.scenario))
            blocks.append(_plot(plots.latency_figure(latency)))
    return blocks


def _machine(runs: Sequence[Run]) -> list[Block]:
    from sandtable.report.listing import device_table

    blocks = []
    shown: set[str] = set()
    for run in runs:
        text = run.files.get("machine.yaml", "")
        if not text or text in shown:
            continue
        shown.add(text)
        if run.machine is None:
            blocks.append(Block(kind="code", text=text))
            continue
        n_guesses = len(run.machine.all_guesses())
        summary = (
            f"{run.machine.title}: {n_guesses} numbers are guesses (shaded)" if n_guesses else run.machine.title
        )
        blocks.append(Block(kind="text", text=summary))
        blocks.append(Block(kind="table", view=_fitted_view(device_table(run.machine))))
        blocks.append(Block(kind="fold", text="every number", view=view_of(device_table(run.machine))))
        if run.machine.storage.measurements or run.machine.storage.fitted is not None:
            blocks.append(_plot(plots.storage_figure(plots.storage_data(run.machine.storage))))
    return blocks


def _fitted_view(table: Table) -> dict[str, Any]:
    """Return the fitted numbers and the guesses of a machine's table."""
    path, source = table.columns.index("number"), table.columns.index("source")
    rows = [row for row in table.rows if "fitted." in row[path] or str(row[source]).startswith(GUESS)]
    return view_of(
        Table(columns=table.columns, units=table.units, rows=rows, title="fitted parameters, and guesses")
    )


def _warnings(runs: Sequence[Run]) -> list[Block]:
    found: dict[str, list[str]] = {}
    for run in runs:
        for result in run.results:
            validity = result.validity if isinstance(result, Measurement) else ()
            for text in (*result.warnings, *validity):
                found.setdefault(text, []).append(run.scenario)
    sentences = [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in found.items()]
    return [Block(kind="list", rows=sentences)] if sentences else []


def _provenance(runs: Sequence[Run]) -> list[Block]:
    rows = [["sandtable", sandtable.__version__], ["python", platform.python_version()]]
    environments = {json.dumps(r.measurement.environment, sort_keys=True) for r in runs if r.measurement}
    for text in sorted(environments):
        rows += [[f"measured on: {key}", str(value)] for key, value in json.loads(text).items() if value]
    for run in runs:
        rows += [[f"{run.name}: machine", f"{r.machine} {r.machine_digest}".strip()] for r in run.results[:1]]
    blocks = [Block(kind="table", view=view_of(Table(columns=("what", "value"), rows=rows)))]
    sources = _sources(runs)
    if sources:
        view = view_of(Table(columns=("device", "number", "source"), rows=sources))
        blocks.append(Block(kind="fold", text="sources of the numbers", view=view))
    commands = list(dict.fromkeys(_command(run) for run in runs if run.results))
    if commands:
        blocks.append(Block(kind="text", text="To get the same again, in the run's folder:"))
        blocks.append(Block(kind="code", text="\n".join(commands)))
    for run in runs[:N_SHOWN_PLOTS]:
        if "scenario.yaml" in run.files:
            blocks.append(Block(kind="heading", text=f"{run.name}: scenario.yaml"))
            blocks.append(Block(kind="code", text=run.files["scenario.yaml"]))
    return blocks


def _sources(runs: Sequence[Run]) -> list[list[str]]:
    parts: dict[str, Component] = {}
    for run in runs:
        if run.machine is not None:
            parts |= {part.name: part for part in (run.machine, *run.machine.components())}
    return [[name, path, text] for name, part in parts.items() for path, text in part.sources.items()]


def _command(run: Run) -> str:
    verb = "simulate" if run.measurement is None else "run" if run.prediction is None else "check"
    machine = " --machine machine.yaml" if "machine.yaml" in run.files else ""
    scenario = "scenario.yaml" if "scenario.yaml" in run.files else run.scenario
    return f"sandtable {verb} {scenario}{machine}"


# --- pieces ------------------------------------------------------------------------------------------------


def view_of(table: Table) -> dict[str, Any]:
    """Return a table as the template shows it: headings with units, cells as text, guesses marked."""
    heads, rows = rendering.visible(table)
    right = rendering.numeric_columns(table)
    numbers = [name in right for name, _ in heads]
    return {
        "title": table.title,
        "heads": heads,
        "notes": list(table.notes),
        "rows": [
            {
                "guess": any(cell.startswith(GUESS) for cell in row),
                "cells": [{"text": text, "number": number} for text, number in zip(row, numbers, strict=True)],
            }
            for row in rows
        ],
    }


def _plot(figure: Any) -> Block:
    """Return a figure as a piece of HTML that uses the library inlined once at the top."""
    html = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return Block(kind="plot", html=html)
