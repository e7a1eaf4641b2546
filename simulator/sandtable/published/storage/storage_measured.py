"""Read rates and latencies of flash, published by reviewers and by a database's set-up tool.

Each is predicted from a device file alone with `sandtable.model.laws.storage_law`: the law at the row's block size,
with queue
depth x threads in flight. Where the row states no depth, or says "saturating", enough requests are in flight to
saturate the device. Rates of drives read together add up; a drive in an older PCIe slot gives what the slot carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from sandtable import units
from sandtable.hardware import Link, Storage, library, source_of
from sandtable.model.laws import storage_law as storage_model
from sandtable.model.laws.storage_law import StorageLaw, law_of
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable.published.storage.storage_names import Target, find, offer

_SLOT = re.compile(r"PCIe\s*(\d)(?:\.0)?\s*(?:x4\s*)?slot", re.IGNORECASE)
_BLOCK = re.compile(r"(\d+(?:\.\d+)?)\s*([KM])i?B?\b", re.IGNORECASE)
_COLUMNS = {"read_iops": "read_iops", "read_mb_per_s": "read_mb_per_s", "read_latency_ms": "read_latency_ms_mean"}
_UNITS = {"read_iops": "1/s", "read_mb_per_s": "MB/s", "read_latency_ms": "ms"}
_WRITES = ("write_iops", "write_mb_per_s", "write_latency_ms_mean", "sustained_write_mb_per_s")
# what tells that a device file's rates were taken from rows of this kind
_MADE_FROM_ROWS = "iotune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How one figure was measured: in what order, in what pieces, how many in flight (None: saturating)."""

    order: Literal["random", "sequential"]
    chunk_bytes: float | None
    in_flight: float | None


class StorageMeasured(Adapter):
    """Predicts ``storage_measured.csv``: read IOPS, MB/s, and mean latency in ms."""

    name: ClassVar[str] = "storage_measured"
    title: ClassVar[str] = "read rates and latencies of storage devices"
    metrics: ClassVar[tuple[str, ...]] = tuple(_COLUMNS)

    def predict(self, row: Row) -> Outcome:
        """Predict the read figures of one row."""
        figures = {metric: row.number(column) for metric, column in _COLUMNS.items()}
        if not any(figures.values()):
            has_write = any(row.number(column) for column in _WRITES)
            return Skipped("a write figure" if has_write else "no figure in the row")
        target = _target(row)
        if isinstance(target, Skipped):
            return target
        return [_predict(row, target, metric, value) for metric, value in figures.items() if value]

    def held_out(self, rows: Iterable[Row]) -> list[Scored]:
        """Predict every second size of a family with constants from the other sizes, and the other way round."""
        families: dict[str, list[tuple[Row, Target]]] = {}
        for row in rows:
            target = _target(row)
            if isinstance(target, Target) and target.base is not None and _made_from_rows(target.base):
                families.setdefault(target.base.name, []).append((row, target))
        points: list[Scored] = []
        for members in families.values():
            members.sort(key=lambda member: member[1].storage.datasheet.capacity_bytes * member[1].drives)
            for half in (0, 1):
                points += _other_half(members[half::2], members[1 - half :: 2])
        return points


def _target(row: Row) -> Target | Skipped:
    disks = row.number("disks")
    return find(row.text("device"), row.text("device_family"), None if disks is None else int(disks))


def _predict(row: Row, target: Target, metric: str, measured: float) -> Scored | Skipped:
    demand = _demand(row, metric)
    if isinstance(demand, Skipped):
        return replace(demand, metric=metric)
    law = law_of(target.storage)
    in_flight, rate = _rate(law, demand, target.drives, _slot_bytes_per_s(row))
    chunk = demand.chunk_bytes or 1.0
    value = {
        "read_iops": rate / chunk,
        "read_mb_per_s": rate / 1e6,
        "read_latency_ms": 1e3 * in_flight * target.drives * chunk / rate,
    }[metric]
    random = demand.order == "random"
    low = law.residual_low_frac if random else law.sequential_low_frac
    high = law.residual_high_frac if random else law.sequential_high_frac
    if metric == "read_latency_ms":  # the residuals are of times: a time predicted high may be lower by that much
        low, high = 1 / high, 1 / low
    return Scored(
        row_id=f"line {row.line}",
        metric=metric,
        unit=_UNITS[metric],
        predicted=value,
        low=value * low,
        high=value * high,
        measured=measured,
        label=row.text("device"),
        group=target.group,
    )


def _demand(row: Row, metric: str) -> Demand | Skipped:
    access = row.text("access").lower()
    in_order = any(word in access for word in ("sequential", "file", "large"))
    sequential = in_order and (metric == "read_mb_per_s" or "random" not in access)
    if not sequential and "random" not in access:
        return Skipped("order of the reads not stated")
    chunk = _chunk(row, access, sequential)
    if chunk is None and (not sequential or metric != "read_mb_per_s"):
        return Skipped("block size not stated")
    if chunk is not None and not chunk > 0:
        raise MalformedRow("block_size: a request reads at least one byte")
    depth = row.text("queue_depth")
    try:
        in_flight = None if depth in ("", "saturating") else float(depth) * (row.number("threads") or 1.0)
    except ValueError:
        raise MalformedRow(f"queue_depth: {depth!r} is not a number") from None
    if in_flight is None and metric == "read_latency_ms":
        return Skipped("queue depth not stated")
    if in_flight is not None and not in_flight >= 1:
        raise MalformedRow("queue_depth: at least one request is in flight")
    return Demand(order="sequential" if sequential else "random", chunk_bytes=chunk, in_flight=in_flight)


def _chunk(row: Row, access: str, sequential: bool) -> float | None:
    """Return the block size: of the row, or of the words about that order of reads; in bytes."""
    both = "random" in access and "sequential" in access
    part = access.partition("sequential")[2 if sequential else 0] if both else access
    for text in (part, "" if both and sequential else row.text("block_size")):
        if match := _BLOCK.search(text):
            return units.parse(f"{match[1]} {match[2].upper()}iB", "bytes")
    return None


def _rate(law: StorageLaw, demand: Demand, drives: int, slot_bytes_per_s: float) -> tuple[float, float]:
    """Return how many requests are in flight per drive, and the rate of all drives together, in bytes per second."""
    chunk = demand.chunk_bytes
    # what is in flight spreads evenly over the drives
    each = None if demand.in_flight is None else max(1.0, demand.in_flight / drives)
    if demand.order == "sequential":
        whole = chunk is None or each is None
        rate = law.sequential_bytes_per_s
        if not whole:
            rate = storage_model.sequential_bytes_per_s(law, float(chunk or 0), float(each or 1))
    else:
        assert chunk is not None
        each = each or storage_model.saturating(
            1 / storage_model.service_s(law, chunk), storage_model.lane_s(law, chunk)
        )
        rate = storage_model.throughput_bytes_per_s(law, chunk, each)
    return each or 1.0, drives * min(rate, slot_bytes_per_s)


@lru_cache(maxsize=8)
def _slot(generation: str) -> float:
    name = f"pcie{generation}_x4"
    if name not in library.device_files("link"):
        return float("inf")
    link = library.load_component("link", name)
    assert isinstance(link, Link)
    return link.datasheet.bandwidth_bytes_per_s


def _slot_bytes_per_s(row: Row) -> float:
    """Return what the slot carries that the row's notes name, in bytes per second; infinite where none is named."""
    match = _SLOT.search(row.text("notes"))
    return float("inf") if match is None else _slot(match[1])


# --- held out ----------------------------------------------------------------------------------------------


def _made_from_rows(device: Storage) -> bool:
    return _MADE_FROM_ROWS in str(source_of(device, "datasheet.sequential_read"))


def _other_half(train: Sequence[tuple[Row, Target]], test: Sequence[tuple[Row, Target]]) -> list[Scored]:
    """Predict ``test`` with a device whose rates are the medians of ``train``, as the library derives them."""
    if not train or not test:
        return []
    base = test[0][1].base
    assert base is not None
    rates = {
        "random_read_per_s": _constants(train, "read_iops", 1.0),
        "sequential_read_bytes_per_s": _constants(train, "read_mb_per_s", 1e6),
    }
    update: dict[str, float | None] = {}
    for name, (drive, slices) in rates.items():
        update[name] = drive
        update[f"slice_{name.removeprefix('sequential_')}"] = slices
    device = base.model_copy(update={"datasheet": base.datasheet.model_copy(update=update)})
    points = []
    for row, target in test:
        own = replace(target, storage=device)
        if target.variant is not None:
            chosen = offer(device, target.variant, per_drive=target.drives == 1)
            own = replace(chosen, group=target.group)
        for metric in ("read_iops", "read_mb_per_s"):
            measured = row.number(_COLUMNS[metric])
            point = _predict(row, own, metric, measured) if measured else None
            if isinstance(point, Scored):
                points.append(point)
    return points


def _constants(train: Sequence[tuple[Row, Target]], metric: str, scale: float) -> tuple[float, float | None]:
    """Return a whole drive's rate, and what slices are allowed scaled up to one where that is more."""
    whole: list[float] = []
    slices: list[float] = []
    for row, target in train:
        figure = row.number(_COLUMNS[metric])
        if figure:
            (whole if target.share == 1 else slices).append(scale * figure / target.drives / target.share)
    allowed = float(np.median(slices)) if slices else None
    drive = float(np.median(whole)) if whole else float(allowed or 0)
    return drive, allowed if allowed is not None and allowed > drive else None
