"""What a run spent on which op and account, and how uncertain such a sum is.

Times here are those that the laws give, without the waiting between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sandtable.demand.op import Op
from sandtable.engine.recorder import ACCOUNTS
from sandtable.model.cost_model import OpTime
from sandtable.model.error_sources import Source
from sandtable.model.intervals import joined

# by how many seconds ops may take less, and more, than predicted; and the parts of both that the whole machine shares
Miss = tuple[float, float, float, float]
NO_MISS: Miss = (0.0, 0.0, 0.0, 0.0)
# by account and law
Misses = dict[tuple[str, str], Miss]


def miss_of(cost: OpTime) -> Miss:
    """Return by how much an op may miss its predicted time."""
    below, above = cost.seconds - cost.low, cost.high - cost.seconds
    shared = cost.seconds * cost.drift_frac
    return below, above, min(below, shared / (1 + cost.drift_frac)), min(above, shared)


def added(a: Miss, b: Miss) -> Miss:
    """Return the miss of two ops of one law."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def ends_of(
    seconds: float, misses: Mapping[tuple[str, str], Miss], account: str | None = None
) -> tuple[float, float]:
    """Return the ends of the 90 % interval of a sum of ops, of one account or of all.

    Ops of one law share its error, so that theirs add up, over accounts as well; see `joined` for those of several.
    """
    by_law: dict[str, Miss] = {}
    for (of, law), miss in misses.items():
        if account in (None, of):
            by_law[law] = added(by_law.get(law, NO_MISS), miss)
    below, above = (joined([(miss[side], miss[2 + side]) for miss in by_law.values()]) for side in (0, 1))
    return seconds - below, seconds + above


# seconds by kind of unit, account and section, then by where their error comes from
Sources = dict[tuple[str, str, str], dict[Source, float]]
ALL_EXPOSED: Mapping[str, float] = {}


class Ledger:
    """Seconds by op name and by account over a whole run, and the misses of their laws.

    ``sources`` are seconds by kind of unit, account, section and source of error: where ops hide behind each other, as
    many as are left of them.
    """

    def __init__(self) -> None:
        self.by_op: dict[str, float] = {}
        self.by_account = dict.fromkeys(ACCOUNTS, 0.0)
        self.misses: Misses = {}
        self.sources: Sources = {}

    def add(
        self, op: Op, cost: OpTime, times: int = 1, *, unit: str = "", exposed: Mapping[str, float] = ALL_EXPOSED
    ) -> None:
        """Book ``times`` executions that take ``cost`` each, of which a part is ``exposed``, by account."""
        seconds = cost.seconds * times
        self.by_op[op.name] = self.by_op.get(op.name, 0.0) + seconds
        self.by_account[op.account] += seconds
        miss = miss_of(cost)
        key = (op.account, cost.law)
        known = self.misses.get(key, NO_MISS)
        self.misses[key] = added(known, (miss[0] * times, miss[1] * times, miss[2] * times, miss[3] * times))
        if cost.source is not None:
            sources = self.sources.setdefault((unit, op.account, op.section), {})
            left = seconds * exposed.get(op.account, 1.0)
            sources[cost.source] = sources.get(cost.source, 0.0) + left

    def ends_frac(self) -> tuple[float, float]:
        """Return the ends of the 90 % interval of all time booked, as parts of it; ones where none was."""
        total = sum(self.by_account.values())
        if total == 0:
            return 1.0, 1.0
        low, high = ends_of(total, self.misses)
        return low / total, high / total


def leaves_of(ops: Sequence[Op], time: Callable[[Op], OpTime]) -> list[tuple[Op, OpTime]]:
    """Return the ops that these consist of, those of equal sequences once, with the time that they take in all."""
    times: dict[int, int] = {}
    first: list[Op] = []
    for op in ops:
        if not op.parts:
            first.append(op)
        elif id(op.parts) in times:
            times[id(op.parts)] += op.repeat
        else:
            times[id(op.parts)] = op.repeat
            first.append(op)
    found = []
    for op in first:
        if not op.parts:
            found.append((op, time(op)))
        for leaf, count in ((leaf, count) for part in op.parts for leaf, count in part.leaves()):
            found.append((leaf, time(leaf).times(count // leaf.repeat * times[id(op.parts)])))
    return found
