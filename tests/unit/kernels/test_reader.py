"""The reader: right bytes in right places, one request per offset, and clear words when it cannot."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sandtable_kernels.compiled
from sandtable.demand.kernel import KernelContext
from sandtable.errors import ConfigError, DoesNotFit, MeasureError, NoDevice, StoreError
from sandtable_kernels.files import aio, buffers, reader
from sandtable_kernels.files.reader import DirectIOUnavailable, FlashReader
from sandtable_kernels.operations import storage_reads

KIB = 1024
FILE_BYTES = 2 << 20
BACKENDS = ["aio", "threads"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return storage_reads.ensure_file(tmp_path, FILE_BYTES, seed=3)


@pytest.fixture
def content(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sandtable_kernels.compiled, "read_loops", raising=False)
    monkeypatch.setitem(sys.modules, "sandtable_kernels.compiled.read_loops", None)


def open_or_skip(path: Path, backend: Any, **options: Any) -> FlashReader:
    """Open with direct I/O, or skip where the temporary folder or the system has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DirectIOUnavailable)
            opened = FlashReader(path, backend=backend, **options)
    except NoDevice as error:
        pytest.skip(str(error))
    if not opened.direct:
        opened.close()
        pytest.skip("the file system of the temporary folder has no direct I/O")
    return opened


def check_batch(opened: FlashReader, content: np.ndarray, size: int, n: int) -> None:
    offsets = np.random.default_rng(n).integers(0, FILE_BYTES // size, n) * size
    out = buffers.aligned_empty((n, size), np.uint8)
    rows = np.random.default_rng(1).permutation(n)
    stats = opened.read_batch(offsets, size, buffers.address(out) + rows * size)
    for row, offset in zip(rows, offsets, strict=True):
        assert np.array_equal(out[row], content[offset : offset + size])
    assert (stats.n_requests, stats.n_bytes) == (n, n * size)
    assert stats.seconds > 0
    assert stats.bytes_per_s > 0
    assert (stats.direct, stats.backend) == (opened.direct, opened.backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("concurrency", [1, 3, 64])
@pytest.mark.parametrize("size", [4 * KIB, 16 * KIB])
def test_scattered_reads(path: Path, content: np.ndarray, backend: str, concurrency: int, size: int) -> None:
    with open_or_skip(path, backend, concurrency=concurrency) as opened:
        assert opened.backend == backend
        check_batch(opened, content, size, 100)
        check_batch(opened, content, size, 1)


@pytest.mark.usefixtures("without_numba")
@pytest.mark.parametrize("backend", BACKENDS)
def test_scattered_reads_without_numba(path: Path, content: np.ndarray, backend: str) -> None:
    with open_or_skip(path, backend, concurrency=8) as opened:
        check_batch(opened, content, 4 * KIB, 200)


@pytest.mark.parametrize("backend", BACKENDS)
def test_buffered_reads_need_no_alignment(path: Path, content: np.ndarray, backend: str) -> None:
    try:
        opened = FlashReader(path, concurrency=4, direct=False, backend=backend)  # type: ignore[arg-type]
    except NoDevice as error:
        pytest.skip(str(error))
    with opened:
        assert not opened.direct
        out = np.empty(7, np.uint8)
        opened.read_batch(np.array([12345]), 7, np.array([buffers.address(out)]))
        assert np.array_equal(out, content[12345:12352])


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequential_reads_with_a_shorter_tail(path: Path, content: np.ndarray, backend: str) -> None:
    n_bytes = 300 * KIB
    out = buffers.aligned_empty((n_bytes,), np.uint8)
    with open_or_skip(path, backend) as opened:
        stats = opened.read_sequential(8 * KIB, n_bytes, buffers.address(out), chunk_bytes=64 * KIB, concurrency=4)
    assert (stats.n_requests, stats.n_bytes) == (5, n_bytes)
    assert np.array_equal(out, content[8 * KIB : 8 * KIB + n_bytes])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_is_nothing(path: Path, backend: str) -> None:
    with open_or_skip(path, backend) as opened:
        stats = opened.read_batch(np.array([], np.int64), 4096, np.array([], np.int64))
        assert (stats.n_requests, stats.n_bytes) == (0, 0)


def test_depth_is_kept_and_never_exceeded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sandtable_kernels.compiled, "read_loops", raising=False)
    monkeypatch.setitem(sys.modules, "sandtable_kernels.compiled.read_loops", None)
    now, lock, seen = [0], threading.Lock(), []
    real = aio.pread

    def slow(*args: int) -> int:
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.002)
        result = real(*args)
        with lock:
            now[0] -= 1
        return result

    monkeypatch.setattr(aio, "pread", slow)
    with FlashReader(path, concurrency=5, direct=False, backend="threads") as opened:
        out = buffers.aligned_empty((40, 4096), np.uint8)
        opened.read_batch(np.arange(40) * 4096, 4096, buffers.address(out) + np.arange(40) * 4096)
    assert max(seen) == 5
    assert len(seen) == 40


# --- what cannot be done -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size", "shift", "word"),
    [(100, 4096, 0, "offset"), (0, 5000, 0, "size"), (0, 4096, 8, "address")],
)
def test_alignment_is_checked_before_reading(path: Path, offset: int, size: int, shift: int, word: str) -> None:
    out = buffers.aligned_empty((16 * KIB,), np.uint8)
    with open_or_skip(path, "auto") as opened, pytest.raises(ConfigError, match=f"every {word} to be a multiple"):
        opened.read_batch(np.array([offset]), size, np.array([buffers.address(out) + shift]))


@pytest.mark.parametrize("offset", [FILE_BYTES, FILE_BYTES - 4096, -4096])
def test_a_read_outside_the_file_says_where(path: Path, offset: int) -> None:
    out = buffers.aligned_empty((8 * KIB,), np.uint8)
    with (
        FlashReader(path, direct=False) as opened,
        pytest.raises(StoreError, match=rf"offset {offset} lie outside"),
    ):
        opened.read_batch(np.array([offset]), 8192, np.array([buffers.address(out)]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_file_cut_short_while_open(
    path: Path, backend: str, compiled: bool, request: pytest.FixtureRequest
) -> None:
    if not compiled:
        request.getfixturevalue("without_numba")
    out = buffers.aligned_empty((64, 4096), np.uint8)
    with open_or_skip(path, backend, concurrency=8) as opened:
        os.truncate(path, 32 * 4096)
        with pytest.raises(StoreError, match=rf"{path}: reading 4096 bytes at offset \d+ gave only 0"):
            opened.read_batch(np.arange(64) * 4096, 4096, buffers.address(out) + np.arange(64) * 4096)
        # and the reader can go on
        opened.read_batch(np.arange(8) * 4096, 4096, buffers.address(out) + np.arange(8) * 4096)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failing_request_is_explained(path: Path, backend: str) -> None:
    with open_or_skip(path, backend, concurrency=4) as opened:
        out = buffers.aligned_empty((4096,), np.uint8)
        addresses = np.array([buffers.address(out), 4096, buffers.address(out)])  # nothing is mapped at 4096
        with pytest.raises(MeasureError, match="offset 4096 failed: Bad address"):
            opened.read_batch(np.arange(3) * 4096, 4096, addresses)


def test_a_device_error_names_file_and_offset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(requests: aio.Requests, depth: int) -> None:
        raise aio.ReadFailed(1, -errno.EIO)

    with FlashReader(path, direct=False) as opened:
        monkeypatch.setattr(opened._engine, "run", broken)
        with pytest.raises(MeasureError, match=rf"{path}: reading 512 bytes at offset 512 failed: Input/output"):
            opened.read_batch(np.array([0, 512]), 512, np.zeros(2, np.int64))


@pytest.mark.parametrize("concurrency", [0, 65, -1])
def test_concurrency_is_bounded(path: Path, concurrency: int) -> None:
    with pytest.raises(ConfigError, match="1 to 64"):
        FlashReader(path, concurrency=concurrency)


def test_bad_arguments(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'auto', 'aio' or 'threads'"):
        FlashReader(path, backend="uring")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="No such file"):
        FlashReader(tmp_path / "none")
    with FlashReader(path, direct=False) as opened:
        with pytest.raises(ConfigError, match="2 offsets but 1 addresses"):
            opened.read_batch(np.array([0, 1]), 1, np.array([0]))
        with pytest.raises(ConfigError, match="flat array of integers"):
            opened.read_batch(np.array([0.5]), 1, np.array([0]))
        with pytest.raises(ConfigError, match="1 byte to 1 GiB"):
            opened.read_batch(np.array([0]), 0, np.array([0]))
    opened.close()
    with pytest.raises(ConfigError, match="closed"):
        opened.read_batch(np.array([0]), 1, np.array([0]))


# --- fallbacks ---------------------------------------------------------------------------------------------


def check_fallback(path: Path, content: np.ndarray) -> None:
    with pytest.warns(DirectIOUnavailable, match="refuses direct I/O"):
        opened = FlashReader(path, concurrency=4)
    with opened:
        assert not opened.direct
        assert opened.backend == "threads"
        check_batch(opened, content, 4096, 20)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
def test_refusal_at_opening(path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(where: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(where, flags, *rest)

    monkeypatch.setattr(reader.os, "open", refusing)
    check_fallback(path, content)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
def test_refusal_at_the_first_read(path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(reader.os, "preadv", refusing)
        with pytest.warns(DirectIOUnavailable):
            opened = FlashReader(path, concurrency=2)
    with opened:
        assert not opened.direct
        check_batch(opened, content, 4096, 20)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
def test_no_native_aio_falls_back_to_threads(
    path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_or_skip(path, "auto").close()
    monkeypatch.setattr(aio, "syscall", lambda *_: -1)  # as under seccomp
    with FlashReader(path, concurrency=4) as opened:
        assert opened.direct
        assert opened.backend == "threads"
        check_batch(opened, content, 4096, 20)
    with pytest.raises(NoDevice, match="use backend 'threads'"):
        FlashReader(path, backend="aio")


# --- interruption ------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that a shell started in the background ignores interrupts: here they end what goes on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def read_forever(opened: FlashReader, offsets: np.ndarray, size: int, addresses: np.ndarray) -> None:
    while True:
        opened.read_batch(offsets, size, addresses)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupt_leaves_nothing_in_flight(
    tmp_path: Path, backend: str, compiled: bool, request: pytest.FixtureRequest
) -> None:
    if not compiled:
        request.getfixturevalue("without_numba")
    path = storage_reads.ensure_file(tmp_path, 64 << 20)
    size, n = 1 << 20, 640
    memory = buffers.aligned_empty((64, size), np.uint8)
    addresses = buffers.address(memory) + np.arange(n) % 64 * size
    offsets = np.arange(n) % 64 * size
    with open_or_skip(path, backend, concurrency=64) as opened:
        timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            read_forever(opened, offsets, size, addresses)
        memory[:] = 42
        time.sleep(0.1)
        assert (memory == 42).all()
        opened.read_batch(offsets[:4], size, addresses[:4])
        assert not (memory == 42).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_share_a_reader(path: Path, content: np.ndarray, backend: str) -> None:
    with open_or_skip(path, backend, concurrency=8) as opened, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check_batch, opened, content, 4096, 50 + i) for i in range(12)]:
            done.result()


def test_descriptors_are_given_back(path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc on this system")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with FlashReader(path, direct=False):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# --- kernels -----------------------------------------------------------------------------------------------

KERNELS = [storage_reads.RandomRead(), storage_reads.SequentialRead(), storage_reads.ColdRead()]


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_kernels_read_what_is_there(kernel: Any, tmp_path: Path) -> None:
    context = KernelContext(folder=tmp_path / "new" / "folder", seed=5)
    dims = kernel.example()
    result = kernel.run(dims, context)
    assert np.array_equal(result, kernel.reference(dims, context))
    assert kernel.cost(dims).bytes_read == result.nbytes


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_prepared_call_can_be_repeated(kernel: Any, tmp_path: Path) -> None:
    bystander = tmp_path / "mine.bin"
    bystander.write_bytes(b"x" * 100)
    context = KernelContext(folder=tmp_path, file_bytes=16 << 20)
    with kernel.prepare(kernel.example(), context) as call:
        for _ in range(3):
            call()
    assert bystander.read_bytes() == b"x" * 100
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_grids_are_distinct_points_with_a_cost(kernel: Any, quick: bool) -> None:
    grid = kernel.grid(quick=quick)
    assert len({json.dumps(point, sort_keys=True) for point in grid}) == len(grid)
    for point in grid:
        op = kernel.cost(point)
        assert op.resource == "storage"
        assert op.bytes_read >= op.shape.chunk_bytes * op.shape.concurrency


def test_random_read_has_short_and_long_batches() -> None:
    grid = storage_reads.RandomRead().grid(quick=True)
    counts = [p["n_requests"] for p in grid if (p["chunk_bytes"], p["concurrency"]) == (16 * KIB, 32)]
    assert counts[0] == 12 * 32
    assert counts[1] > 5 * counts[0]


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
def test_cold_reads_end_when_all_was_touched(tmp_path: Path) -> None:
    kernel = storage_reads.ColdRead()
    dims = {"chunk_bytes": 64 * KIB, "concurrency": 4, "n_requests": 10, "touch": "first"}
    context = KernelContext(folder=tmp_path, file_bytes=1 << 20)
    with kernel.prepare(dims, context) as call:
        call()
        with pytest.raises(MeasureError, match="have been read once"):
            call()
    assert not list(tmp_path.iterdir())
    with kernel.prepare({**dims, "touch": "again"}, context) as call:
        call()
        call()


def test_a_file_is_reused_only_at_the_right_size(tmp_path: Path) -> None:
    path = storage_reads.ensure_file(tmp_path, 1 << 20)
    stamp = path.stat().st_mtime_ns
    assert storage_reads.ensure_file(tmp_path, 1 << 20) == path
    assert path.stat().st_mtime_ns == stamp
    os.truncate(path, 4096)
    assert storage_reads.ensure_file(tmp_path, 1 << 20).stat().st_size == 1 << 20


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(DoesNotFit, match="1 MiB are free"):
        storage_reads.ensure_file(tmp_path, 1 << 30)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::sandtable_kernels.files.reader.DirectIOUnavailable")
def test_a_chunk_larger_than_the_file(tmp_path: Path) -> None:
    kernel = storage_reads.RandomRead()
    dims = {"chunk_bytes": 8 << 20, "concurrency": 1, "n_requests": 1}
    prepared = kernel.prepare(dims, KernelContext(folder=tmp_path, file_bytes=1 << 20))
    with pytest.raises(ConfigError, match="need a file larger than"):
        prepared.__enter__()


# --- fio ---------------------------------------------------------------------------------------------------


def test_fio_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(NoDevice, match="apt-get install fio"):
        storage_reads.Fio().bytes_per_s(path, [(4096, 1)], 0.1)


@pytest.mark.parametrize("noise", ["", "note: both iodepth >= 1 and synchronous I/O engine are selected\n"])
def test_fio_output_is_read(path: Path, monkeypatch: pytest.MonkeyPatch, noise: str) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        text = noise + json.dumps({"jobs": [{"read": {"bw_bytes": 123456}}]})
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/fio")
    monkeypatch.setattr("subprocess.run", answer)
    points = [(4096, 1), (16384, 32)]
    assert storage_reads.Fio().bytes_per_s(path, points, 0.5) == [123456.0, 123456.0]
    assert {"--bs=16384", "--iodepth=32", "--direct=1", "--readonly", "--runtime=500ms"} <= set(asked[1])


def test_fio_failure_is_passed_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "fio: engine libaio not loadable\n")

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/fio")
    monkeypatch.setattr("subprocess.run", answer)
    with pytest.raises(MeasureError, match="not loadable"):
        storage_reads.Fio().bytes_per_s(path, [(4096, 1)], 0.1)
