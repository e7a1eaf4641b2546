"""Timelines as Perfetto files: predicted and measured as two processes, one track per resource.

Open the file at ui.perfetto.dev. Slices that overlap on one resource get tracks of their own, because Perfetto nests
the slices of a track.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandtable.errors import missing_extra
from sandtable.results import TraceRow
from sandtable.system.atomic_files import write_atomically

SEQUENCE = 1
Counters = Mapping[str, Sequence[tuple[float, float]]]  # name -> (seconds, value)


def write_trace(
    path: Path, predicted: Iterable[TraceRow], measured: Iterable[TraceRow], counters: Counters | None = None
) -> None:
    """Write both timelines to one Perfetto file; an empty one is left out. ``counters`` join the predicted process.

    Raises:
        NoDevice: the package perfetto is not installed.
    """
    write_atomically(path, trace_bytes({"predicted": list(predicted), "measured": list(measured)}, counters))


def trace_bytes(processes: Mapping[str, Sequence[TraceRow]], counters: Counters | None = None) -> bytes:
    """Return the timelines, by name of their process, in Perfetto's format."""
    try:
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder
    except ImportError:
        raise missing_extra("perfetto", "report") from None
    builder = TraceProtoBuilder()
    uuid = 1
    for pid, (name, rows) in enumerate(processes.items(), start=1):
        if not rows and not (counters and pid == 1):
            continue
        process = uuid
        descriptor = builder.add_packet().track_descriptor
        descriptor.uuid, descriptor.process.pid, descriptor.process.process_name = process, pid, name
        uuid += 1
        for track, slices in tracks(rows).items():
            _add_track(builder, uuid, process, track, slices)
            uuid += 1
        for counter, points in (counters or {}).items() if pid == 1 else ():
            _add_counter(builder, uuid, process, counter, points)
            uuid += 1
    return bytes(builder.serialize())


def tracks(rows: Iterable[TraceRow]) -> dict[str, list[TraceRow]]:
    """Group rows by track, in the order of time; what overlaps goes to ``track (2)``, ``track (3)``, …"""
    found: dict[str, list[list[TraceRow]]] = {}
    for row in sorted(rows, key=lambda row: (row.start_s, row.end_s)):
        lanes = found.setdefault(row.track, [])
        lane = next((lane for lane in lanes if _ns(lane[-1].end_s) <= _ns(row.start_s)), None)
        if lane is None:
            lanes.append([row])
        else:
            lane.append(row)
    return {
        track if index == 0 else f"{track} ({index + 1})": lane
        for track, lanes in found.items()
        for index, lane in enumerate(lanes)
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _add_track(builder: Any, uuid: int, process: int, name: str, rows: Sequence[TraceRow]) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    descriptor = builder.add_packet().track_descriptor
    descriptor.uuid, descriptor.parent_uuid, descriptor.name = uuid, process, name
    for row in rows:
        event = _event(builder, uuid, _ns(row.start_s), TrackEvent.TYPE_SLICE_BEGIN)
        event.name = row.name
        annotation = event.debug_annotations.add()
        annotation.name, annotation.int_value = "step", row.step
        _event(builder, uuid, max(_ns(row.end_s), _ns(row.start_s)), TrackEvent.TYPE_SLICE_END)


def _add_counter(builder: Any, uuid: int, process: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    descriptor = builder.add_packet().track_descriptor
    descriptor.uuid, descriptor.parent_uuid, descriptor.name = uuid, process, name
    descriptor.counter.SetInParent()
    for seconds, value in points:
        _event(builder, uuid, _ns(seconds), TrackEvent.TYPE_COUNTER).double_counter_value = value


def _event(builder: Any, track: int, timestamp_ns: int, type_: Any) -> Any:
    packet = builder.add_packet()
    packet.timestamp = timestamp_ns
    packet.trusted_packet_sequence_id = SEQUENCE
    packet.track_event.type = type_
    packet.track_event.track_uuid = track
    return packet.track_event
