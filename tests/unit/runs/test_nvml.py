"""NVML through a recorded pynvml: units, functions that a GPU lacks, and a machine without any of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sandtable.report import listing
from sandtable.runs import nvml

RECORDED: dict[str, Any] = {
    "nvmlInit": None,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "handle",
    "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=85_520_809_984),
    "nvmlDeviceGetMemoryBusWidth": 5120,
    "nvmlDeviceGetMaxClockInfo": {0: 1980, 2: 2619},
    "nvmlDeviceGetClockInfo": {0: 1395, 2: 2619},
    "nvmlDeviceGetPowerManagementLimit": 700_000,
    "nvmlDeviceGetPowerUsage": 698_240,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetTotalEnergyConsumption": 12_345_678,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x04,
    "nvmlDeviceGetMigMode": (0, 0),
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlSystemGetDriverVersion": "550.54.15",
    "nvmlSystemGetCudaDriverVersion": 12040,
}


class NVMLError(Exception):
    """What pynvml raises for a function that a GPU lacks."""


def recorded(**changes: Any) -> ModuleType:
    """Return a pynvml that answers as it did on an H100; a change to None makes a function one the GPU lacks."""
    module = ModuleType("pynvml")
    answers = {**RECORDED, **changes}

    def function(name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            answer = answers[name]
            if answer is None and name != "nvmlInit":
                raise NVMLError(name)
            return answer[arguments[-1]] if isinstance(answer, dict) else answer

        return ask

    for name in answers:
        setattr(module, name, function(name))
    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = 0, 2  # type: ignore[attr-defined]
    return module


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> nvml.Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", recorded())
    found = nvml.open_nvml()
    assert found is not None
    return found


def test_facts_are_in_si_units(h100: nvml.Nvml) -> None:
    facts = h100.facts(0)
    assert facts is not None
    assert (facts.name, facts.driver, facts.cuda, facts.mig) == (
        "NVIDIA H100 80GB HBM3",
        "550.54.15",
        "12.4",
        "off",
    )
    assert facts.max_clock_hz == 1.98e9
    assert facts.power_limit_w == 700
    # the data sheet says 3.35 TB/s
    assert facts.memory_bytes_per_s == pytest.approx(3.35e12, rel=0.01)


def test_a_sample_says_what_holds_the_clock_down(h100: nvml.Nvml) -> None:
    sample = h100.sample(h100.handle(0))
    assert sample.power_w == pytest.approx(698.24)
    assert sample.clock_hz == 1.395e9
    assert sample.energy_j == pytest.approx(12_345.678)
    assert sample.throttle == ("power cap",)


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetClockInfo", "clock_hz"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
    ],
)
def test_a_function_that_the_gpu_lacks_leaves_its_number_out(
    monkeypatch: pytest.MonkeyPatch, function: str, field: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", recorded(**{function: None}))
    found = nvml.open_nvml()
    assert found is not None
    values = found.sample(found.handle(0))
    assert getattr(values, field) is None
    assert any(getattr(values, name) is not None for name in ("power_w", "clock_hz", "energy_j"))


def test_facts_of_a_gpu_that_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName")
    monkeypatch.setitem(sys.modules, "pynvml", recorded(**{name: None for name in RECORDED if name not in known}))
    found = nvml.open_nvml()
    assert found is not None
    assert found.facts(0) == nvml.GpuFacts(name="NVIDIA H100 80GB HBM3")


def test_sampling_goes_on_while_work_does(h100: nvml.Nvml) -> None:
    with h100.watching([h100.handle(0)], every_s=0.001) as found:
        pass
    assert len(found[0]) >= 1
    assert found[0][0].power_w == pytest.approx(698.24)


def test_without_the_package_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.open_nvml() is None


def test_without_a_driver_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = recorded()

    def refuse() -> None:
        raise NVMLError("driver not loaded")

    module.nvmlInit = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert nvml.open_nvml() is None


def doctor() -> dict[str, list[str]]:
    return {str(row[0]): [str(cell) for cell in row] for row in listing.doctor_table().rows}


def test_the_doctor_lists_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", recorded())
    _, found, verdict = doctor()["gpu 0"]
    for words in ("NVIDIA H100 80GB HBM3", "driver 550.54.15", "1395 of 1980 MHz", "limit 700 W"):
        assert words in found
    assert "power cap" in verdict
    idle = {"nvmlDeviceGetCurrentClocksThrottleReasons": 1}
    monkeypatch.setitem(sys.modules, "pynvml", recorded(**idle))
    assert doctor()["gpu 0"][2] == "ok"
    monkeypatch.setitem(sys.modules, "pynvml", recorded(**idle, nvmlDeviceGetMigMode=(1, 1)))
    assert "slice" in doctor()["gpu 0"][2]


def test_the_doctor_of_a_gpu_that_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName")
    monkeypatch.setitem(sys.modules, "pynvml", recorded(**{name: None for name in RECORDED if name not in known}))
    assert doctor()["gpu 0"] == ["gpu 0", "NVIDIA H100 80GB HBM3", "ok"]
    monkeypatch.setitem(sys.modules, "pynvml", recorded(nvmlDeviceGetHandleByIndex=None))
    assert doctor()["gpu 0"][1] == "does not answer"


def test_the_doctor_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(listing, "NVIDIA_DRIVER", str(tmp_path / "none"))
    assert doctor()["gpu"] == ["gpu", "none", "ok"]
    monkeypatch.setattr(listing, "NVIDIA_DRIVER", str(tmp_path))
    assert "[nvidia]" in doctor()["gpu"][2]
