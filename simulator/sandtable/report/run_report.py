"""The report of runs: answers first, then the plots that fit the question, then tables in folds, sources last.

A run with a prediction alone is a report too, and a run folder that was written by an earlier version as well.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sandtable
from sandtable.engine.memory_pool import capacity_bytes
from sandtable.errors import ConfigError, SandtableError
from sandtable.hardware import Component, Machine, library
from sandtable.report import html, listing, plots, rendering
from sandtable.report.html import Block, Page, Section
from sandtable.results import Answer, ComparedMetric, Comparison, Measurement, Metric, Prediction, Result
from sandtable.runs import compare
from sandtable.runs.check import CHECK, CheckList
from sandtable.runs.run_folder import RunFolder
from sandtable.table import Quantity, Table
from sandtable.workload.seam import workload_named

# cards that stand open, one under another; those of a suite's further runs are in a fold
OPEN_CARDS = 4
MOST_SHOWN = 12
MONEY = "USD"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was found in one run folder; anything may be missing. ``check`` names the check that it is of."""

    name: str
    prediction: Prediction | None = None
    measurement: Measurement | None = None
    comparison: Comparison | None = None
    machine: Machine | None = None
    check: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> list[Result]:
        """Return the prediction and the measurement, those that exist."""
        return [result for result in (self.prediction, self.measurement) if result is not None]

    @property
    def scenario(self) -> str:
        """Return the scenario's name, or the folder's."""
        return str(self.results[0].scenario.get("name", self.name)) if self.results else self.name

    @property
    def question(self) -> str:
        """Return what was asked: the scenario's title, or its name."""
        return str(self.results[0].scenario.get("title", self.scenario)) if self.results else self.name


def write_report(runs: Iterable[Path], output: Path) -> Path:
    """Write the report of run folders to ``output``.

    Raises:
        ConfigError: no folder, or none with a prediction, measurement or comparison; or a broken record.
        NoDevice: matplotlib or jinja2 is not installed.
    """
    folders = dict.fromkeys(folder for path in runs for folder in _with_cases(path))
    return html.write(page_of([read_run(path) for path in folders]), output)


def _with_cases(path: Path) -> list[Path]:
    """Return a run folder, and after one of several scenarios that of each."""
    about = RunFolder(path).load(CheckList, CHECK)
    inside = about.folders if about is not None and len(about.folders) > 1 else ()
    return [path, *(path / folder for folder in inside)]


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
    about = folder.load(CheckList, CHECK)
    return Run(
        name=path.name,
        prediction=folder.prediction(),
        measurement=folder.measurement(),
        comparison=folder.comparison(),
        machine=machine,
        check="" if about is None else about.name,
        files=texts,
    )


def page_of(runs: Sequence[Run]) -> Page:
    """Return the page about runs.

    Raises:
        ConfigError: there is nothing in them.
    """
    if not any(run.results or run.comparison for run in runs):
        names = ", ".join(run.name for run in runs)
        raise ConfigError(
            f"{names}: no prediction, measurement or comparison to report; 'simulate', 'run' and 'check' leave such "
            "folders, and 'findings' and 'cheapest' write their own page with --report"
        )
    compared = _compared(runs)
    machines = {result.machine: run.machine for run in runs for result in run.results}
    named = [name if machine is None else f"{machine.title} ({name})" for name, machine in machines.items()]
    return Page(
        title=_title(runs, compared),
        subtitle=f"On {', '.join(named)}" if named else "",
        sections=(
            Section(id="answer", title="Answer", blocks=_answers(runs, compared)),
            Section(id="plots", title="At a glance", blocks=_plots(runs, compared)),
            Section(id="warnings", title="What to be careful about", blocks=_warnings(runs)),
            Section(id="numbers", title="All numbers", blocks=_numbers(runs, compared)),
            Section(id="machine", title="What the machine is taken to be", blocks=_machines(runs)),
            Section(id="provenance", title="How to get the same again", blocks=_provenance(runs)),
        ),
    )


def _title(runs: Sequence[Run], compared: Sequence[ComparedMetric]) -> str:
    questions = list(dict.fromkeys(run.question for run in runs if run.results))
    if len(questions) == 1:
        return questions[0]
    scenarios = {run.scenario for run in runs if run.results} | {row.scenario for row in compared}
    about = next((f" of {run.check}" for run in runs if run.check and run.check not in scenarios), "")
    return f"{len(scenarios)} scenarios{about}, {'predicted against measured' if compared else 'side by side'}"


# --- the answer --------------------------------------------------------------------------------------------


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


def _answers(runs: Sequence[Run], compared: Sequence[ComparedMetric]) -> list[Block]:
    """Return the verdict of a comparison, then a card per run, and whether its thresholds hold."""
    # the first comparison is that of the whole suite, where there is one
    comparison = next((run.comparison for run in runs if run.comparison is not None), None)
    if comparison is None and compared:
        comparison = compare.judge(compared)
    blocks = [] if comparison is None else _compared_answer(comparison)
    cards = [card for run in runs for card in _cards(run)]
    is_answered = comparison is not None and comparison.answer is not None
    if not cards or (len(cards) <= OPEN_CARDS and not is_answered):
        return blocks + cards
    text = "what the run itself answers" if len(cards) == 1 else f"the answer of each of {len(cards)} runs"
    return [*blocks, Block(kind="fold", text=text, inside=cards)]


def _compared_answer(comparison: Comparison) -> list[Block]:
    """Return what a comparison comes to: the answer that it carries, or its verdict; and its errors in a sentence."""
    css = {"pass": "pass", "fail": "fail"}.get(comparison.verdict, "soft")
    summary = Block(kind="text", text=rendering.summary_sentence(comparison))
    if comparison.answer is None:
        return [Block(kind="verdict", css=css, text=rendering.verdict_sentence(comparison)), summary]
    return [answer_card(comparison.answer, css=css), summary]


def _cards(run: Run) -> list[Block]:
    """Return what one run answers: what was measured where it ran, else what is predicted."""
    if not run.results:
        return []
    result = run.results[-1]
    inside = [*_answer(result), *(block for own in run.results for block in _thresholds(own))]
    return [Block(kind="card", text=run.question, inside=inside)]


def _answer(result: Result) -> list[Block]:
    """Return the answer that a result carries; what an earlier version wrote carries none, and gives its headlines."""
    kind = f"{'Predicted' if result.kind == 'prediction' else 'Measured'} on {result.machine}"
    if result.answer is None:
        facts = [f"{plots.words(name)}: {_with_interval(metric)}" for name, metric in _headlines(result).items()]
        notes = [" ".join(line.split()) for line in rendering.result_notes(result)]
        bound = [Block(kind="text", text=note) for note in notes if note.startswith("bound by")]
        return [Block(kind="text", css="soft", text=kind), Block(kind="list", rows=facts), *bound]
    return [Block(kind="text", css="soft", text=kind), *_answer_blocks(result.answer)]


def answer_card(answer: Answer, heading: str = "", css: str = "") -> Block:
    """Return an answer as a card, under its question or another heading, its verdict in the colour of good or bad."""
    return Block(kind="card", text=heading or answer.question, inside=_answer_blocks(answer, css))


def _answer_blocks(answer: Answer, css: str = "") -> list[Block]:
    caveat = f"! {answer.caveat}" if answer.caveat else ""
    blocks = [
        Block(kind="text", text=answer.subject),
        Block(
            kind="verdict", css=css or ("fail" if answer.verdict.startswith("No:") else "pass"), text=answer.verdict
        ),
        Block(kind="list", css="headlines", rows=answer.headlines),
        Block(kind="text", text=answer.bound),
        Block(kind="text", css="caveat", text=caveat),
    ]
    return [block for block in blocks if block.text or block.rows]


def _headlines(result: Result) -> dict[str, Metric]:
    """Return the speed, the time, the price and the memory of a result, as far as it has them."""
    found = {name: metric for name, metric in result.metrics.items() if metric.unit.endswith("/s")}
    picked = dict(list(found.items())[:1])
    picked |= {name: result.metrics[name] for name in plots.HEADLINES if name in result.metrics and not picked}
    picked |= dict([item for item in result.metrics.items() if item[1].unit.startswith(MONEY)][-2:])
    return picked | {name: result.metrics[name] for name in ("peak_memory_bytes",) if name in result.metrics}


def _with_interval(metric: Metric) -> str:
    value, low, high = (Quantity(end, metric.unit).text() for end in (metric.value, metric.low, metric.high))
    return value if plots.is_exact(metric) else f"{value} ({low} to {high})"


def _thresholds(result: Result) -> list[Block]:
    limits = result.scenario.get("thresholds") or {}
    try:
        found = compare.check_thresholds({str(key): str(text) for key, text in limits.items()}, result)
    except ConfigError as error:
        return [Block(kind="text", text=str(error))]
    return [
        Block(
            kind="text",
            css="pass" if held else "fail",
            text=f"{'✓' if held else '✗'} {result.kind}: {text} ({value:.4g})",
        )
        for text, held, value in found
    ]


# --- plots -------------------------------------------------------------------------------------------------


def _plots(runs: Sequence[Run], compared: Sequence[ComparedMetric]) -> list[Block]:
    """Return one to five plots: of a comparison how far off it is; of anything time, memory and money."""
    results = [result for run in runs for result in run.results]
    drawn = [
        (plots.scatter_figure, plots.scatter_data(compared)),
        (plots.interval_figure, plots.interval_data(compared)),
        (plots.time_figure, plots.time_data(results)),
        (
            plots.memory_figure,
            plots.memory_data([(result, _capacity(run)) for run in runs for result in run.results]),
        ),
        (plots.spread_figure, plots.spread_data(results[0]) if len(results) == 1 else plots.cost_data(results)),
    ]
    return [Block(kind="plot", table=data, draw=draw) for draw, data in drawn if data.rows]


def _capacity(run: Run) -> tuple[float, float] | None:
    """Return the bytes that a run's work may take on its machine, and those kept for the system; None if unknown."""
    if run.machine is None or not run.results:
        return None
    scenario = run.results[0].scenario
    try:
        workload = workload_named(str(scenario.get("workload")))
        parameters = workload.parameters.model_validate(scenario.get("parameters"))
        judged = next(iter(workload.verdicts([parameters], run.machine)), None)
    except (SandtableError, ValueError):
        return None
    return (capacity_bytes(run.machine), 0.0) if judged is None else (judged.has_bytes, judged.reserve_bytes)


# --- tables ------------------------------------------------------------------------------------------------


def _numbers(runs: Sequence[Run], compared: Sequence[ComparedMetric]) -> list[Block]:
    """Return money in the open, and every other number in folds, those of several runs in one."""
    blocks = [Block(kind="table", table=money) for money in [_money(runs)] if money.rows]
    if compared:
        blocks += _comparisons(compare.judge(compared))
    own = [fold for run in runs for fold in _metrics(run)]
    own += [fold for run in runs[:MOST_SHOWN] for fold in _units(run)]
    if len(runs) > 1 and own:
        own = [Block(kind="fold", text="every number of each run", inside=own, appendix=True)]
    return blocks + own


def _metrics(run: Run) -> list[Block]:
    folds = []
    for result in run.results:
        title = f"{run.scenario}: every metric of the {result.kind} on {result.machine}"
        inside = [Block(kind="table", table=rendering.metrics_table(result))]
        inside += [Block(kind="text", text=line.strip()) for line in rendering.result_notes(result)]
        folds.append(Block(kind="fold", text=title, inside=inside))
    return folds


def _units(run: Run) -> list[Block]:
    data = plots.latency_data(run.prediction, run.measurement)
    if not any(row[0] == "measurement" for row in data.rows):
        return []
    plot = Block(kind="plot", table=data, draw=plots.latency_figure)
    return [Block(kind="fold", text=f"{run.scenario}: one unit of work after another", inside=[plot])]


def _comparisons(judged: Comparison) -> list[Block]:
    """Return predicted beside measured, of several scenarios first the mean times alone."""
    main, by_metric = rendering.headlines(judged), rendering.metric_errors_table(judged)
    views = [("predicted against measured", main), ("predicted against measured, every metric", judged)]
    blocks = [Block(kind="table", table=by_metric)] if by_metric.rows else []
    return blocks + [
        Block(
            kind="fold",
            text=f"{text}, the worst first",
            inside=[Block(kind="table", table=rendering.comparison_table(shown, worst_first=True))],
            appendix=number > 0,
        )
        for number, (text, shown) in enumerate(views if main is not judged else views[1:])
    ]


def _money(runs: Sequence[Run]) -> Table:
    """Return the prices of the few results that a reader compares, with their intervals."""
    rows = (
        [
            [run.scenario, name, _with_interval(metric)]
            for run in runs[:MOST_SHOWN]
            for name, metric in run.results[-1].metrics.items()
            if metric.unit.startswith(MONEY)
        ]
        if all(run.results for run in runs)
        else []
    )
    return Table(columns=("scenario", "money", "value (90 % interval)"), rows=rows, title="What it costs")


# --- the machine -------------------------------------------------------------------------------------------


def _machines(runs: Sequence[Run]) -> list[Block]:
    """Return for each machine what its numbers are: guesses that results rest on, fitted constants, all."""
    blocks = []
    texts = dict.fromkeys(run.files["machine.yaml"] for run in runs if "machine.yaml" in run.files)
    for text in texts:
        own = [run for run in runs if run.files.get("machine.yaml") == text]
        machine = own[0].machine
        if machine is None:
            blocks.append(Block(kind="code", text=text))
            continue
        guesses = list(dict.fromkeys(guess for run in own if run.prediction for guess in run.prediction.guesses))
        blocks += _machine(machine, guesses)
    return blocks


def _machine(machine: Machine, guesses: Sequence[str]) -> list[Block]:
    every = listing.device_table(machine)
    by_path = {f"{row[0]}: {row[1]}": row for row in every.rows}
    marked = frozenset(place for place, path in enumerate(by_path) if path in guesses)
    fitted = [row for row in every.rows if "fitted." in row[1]]
    rows = [by_path.get(guess) or _of_a_family(guess) for guess in guesses]
    count = f"{len(guesses)} numbers that results rest on are guesses" if guesses else "no result rests on a guess"
    storage = machine.storage
    folds = [
        Block(kind="fold", text=text, inside=[Block(kind="table", table=table, shaded=frozenset())], appendix=True)
        for text, table in (
            (f"the {len(rows)} guesses", Table(columns=every.columns, rows=rows)),
            (f"{len(fitted)} fitted constants", Table(columns=every.columns, rows=fitted)),
        )
        if table.rows
    ]
    if storage.measurements or storage.fitted is not None:
        plot = Block(kind="plot", table=plots.storage_data(storage), draw=plots.storage_figure)
        folds.append(Block(kind="fold", text="how fast the storage reads", inside=[plot]))
    shown = Block(kind="table", table=every, shaded=marked)
    note = Block(kind="text", css="soft", text="Shaded: the guesses that results rest on.")
    every_fold = Block(kind="fold", text=f"all {len(every.rows)} numbers", inside=[note, shown], appendix=True)
    return [
        Block(kind="heading", text=machine.title),
        Block(kind="text", text=f"{count[0].upper()}{count[1:]}."),
        *folds,
        every_fold,
    ]


def _of_a_family(guess: str) -> list[str]:
    """Return the row of a number that all devices of a family take as given."""
    name, _, path = guess.partition(": ")
    try:
        rows = listing.device_table(library.family(name)).rows
    except SandtableError:
        rows = []
    return next((list(row) for row in rows if row[1] == path), [name, path, "", "", ""])


# --- warnings and sources ----------------------------------------------------------------------------------


def _warnings(runs: Sequence[Run]) -> list[Block]:
    found: dict[str, list[str]] = {}
    for run in runs:
        for result in run.results:
            validity = result.validity if isinstance(result, Measurement) else ()
            for text in (*result.warnings, *validity):
                found.setdefault(text, []).append(run.scenario)
    one = len({run.scenario for run in runs if run.results}) == 1
    sentences = [text if one else f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in found.items()]
    if len(sentences) <= MOST_SHOWN:
        return [Block(kind="list", rows=sentences)] if sentences else []
    return [Block(kind="fold", text=f"{len(sentences)} warnings", inside=[Block(kind="list", rows=sentences)])]


def _provenance(runs: Sequence[Run]) -> list[Block]:
    rows = [["sandtable", sandtable.__version__], ["python", platform.python_version()]]
    environments = {json.dumps(r.measurement.environment, sort_keys=True) for r in runs if r.measurement}
    for text in sorted(environments):
        rows += [[f"measured on: {key}", str(value)] for key, value in json.loads(text).items() if value]
    for run in runs:
        rows += [[f"{run.name}: machine", f"{r.machine} {r.machine_digest}".strip()] for r in run.results[:1]]
    blocks = []
    commands = list(dict.fromkeys(_command(run) for run in runs if run.results))
    if commands:
        blocks.append(Block(kind="text", text="In the run's folder:"))
        blocks.append(Block(kind="code", text="\n".join(commands)))
    table = Table(columns=("what", "value"), rows=rows)
    blocks.append(Block(kind="fold", text="versions and machines", inside=[Block(kind="table", table=table)]))
    texts = {run.name: run.files["scenario.yaml"] for run in runs[:MOST_SHOWN] if "scenario.yaml" in run.files}
    folds = [
        Block(kind="fold", text=f"{name}: scenario.yaml", inside=[Block(kind="code", text=text)])
        for name, text in texts.items()
    ]
    blocks += folds if len(folds) < 2 else [Block(kind="fold", text="the scenarios", inside=folds, appendix=True)]
    sources = _sources(runs)
    if sources:
        table = Table(columns=("device", "number", "source"), rows=sources)
        inside = [Block(kind="table", table=table)]
        blocks.append(Block(kind="fold", text="sources of the numbers", inside=inside, appendix=True))
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
