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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sandtable import units
from sandtable.model.intervals import joined
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row, Rows
from sandtable_workloads.training.published.slm_paper_grid import cells, labels, machine_of, prices

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
            own = row.cells.get("figure") == "2" and set(column) == set(labels("gpu"))
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
        found = {gpu: best(row, gpu) for gpu in labels("gpu")}
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


def best(row: Row, gpu: str | None = None) -> Point | None:
    """Return the best configuration of those that a row leaves open, None if nothing fits.

    Args:
        row: A plotted point.
        gpu: Another GPU type than the row's.

    Raises:
        MalformedRow: a name that is not in the paper.
    """
    wanted = {"model": row.text("model"), "attention": row.text("attention")}
    for axis, name in wanted.items():
        if name not in labels(axis):
            raise MalformedRow(f"{axis} {name!r} is not in the paper")
    found, schemes = cells(), _choices(row.text("scheme"), "sharding")
    chosen = found["gpu"].isin(_choices(gpu or row.text("gpu"), "gpu")) & found["sharding"].isin(schemes)
    for axis, name in wanted.items():
        chosen &= found[axis] == name
    counts, global_batch = _counts(row), row.number("global_batch")
    # a scheme of communication needs a second GPU
    chosen &= found["devices"].isin(counts) if counts else (found["devices"] > 1) | (len(schemes) > 1)
    if global_batch is not None:
        chosen &= found["batch"] == global_batch
    fitting = found[chosen & (found["speed"] > 0)]
    return None if fitting.empty else _point(fitting.loc[fitting["speed"].idxmax()])


def _point(cell: Any) -> Point:
    """Return a configuration with what the stack allows for: laws know how far operators miss, not how they count."""
    value, low, high = (float(cell["work"] / cell[name]) for name in ("step_s", "high_s", "low_s"))
    stack = machine_of(cell["gpu"]).stack
    if stack is not None:
        sheet = stack.datasheet
        below = joined([(1 - low / value, 0.0), (1 - sheet.residual_low_frac, 0.0)])
        above = joined([(high / value - 1, 0.0), (sheet.residual_high_frac - 1, 0.0)])
        low, high = value * max(0.0, 1 - below), value * (1 + above)
    return Point(int(cell["devices"]), int(cell["micro_batch"]), str(cell["sharding"]), value, low, high)


def _counts(row: Row) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in row.text("n_gpus").split())
    except ValueError:
        raise MalformedRow(f"n_gpus: {row.text('n_gpus')!r} are not whole numbers") from None


def _choices(text: str, axis: str) -> list[str]:
    everything = labels(axis)
    if text in ("", "best"):
        return everything
    if text not in everything:
        raise MalformedRow(f"{text!r} is none of {', '.join(everything)}")
    return [text]
