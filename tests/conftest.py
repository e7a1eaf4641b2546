"""Shared fixtures: the device library, a small calibrated machine, and where outside data lies."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sandtable.hardware import (
    Estimate,
    Evidence,
    Machine,
    Memory,
    MemoryDatasheet,
    MemoryFit,
    OpFit,
    Processor,
    ProcessorDatasheet,
    ProcessorFit,
    Storage,
    StorageDatasheet,
    StorageFit,
    library,
)
from sandtable_kernels import support

ROOT = Path(__file__).resolve().parents[1]
# a busy machine must not fail a test that is right
settings.register_profile("sandtable", deadline=None)
settings.load_profile("sandtable")


@pytest.fixture(autouse=True, scope="session")
def _small_buffers_and_wide_tables() -> Iterator[None]:
    """Kernels cycle through a few megabytes in place of four last-level caches: only benchmarks look at figures.

    Tables are as wide as in a file, whatever terminal the tests are started from.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        if "SANDTABLE_BENCH" not in os.environ:
            patch.setattr(support, "last_level_cache_bytes", lambda: 1 << 20)
        yield


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of several processes that run tests, let only one run while a test marked ``alone`` does."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent
    with (folder / "next").open("w") as waiting, (folder / "running").open("w") as running:
        # whoever comes waits behind one that waits to be alone
        fcntl.flock(waiting, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        yield
        fcntl.flock(running, fcntl.LOCK_UN)


def exactly(value: float) -> Estimate[float]:
    return Estimate[float](value=value, low=value, high=value)


def some_evidence() -> Evidence:
    return Evidence(
        date=dt.date(2026, 1, 1),
        n_points=10,
        n_samples=30,
        method="made up for a test",
        median_abs_error_frac=0.03,
        p90_abs_error_frac=0.08,
        residual_low_frac=0.9,
        residual_high_frac=1.1,
    )


def some_storage_fit() -> StorageFit:
    return StorageFit(
        first_byte_s=exactly(118e-6),
        lane_bytes_per_s=exactly(1.23e9),
        requests_per_s=exactly(156e3),
        bandwidth_bytes_per_s=exactly(6.2e9),
        sequential_bytes_per_s=exactly(6.05e9),
        knee=exactly(3.5),
        blend=exactly(1.6),
        drain=exactly(0.5),
        random_evidence=some_evidence(),
    )


def some_op(bandwidth: float = 10e9, overhead: float = 10e-6, per_item: float = 0.0) -> OpFit:
    return OpFit(
        overhead_s=exactly(overhead),
        per_item_s=exactly(per_item),
        bandwidth_bytes_per_s=exactly(bandwidth),
        evidence=some_evidence(),
    )


@pytest.fixture
def machine() -> Machine:
    """A machine whose every law is known exactly."""
    kinds = ("gemv", "gemm", "sparse_ffn", "attend", "ffn_batch", "elementwise", "activation")
    dtypes = ("float32", "bfloat16", "float16", "q8_0", "q4_0", "q4_K", "q6_K")
    source = {"datasheet": "made up for a test", "fitted": "made up for a test"}
    return Machine(
        kind="machine",
        name="test_machine",
        title="A machine for tests",
        sources={},
        processor=Processor(
            kind="processor",
            name="test_processor",
            title="CPU",
            datasheet=ProcessorDatasheet(family="cpu", cores=2, peak_flops_per_s={"float32": 1e11}),
            fitted=ProcessorFit(ops={kind: {dtype: some_op() for dtype in dtypes} for kind in kinds}),
            sources=source,
        ),
        memory=Memory(
            kind="memory",
            name="test_memory",
            title="DRAM",
            datasheet=MemoryDatasheet(technology="DDR", capacity_bytes=64e9, bandwidth_bytes_per_s=20e9),
            fitted=MemoryFit(ops={kind: some_op() for kind in ("copy", "insert", "cache_update", "memory_read")}),
            sources=source,
        ),
        storage=Storage(
            kind="storage",
            name="test_storage",
            title="SSD",
            datasheet=StorageDatasheet(interface="NVMe", capacity_bytes=1e12, sequential_read_bytes_per_s=6.05e9),
            fitted=some_storage_fit(),
            sources=source,
        ),
    )


@pytest.fixture
def reference_folder() -> Path:
    """The folder of published measurements, which is not part of the repository."""
    for candidate in (os.environ.get("SANDTABLE_REFERENCE"), ROOT.parent / "shared" / "reference"):
        if candidate is not None and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no folder of published measurements: set SANDTABLE_REFERENCE to one")


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    library.root.cache_clear()
    return tmp_path
