"""Figures 1 to 4 of "Computational Bottlenecks of Training Small-scale Language Models" (PMLR v262, arXiv 2410.19456).

Every plotted point is the best over whatever its axes leave open: per-device batch, communication scheme, GPU type and
number of GPUs (section 3). The prediction takes the same maximum over the configurations that fit into memory, by the
closed form. What is plotted as tokens per dollar are tokens per second and GPU, over the GPU's price relative to an
A100 40 GB (Table 1): only so are the figures speeds that these GPUs can have, and dollars do not matter. Figures 2 and
3 name the GPU, and are scored in tokens per second and GPU; Figures 1 and 4 do not, and are scored as plotted.

Each point is a mean over ten training steps (section 3); no warm-up is mentioned, so the first step is one of them. A
scheme of communication needs at least two GPUs: the figures by scheme hold none of the values of one GPU.

PyTorch's FSDP, unless told how to wrap, makes one unit of a model and so gathers and scatters all of it at once, beside
nothing. The paper does not say how it wrapped; that its FSDP is slower than DDP between machines (Figure 3) speaks for
the default, and the prediction takes that: no overlap with FSDP.

The paper says that all GPUs computed in bfloat16, and nothing of the optimiser. Which runs fit says more: with moments
in bfloat16, 2B with DDP would fit at 1024 sequences, where it did not; with float32 weights, 2B would not train on
40 GB, where it did. The prediction takes weights in bfloat16 and moments in float32. One run still disagrees: 2B with
vanilla attention at 512 sequences ran, and is predicted to need 5 % more than there is.

A data set of the same columns may hold more models. ``n_gpus`` may list several; a value of 0 means out of memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from sandtable import units
from sandtable.hardware import Machine, library
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row, Rows
from sandtable_workloads.training import slm_training
from sandtable_workloads.training.training_parameters import SlmTraining

STACK = "huggingface_pytorch_2_3"
DATA = Path(__file__).parent / "data"
# cloud machines with eight of them; the paper names AWS's network adapters (EFA)
MACHINES = {"A100-40GB": "aws_p4d_24xlarge", "A100-80GB": "aws_p4de_24xlarge", "H100-80GB": "aws_p5_48xlarge"}
# section 3: the grid, and the steps of a run
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (4, 8, 16, 32, 64)
SCHEMES = ("ddp", "fsdp_full", "fsdp_grad_op")
ATTENTION = ("vanilla", "flash")
SEQUENCE_TOKENS = 1024
STEPS = 10
PRESETS = {"100M": "slm_100m", "500M": "slm_500m", "1B": "slm_1b", "2B": "slm_2b"}

SPEED = "tokens_per_s_per_device"
BY_FIGURE = {
    "1": f"{SPEED}.by_attention",
    "2": f"{SPEED}.by_gpu",
    "3": f"{SPEED}.by_nodes",
    "4": f"{SPEED}.by_batch",
}
RANK = "price_rank"
# columns that reading adds: the first and the last place that a value's error bar leaves open
FIRST, LAST = "first_rank", "last_rank"
OOM_AGREED = "out of memory, as predicted"
OOM_MISSED = "out of memory, predicted to fit"
OOM_WRONG = "predicted to be out of memory, but fits"
ANCHOR = "an anchor: a number in a device file is made from this cell"


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of the grid that fits: what is plotted of it, with its 90 % interval."""

    n_gpus: int
    batch: int
    scheme: str
    value: float
    low: float
    high: float


class SlmPaper(Adapter):
    """The paper's cost-efficiency, predicted by the same search.

    ``price_rank`` is the place of a GPU type among the three by tokens per price, 1 to 3, at one number of GPUs. Where
    error bars overlap, the paper leaves several places open: the measured one is then the nearest of those.
    """

    name: ClassVar[str] = "slm_paper"
    title: ClassVar[str] = "Bottlenecks of training small language models, Figures 1 to 4"
    metrics: ClassVar[tuple[str, ...]] = (*(BY_FIGURE[figure] for figure in "2134"), RANK)

    def read(self, folder: Path) -> Rows:
        """Return the rows; those of Figure 2 with their rank among the GPU types, where all are there."""
        rows = super().read(folder)
        columns: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            if row.cells.get("figure") == "2":
                columns.setdefault((row.text("model"), row.text("n_gpus")), {})[row.text("gpu")] = row
        places = []
        for row in rows:
            column = columns.get((row.cells.get("model", ""), row.cells.get("n_gpus", "")), {})
            own = row.cells.get("figure") == "2" and set(column) == set(MACHINES)
            places.append(measured_ranks(row, list(column.values())) if own else ("", ""))
        first, last = zip(*places, strict=True) if places else ((), ())
        return Rows(rows.frame.assign(**{FIRST: first, LAST: last}))

    def predict(self, row: Row) -> Outcome:
        """Predict one plotted point, and its rank."""
        figure, measured = row.text("figure"), row.number("tokens_per_price")
        if figure not in BY_FIGURE or measured is None:
            raise MalformedRow(f"figure {figure!r} without a value, or none of the paper's")
        found = best(row)
        if not measured:
            return Skipped(OOM_AGREED if found is None else OOM_MISSED)
        if found is None:
            return Skipped(OOM_WRONG)
        if row.text("anchor"):
            return Skipped(ANCHOR)
        return [self._speed(row, figure, measured, found), self._rank(row)]

    def _speed(self, row: Row, figure: str, measured: float, found: Point) -> Scored:
        price = prices()[row.text("gpu")] if figure in "23" else 1.0
        metric = BY_FIGURE[figure]
        return Scored(
            row_id=f"line {row.line}",
            metric=metric,
            unit=units.unit_of(metric),
            predicted=found.value * price,
            low=found.low * price,
            high=found.high * price,
            measured=measured * price,
            label=f"{_label(row)}: {found.n_gpus} x {found.batch}, {found.scheme}",
            group=f"Figure {figure}, {row.text('model')}",
        )

    def _rank(self, row: Row) -> Scored | Skipped:
        first, last = row.number(FIRST), row.number(LAST)
        if first is None or last is None:
            return Skipped("not a comparison of all GPU types", RANK)
        found = {gpu: best(row, gpu) for gpu in MACHINES}
        speeds = {gpu: point.value for gpu, point in found.items() if point is not None}
        predicted = float(ranks(speeds)[row.text("gpu")])
        return Scored(
            row_id=f"line {row.line}",
            metric=RANK,
            unit=units.unit_of(RANK),
            predicted=predicted,
            low=predicted,
            high=predicted,
            measured=min(max(predicted, first), last),
            label=_label(row),
            group=row.text("model"),
        )


def _label(row: Row) -> str:
    names = ("model", "gpu", "n_gpus", "scheme", "attention", "global_batch")
    return " ".join((f"Figure {row.text('figure')}", *filter(None, map(row.text, names))))


def measured_ranks(row: Row, column: Sequence[Row]) -> tuple[str, str]:
    """Return the first and the last place that a row's error bar leaves it among the rows of a column."""
    low, high = _bar(row)
    bars = [_bar(other) for other in column if other is not row]
    above = sum(other_low > high for other_low, _ in bars)
    below = sum(other_high < low for _, other_high in bars)
    return str(1 + above), str(1 + len(bars) - below)


def _bar(row: Row) -> tuple[float, float]:
    value, half = row.number("tokens_per_price") or 0.0, row.number("half_error") or 0.0
    return value - half, value + half


def ranks(values: dict[str, float]) -> dict[str, int]:
    """Return the place of each key, from the largest value down, starting at 1."""
    ordered = sorted(values, key=lambda key: -values[key])
    return {key: 1 + ordered.index(key) for key in values}


@lru_cache(maxsize=1)
def prices() -> dict[str, float]:
    """Return the price of a GPU relative to an A100 40 GB, as the paper uses it."""
    import pandas as pd

    table = pd.read_csv(DATA / "slm_paper_prices.csv", dtype=str)
    return dict(zip(table["gpu"], table["used"].map(float), strict=True))


def best(row: Row, gpu: str | None = None) -> Point | None:
    """Return the best configuration of those that a row leaves open, None if nothing fits.

    Args:
        row: A plotted point.
        gpu: Another GPU type than the row's.
    """
    gpus = _choices(gpu or row.text("gpu"), tuple(MACHINES))
    schemes = _choices(row.text("scheme"), SCHEMES)
    counts = _counts(row) or (COUNTS if len(schemes) > 1 else COUNTS[1:])
    global_batch = row.number("global_batch")
    points = [
        point
        for one in gpus
        for point in grid(row.text("model"), row.text("attention"), one)
        if point.n_gpus in counts
        and point.scheme in schemes
        and (global_batch is None or point.n_gpus * point.batch == global_batch)
    ]
    return max(points, key=lambda point: point.value, default=None)


def _counts(row: Row) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in row.text("n_gpus").split())
    except ValueError:
        raise MalformedRow(f"n_gpus: {row.text('n_gpus')!r} are not whole numbers") from None


def _choices(text: str, everything: tuple[str, ...]) -> tuple[str, ...]:
    if text in ("", "best"):
        return everything
    if text not in everything:
        raise MalformedRow(f"{text!r} is none of {', '.join(everything)}")
    return (text,)


@lru_cache(maxsize=64)
def grid(model: str, attention: str, gpu: str) -> tuple[Point, ...]:
    """Return all configurations of the paper's grid on one GPU type that fit into its memory.

    Raises:
        MalformedRow: not a model or an attention of the paper.
    """
    if model not in PRESETS or attention not in ATTENTION:
        raise MalformedRow(f"model {model!r} with {attention!r} attention is not in the paper")
    machine = _machine(gpu)
    combinations = list(itertools.product(COUNTS, BATCHES, SCHEMES))
    candidates = [_parameters(model, attention, *combination) for combination in combinations]
    fits = [slm_training.verdict(candidate, machine).fits for candidate in candidates]
    fitting = list(itertools.compress(zip(candidates, combinations, strict=True), fits))
    estimates = slm_training.estimate([candidate for candidate, _ in fitting], machine)
    found = []
    for (_, (n_gpus, batch, scheme)), times in zip(fitting, estimates, strict=True):
        tokens = batch * SEQUENCE_TOKENS / prices()[gpu]
        value, low, high = (tokens / times[name] for name in ("step_s", "high_s", "low_s"))
        low, high = _with_software(machine, value, low, high)
        found.append(Point(n_gpus, batch, scheme, value, low, high))
    return tuple(found)


def _with_software(machine: Machine, value: float, low: float, high: float) -> tuple[float, float]:
    """Return the interval with what the stack allows for: laws know how far operators miss, not how well they count."""
    if machine.stack is None:
        return low, high
    sheet = machine.stack.datasheet
    below = math.hypot(1 - low / value, 1 - sheet.residual_low_frac)
    above = math.hypot(high / value - 1, sheet.residual_high_frac - 1)
    return value * max(0.0, 1 - below), value * (1 + above)


def _parameters(model: str, attention: str, n_gpus: int, batch: int, scheme: str) -> SlmTraining:
    return SlmTraining(
        model=PRESETS[model],
        sequence_tokens=SEQUENCE_TOKENS,
        micro_batch=batch,
        devices=n_gpus,
        sharding=scheme,
        attention=attention,
        precision="bfloat16",
        optimizer_dtype="float32",
        overlap_gradients=scheme == "ddp",
        steps=STEPS,
        warmup_steps=0,
    )


@lru_cache(maxsize=8)
def _machine(gpu: str) -> Machine:
    return library.load_machine(MACHINES[gpu], {"stack": STACK})
