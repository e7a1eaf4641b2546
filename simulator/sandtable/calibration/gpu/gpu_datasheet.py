"""Data sheets of recorded GPUs: the library's where it has this GPU, else what the GPU tells of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sandtable import yaml_files
from sandtable.calibration.gpu.recordings import Gpu
from sandtable.errors import CalibrationError
from sandtable.hardware import Link, LinkDatasheet, Memory, MemoryDatasheet, Processor, ProcessorDatasheet, library

PROCESSOR, MEMORY, LINK, PEER_LINK = "this_gpu", "this_gpu_memory", "this_gpu_link", "this_gpu_peer_link"
# bytes/s of one lane and direction after coding: 8, 16, 32 GT/s with 128b/130b; PCIe 6 with FLITs (PCI-SIG)
PCIE_LANE_BYTES_PER_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
USUAL_LANES = 16
# of a link that only a few copies were seen of
LINK_LATENCY_S = 0.0
# a driver reports a little less memory than is soldered on, or a little more than the name says
SAME_MEMORY_FRAC = 0.08
_NOISE = re.compile(r"\b(nvidia|geforce|tesla|generation|\d+gi?b|hbm\w*)\b")
# forms of a module that a driver does not name
_UNSPOKEN = {"sxm", "sxm2", "sxm3", "sxm4", "sxm5"}


def words(name: str) -> frozenset[str]:
    """Return what tells GPUs of one vendor apart, from a driver's name of it or a device file's title."""
    plain = re.split(r",| with ", name.lower().replace("-", " "))[0]
    return frozenset(_NOISE.sub(" ", plain).split())


def known_processor(gpu: Gpu) -> Processor | None:
    """Return the library's file about a GPU: of this name, as many units, and a memory of this size; None without."""
    spoken = words(gpu.name)
    found = []
    for processor in _gpus(spoken):
        written = words(processor.title)
        if (
            spoken in (written, written - _UNSPOKEN)
            and processor.datasheet.cores == gpu.units
            and _size_fits(gpu, processor)
        ):
            memory = known_memory(gpu, processor)
            found.append((memory is None, spoken != written, processor.name, processor))
    return min(found, key=lambda item: item[:3])[3] if found else None


def _size_fits(gpu: Gpu, processor: Processor) -> bool:
    """Whether a device file that names a size of memory, as one of several products alike, names this GPU's."""
    stated = re.search(r"_(\d+)gb$", processor.name)
    return stated is None or abs(int(stated[1]) * 1e9 / memory_bytes(gpu) - 1) <= SAME_MEMORY_FRAC


def _gpus(spoken: frozenset[str]) -> Iterator[Processor]:
    """Yield the GPUs of the library whose titles have all of these words."""
    for path in library.device_files("processor").values():
        # reading all of the library takes seconds; a glance tells which are worth it
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^title: (.*)$", text, re.MULTILINE)
        if "family: gpu" in text and title is not None and spoken <= words(title[1].strip("'\"")):
            component = library.load_file(path, "processor")
            assert isinstance(component, Processor)
            yield component


def known_memory(gpu: Gpu, processor: Processor) -> Memory | None:
    """Return the library's memory of a GPU: named after it, and of the size that the driver reports; None without."""
    total = memory_bytes(gpu)
    short = processor.name.partition("_")[2]
    for name in (short, re.sub(r"_(sxm\d?|pcie)$", "", short)):
        for file, path in sorted(library.device_files("memory").items(), key=lambda item: len(item[0])):
            if f"_{name}_" in f"{file}_":
                memory = library.load_file(path, "memory")
                assert isinstance(memory, Memory)
                if abs(memory.datasheet.capacity_bytes / total - 1) <= SAME_MEMORY_FRAC:
                    return memory
    return None


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
    known = known_processor(gpu)
    if known is not None:
        notes = f"Data sheet of {known.name}, as the GPU's name and number of units tell."
        return known.model_copy(update={"name": PROCESSOR, "title": gpu.name, "notes": notes})
    facts = gpu.facts
    return Processor(
        kind="processor",
        name=PROCESSOR,
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
    processor = known_processor(gpu)
    known = None if processor is None else known_memory(gpu, processor)
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
    """Return the link between GPUs: the library's NVLink of a machine with this GPU, the best seen, or the host's."""
    links = 0 if gpu.facts is None else gpu.facts.nvlinks
    if not links:
        title = f"Between GPUs, over {host_link.title}"
        return host_link.model_copy(update={"name": PEER_LINK, "title": title, "fitted": None})
    known = known_processor(gpu)
    shipped = None if known is None else _peer_link(known.name)
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


def _peer_link(processor: str) -> Link | None:
    """Return the link between GPUs of the first machine in the library that has this one."""
    for path in sorted(library.device_files("machine").values(), key=_name):
        if f"processor: {processor}\n" not in path.read_text(encoding="utf-8"):
            continue
        accelerator = yaml_files.read_yaml(path).get("accelerator") or {}
        name = accelerator.get("peer_link") if accelerator.get("processor") == processor else None
        if name is not None:
            link = library.load_component("link", str(name))
            assert isinstance(link, Link)
            return link
    return None


def _name(path: Path) -> str:
    return path.name
