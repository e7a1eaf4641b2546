"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandtable.cli.options import (
    STORES,
    FormatOption,
    FullOption,
    app,
)
from sandtable.cli.terminal import Format, emit, progress, put, say


@app.command()
def calibrate(
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute and a half, with wider intervals.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Parts to measure: storage,memory,compute,gpu, and groups of operators, which 'sandtable list "
            "kernels' names. gpu: this machine's NVIDIA GPUs, timed through PyTorch; copies, power, and collectives "
            "where there are several."
        ),
    ] = None,
    storage_path: Annotated[Path, typer.Option("--storage-path", help="Folder on the disk to measure.")] = STORES,
    file_size: Annotated[
        str | None, typer.Option("--file-size", help="Size of the test file, such as '4 GiB'.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Machine file to write.")] = Path(
        "this_machine.yaml"
    ),
    cross_check: Annotated[
        str | None, typer.Option("--cross-check", help="'fio': compare the storage curve.")
    ] = None,
    refit: Annotated[
        str | None, typer.Option("--refit", help="Fit a storage device file to its own points.")
    ] = None,
    keep_file: Annotated[bool, typer.Option("--keep-file", help="Keep the test file for the next time.")] = False,
    from_data: Annotated[
        Path | None,
        typer.Option("--from-data", help="Fit operators of device files to this folder of published rows."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --from-data: print, write nothing.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="Keep what was timed on GPUs in this file, to hand on.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Calibrate GPUs from such a file instead of timing them.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a calibration that was ended, as it was begun.")
    ] = False,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Measure this machine's storage, memory, processor and GPUs, fit the model, and write a machine file."""
    from sandtable.calibration import session
    from sandtable.cli import calibrate_tables

    if from_data is not None:
        _calibrate_from_data(from_data, only, dry_run, format_)
        return
    if refit is not None:
        emit(calibrate_tables.refit_device(refit), format_)
        return
    with progress() as shown:
        found = session.run(
            quick=quick,
            only=only,
            folder=storage_path,
            file_size=file_size,
            output=output,
            cross_check=cross_check,
            keep_file=keep_file,
            progress=shown,
            record=record,
            replay=replay,
            resume=resume,
        )
    if format_ is Format.table:
        put(found.answer)
    if full or format_ is not Format.table:
        for table in calibrate_tables.tables(found):
            emit(table, format_)
    # the first stands in the answer
    for warning in found.warnings[1:] if format_ is Format.table else found.warnings:
        say(f"  ! {warning}")
    say(f"  wrote {output} in {found.seconds:.0f} s")


def _calibrate_from_data(folder: Path, only: str | None, dry_run: bool, format_: Format) -> None:
    from sandtable.published import fit_rows

    found = fit_rows.fit_all(folder, None if only is None else [name.strip() for name in only.split(",")])
    paths = [] if dry_run else fit_rows.write(found)
    for table in found.tables:
        emit(table, format_)
    for note in found.notes:
        say(f"  ! {note}")
    for path in paths:
        say(f"  wrote {path}")
