"""Times of collectives between accelerators, by link, library and size.

Most rows state the size of a message without a unit. They count elements of the stated type, two bytes each: taken as
bytes, a pair of H200 would get half the rate that the same library reaches in the rows of another source which states
bytes (64 MiB between two H100: 245 us there, 247 us between the neighbouring sizes here), and what an 8-way all-reduce
moves would stay at half of the link. The count is that of the whole buffer: taken as one rank's part of it, eight H100
would move 2.7 TB/s each in an all-gather over links of 450 GB/s.

Which link joins the accelerators their device files tell. Pairs joined by a bridge use it in groups of two, and PCIe
in larger groups; the A40 of one source exchange 4 GB/s although said to be joined so, and are taken as on PCIe. Between
machines the network is that of the vendor's own machine, unless the notes name another; where neither says, the row is
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from sandtable.calibration.timing import stated
from sandtable.demand.operator_shapes import CollectiveShape
from sandtable.published import systems
from sandtable.published.adapter import Skipped
from sandtable.published.operator_rows import Figure, OperatorAdapter
from sandtable.published.rows import MalformedRow, Row

_OPS = {
    "all_reduce": "all_reduce",
    "allreduce": "all_reduce",
    "all_gather": "all_gather",
    "allgather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "send_recv": "send_recv",
    "sendrecv": "send_recv",
}
_ITEM_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "fp16": 2, "bf16": 2, "float": 4, "float32": 4, "fp32": 4}
# bytes past a rank over bytes of the buffer, as the bus bandwidth of nccl-tests counts them: turns x (n - 1) / n
_BUS_TURNS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
_LIBRARIES = {"vidur-nccl": "nccl_torch"}
_CUSTOM = ("vllm", "sglang")
# bridges between pairs: what a pair uses, and what a larger group does
_BRIDGES = {
    "a100_pairwise_nvlink": ("nvlink3", "pcie4_x16"),
    "h100_pairwise_nvlink": ("nvlink4_bridge", "pcie5_x16"),
}
_PCIE = {"a40_pairwise_nvlink": "pcie4_x16"}
# the adapters per accelerator of the vendor's own machines
_NETWORKS = {"nvlink3": "infiniband_hdr200", "nvlink4": "infiniband_ndr400", "nvlink5": "infiniband_ndr400"}
_EFA = {"nvlink3": "efa_v1", "nvlink4": "efa_v2"}
_MACHINE_RANKS = 8.0
# one domain of the switch spans a rack
_RACKS = ("gb200", "gb300")


@dataclass(frozen=True, slots=True)
class _Place:
    """The link whose constants a row informs; beside it that within machines, or the bridge of each pair of many."""

    link: str
    beside: str
    ranks_per_machine: float


class OpComm(OperatorAdapter):
    """One collective per row."""

    name: ClassVar[str] = "op_comm"
    title: ClassVar[str] = "Collectives between accelerators"
    metrics: ClassVar[tuple[str, ...]] = ("latency_ms",)
    source: ClassVar[str] = (
        "ai-dynamo/aiconfigurator systems/data/*/comm @095f58a51c4c; "
        "microsoft/vidur data/profiling/network @7d475133"
    )

    def timed(self, row: Row) -> Iterable[Figure | Skipped] | Skipped:
        """See `OperatorAdapter.timed`."""
        op = _OPS.get(row.text("collective").lower())
        if op is None:
            return Skipped("collective not modelled")
        n_ranks = row.number("num_gpus") or 0.0
        place, n_bytes = _place(row, n_ranks), _n_bytes(row)
        if isinstance(place, Skipped):
            return place
        if isinstance(n_bytes, Skipped):
            return n_bytes
        seconds = _seconds(row, op, n_bytes, n_ranks)
        if seconds is None:
            return Skipped("no time and no rate")
        if not (seconds > 0 and n_bytes > 0 and place.ranks_per_machine >= 1):
            raise MalformedRow("sizes and times are positive")
        software = _software(row)
        label = f"{row.text('system')} {software} {op} x{n_ranks:.0f} {n_bytes:.0f} B"
        timing = stated(
            op,
            CollectiveShape(n_bytes, n_ranks, place.ranks_per_machine),
            seconds,
            device=place.link,
            software=software,
            dtype="bfloat16",
            label=label,
            beside=place.beside,
        )
        return [Figure(metric="latency_ms", timing=timing, row_id=f"line {row.line}", group=row.text("system"))]


def _software(row: Row) -> str:
    """Return the library as device files name it: an all-reduce of a framework's own, by how it is called.

    PyTorch's collectives on these devices are NCCL's; only one source charges them with the host that calls them.
    """
    library = row.text("library").lower()
    if library in _CUSTOM:
        return f"{library}_custom_{'graph' if 'graph' in row.text('implementation').lower() else 'eager'}"
    if library not in _LIBRARIES and any(word in library for word in ("nccl", "torch", "all_reduce_bench")):
        return "nccl"
    return _LIBRARIES.get(library, library)


def _n_bytes(row: Row) -> float | Skipped:
    stated = row.number("message_bytes")
    if stated is not None:
        return stated
    count, item = row.number("message_size_as_published"), _ITEM_BYTES.get(row.text("dtype").lower())
    if count is None:
        return Skipped("size of the message not stated")
    return Skipped("element type of the message not known") if item is None else item * count


def _seconds(row: Row, op: str, n_bytes: float, n_ranks: float) -> float | None:
    latency = row.number("latency_ms")
    if latency is not None:
        return 1e-3 * latency
    bus, algorithm = row.number("bus_bandwidth_gb_per_s"), row.number("algorithm_bandwidth_gb_per_s")
    if bus:
        turns = _BUS_TURNS.get(op)
        share = 1.0 if turns is None else turns * (n_ranks - 1) / n_ranks
        return share * n_bytes / (1e9 * bus)
    return n_bytes / (1e9 * algorithm) if algorithm else None


def _place(row: Row, n_ranks: float) -> _Place | Skipped:
    if n_ranks < 2:
        return Skipped("fewer than two ranks")
    name = row.text("system").lower()
    per_machine = row.number("devices_per_node")
    if per_machine is None:
        per_machine = n_ranks if name in _RACKS else min(n_ranks, _MACHINE_RANKS)
    within = _within(name, min(n_ranks, per_machine))
    if within is None:
        return Skipped("no device file")
    if n_ranks <= per_machine:
        bridged = name in _BRIDGES and n_ranks > 2
        return _Place(within, _BRIDGES[name][0] if bridged else "", per_machine)
    between = _between(name, within, row.text("notes").lower())
    if between is None:
        return Skipped("network between machines not stated")
    return _Place(between, within, per_machine)


def _within(name: str, local: float) -> str | None:
    link = _PCIE.get(name)
    if name in _BRIDGES:
        link = _BRIDGES[name][0 if local <= 2 else 1]
    if link is None:
        # "8x B200 (node)": a system's name may stand among other words
        found = (systems.named(part) for part in (name, *re.split(r"[^a-z0-9_]+", name)))
        link = next(((system.peer_link or system.link).name for system in found if system is not None), None)
    return link


def _between(name: str, within: str, notes: str) -> str | None:
    if "efa" in notes:
        return _EFA.get(within)
    return None if name in _PCIE or name in _BRIDGES else _NETWORKS.get(within)
