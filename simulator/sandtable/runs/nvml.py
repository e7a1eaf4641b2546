"""What NVIDIA's management library tells of a machine's GPUs: names, memory, clocks, power, and what holds them back.

NVML is read through ``pynvml`` of the package ``nvidia-ml-py``. Without the package, the driver or a GPU there is
nothing to read, which is no error; a GPU that lacks a function (consumer cards know no ECC, virtual ones no power)
leaves that number out. The functions and their units are those of NVIDIA, "NVML API Reference Guide".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sandtable.errors import install_extra

PACKAGE, EXTRA = "pynvml", "nvidia"
ADVICE = f"power and clocks need NVML: {install_extra(EXTRA)}"
SAMPLE_S = 0.1
# bits of nvmlClocksThrottleReasons; a GPU that has nothing to do, or that was asked for its clock, is not held back
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature",
    0x40: "hardware temperature",
    0x80: "power brake",
}
# links of a GPU that NVML numbers, at most
MOST_NVLINKS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What does not change while a machine runs. None where the GPU or its driver does not say."""

    name: str
    memory_bytes: float | None = None
    memory_bus_bits: int | None = None
    max_clock_hz: float | None = None
    max_memory_clock_hz: float | None = None
    power_limit_w: float | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    nvlinks: int = 0
    ecc: str | None = None
    mig: str | None = None
    driver: str | None = None
    cuda: str | None = None

    @property
    def memory_bytes_per_s(self) -> float | None:
        """Peak rate of the memory: two transfers a clock over all of the bus."""
        if self.memory_bus_bits is None or self.max_memory_clock_hz is None:
            return None
        return 2 * self.max_memory_clock_hz * self.memory_bus_bits / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look at a GPU. None where it does not say."""

    power_w: float | None = None
    clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None
    throttle: tuple[str, ...] = ()


class Nvml:
    """NVML, initialised; see `open_nvml`."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @property
    def n(self) -> int:
        """How many GPUs the driver has."""
        return int(self._ask("nvmlDeviceGetCount") or 0)

    def handle(self, index: int, bus: str | None = None) -> Any:
        """Return NVML's handle of a GPU, by the address of its bus where that is known, else by number.

        A program may see fewer GPUs than the driver, in another order (CUDA_VISIBLE_DEVICES).
        """
        found = None if bus is None else self._ask("nvmlDeviceGetHandleByPciBusId", bus.encode())
        return self._ask("nvmlDeviceGetHandleByIndex", index) if found is None else found

    def facts(self, index: int, bus: str | None = None) -> GpuFacts | None:
        """Return what does not change of a GPU, None where NVML does not know it."""
        handle = self.handle(index, bus)
        if handle is None:
            return None
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        limit = self._ask("nvmlDeviceGetPowerManagementLimit", handle)
        return GpuFacts(
            name=_text(self._ask("nvmlDeviceGetName", handle)) or "NVIDIA GPU",
            memory_bytes=None if memory is None else float(memory.total),
            memory_bus_bits=self._ask("nvmlDeviceGetMemoryBusWidth", handle),
            max_clock_hz=_hertz(self._clock("nvmlDeviceGetMaxClockInfo", handle, "NVML_CLOCK_SM")),
            max_memory_clock_hz=_hertz(self._clock("nvmlDeviceGetMaxClockInfo", handle, "NVML_CLOCK_MEM")),
            power_limit_w=None if limit is None else limit / 1000,
            pcie_generation=self._ask("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            pcie_lanes=self._ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
            nvlinks=self._nvlinks(handle),
            ecc=_mode(self._ask("nvmlDeviceGetEccMode", handle)),
            mig=_mode(self._ask("nvmlDeviceGetMigMode", handle)),
            driver=_text(self._ask("nvmlSystemGetDriverVersion")),
            cuda=_version(self._ask("nvmlSystemGetCudaDriverVersion")),
        )

    def sample(self, handle: Any) -> GpuSample:
        """Return power, clocks, temperature, energy so far and what holds the clock down, at this moment."""
        power = self._ask("nvmlDeviceGetPowerUsage", handle)
        energy = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)
        degrees = self._ask("nvmlDeviceGetTemperature", handle, getattr(self._library, "NVML_TEMPERATURE_GPU", 0))
        return GpuSample(
            power_w=None if power is None else power / 1000,
            clock_hz=_hertz(self._clock("nvmlDeviceGetClockInfo", handle, "NVML_CLOCK_SM")),
            memory_clock_hz=_hertz(self._clock("nvmlDeviceGetClockInfo", handle, "NVML_CLOCK_MEM")),
            temperature_c=None if degrees is None else float(degrees),
            energy_j=None if energy is None else energy / 1000,
            throttle=throttle_names(self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0),
        )

    @contextmanager
    def watching(self, handles: Sequence[Any], every_s: float = SAMPLE_S) -> Iterator[list[list[GpuSample]]]:
        """Sample GPUs while inside; the list that this gives is filled, one list for each GPU."""
        found: list[list[GpuSample]] = [[] for _ in handles]
        ended = threading.Event()

        def watch() -> None:
            while True:
                for samples, handle in zip(found, handles, strict=True):
                    samples.append(self.sample(handle))
                if ended.wait(every_s):
                    return

        watcher = threading.Thread(target=watch, name="nvml", daemon=True)
        watcher.start()
        try:
            yield found
        finally:
            ended.set()
            watcher.join()

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Return what a function of NVML says; None where the library or the GPU does not know it."""
        try:
            return getattr(self._library, function)(*arguments)
        except (AttributeError, self._library.NVMLError):
            return None

    def _clock(self, function: str, handle: Any, name: str) -> Any:
        return self._ask(function, handle, getattr(self._library, name, 0))

    def _nvlinks(self, handle: Any) -> int:
        """Return how many of a GPU's links to other GPUs are up."""
        states = (self._ask("nvmlDeviceGetNvLinkState", handle, link) for link in range(MOST_NVLINKS))
        return sum(bool(state) for state in states)


def open_nvml() -> Nvml | None:
    """Return NVML, initialised; None where the package ``nvidia-ml-py``, the driver or a GPU is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return Nvml(pynvml)


def throttle_names(bits: int) -> tuple[str, ...]:
    """Name what holds a clock down, from the bits that NVML gives."""
    return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)


def _text(value: Any) -> str | None:
    # bytes in old versions of pynvml
    return value.decode() if isinstance(value, bytes) else value


def _hertz(megahertz: float | None) -> float | None:
    return None if megahertz is None else megahertz * 1e6


def _mode(value: Any) -> str | None:
    """Name the present one of NVML's pair of present and pending modes."""
    return None if value is None else ("on" if value[0] else "off")


def _version(value: int | None) -> str | None:
    return None if value is None else f"{value // 1000}.{value % 1000 // 10}"
