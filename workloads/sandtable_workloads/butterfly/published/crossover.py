"""From which size on a butterfly layer takes less time than a dense one: on every processor and GPU of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sandtable.hardware import Accelerators, Machine, Roofline, library
from sandtable.studies.finding import Finding
from sandtable.table import Table
from sandtable_workloads.butterfly.networks.pointwise_counts import pointwise_counts
from sandtable_workloads.butterfly.published.layer_times import Floats, crossing, layer_seconds

ROWS = (1, 16, 256, 4096, 65536)
SIDES = tuple(2**power for power in range(4, 15))
PHONES, PERSONAL, SERVERS = "phone CPUs", "laptop and desktop CPUs", "server CPUs"
GDDR, HBM, SHARED = "GPUs with GDDR", "GPUs with HBM", "GPUs on the host's memory"
KINDS = (PHONES, PERSONAL, SERVERS, SHARED, GDDR, HBM)
_MAKERS = {PHONES: ("qualcomm_",), PERSONAL: ("apple_", "amd_ryzen_", "intel_core_")}
# Triton, which the kernel for GPUs is written in, has no backend for Metal or Gaudi, and needs compute capability 7.0
WITHOUT_TRITON = ("apple_", "intel_gaudi", "nvidia_p100")
HOST = "laptop_pcie4"
ON_CPU, ON_GPU = "pytorch_cpu", "pytorch_eager"
# rows and sides that a picture of single devices shows: pixels of one image at 64 x 64
SHOWN_ROWS = 4096
SHOWN = {
    "Pixel 3a CPU": "qualcomm_snapdragon_670",
    "Ryzen laptop CPU": "amd_ryzen_7_7840hs",
    "Xeon 8480C CPUs": "intel_xeon_8480c_2s",
    "A100": "nvidia_a100_sxm",
    "H100": "nvidia_h100_sxm",
}
MULTIPLY_ADDS = "multiply-adds"
FAR = 0.5
# rank correlation from which on two orders are called alike
TOGETHER = 0.7


@dataclass(frozen=True, slots=True)
class Computer:
    """What multiplies: the CPU of a machine, or a GPU; its kind, and the type that it is asked for in."""

    name: str
    kind: str
    precision: str
    machine: Machine


@lru_cache(maxsize=1)
def computers() -> Sequence[Computer]:
    """Return every CPU that a machine of the library has, and every GPU that the kernel runs on."""
    hosts: dict[str, Machine] = {}
    stack = library.load_stack(ON_CPU)
    for name in library.device_files("machine"):
        if name != library.THIS_MACHINE:
            machine = library.load_machine(name)
            alone = machine.model_copy(update={"accelerator": None, "stack": stack})
            hosts.setdefault(machine.processor.name, alone)
    found = [Computer(name, _kind_of_cpu(name), "float32", machine) for name, machine in hosts.items()]
    names = [name for name in library.device_files("accelerator") if not name.startswith(WITHOUT_TRITON)]
    return (*found, *map(_gpu, names))


def _kind_of_cpu(name: str) -> str:
    return next((kind for kind, makers in _MAKERS.items() if name.startswith(makers)), SERVERS)


def _gpu(name: str) -> Computer:
    device = library.load_accelerator(name)
    host, stack = library.load_machine(HOST), library.load_stack(ON_GPU)
    machine = host.model_copy(update={"accelerator": Accelerators(device=device), "stack": stack})
    memory = device.memory.datasheet.technology
    kind = SHARED if device.shares_host_memory else HBM if memory.startswith("HBM") else GDDR
    precision = "bfloat16" if "bfloat16" in device.datasheet.peak_flops_per_s else "float32"
    return Computer(name, kind, precision, machine)


@lru_cache(maxsize=256)
def gains(name: str) -> Floats:
    """Return dense over butterfly time [ROWS, SIDES] on the computer of that name."""
    (computer,) = [each for each in computers() if each.name == name]
    dense, butterfly = (
        layer_seconds(computer.machine, structure, ROWS, SIDES, computer.precision)
        for structure in ("dense", "butterfly")
    )
    return dense / butterfly


def crossings(name: str) -> list[float | None]:
    """Return for each of `ROWS` the side from which on the butterfly takes less time on a computer."""
    return [crossing(SIDES, gain) for gain in gains(name)]


def findings() -> list[Finding]:
    """Return the map of the library, what its order follows, and how far multiply-adds are from time."""
    return [_map(), _balance(), _fewer_multiply_adds()]


def _map() -> Finding:
    found = {each.name: crossings(each.name) for each in computers()}
    rows: list[list[Any]] = []
    for kind in KINDS:
        of_kind = [found[each.name] for each in computers() if each.kind == kind]
        for place, n_rows in enumerate(ROWS):
            sides = [each[place] or np.inf for each in of_kind]
            ends = {"the first": np.min(sides), "half of them": _upper_median(sides), "all": np.max(sides)}
            rows += [[kind, what, n_rows, float(side)] for what, side in ends.items() if side < np.inf]
    at = ROWS.index(SHOWN_ROWS)
    ever = [sides for sides in found.values() if sides[at] is not None]
    shown = ", ".join(f"{label} {_side(found[name][at])}" for label, name in SHOWN.items())
    return Finding(
        name="crossover",
        claim="On every processor and GPU there is a width from which on a butterfly layer is faster than a dense one",
        holds=len(ever) == len(found),
        evidence=f"{len(ever)} of {len(found)} devices up to {SIDES[-1]} channels with {SHOWN_ROWS} rows: {shown}",
        data=_table("Channels from which on a butterfly takes less time than a dense layer, by device", rows),
        x="rows (pixels of all images)",
        y="channels",
    )


def flops_per_byte(computer: Computer) -> float:
    """Return the arithmetic that a device does at its peak while its memory moves a byte."""
    accelerator, host = computer.machine.accelerator, computer.machine
    processor, memory = (
        (host.processor, host.memory) if accelerator is None else (accelerator.processor, accelerator.memory)
    )
    sheet = Roofline.of(processor, memory)
    return sheet.peak(computer.precision) / sheet.bandwidth_bytes_per_s


def _balance() -> Finding:
    """Devices of a kind that lie within a doubling are one point, that of the upper half of them."""
    places: dict[tuple[str, int], list[float]] = {}
    balance, sides = [], []
    for computer in computers():
        side, flops = crossings(computer.name)[-1] or np.inf, flops_per_byte(computer)
        places.setdefault((computer.kind, 2 ** round(np.log2(flops))), []).append(side)
        balance.append(flops)
        sides.append(side)
    points = [(kind, flops, _upper_median(alike)) for (kind, flops), alike in sorted(places.items())]
    together = _rank_correlation(np.array(balance), np.array(sides))
    return Finding(
        name="crossover_by_balance",
        claim="The more arithmetic a device does per byte of its memory, the wider a butterfly layer has to be",
        holds=together > TOGETHER,
        evidence=f"with {ROWS[-1]} rows the two orders of {len(sides)} devices correlate by {together:.2f} in rank",
        data=_table(
            "From how many channels on a butterfly is faster",
            [["", kind, flops, float(side)] for kind, flops, side in points if side < np.inf],
        ),
        x="FLOP per byte of memory bandwidth",
        y="channels",
    )


def _rank_correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's coefficient; values that are equal have the mean of their ranks."""
    first, second = (np.array([((x < each).sum() + (x <= each).sum()) / 2 for each in x]) for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def _upper_median(sides: Sequence[float]) -> float:
    """Return the least side at which half of the devices have crossed."""
    return sorted(sides)[(len(sides) + 1) // 2 - 1]


def _side(side: float | None) -> str:
    return "never" if side is None else f"{side:.0f}"


def _fewer_multiply_adds() -> Finding:
    at = ROWS.index(SHOWN_ROWS)
    fewer = np.array([n * n / pointwise_counts("butterfly", n, n).multiplications for n in SIDES])
    series = {MULTIPLY_ADDS: fewer} | {label: gains(name)[at] for label, name in SHOWN.items()}
    rows = [
        ["", label, n, float(y)] for label, ratios in series.items() for n, y in zip(SIDES, ratios, strict=True)
    ]
    place = SIDES.index(1024)
    shares = {label: ratios[place] / fewer[place] for label, ratios in series.items() if label != MULTIPLY_ADDS}
    told = ", ".join(f"{label} {series[label][place]:.2g}" for label in shares)
    return Finding(
        name="fewer_multiply_adds",
        claim="A layer with fifty times fewer multiply-adds is about fifty times faster",
        holds=all(share > FAR for share in shares.values()),
        evidence=f"1024 channels, {SHOWN_ROWS} rows: {fewer[place]:.0f} times fewer, and times faster: {told}",
        data=_table("Dense over butterfly, base 4: multiply-adds and time", rows),
        x="channels",
        y="dense over butterfly",
        mark=1.0,
    )


def _table(title: str, rows: Sequence[Sequence[Any]]) -> Table:
    return Table(columns=("panel", "series", "x", "y"), units=("", "", "", ""), rows=rows, title=title)
