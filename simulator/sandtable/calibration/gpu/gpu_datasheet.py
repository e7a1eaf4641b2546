"""Data sheets of recorded GPUs: the library's where it has this GPU, else what the GPU tells of itself."""

from __future__ import annotations

from sandtable.calibration.gpu.recordings import Gpu
from sandtable.errors import CalibrationError
from sandtable.hardware import (
    Accelerator,
    Link,
    LinkDatasheet,
    Memory,
    MemoryDatasheet,
    Processor,
    ProcessorDatasheet,
    library,
)

GPU, MEMORY, LINK, PEER_LINK = "this_gpu", "this_gpu_memory", "this_gpu_link", "this_gpu_peer_link"
# bytes/s of one lane and direction after coding: 8, 16, 32 GT/s with 128b/130b; PCIe 6 with FLITs (PCI-SIG)
PCIE_LANE_BYTES_PER_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
USUAL_LANES = 16
# of a link that only a few copies were seen of
LINK_LATENCY_S = 0.0
# a driver reports a little less memory than is soldered on, or a little more than the name says
SAME_MEMORY_FRAC = 0.08


def known_gpu(gpu: Gpu) -> Accelerator | None:
    """Return the library's file about a GPU: of the name that its driver gives, as many units, as much memory."""
    found = library.accelerator_called(gpu.name)
    if found is None or found.datasheet.cores != gpu.units:
        return None
    size_differs = abs(found.memory.datasheet.capacity_bytes / memory_bytes(gpu) - 1) > SAME_MEMORY_FRAC
    return None if size_differs else found


def memory_bytes(gpu: Gpu) -> float:
    """Return the memory of a GPU: NVML's figure, which is all of it, else the framework's."""
    whole = None if gpu.facts is None else gpu.facts.memory_bytes
    return whole or gpu.memory_bytes


def seen(best_bytes_per_s: float | None, what: str) -> float:
    """Return the best rate that was seen, in bytes/s.

    Raises:
        CalibrationError: none was, and neither the library nor NVML knows one.
    """
    if best_bytes_per_s is None:
        raise CalibrationError(f"no {what} were timed, and neither NVML nor a device file says how fast they are")
    return best_bytes_per_s


# --- sheets ------------------------------------------------------------------------------------------------


def processor_of(gpu: Gpu) -> Processor:
    """Return a GPU's data sheet, without peak rates where the library does not have it."""
    known = known_gpu(gpu)
    if known is not None:
        return Processor(
            kind="processor",
            name=GPU,
            title=gpu.name,
            notes=f"Data sheet of {known.name}, as the GPU's name, units and memory tell.",
            datasheet=known.datasheet,
            fitted=known.fitted,
            like=known.like,
            sources=known.sources,
        )
    facts = gpu.facts
    return Processor(
        kind="processor",
        name=GPU,
        title=gpu.name,
        notes="No device file of this library describes this GPU: its rates are the best that calibration saw.",
        datasheet=ProcessorDatasheet(
            family="gpu",
            cores=gpu.units,
            clock_hz=None if facts is None else facts.max_clock_hz,
            peak_flops_per_s={},
            last_level_cache_bytes=gpu.cache_bytes,
            tdp_w=None if facts is None else facts.power_limit_w,
        ),
        sources={
            "datasheet.cores": "PyTorch: multiprocessors",
            "datasheet.clock": "NVML: highest clock",
            "datasheet.peak": "measured: the best product of this calibration, not a data sheet's peak",
            "datasheet.last_level_cache": "PyTorch: size of the L2 cache",
            "datasheet.tdp": "NVML: power limit",
        },
    )


def memory_of(gpu: Gpu, best_bytes_per_s: float | None) -> Memory:
    """Return a GPU's memory: the library's, else bus and clock as NVML tells, else the best copy."""
    device = known_gpu(gpu)
    known = None if device is None else device.memory
    sources = {"datasheet.capacity": "the driver"}
    told = None if gpu.facts is None else gpu.facts.memory_bytes_per_s
    if known is not None:
        technology, rate = known.datasheet.technology, known.datasheet.bandwidth_bytes_per_s
        source = str(known.sources.get("datasheet.bandwidth", known.sources["datasheet"]))
    elif told is not None:
        technology, rate, source = "as soldered", told, "derived: two transfers per clock over the bus, NVML"
    else:
        technology, rate = "as soldered", seen(best_bytes_per_s, "copies within the GPU's memory")
        source = "measured: the best copy of this calibration, not a data sheet's"
    return Memory(
        kind="memory",
        name=MEMORY,
        title=f"{gpu.name} memory",
        datasheet=MemoryDatasheet(
            technology=technology, capacity_bytes=memory_bytes(gpu), bandwidth_bytes_per_s=rate
        ),
        sources=sources | {"datasheet.bandwidth": source},
    )


def link_of(gpu: Gpu, best_bytes_per_s: float | None) -> Link:
    """Return the link between host and GPU: PCIe as NVML tells, else as good as the best copy."""
    generation = None if gpu.facts is None else gpu.facts.pcie_generation
    lanes = (None if gpu.facts is None else gpu.facts.pcie_lanes) or USUAL_LANES
    if generation in PCIE_LANE_BYTES_PER_S:
        rate, title = PCIE_LANE_BYTES_PER_S[generation] * lanes, f"PCIe {generation}.0 x{lanes}"
        source = "derived: generation and lanes as NVML tells, rate of a lane by PCI-SIG"
    else:
        rate, title = seen(best_bytes_per_s, "copies between host and GPU"), "Between host and GPU"
        source = "measured: the best copy of this calibration, not a data sheet's"
    return Link(
        kind="link",
        name=LINK,
        title=title,
        datasheet=LinkDatasheet(scope="host", bandwidth_bytes_per_s=rate, latency_s=LINK_LATENCY_S, shared=True),
        sources={
            "datasheet.bandwidth": source,
            "datasheet.latency": "none of its own: the fitted time of a copy contains it",
        },
    )


def peer_link_of(gpu: Gpu, host_link: Link, best_bytes_per_s: float | None) -> Link:
    """Return the link between GPUs: the library's NVLink of this GPU, the best seen, or the host's."""
    links = 0 if gpu.facts is None else gpu.facts.nvlinks
    if not links:
        title = f"Between GPUs, over {host_link.title}"
        return host_link.model_copy(update={"name": PEER_LINK, "title": title, "fitted": None})
    known = known_gpu(gpu)
    shipped = None if known is None else known.peer_link
    if shipped is not None:
        notes = f"Data sheet of {shipped.name}."
        return shipped.model_copy(update={"name": PEER_LINK, "notes": notes})
    return Link(
        kind="link",
        name=PEER_LINK,
        title=f"{links} NVLinks",
        datasheet=LinkDatasheet(
            scope="intra_node",
            bandwidth_bytes_per_s=seen(best_bytes_per_s, "collectives"),
            latency_s=LINK_LATENCY_S,
        ),
        sources={
            "datasheet.bandwidth": "measured: the best collective of this calibration, not a data sheet's",
            "datasheet.latency": "none of its own: the fitted time of a hop contains it",
        },
    )
