"""Commands about many configurations, a paper's findings, published rows, and reports of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sandtable.cli.options import (
    FormatOption,
    ReportOption,
    SetOption,
    app,
)
from sandtable.cli.saving import save_report
from sandtable.cli.terminal import Format, emit, say


@app.command()
def cheapest(
    scenario: Annotated[str, typer.Argument(help="Scenario name or file.")],
    until: Annotated[list[str] | None, typer.Option(help="What to reach: tokens=10B, or loss=2.9.")] = None,
    within: Annotated[str | None, typer.Option(help="A deadline, such as '24 h': the cheapest within it.")] = None,
    budget: Annotated[str | None, typer.Option(help="Such as '500 USD': the fastest that it pays for.")] = None,
    machines: Annotated[
        str | None, typer.Option(help="Machines to look at, with commas between; none: all that can be rented.")
    ] = None,
    most_devices: Annotated[int, typer.Option("--most-devices", min=1, help="Most devices to use.")] = 64,
    parts: Annotated[
        bool, typer.Option("--parts", help="A part of a machine costs that part; else machines are paid for whole.")
    ] = False,
    spot: Annotated[bool, typer.Option("--spot", help="Take spot prices, where the price lists have one.")] = False,
    owned: Annotated[
        bool, typer.Option("--owned", help="Look at machines to own as well, at what that comes to an hour.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Leave out prices before this day; else those two years behind the latest.")
    ] = None,
    settings: SetOption = None,
    report: ReportOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Search the cheapest configuration under a deadline, or the fastest within a budget."""
    from sandtable.studies import cheapest as searching
    from sandtable.studies import cheapest_answer

    found = searching.search(
        scenario,
        settings=settings or (),
        machines=machines,
        until=until or (),
        most_devices=most_devices,
        parts=parts,
        spot=spot,
        owned=owned,
        since=since,
        within=within,
        budget=budget,
    )
    if format_ is Format.table:
        print(cheapest_answer.answer(found))
        emit(cheapest_answer.summary(found), format_)
    else:
        emit(cheapest_answer.table(found), format_)
    if report is not None:
        from sandtable.report import study_report

        study_report.write_cheapest(found, report)
        say(f"  report: {report}")
    cheapest_answer.check(found)


@app.command()
def findings(
    workload: Annotated[str, typer.Argument(help="A workload made after a paper.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for data and plots.")] = Path(
        "runs/findings"
    ),
    report: ReportOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Predict what a workload's paper found, and write each figure with its data."""
    from sandtable.report import lines
    from sandtable.studies.finding import findings_of
    from sandtable.workload.seam import workload_named

    found = findings_of(workload_named(workload).name)
    emit(lines.summary(found), format_)
    for path in lines.write(found, output):
        say(f"  {path}")
    if report is not None:
        from sandtable.report import study_report

        study_report.write_findings(workload, found, report)
        say(f"  report: {report}")


@app.command()
def published(
    data: Annotated[
        Path | None, typer.Argument(help="Folder of published measurements (CSV or Parquet); none: those shipped.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="One data set.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for scatter plots.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Predict published measurements, and score the predictions."""
    from sandtable.published import scoring
    from sandtable.report import rendering, scatter

    result = scoring.run(data, only=only)
    if format_ is Format.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        emit(rendering.published_table(result), format_)
        if format_ is Format.table:
            for line in rendering.published_notes(result):
                print(line)
    if plots is not None:
        for path in scatter.write_plots(result, plots):
            say(f"  plot: {path}")


@app.command("report")
def report_(
    runs: Annotated[list[str], typer.Argument(help="Run folders, run names, or 'latest'.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML report of runs."""
    from sandtable.runs import run_folder

    save_report([run_folder.open_run(name).path for name in runs], output)
