"""The reader against fio, paired: the disk drifts, so each reading of ours stands beside one of fio's.

SANDTABLE_BENCH_DIR names a folder on the disk to measure; without it, the temporary folder is used.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sandtable.calibration import session, this_host
from sandtable.calibration.host_timing import Settings
from sandtable.cli import calibrate_tables
from sandtable_kernels.files import buffers
from sandtable_kernels.files.reader import FlashReader
from sandtable_kernels.operations.storage_reads import Fio, ensure_file

pytestmark = [
    pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"),
    pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed (apt-get install fio)"),
]

FILE_BYTES = 2 << 30
RUNTIME_S = 2.0
PAIRS = 7


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path(os.environ.get("SANDTABLE_BENCH_DIR") or tmp_path_factory.mktemp("fio"))
    if shutil.disk_usage(folder).free < 2 * FILE_BYTES:
        pytest.skip(f"{folder} has less than 4 GiB free")
    path = ensure_file(folder, FILE_BYTES, seed=1)
    yield path
    path.unlink()


def our_bytes_per_s(reader: FlashReader, chunk_bytes: int, rng: np.random.Generator) -> float:
    """Read at random offsets for `RUNTIME_S`, in batches long enough that filling and draining vanish."""
    depth = reader.concurrency
    memory = buffers.aligned_empty((2 * depth, chunk_bytes), np.uint8)
    n = max(4096, 64 * depth)
    addresses = buffers.address(memory) + (np.arange(n) % (2 * depth)) * chunk_bytes
    n_bytes, seconds = 0, 0.0
    while seconds < RUNTIME_S:
        offsets = rng.integers(0, reader.n_bytes // chunk_bytes, n) * chunk_bytes
        stats = reader.read_batch(offsets, chunk_bytes, addresses)
        n_bytes, seconds = n_bytes + stats.n_bytes, seconds + stats.seconds
    return n_bytes / seconds


@pytest.mark.parametrize(("chunk_bytes", "depth"), [(16 << 10, 32), (256 << 10, 8)])
def test_reader_reaches_fio(
    data_file: Path, chunk_bytes: int, depth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pairs: list[tuple[float, float]] = []
    with FlashReader(data_file, concurrency=depth) as reader:
        if not reader.direct:
            pytest.skip(f"{data_file.parent} has no direct I/O")
        for turn in range(PAIRS):
            if turn % 2:
                fio = Fio().bytes_per_s(data_file, [(chunk_bytes, depth)], RUNTIME_S)[0]
                ours = our_bytes_per_s(reader, chunk_bytes, rng)
            else:
                ours = our_bytes_per_s(reader, chunk_bytes, rng)
                fio = Fio().bytes_per_s(data_file, [(chunk_bytes, depth)], RUNTIME_S)[0]
            pairs.append((ours, fio))
        backend = reader.backend
    ratio = statistics.median(ours / fio for ours, fio in pairs)
    what = f"{chunk_bytes >> 10} KiB x {depth} ({backend})"
    lines = [f"{what}: ours {ours / 1e6:.0f} MB/s, fio {fio / 1e6:.0f} MB/s" for ours, fio in pairs]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + f"\n{what}: median ratio {ratio:.3f}\n")
    assert ratio >= 0.9, f"the reader reaches only {ratio:.2f} of fio's bandwidth"


def test_the_calibrated_curve_beside_fio(tmp_path: Path) -> None:
    folder = Path(os.environ.get("SANDTABLE_BENCH_DIR", tmp_path))
    settings = Settings(folder=folder, quick=True, file_bytes=256 << 20, passes=1, budget_s=2.0)
    result = this_host.calibrate(settings)
    table = calibrate_tables.cross_check_table(session.cross_checked(result.machine, settings))
    ratios = [float(row[4]) for row in table.rows]
    assert len(ratios) > 6
    # the same device read by two programs; a factor of three is a broken reader, not noise
    assert 1 / 3 < ratios[-1] < 3
