"""What each instant of a step was spent on, where several ops ran at once.

An instant at which a device computes counts as that, whatever else goes on: communication that computing hides costs
nothing, nor does work in the background. The rest is communication while the device's network is busy, what goes on
in the background, and idle otherwise. A step of several devices, such as the stages of a pipeline, reports the mean
over them; accounts and idle time add up to the step's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sandtable.demand.op import Op
from sandtable.engine.clock import seconds


class Interval(NamedTuple):
    """When an op ran, in ticks, and the share of that which was communication inside it."""

    start: int
    end: int
    op: Op
    communication_frac: float


@dataclass(slots=True)
class Share:
    """Seconds of a step by account and by section; both have ``total_s`` as their sum, idle time included."""

    total_s: float
    by_account: dict[str, float] = field(default_factory=dict)
    by_section: dict[str, float] = field(default_factory=dict)
    idle_s: float = 0.0

    def add(self, account: str, section: str, duration_s: float) -> None:
        """Count ``duration_s`` of one device; an empty account is idle time."""
        if account:
            self.by_account[account] = self.by_account.get(account, 0.0) + duration_s
        else:
            self.idle_s += duration_s
        if section:
            self.by_section[section] = self.by_section.get(section, 0.0) + duration_s


def attribute(intervals: Sequence[Interval], start: int, end: int) -> Share:
    """Return what the step from ``start`` to ``end`` was spent on, as the mean over its devices."""
    devices: dict[int, list[Interval]] = {}
    for interval in intervals:
        devices.setdefault(interval.op.device, []).append(interval)
    share = Share(seconds(end - start))
    for found in devices.values():
        _device(share, found, start, end, 1 / len(devices))
    return share


def _device(share: Share, intervals: Iterable[Interval], start: int, end: int, weight: float) -> None:
    ordered = sorted(intervals, key=lambda interval: (interval.start, interval.end))
    sending = [interval for interval in ordered if _is_beside(interval.op)]
    now, index = start, 0
    for interval in ordered:
        if _is_beside(interval.op) or interval.end <= now:
            continue
        index = _gap(share, sending, index, (now, interval.start), interval.op.section, weight)
        begun = max(now, interval.start)
        _busy(share, interval, seconds(interval.end - begun) * weight)
        now = interval.end
    last = max(ordered, key=lambda interval: interval.end).op.section
    _gap(share, sending, index, (now, end), last, weight)


def _is_beside(op: Op) -> bool:
    return op.background or op.resource == "network"


def _busy(share: Share, interval: Interval, duration_s: float) -> None:
    op, sent = interval.op, interval.communication_frac
    account = "compute" if op.parts else op.account
    if sent < 1:
        share.add(account, op.section, duration_s * (1 - sent))
    if sent > 0:
        share.add("communication", op.section, duration_s * sent)


def _gap(
    share: Share, sending: Sequence[Interval], index: int, gap: tuple[int, int], section: str, weight: float
) -> int:
    """Divide a gap in which nothing is computed; return the first transfer that may reach into the next one."""
    now, end = gap
    while index < len(sending) and sending[index].end <= now:
        index += 1
    cursor = index
    while now < end and cursor < len(sending) and sending[cursor].start < end:
        transfer = sending[cursor]
        cursor += 1
        if transfer.end <= now:
            continue
        if transfer.start > now:
            share.add("", section, seconds(transfer.start - now) * weight)
            now = transfer.start
        until = min(transfer.end, end)
        account = "compute" if transfer.op.background else "communication"
        share.add(account, transfer.op.section or section, seconds(until - now) * weight)
        now = until
    if now < end:
        share.add("", section, seconds(end - now) * weight)
    return index
