"""Skeletons load, plan, run and keep their contract as they stand."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sandtable import contracts
from sandtable.cli import skeletons
from sandtable.demand.kernel import Kernel, KernelContext
from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.workload.seam import ExecutionContext, Workload

KINDS = ("storage", "memory", "processor", "accelerator", "link", "machine")


def load(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def only(module: ModuleType, base: type[Any]) -> Any:
    classes = [
        item for _, item in inspect.getmembers(module, inspect.isclass) if item.__module__ == module.__name__
    ]
    (found,) = [item for item in classes if issubclass(item, base)]
    return found()


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_loads_and_keeps_the_contract(in_tmp: Path, kind: str) -> None:
    path = skeletons.write("device", "my_thing", kind=kind, output=Path("my_thing.yaml"))
    component = contracts.check_device(path)
    assert component.kind == kind  # type: ignore[attr-defined]
    assert component.title == "my thing"
    assert component.guesses()
    with pytest.raises(AssertionError, match="guessed"):
        contracts.check_device(path, allow_guesses=False)


def test_a_kernel_keeps_the_contract(in_tmp: Path) -> None:
    path = skeletons.write("kernel", "my_kernel", output=Path("my_kernel.py"))
    kernel = only(load(path), Kernel)
    assert kernel.name == "my_kernel"
    contracts.check_kernel(kernel, KernelContext(folder=in_tmp))


def test_a_workload_keeps_the_contract(in_tmp: Path, machine: Machine) -> None:
    path = skeletons.write("workload", "my_workload", output=Path("my_workload.py"))
    workload = only(load(path), Workload)
    assert workload.name == "my_workload"
    checked = contracts.check_workload(workload, machine, ExecutionContext(folder=in_tmp, n_threads=1))
    assert checked.execution is not None
    assert len(checked.execution.steps) == 2


def test_an_existing_file_is_never_replaced(in_tmp: Path) -> None:
    path = Path("my_thing.yaml")
    path.write_text("mine")
    with pytest.raises(ConfigError, match="there is a file of that name already"):
        skeletons.write("device", "my_thing", output=path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["My_Drive", "1drive", "my-drive", "", "my drive", "../drive"])
def test_a_name_that_cannot_be_one(in_tmp: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        skeletons.write("device", name)
    assert list(in_tmp.iterdir()) == []


def test_an_unknown_kind_of_device(in_tmp: Path) -> None:
    with pytest.raises(ConfigError, match=r"no skeleton for a device of kind 'storag' \(did you mean 'storage'"):
        skeletons.write("device", "my_thing", kind="storag", output=Path("x.yaml"))
    assert list(in_tmp.iterdir()) == []


# --- the contracts of devices and kernels must be able to fail ---------------------------------------------

DEVICE = """\
schema: 1
kind: memory
name: {name}
title: A memory
datasheet: {{technology: DDR5, capacity: 64 GiB, bandwidth: 80 GB/s}}
sources: {sources}
"""


@pytest.mark.parametrize(
    ("name", "sources", "words"),
    [
        ("other", "{datasheet: a data sheet}", "its name is 'other'"),
        ("mine", "{datasheet: ''}", "the source of datasheet.capacity is empty"),
        ("mine", "{datasheet: a, power: b}", "power has a source but no value"),
    ],
)
def test_a_device_that_breaks_the_contract_is_found(in_tmp: Path, name: str, sources: str, words: str) -> None:
    path = Path("mine.yaml")
    path.write_text(DEVICE.format(name=name, sources=sources))
    with pytest.raises(AssertionError, match=words):
        contracts.check_device(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("return self._input(dims, context) * np.float32(3)", "differs from its reference"),
        ("return np.empty(0, np.float32)", "returns nothing"),
        ("return (self._input(dims, context) * np.float32(2))[:-1]", "returns shape"),
    ],
)
def test_a_kernel_that_breaks_the_contract_is_found(in_tmp: Path, change: str, words: str) -> None:
    path = skeletons.write("kernel", "my_kernel", output=Path("my_kernel.py"))
    text = path.read_text()
    assert "return self._input(dims, context) * np.float32(2)" in text
    path.write_text(text.replace("return self._input(dims, context) * np.float32(2)", change))
    with pytest.raises(AssertionError, match=words):
        contracts.check_kernel(only(load(path), Kernel), KernelContext(folder=in_tmp))
