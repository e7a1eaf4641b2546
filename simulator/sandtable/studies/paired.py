"""What a change makes of a prediction, with the errors that both ends share taken out of the difference.

Two predictions on one machine rest on the same constants: whether the processor's law reads 5 % high makes hardly any
difference to the ratio of two times that are mostly the processor's. So the errors of both ends are carried back to
where they come from (`sandtable.model.error_sources`): an error belongs to a law of a part of the machine, and parts
that are equal on both sides share it. Parts that differ err independently.

With r the ratio after / before of a metric, w and w' its weights after and before::

    ln r ~ N(ln(after / before), miss(w - w') / 1.645)       after - before ~ N(.., miss(after w - before w') / 1.645)

each side of the interval with its own width. Exact metrics, such as counts, have no weights; equal ends a ratio of
exactly one without width; exchanging the ends inverts every ratio and its interval.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

from sandtable import units
from sandtable.engine.recorder import ACCOUNT_OF_COLUMN
from sandtable.hardware import Component
from sandtable.model.error_sources import Source, Weights, less, miss_of
from sandtable.results import NORMAL_95, Metric, Prediction, Record
from sandtable.runs.answers.answer_card import resource_name
from sandtable.runs.predict import Foreseen
from sandtable.runs.reduction import MAKESPAN, STATISTICS
from sandtable.table import Quantity, Table

WHOLE_S, WHOLE_USD = "campaign_s", "campaign_usd"
# what a change is told in, the first that there is; else in what the workload counts, and in steps last
HEADLINES, LAST_HEADLINE = ("tokens_per_s", "requests_per_s"), "steps_per_s"
CERTAIN = 0.99
LEAST_SHOWN = 0.0005
# a step of the logarithm of all times, for the slopes of what follows from them
STEP = 1e-4
# what of a component no time follows from
NOT_TIMED = {"name", "title", "notes", "sources", "price", "power", "variants", "measurements"}
LOWER_IS_BETTER = ("s", "J", "bytes")
MONEY = "USD"
HIGHER_IS_BETTER = ("_per_s", "_per_usd", "_per_s_per_device", "mfu", "hfu")


class Change(Record):
    """What becomes of one metric: both values, their ratio after / before with its 90 % interval.

    ``probability`` is that of a change for the better, None where neither direction is better or nothing changes.
    ``saved`` is, of money, before less after, with its interval.
    """

    before: float
    after: float
    ratio: float
    ratio_low: float
    ratio_high: float
    probability: float | None
    unit: str
    saved: Metric | None = None

    @property
    def certain(self) -> bool:
        """Whether the interval of the ratio leaves out that nothing changes."""
        return self.ratio != 1 and not self.ratio_low <= 1 <= self.ratio_high


@dataclass(frozen=True)
class Side:
    """One end of a comparison."""

    foreseen: Foreseen

    @cached_property
    def parts(self) -> dict[tuple[str, str], str]:
        """A digest of what serves ops, by resource and by where they run."""
        machine = self.foreseen.machine
        accelerator = machine.accelerator
        found: dict[tuple[str, str], list[Component | None]] = {}
        for resource in ("memory", "compute"):
            found[resource, "host"] = [machine.processor, machine.memory, machine.stack]
            if accelerator is not None:
                found[resource, "accelerator"] = [accelerator.processor, accelerator.memory, machine.stack]
        for on in ("host", "accelerator"):
            found["storage", on] = [machine.storage]
            found["link", on] = [None if accelerator is None else accelerator.link, machine.stack]
            found["network", on] = [machine.group_link, machine.network, machine.stack]
        return {key: _digest(components) for key, components in found.items()}

    @cached_property
    def slopes(self) -> dict[str, float]:
        """By how many percent each metric rises when all ops take a percent longer."""
        one, metrics = self.foreseen, self.foreseen.prediction.metrics
        primary = {name: metrics[name] for name in one.slopes} | {"peak_memory_bytes": metrics["peak_memory_bytes"]}
        moved = {
            name: _times(metric, math.exp(STEP * one.slopes.get(name, 0.0))) for name, metric in primary.items()
        }
        then = one.following(moved, one.busy_s * math.exp(STEP))
        found = {
            name: math.log(metric.value / metrics[name].value) / STEP
            for name, metric in then.items()
            if name in metrics and metric.value > 0 and metrics[name].value > 0
        }
        return {**one.slopes, **found}

    def weights(self, name: str) -> Weights:
        """Return by how much a metric follows the error of each source."""
        metric, slope = self.foreseen.prediction.metrics[name], self.slopes.get(name, 0.0)
        if metric.low == metric.high or slope == 0:
            return {}
        seconds = self._seconds(name)
        total = sum(seconds.values())
        return {key: slope * part / total for key, part in seconds.items()} if total else {}

    def _seconds(self, name: str) -> dict[tuple[str, Source], float]:
        units, account, section = self._of(name)
        found: dict[tuple[str, Source], float] = {}
        for (unit, booked, within), sources in self.foreseen.run.sources.items():
            if (units is None or unit in units) and account in (None, booked) and section in (None, within):
                for source, seconds in sources.items():
                    key = self.parts[source.resource, source.on], source
                    found[key] = found.get(key, 0.0) + seconds
        return found

    def _of(self, name: str) -> tuple[tuple[str, ...] | None, str | None, str | None]:
        """Return of which kinds of units, account and section a metric is; None for all."""
        process = self.foreseen.process
        base, _, statistic = name.rpartition(".")
        base = base if statistic in STATISTICS else name
        sections = {f"{section}_s": section for _, _, section in self.foreseen.run.sources}
        account, section = ACCOUNT_OF_COLUMN.get(base), sections.get(base)
        if not process.phases or base == MAKESPAN:
            return None, account, section
        if base in process.sums:
            return process.sums[base], None, None
        others = [unit for unit in process.phases if unit != process.main_unit and base == f"{unit}_s"]
        return tuple(others) or (process.main_unit,), account, section


def _digest(components: list[Component | None]) -> str:
    dumped = (c.model_dump_json(exclude=_untimed(c)) for c in components if c is not None)
    return hashlib.sha256("\n".join(dumped).encode()).hexdigest()


def _untimed(component: Component) -> dict[str, Any]:
    # how much a part holds says nothing of how fast it is
    return dict.fromkeys(NOT_TIMED, True) | {"datasheet": {"capacity_bytes": True}}


def _times(metric: Metric, factor: float) -> Metric:
    ends = {end: getattr(metric, end) * factor for end in ("value", "low", "high")}
    return metric.model_copy(update=ends)


# --- what changes ------------------------------------------------------------------------------------------------


def changes(before: Foreseen, after: Foreseen) -> dict[str, Change]:
    """Return what becomes of each metric that both have, in order; those that were zero before are left out."""
    old, new = before.prediction.metrics, after.prediction.metrics
    sides = Side(before), Side(after)
    both = [name for name in old if name in new and old[name].value > 0 and new[name].value > 0]
    return {name: change(name, *sides) for name in both}


def change(name: str, before: Side, after: Side) -> Change:
    """Return what becomes of a metric that both sides have and neither has as zero."""
    old, new = (side.foreseen.prediction.metrics[name] for side in (before, after))
    first, second = before.weights(name), after.weights(name)
    ratio = new.value / old.value
    below, above = _own(old, new) if name == "peak_memory_bytes" else miss_of(less(second, first))
    return Change(
        before=old.value,
        after=new.value,
        ratio=ratio,
        ratio_low=ratio * math.exp(-below),
        ratio_high=ratio * math.exp(above),
        probability=probability(name, old.unit, math.log(ratio), below, above),
        unit=old.unit,
        saved=_saved(old, new, first, second) if old.unit.startswith(MONEY) else None,
    )


def _own(old: Metric, new: Metric) -> tuple[float, float]:
    """Return the misses of a ratio of two values that err on their own; equal ones are of one thing."""
    if old.value == new.value:
        return 0.0, 0.0
    ends = [(math.log(m.value / m.low), math.log(m.high / m.value)) for m in (old, new)]
    return math.hypot(ends[1][0], ends[0][1]), math.hypot(ends[1][1], ends[0][0])


def _saved(old: Metric, new: Metric, first: Weights, second: Weights) -> Metric:
    below, above = miss_of(less(first, second, times=old.value, times_before=new.value))
    value = old.value - new.value
    return Metric(value=value, low=value - below, high=value + above, unit=old.unit, derived=True)


def saving(saved: Metric) -> dict[str, float]:
    """Return an amount saved as columns."""
    return {"saved": saved.value, "saved_low": saved.low, "saved_high": saved.high}


def probability(name: str, unit: str, change: float, below: float, above: float) -> float | None:
    """Return the probability that a metric changed for the better, from the logarithm of its ratio and its misses."""
    wanted = better(name, unit)
    if wanted == 0 or (change == 0 and below == above == 0):
        return None
    miss = below if change > 0 else above
    rises = float(change > 0) if miss == 0 else NormalDist().cdf(NORMAL_95 * change / miss)
    return rises if wanted > 0 else 1 - rises


def better(name: str, unit: str) -> int:
    """Return whether more of a metric is better (1) or worse (-1); 0 where it is neither."""
    base = name.rpartition(".")[0] if name.rpartition(".")[2] in STATISTICS else name
    if base.endswith(HIGHER_IS_BETTER):
        return 1
    return -1 if unit in LOWER_IS_BETTER or unit.startswith(MONEY) else 0


# --- showing -----------------------------------------------------------------------------------------------------


def table(before: Prediction, after: Prediction, changed: Mapping[str, Change], *, saved: bool = False) -> Table:
    """Return both predictions beside each other, with the ratio of each metric and its interval.

    With ``saved``, of money also what is saved, with the ends of its interval: columns for programs.
    """
    old, new = before.metrics, after.metrics
    names = dict.fromkeys((*old, *new))
    rows = [_row(name, old.get(name), new.get(name), changed.get(name)) for name in names]
    columns = ["metric", "before", "after", "change", "ratio", "low", "high", "probability", "unit"]
    if saved:
        amounts = [None if name not in changed else changed[name].saved for name in names]
        columns += ["saved", "saved_low", "saved_high"]
        rows = [
            [*row, *([None] * 3 if amount is None else saving(amount).values())]
            for row, amount in zip(rows, amounts, strict=True)
        ]
    return Table(columns=columns, rows=rows, notes=notes(before, after, changed))


def _row(name: str, old: Metric | None, new: Metric | None, change: Change | None) -> list[Any]:
    unit = next(metric.unit for metric in (old, new) if metric is not None)
    ends = [None if metric is None else Quantity(metric.value, unit) for metric in (old, new)]
    if change is None:
        return [name, *ends, None, None, None, None, None, unit]
    interval = (None, None) if change.ratio_low == change.ratio_high else (change.ratio_low, change.ratio_high)
    share = None if change.probability is None else Quantity(change.probability, "frac")
    return [name, *ends, Quantity(change.ratio - 1, "frac", signed=True), change.ratio, *interval, share, unit]


def notes(before: Prediction, after: Prediction, changed: Mapping[str, Change]) -> list[str]:
    """Return what it comes to in a sentence, what the columns say, and what else is different."""
    found = [*sentences(before, after, changed)]
    found.append(
        "low, high: 90 % interval of after / before, shared errors taken out; probability: of an improvement"
    )
    if before.machine != after.machine:
        found.append(f"~ machine {before.machine} → {after.machine}")
    found += [f"+ warning: {text}" for text in after.warnings if text not in before.warnings]
    found += [f"- warning: {text}" for text in before.warnings if text not in after.warnings]
    return found


def sentences(before: Prediction, after: Prediction, changed: Mapping[str, Change]) -> Iterator[str]:
    """Yield what a change comes to: how many times as much work, where the time goes instead, what it saves."""
    if WHOLE_S in changed:
        # what several kinds of steps add up to says more than the rate of one of them
        yield from _whole(before, after, changed[WHOLE_S])
        return
    rates = [name for name in changed if name.endswith("_per_s") and name != LAST_HEADLINE]
    name = next((name for name in (*HEADLINES, *rates, LAST_HEADLINE) if name in changed), None)
    if name is None:
        return
    change = changed[name]
    shares = [_shares(prediction) for prediction in (before, after)]
    moved = {part: shares[1].get(part, 0.0) - shares[0].get(part, 0.0) for part in {**shares[0], **shares[1]}}
    most = max(moved, key=lambda part: abs(moved[part]), default="")
    words = [f"{_plus_minus(change)} times as many {change.unit}", _likely(change)]
    if change.ratio == 1 == change.ratio_low == change.ratio_high:
        words = [f"As many {change.unit} as before"]
    if most and abs(moved[most]) >= 0.01:
        was, becomes = (100 * share.get(most, 0.0) for share in shares)
        moves = "rises" if becomes > was else "falls"
        words.append(f"{resource_name(most)} {moves} from {was:.0f} to {becomes:.0f} % of the time")
    yield "; ".join(words)
    money = next((name for name in changed if name.startswith("usd_per_") and name != "usd_per_h"), None)
    if money is not None and (saved := changed[money].saved) is not None and saved.value != 0:
        what = "saves" if saved.value > 0 else "costs"
        low, high = sorted(abs(end) if saved.low * saved.high > 0 else end for end in (saved.low, saved.high))
        interval = "" if saved.low == saved.high else f" ({low:.3g} to {high:.3g})"
        pays = f"pays with a probability of {_percent(changed[money].probability)}"
        yield f"{what} {abs(saved.value):.3g} {saved.unit}{interval}; {pays}"


def _whole(before: Prediction, after: Prediction, change: Change) -> Iterator[str]:
    """Yield how much longer the whole of a campaign takes, and what becomes of its price."""
    words = f"The whole takes {_plus_minus(change)} times as long; {_likely(change)}"
    yield (
        "The whole takes as long as before" if change.ratio == 1 == change.ratio_low == change.ratio_high else words
    )
    for name in (WHOLE_S, WHOLE_USD):
        if name in before.metrics and name in after.metrics:
            amounts = (prediction.metrics[name] for prediction in (before, after))
            yield " to ".join(units.format_quantity(float(f"{m.value:.3g}"), m.unit) for m in amounts)


def _plus_minus(change: Change) -> str:
    """Return a ratio as hyperfine does, with half the 90 % interval where it is about even."""
    half = (change.ratio_high - change.ratio_low) / 2
    if half < LEAST_SHOWN:
        return f"{change.ratio:.2f}"
    digits = max(0, min(3, 1 - math.floor(math.log10(half))))
    return f"{change.ratio:.{digits}f} ± {half:.{digits}f}"


def _likely(change: Change) -> str:
    if change.probability is None:
        return "no difference"
    if max(change.probability, 1 - change.probability) >= CERTAIN:
        return "certain"
    return f"an improvement with a probability of {_percent(change.probability)}"


def _percent(probability_: float | None) -> str:
    return f"{100 * (probability_ or 0.0):.0f} %"


def _shares(prediction: Prediction) -> dict[str, float]:
    total = sum(prediction.breakdown.values())
    return {part: seconds / total for part, seconds in prediction.breakdown.items()} if total else {}
