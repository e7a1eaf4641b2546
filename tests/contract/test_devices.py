"""Every device file of the library keeps the contract; a new file is picked up by itself."""

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

from sandtable import hardware
from sandtable.hardware import library

# the library's own files; a calibration that lies in the current folder is not one of them
FILES = {name: path for name, path in library.device_files().items() if name != library.THIS_MACHINE}
MACHINES = {name: path for name, path in library.device_files("machine").items() if name != library.THIS_MACHINE}
ACCELERATORS = library.device_files("accelerator")
PRICES = library.device_files("prices")
README = library.root() / "devices" / "README.md"


def load(name: str) -> hardware.Component:
    return library.load_file(FILES[name])


@pytest.fixture(params=sorted(FILES))
def device(request: pytest.FixtureRequest) -> hardware.Component:
    return load(request.param)


def test_there_is_a_library() -> None:
    assert len(FILES) > 100


def test_names_are_unique_in_the_whole_library() -> None:
    names = [path.stem for path in (library.root() / "devices").rglob("*.yaml")]
    assert len(names) == len(set(names))


def test_it_loads_and_is_named_as_its_file(device: hardware.Component) -> None:
    path = FILES[device.name]
    assert path.stem == device.name
    assert path.parent.name == hardware.FOLDERS[device.kind]  # type: ignore[attr-defined]


def test_sources_are_complete_and_not_stale(device: hardware.Component) -> None:
    check_sources(device)
    if isinstance(device, hardware.Accelerator):
        check_sources(device.memory)


def check_sources(device: hardware.Component) -> None:
    paths = list(hardware.number_paths(device))
    for path in paths:
        assert hardware.source_of(device, path), path
    measured = isinstance(device, hardware.Storage) and bool(device.measurements)
    assert ("measurements" in device.sources) == measured
    texts = {
        f"datasheet.{field.alias or name}"
        for name, field in type(getattr(device, "datasheet", device)).model_fields.items()
        if getattr(getattr(device, "datasheet", device), name) is not None
    }
    for source, text in device.sources.items():
        assert text.strip()
        used = source in texts or any(p == source or p.startswith(source + ".") for p in paths)
        assert used or source == "measurements", f"{source} has a source but no number"


def test_nothing_local_is_named(device: hardware.Component) -> None:
    text = FILES[device.name].read_text()
    assert not re.search(r"/work/|/home/|/tmp/|localhost|\.csv \(shared\)|shared/reference", text)


def test_writing_and_reading_back_changes_nothing(device: hardware.Component, tmp_path: Path) -> None:
    path = tmp_path / f"{device.name}.yaml"
    library.save_component(device, path)
    assert library.load_file(path) == device


def rates(parts: list[Any]) -> list[float]:
    return [rate for part in parts for rate in part.datasheet.peak_flops_per_s.values()]


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_a_machine_is_complete_and_its_roofline_sane(name: str) -> None:
    machine = load(name)
    assert isinstance(machine, hardware.Machine)
    pairs = [(machine.processor, machine.memory)]
    if machine.accelerator is not None:
        pairs.append((machine.accelerator.processor, machine.accelerator.memory))
    for processor, memory in pairs:
        assert memory.datasheet.capacity_bytes > 0
        corners = [rate / memory.datasheet.bandwidth_bytes_per_s for rate in rates([processor])]
        assert corners
        assert all(1 <= corner <= 2000 for corner in corners), corners
    assert machine.power is not None
    assert machine.power.idle_w < machine.power.max_w
    assert machine.price is not None
    assert machine.price.as_of <= dt.date.today()
    assert len(machine.components()) >= 3
    assert all(": " in guess for guess in machine.all_guesses())


@pytest.mark.parametrize("name", sorted(ACCELERATORS))
def test_an_accelerator_is_complete(name: str) -> None:
    device = load(name)
    assert isinstance(device, hardware.Accelerator)
    assert device.datasheet.family in ("gpu", "soc_gpu")
    assert device.datasheet.tdp_w
    # a memory of its own stands in its file, one that it shares with the host is a file of its own
    assert device.shares_host_memory == (device.memory.name in library.device_files("memory"))
    assert device.link.datasheet.scope == "host"
    assert device.peer_link is None or device.peer_link.datasheet.scope == "intra_node"
    corners = [rate / device.memory.datasheet.bandwidth_bytes_per_s for rate in rates([device])]
    assert all(1 <= corner <= 2000 for corner in corners), corners
    for text in device.published_as:
        found = library.accelerator_called(text)
        assert found is not None
        assert found.name == name, f"{text} names two devices"


def test_processors_are_cpus() -> None:
    found = [load(name) for name in library.device_files("processor")]
    assert all(isinstance(p, hardware.Processor) and p.datasheet.family == "cpu" for p in found)


@pytest.mark.parametrize("name", sorted({**library.device_files("processor"), **ACCELERATORS}))
def test_narrower_numbers_are_never_slower(name: str) -> None:
    processor = load(name)
    assert isinstance(processor, hardware.Processor)
    peak = processor.datasheet.peak_flops_per_s
    order: list[hardware.DType] = ["float32", "tf32", "bfloat16", "fp8", "fp4"]
    known = [peak[dtype] for dtype in order if dtype in peak]
    assert known == sorted(known)
    assert peak.get("int8", 1e99) >= peak["float32"]


@pytest.mark.parametrize("name", sorted(library.device_files("storage")))
def test_a_storage_device_is_sane(name: str) -> None:
    storage = load(name)
    assert isinstance(storage, hardware.Storage)
    sheet = storage.datasheet
    assert 1e9 < sheet.capacity_bytes < 1e15
    assert 1e8 < sheet.sequential_read_bytes_per_s < 1e11
    if sheet.random_read_per_s is not None:
        assert sheet.random_read_per_s * 4096 <= 1.05 * sheet.sequential_read_bytes_per_s
    if sheet.read_latency_s is not None:
        assert 1e-6 < sheet.read_latency_s < 0.02
    for point in storage.measurements:
        assert point.read_bytes_per_s < 1.3 * sheet.sequential_read_bytes_per_s


@pytest.mark.parametrize("name", sorted(library.device_files("storage")))
def test_a_bigger_offer_is_never_slower(name: str) -> None:
    storage = load(name)
    assert isinstance(storage, hardware.Storage)
    offers = [storage.select(variant).datasheet for variant in storage.variants]
    for small in offers:
        for big in offers:
            if big.capacity_bytes > small.capacity_bytes:
                assert big.sequential_read_bytes_per_s >= small.sequential_read_bytes_per_s
                assert (big.random_read_per_s or 0) >= (small.random_read_per_s or 0)
    for variant in storage.variants:
        assert library.load_component("storage", f"{name}@{variant}") == storage.select(variant)


@pytest.mark.parametrize("name", sorted(PRICES))
def test_a_price_list_is_dated_and_consistent(name: str) -> None:
    prices = load(name)
    assert isinstance(prices, hardware.PriceList)
    assert prices.price
    seen = set()
    for row in prices.price:
        assert row.provider == name
        assert dt.date(2020, 1, 1) < row.as_of <= dt.date.today()
        assert row.on_demand_usd_per_h or row.spot_usd_per_h
        if row.on_demand_usd_per_h and row.spot_usd_per_h:
            assert row.spot_usd_per_h < row.on_demand_usd_per_h
        assert (row.accelerator is None) == (row.n_accelerators == 0)
        key = (row.instance, row.accelerator, row.region, row.as_of)
        assert key not in seen
        seen.add(key)


def test_price_lists_are_a_selection() -> None:
    rows = [row for name in PRICES for row in load(name).price]  # type: ignore[attr-defined]
    assert 60 <= len(rows) <= 120


TABLES = {
    "every file": hardware.Component,
    "storage: datasheet": hardware.StorageDatasheet,
    "storage: variants": hardware.StorageVariant,
    "storage: measurements": hardware.StoragePoint,
    "memory: datasheet": hardware.MemoryDatasheet,
    "processor: datasheet": hardware.ProcessorDatasheet,
    "link: datasheet": hardware.LinkDatasheet,
    "stack: datasheet": hardware.StackDatasheet,
    "power": hardware.Power,
    "price": hardware.Price,
    "prices: price": hardware.PriceRow,
    "machine: accelerator": hardware.Accelerators,
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_readme_lists_exactly_the_fields(heading: str) -> None:
    fields = TABLES[heading].model_fields.items()
    expected = {field.alias or name: field.is_required() for name, field in fields}
    if heading == "every file":
        expected["kind"] = True
    assert listed_under(heading) == expected


@pytest.mark.parametrize("kind", ["machine", "accelerator"])
def test_the_readme_lists_what_is_made_of_parts(kind: str) -> None:
    common = {field.alias or name for name, field in hardware.Component.model_fields.items()} | {"kind"}
    fields = {field.alias or name: field.is_required() for name, field in hardware.KINDS[kind].model_fields.items()}
    assert listed_under(kind) == {name: needed for name, needed in fields.items() if name not in common}


def listed_under(heading: str) -> dict[str, bool]:
    """Return the fields of one table of the README, and whether each is required."""
    section = README.read_text().split(f"\n### {heading}\n", 1)[1].split("\n### ")[0].split("\n## ")[0]
    return {m[1]: bool(m[2]) for m in re.finditer(r"^\| `(\w+)`(\*?) \|", section, re.MULTILINE)}
