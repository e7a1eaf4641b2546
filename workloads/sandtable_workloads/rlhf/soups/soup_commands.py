"""The command ``sandtable soup``: average checkpoints in weight space.

Found by the name of this file; see `sandtable.plugins.command_modules`. What it does lies in `soup_making` and
`soup_use` and is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sandtable import units
from sandtable.cli.options import FormatOption, FullOption
from sandtable.cli.terminal import Format, emit, progress, say
from sandtable.errors import ConfigError
from sandtable.workload.progress import Step

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_WEIGHTS = "--weights"


class _ManyWeights(TyperCommand):
    """A command whose ``--weights`` takes all the numbers that follow it, negative ones too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers after ``--weights`` by commas, which is how one value holds several."""
        found: list[str] = []
        for word in args:
            if len(found) > 1 and found[-2] == _WEIGHTS and _is_number(word):
                found[-1] += f",{word}"
            else:
                found.append(word)
        return super().parse_args(ctx, found)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@app.command(cls=_ManyWeights)
def soup(
    models: Annotated[
        list[Path], typer.Argument(help="Folders as Hugging Face writes them, or safetensors files.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the soup goes: a folder, or a file.")],
    weights: Annotated[
        str | None,
        typer.Option(_WEIGHTS, help="One for each, with a sum of one: 0.3 0.7, or 0.3,0.7. Equal without."),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide weights by their sum.")] = False,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Keep only models with which the score does not fall.")
    ] = False,
    score: Annotated[
        str | None,
        typer.Option(
            "--score", help="Command that prints a score, higher is better; {} stands for the checkpoint."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; that of the models without.")
    ] = None,
    memory: Annotated[str, typer.Option("--memory", help="What the process may take.")] = "2 GB",
    ignore_tokenizer: Annotated[
        bool, typer.Option("--ignore-tokenizer", help="Average models whose tokenizers differ.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Average infinities and NaNs too, with a warning.")
    ] = False,
    full: FullOption = False,
    format_: FormatOption = Format.table,
) -> None:
    """Average checkpoints in weight space: uniform, weighted, or greedy by a score."""
    from sandtable_workloads.rlhf.soups import soup_making, soup_use

    if greedy != (score is not None):
        raise ConfigError("--greedy needs --score, and --score --greedy: what tells which models stay")
    if greedy and (weights or normalize):
        raise ConfigError("a greedy soup is uniform: leave out --weights and --normalize")
    if len(models) < 2:
        raise ConfigError("name at least two checkpoints to average")
    with progress() as shown:
        options = soup_making.SoupOptions(
            dtype=dtype,
            memory_bytes=soup_use.room(memory),
            ignore_tokenizer=ignore_tokenizer,
            allow_nonfinite=allow_nonfinite,
            say=say,
            progress=lambda done, total: shown(_step(done, total)),
        )
        if score is not None:
            command = score
            found = soup_making.greedy_soup(
                models, output, lambda path: soup_use.scored_by(command, path), options=options
            )
        else:
            found = soup_making.soup(models, output, _numbers(weights), normalize=normalize, options=options)
    emit(soup_use.table(found), format_, answer=soup_use.answer(found), full=full)


def _step(done: int, total: int) -> Step:
    return Step(f"{units.format_bytes(done)} written", 100 * done // max(total, 1), 100)


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(word) for word in weights.replace(",", " ").split()]
    except ValueError as error:
        raise ConfigError(f"--weights are numbers with commas or blanks between, not {weights!r}") from error
